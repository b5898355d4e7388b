"""The triggers of an index on its source table: which it has, which it should have.

In: an index and its source. Out: triggers in the schema. Leaves to others: their text (``schema.py``), what is done
with the queue they fill.
"""

from __future__ import annotations

import sqlite3

from colbert_sqlite.storage.schema import TRIGGERS, qualified, table_name, trigger_statements
from colbert_sqlite.storage.source import Source


def expected(conn: sqlite3.Connection, index: str, source: Source) -> dict[str, str]:
    """Return names and statements of the triggers that an index of *source* should have, as the schema keeps them."""
    unique, _ = source.replaced_through(conn)
    # A condition may read any column.
    watched = None if source.where else [*source.columns, *([] if source.heading is None else [source.heading])]
    return trigger_statements(index, source.table, source.keys, watched, unique)


def installed(conn: sqlite3.Connection, index: str) -> dict[str, str]:
    """Return names and statements of the triggers that an index has."""
    names = [table_name(index, trigger) for trigger in TRIGGERS]
    places = ", ".join("?" * len(names))
    sql = f"SELECT name, sql FROM main.sqlite_master WHERE type = 'trigger' AND name COLLATE NOCASE IN ({places})"
    return dict(conn.execute(sql, names).fetchall())


def install(conn: sqlite3.Connection, index: str, statements: dict[str, str]) -> None:
    """Give an index these triggers and no others. Call inside ``atomic``."""
    if installed(conn, index) == statements:
        return
    remove(conn, index)
    for statement in statements.values():
        # Without the schema a trigger might end up on a TEMP table of the same name.
        conn.execute(statement.replace("CREATE TRIGGER ", "CREATE TRIGGER main.", 1))


def remove(conn: sqlite3.Connection, index: str) -> None:
    """Take its triggers off an index. Call inside ``atomic``."""
    for trigger in TRIGGERS:
        conn.execute(f"DROP TRIGGER IF EXISTS {qualified(table_name(index, trigger))}")
