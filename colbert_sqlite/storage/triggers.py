"""The triggers of an index on its source table: which it should have, which it has.

In: an index and its source. Out: triggers in the schema. Leaves to others: the queue they fill (``queue.py``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from colbert_sqlite.storage.schema import key_columns, qualified, quote_identifier, table_name
from colbert_sqlite.storage.source import Source, UniqueColumns

TRIGGERS = ("insert", "update", "delete", "replaceinsert", "replaceupdate")


def expected(conn: sqlite3.Connection, index: str, source: Source) -> dict[str, str]:
    """Return names and statements of the triggers that an index of *source* should have, as the schema keeps them."""
    unique, _ = source.replaced_through(conn)
    # A condition may read any column.
    watched = None if source.where else [*source.columns, *([] if source.heading is None else [source.heading])]
    return statements(index, source.table, source.keys, watched, unique)


def installed(conn: sqlite3.Connection, index: str) -> dict[str, str]:
    """Return names and statements of the triggers that an index has."""
    names = [table_name(index, trigger) for trigger in TRIGGERS]
    parameters = ", ".join("?" * len(names))
    sql = f"SELECT name, sql FROM main.sqlite_master WHERE type = 'trigger' AND name COLLATE NOCASE IN ({parameters})"
    return dict(conn.execute(sql, names).fetchall())


def install(conn: sqlite3.Connection, index: str, triggers: dict[str, str]) -> None:
    """Give an index these triggers and no others. Call inside ``atomic``.

    :param triggers: names and statements
    """
    if installed(conn, index) == triggers:
        return
    remove(conn, index)
    for statement in triggers.values():
        # Without the schema a trigger might end up on a TEMP table of the same name.
        conn.execute(statement.replace("CREATE TRIGGER ", "CREATE TRIGGER main.", 1))


def remove(conn: sqlite3.Connection, index: str) -> None:
    """Take its triggers off an index. Call inside ``atomic``."""
    for trigger in TRIGGERS:
        conn.execute(f"DROP TRIGGER IF EXISTS {qualified(table_name(index, trigger))}")


def statements(
    index: str,
    table: str,
    keys: Sequence[str],
    watched: Sequence[str] | None,
    unique: Sequence[UniqueColumns],
) -> dict[str, str]:
    """Return names and CREATE statements of the triggers that keep the queue of one index.

    :param watched: columns whose change queues a row; None queues it whatever changes
    :param unique: what else than its key may have a row replaced: SQLite runs no delete trigger then, unless
        ``recursive_triggers`` is on, so a trigger before the change looks for the rows that will go
    """
    # Names in the body of a trigger can't be qualified; they mean the trigger's own database.
    source = quote_identifier(table)
    queue = f"{quote_identifier(table_name(index, 'queue'))} ({', '.join(map(quote_identifier, key_columns(keys)))})"
    names = [quote_identifier(key) for key in keys]

    def key_of(row: str) -> str:
        values = [f"{row}.{name}" for name in names]
        # ON CONFLICT, not OR IGNORE: inside a trigger the conflict policy of the outer statement wins
        # (https://sqlite.org/lang_createtrigger.html). A key that is NULL can't be referred to.
        return (
            f"    INSERT INTO {queue} SELECT {', '.join(values)}"
            f" WHERE {' AND '.join(f'{value} IS NOT NULL' for value in values)} ON CONFLICT DO NOTHING;"
        )

    def replaced_by_new(constraint: UniqueColumns, *also: str) -> str:
        alike = (
            f"{quote_identifier(column)}{'' if collation is None else f' COLLATE {quote_identifier(collation)}'}"
            f" = new.{quote_identifier(column)}"
            for column, collation in constraint.columns
        )
        conditions = [*alike, *(f"{name} IS NOT NULL" for name in names), *also]
        return (
            f"    INSERT INTO {queue} SELECT {', '.join(names)} FROM {source} WHERE {' AND '.join(conditions)}"
            " ON CONFLICT DO NOTHING;"
        )

    changes = (
        f"(typeof(old.{name}) != typeof(new.{name}) OR old.{name} COLLATE BINARY IS NOT new.{name})"
        for name in map(quote_identifier, dict.fromkeys([*keys, *(watched or ())]))
    )
    # BINARY: the primary key may hold keys that are equal by the collation of their column.
    itself = f"NOT ({' AND '.join(f'{name} COLLATE BINARY IS old.{name}' for name in names)})"
    bodies = {
        "insert": ("AFTER INSERT", "", [key_of("new")]),
        "update": (
            "AFTER UPDATE",
            # Not UPDATE OF: that misses generated columns, and a key that is changed by its name "rowid".
            "" if watched is None else f" WHEN {' OR '.join(changes)}",
            [key_of("old"), key_of("new")],
        ),
        "delete": ("AFTER DELETE", "", [key_of("old")]),
    }
    if unique:
        bodies["replaceinsert"] = ("BEFORE INSERT", "", [replaced_by_new(columns) for columns in unique])
        bodies["replaceupdate"] = ("BEFORE UPDATE", "", [replaced_by_new(columns, itself) for columns in unique])
    triggers = {}
    for trigger, (event, condition, body) in bodies.items():
        name = table_name(index, trigger)
        lines = "\n".join(body)
        triggers[name] = f"CREATE TRIGGER {quote_identifier(name)} {event} ON {source}{condition}\nBEGIN\n{lines}\nEND"
    return triggers
