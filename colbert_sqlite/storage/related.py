"""The table of rows and the rows most like each: the only table of the user's that this package writes.

In: keys of rows and, for each, keys and scores of others. Out: a table with foreign keys to the source. Leaves to
others: finding what is similar.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from colbert_sqlite.errors import SourceError
from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.schema import qualified, quote_identifier
from colbert_sqlite.storage.source import Key, Source

_OURS = {"rank", "score"}


def write_related(
    conn: sqlite3.Connection, source: Source, into: str, related: Iterable[tuple[Key, Sequence[tuple[Key, float]]]]
) -> int:
    """Fill the table *into*, made if it is missing, with the rows most like each row; return how many it has then.

    It has the key columns of the source, ``rank`` from 1, the key of the similar row with ``related_`` before its
    columns, and ``score``. What an earlier call wrote is replaced. All or nothing.

    :raises SourceError: if there is another table, or a view, of that name
    """
    own, others = _columns(source)
    names = [*own, "rank", *others, "score"]
    with atomic(conn):
        if not can_write_related(conn, source, into):
            for statement in _create(source, into, own, others):
                conn.execute(statement)
        conn.execute(f"DELETE FROM {qualified(into)}")
        conn.executemany(
            f"INSERT INTO {qualified(into)} VALUES ({', '.join('?' * len(names))})",
            (
                (*key, rank, *other, score)
                for key, ranked in related
                for rank, (other, score) in enumerate(ranked, start=1)
            ),
        )
        n: int = conn.execute(f"SELECT count(*) FROM {qualified(into)}").fetchone()[0]
    return n


def can_write_related(conn: sqlite3.Connection, source: Source, into: str) -> bool:
    """Return whether the table *into* is there, made by :func:`write_related` for a table of the same key.

    :raises SourceError: if there is another table, or a view, of that name
    """
    there = [row[0] for row in conn.execute("SELECT name FROM pragma_table_xinfo(?, 'main')", (into,))]
    own, others = _columns(source)
    names = [*own, "rank", *others, "score"]
    if there and ([name.lower() for name in there] != [name.lower() for name in names] or _is_view(conn, into)):
        raise SourceError(
            f"{into!r} is there already and has other columns than {', '.join(names)}: choose another name for the "
            "table of similar rows"
        )
    return bool(there)


def _columns(source: Source) -> tuple[list[str], list[str]]:
    """What the key columns of a row, and of a row like it, are called."""
    own = [name if name.lower() not in _OURS else f"row_{name}" for name in source.keys]
    prefix = "related_"
    while {f"{prefix}{name}".lower() for name in source.keys} & {name.lower() for name in own}:
        prefix += "related_"
    return own, [f"{prefix}{name}" for name in source.keys]


def _is_view(conn: sqlite3.Connection, name: str) -> bool:
    sql = "SELECT type FROM pragma_table_list WHERE schema = 'main' AND name = ? COLLATE NOCASE"
    return bool(conn.execute(sql, (name,)).fetchone()[0] != "table")


def _create(source: Source, into: str, own: Sequence[str], others: Sequence[str]) -> list[str]:
    def listed(names: Sequence[str]) -> str:
        return ", ".join(map(quote_identifier, names))

    def declared(names: Sequence[str]) -> list[str]:
        types = zip(names, source.key_types, strict=True)
        return [f"{quote_identifier(name)} {type_} NOT NULL".replace("  ", " ") for name, type_ in types]

    keys = f"REFERENCES {quote_identifier(source.table)} ({listed(source.keys)}) ON DELETE CASCADE ON UPDATE CASCADE"
    columns = [*declared(own), "rank INTEGER NOT NULL", *declared(others), "score REAL NOT NULL"]
    columns += [f"PRIMARY KEY ({listed(own)}, rank)"]
    # SQLite wants the collation of the column for a foreign key, which that of the primary key need not be.
    if not any("COLLATE" in type_ for type_ in source.key_types):
        columns += [f"FOREIGN KEY ({listed(names)}) {keys}" for names in (own, others)]
    return [
        f"CREATE TABLE {qualified(into)} (\n    " + ",\n    ".join(columns) + "\n)",
        # A row that is deleted, or gets another key, is looked for on both sides.
        f"CREATE INDEX main.{quote_identifier(f'idx_{into}_related')} ON {quote_identifier(into)} ({listed(others)})",
    ]
