"""The table of rows and the rows most like each: the only table of the user's that this package writes.

In: keys of rows and, for each, keys and scores of others. Out: a table with foreign keys to the source. Leaves to
others: finding what is similar.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from colbert_sqlite.errors import SourceError
from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.schema import TABLE_PREFIX, qualified, quote_identifier
from colbert_sqlite.storage.source import Key, Source


class SimilarKeys(NamedTuple):
    """A row like another, by their keys. ``rank`` counts from 1 for each ``key``."""

    key: Key
    rank: int
    related: Key
    score: float


def write_similar(conn: sqlite3.Connection, source: Source, into: str, rows: Iterable[SimilarKeys]) -> None:
    """Fill the table *into*, made if it is missing, with the rows most like each row.

    It has the key columns of the source, ``rank`` from 1, the key of the similar row with ``related_`` before its
    columns, and ``score``. What an earlier call wrote is replaced. All or nothing.

    :raises SourceError: if there is another table, or a view, of that name
    """
    with atomic(conn):
        names = _prepare(conn, source, into)
        conn.execute(f"DELETE FROM {qualified(into)}")
        conn.executemany(
            f"INSERT INTO {qualified(into)} VALUES ({', '.join('?' * len(names))})",
            ((*row.key, row.rank, *row.related, row.score) for row in rows),
        )


def try_similar(conn: sqlite3.Connection, source: Source, into: str) -> None:
    """Make sure that :func:`write_similar` can write the table *into*, and leave everything as it was.

    :raises SourceError: if there is another table, or a view, of that name
    """

    class Undo(Exception):
        pass

    try:
        with atomic(conn):
            _prepare(conn, source, into)
            raise Undo
    except Undo:
        pass


def _prepare(conn: sqlite3.Connection, source: Source, into: str) -> list[str]:
    """Make the table if it is missing; return the names of its columns."""
    if into.lower().startswith(TABLE_PREFIX):
        raise SourceError(f"{into!r} is a name that this package uses: choose another for the table of similar rows")
    there = [row[0] for row in conn.execute("SELECT name FROM pragma_table_xinfo(?, 'main')", (into,))]
    own, others = _columns(source)
    names = [*own, "rank", *others, "score"]
    if not there:
        conn.execute(_create(source, into, own, others, linked=True))
        try:
            conn.execute(f"PRAGMA main.foreign_key_check({quote_identifier(into)})").fetchall()
        except sqlite3.OperationalError:
            # The primary key compares by another collation than its column, which no foreign key can refer to.
            conn.execute(f"DROP TABLE {qualified(into)}")
            conn.execute(_create(source, into, own, others, linked=False))
    elif [name.lower() for name in there] != [name.lower() for name in names] or _is_view(conn, into):
        raise SourceError(
            f"{into!r} exists already, with other columns than {', '.join(names)}: choose another name for the table "
            "of similar rows"
        )
    return names


def _columns(source: Source) -> tuple[list[str], list[str]]:
    """What the key columns of a row, and of a row like it, are called."""
    taken = {"rank", "score"}
    own = _named(source.keys, "row_", taken) if taken & {key.lower() for key in source.keys} else [*source.keys]
    return own, _named(source.keys, "related_", {*taken, *(name.lower() for name in own)})


def _named(keys: Sequence[str], prefix: str, taken: set[str]) -> list[str]:
    """The keys with the prefix, repeated until no name is taken."""
    names = [f"{prefix}{key}" for key in keys]
    return _named(names, prefix, taken) if taken & {name.lower() for name in names} else names


def _is_view(conn: sqlite3.Connection, name: str) -> bool:
    sql = "SELECT type FROM pragma_table_list WHERE schema = 'main' AND name = ? COLLATE NOCASE"
    return bool(conn.execute(sql, (name,)).fetchone()[0] != "table")


def _create(source: Source, into: str, own: Sequence[str], others: Sequence[str], *, linked: bool) -> str:
    def listed(names: Sequence[str]) -> str:
        return ", ".join(map(quote_identifier, names))

    def declared(names: Sequence[str]) -> list[str]:
        types = zip(names, source.key_types, strict=True)
        return [f"{quote_identifier(name)} {type_} NOT NULL".replace("  ", " ") for name, type_ in types]

    keys = f"REFERENCES {quote_identifier(source.table)} ({listed(source.keys)}) ON DELETE CASCADE ON UPDATE CASCADE"
    columns = [*declared(own), "rank INTEGER NOT NULL", *declared(others), "score REAL NOT NULL"]
    columns += [f"PRIMARY KEY ({listed(own)}, rank)"]
    # A row that is deleted, or gets another key, is looked for on both sides: this is an index too.
    columns += [f"UNIQUE ({listed([*others, *own])})"]
    if linked:
        columns += [f"FOREIGN KEY ({listed(names)}) {keys}" for names in (own, others)]
    return f"CREATE TABLE {qualified(into)} (\n    " + ",\n    ".join(columns) + "\n)"
