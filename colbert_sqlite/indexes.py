"""The indexes of a database: list them, name their tables, drop one.

In: a database. Out: names, counts, tables. Leaves to others: the content of an index (``index.py``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from colbert_sqlite.errors import ColbertError, IndexNotFound, SourceError
from colbert_sqlite.results import IndexSummary
from colbert_sqlite.settings import IndexSettings
from colbert_sqlite.storage.connection import Database, atomic, connected, file_of, plain_rows, reading
from colbert_sqlite.storage.lock import remove_lock
from colbert_sqlite.storage.registry import RegisteredIndex, drop_index, read_entry, registered
from colbert_sqlite.storage.schema import PARTS, REGISTRY, TABLE_PREFIX, table_name
from colbert_sqlite.storage.scratch import remove_scratch, scratch_path
from colbert_sqlite.storage.source import Source
from colbert_sqlite.storage.store import Store


def list_indexes(db: Database) -> list[IndexSummary]:
    """Return a summary of every index and every unfinished build."""
    with connected(db) as conn, reading(conn):
        summaries = []
        for registered_index in registered(conn):
            try:
                entry = read_entry(conn, registered_index.name, registered_index.state)
                assert entry is not None
                summaries.append(summarize(Store(conn, entry)))
            except ColbertError as error:
                summaries.append(IndexSummary(name=registered_index.name, state="unreadable", problem=str(error)))
        return summaries


def summarize(store: Store) -> IndexSummary:
    """Return the summary of one index."""
    entry, counts = store.entry, store.passages.counts()
    return IndexSummary(
        name=entry.name,
        state="ready" if entry.state == "ready" else "building",
        table=entry.source_table,
        columns=tuple(entry.settings.columns),
        heading=entry.settings.heading,
        model=entry.model,
        dim=entry.dim,
        nbits=entry.settings.nbits,
        rows=counts.rows,
        rows_without_text=counts.rows_without_text,
        passages=counts.passages,
        tokens=counts.tokens,
        bytes=sum(store.bytes_by_part().values()),
    )


def registered_indexes(db: Database) -> tuple[RegisteredIndex, ...]:
    """Return every index and every unfinished build, whatever its format."""
    with connected(db) as conn:
        return tuple(registered(conn))


def names_in_use(db: Database) -> tuple[str, ...]:
    """Return the names of all indexes in use, whatever their format."""
    return tuple(index.name for index in registered_indexes(db) if index.state == "ready")


def is_index_table(table: str) -> bool:
    """Return whether a name is reserved for the tables of indexes."""
    return table.lower().startswith(TABLE_PREFIX)


def tables_of_indexes(names: Iterable[str]) -> list[str]:
    """Return the names of the registry and of all tables of these indexes, those of a build included."""
    states = (False, True)
    return [REGISTRY, *(table_name(name, part, building=state) for name in names for part in PARTS for state in states)]


def check_source(
    conn: sqlite3.Connection, table: str, columns: Sequence[str] = (), *, heading: str | None = None
) -> str:
    """Return the name that the schema has for a table to index.

    :raises SourceError: if the table or one of its columns can't be indexed
    """
    with plain_rows(conn):
        return Source.inspect(conn, table, columns, heading=heading).table


@dataclass(frozen=True, slots=True)
class UnfinishedBuild:
    """An interrupted build. ``replace`` is true if an index of that name is in use."""

    index: str
    table: str
    settings: IndexSettings
    replace: bool


def unfinished_build(conn: sqlite3.Connection, index: str) -> UnfinishedBuild:
    """Return the interrupted build of an index.

    :raises IndexNotFound: if the index has no unfinished build
    :raises IndexCorrupt: if its settings can't be read
    """
    with plain_rows(conn):
        entry = read_entry(conn, index, "building")
        in_use = {name.lower() for name in names_in_use(conn)}
    if entry is None:
        raise IndexNotFound(f"index {index!r} has no unfinished build")
    return UnfinishedBuild(entry.name, entry.source_table, entry.settings, entry.name.lower() in in_use)


def drop(db: Database, name: str) -> None:
    """Remove an index, finished or not, whatever its format.

    :raises IndexNotFound: if no index has that name
    """
    with connected(db) as conn:
        states = [entry for entry in registered(conn) if entry.name.lower() == name.lower()]
        if not states:
            Store.open(conn, name)
        with atomic(conn):
            for entry in states:
                drop_index(conn, entry.name, entry.state)
        if (path := scratch_path(conn, name)) is not None:
            remove_scratch(path)
        remove_lock(conn, name)


def attached_file(conn: sqlite3.Connection, schema: str) -> str:
    """Return the path of the database file attached as *schema*. An index in it is opened by that path.

    :raises SourceError: if no database has that name, or it is in memory
    """
    path = file_of(conn, schema)
    if not path:
        raise SourceError(f"the database {schema!r} is in memory: open its index through the connection that made it")
    return path
