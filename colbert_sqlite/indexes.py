"""The indexes of a database: which there are, what they are made of, and how one goes.

In: a database. Out: names, counts, tables. Leaves to others: what is in an index (``index.py``).
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from colbert_sqlite.errors import ColbertError, SourceError
from colbert_sqlite.results import IndexSummary
from colbert_sqlite.storage.connection import Database, atomic, connected, file_of, reading
from colbert_sqlite.storage.lock import remove_lock
from colbert_sqlite.storage.registry import drop_index, read_entry, registered
from colbert_sqlite.storage.schema import PARTS, table_name
from colbert_sqlite.storage.scratch import remove_scratch, scratch_path
from colbert_sqlite.storage.store import Store


class RegisteredIndex(NamedTuple):
    """What the registry says of an index, or of a build, whatever its format: "ready" or "building", of which table."""

    name: str
    state: str
    table: str


def list_indexes(db: Database) -> list[IndexSummary]:
    """Return a summary of every index, and of every build that is not finished."""
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
    """Return what is said of an index in a list of them."""
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
    """Return every index and every build that is not finished, of whatever format."""
    with connected(db) as conn:
        return tuple(RegisteredIndex(one.name, one.state, one.source_table) for one in registered(conn))


def index_tables(name: str) -> frozenset[str]:
    """Return the names of all tables that an index of that name has, or has while it is built."""
    return frozenset(table_name(name, part, building=building) for part in PARTS for building in (False, True))


def drop(db: Database, name: str) -> None:
    """Remove an index, finished or not, of whatever format.

    :raises IndexNotFound: if there is none of that name
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
    """Return the path of the database file attached to *conn* as *schema*: open an index in it by that path.

    :raises SourceError: if nothing is attached under that name, or what is attached is in memory
    """
    path = file_of(conn, schema)
    if not path:
        raise SourceError(f"the database {schema!r} is in memory: open its index through the connection that made it")
    return path
