"""The indexes of a database, without opening any.

In: a database. Out: which indexes it has, and what each is made of. Leaves to others: reading them.
"""

from __future__ import annotations

from typing import Any

from colbert_sqlite.errors import ColbertError
from colbert_sqlite.storage.connection import Database, atomic, connected, reading
from colbert_sqlite.storage.lock import remove_lock
from colbert_sqlite.storage.registry import drop_index, read_entry, registered
from colbert_sqlite.storage.schema import PARTS, REGISTRY, quote_identifier, table_name
from colbert_sqlite.storage.scratch import remove_scratch, scratch_path
from colbert_sqlite.storage.store import Store

__all__ = [
    "REGISTRY",
    "drop",
    "index_tables",
    "list_indexes",
    "quote_identifier",
    "registered_names",
    "registered_sources",
    "summary",
]


def list_indexes(db: Database) -> list[dict[str, Any]]:
    """Return name, state, table, columns, heading, model, dim, nbits and counts of every index, unfinished too.

    An index that this release can't read has only name, state "unreadable", and the problem.
    """
    with connected(db) as conn, reading(conn):
        found = []
        for known in registered(conn):
            try:
                entry = read_entry(conn, known.name, known.state)
                assert entry is not None
                found.append(summary(Store(conn, entry)))
            except ColbertError as error:
                found.append({"name": known.name, "state": "unreadable", "problem": str(error)})
        return found


def registered_sources(db: Database) -> tuple[tuple[str, str, str], ...]:
    """Return name, state and source table of every index and every build in progress, of whatever version."""
    with connected(db) as conn:
        return tuple((known.name, known.state, known.source_table) for known in registered(conn))


def index_tables(name: str) -> frozenset[str]:
    """Return the names of all tables that an index of that name has, or has while it is built."""
    return frozenset(table_name(name, part, building=building) for part in PARTS for building in (False, True))


def registered_names(db: Database) -> tuple[str, ...]:
    """Return the names of all indexes in use, of whatever version."""
    with connected(db) as conn:
        return tuple(known.name for known in registered(conn) if known.state == "ready")


def drop(db: Database, name: str) -> None:
    """Remove an index, finished or not, of whatever version.

    :raises IndexNotFound: if there is none of that name
    """
    with connected(db) as conn:
        known = [entry for entry in registered(conn) if entry.name.lower() == name.lower()]
        if not known:
            Store.open(conn, name)
        with atomic(conn):
            for entry in known:
                drop_index(conn, entry.name, entry.state)
        if (path := scratch_path(conn, name)) is not None:
            remove_scratch(path)
        remove_lock(conn, name)


def summary(store: Store) -> dict[str, Any]:
    """Return what is said of an index in a list of them."""
    entry = store.entry
    return {
        "name": entry.name,
        "state": entry.state,
        "table": entry.source_table,
        "columns": [*entry.settings.columns],
        "heading": entry.settings.heading,
        "model": entry.model,
        "dim": entry.dim,
        "nbits": entry.settings.nbits,
        **store.passages.counts().to_dict(),
        "bytes": sum(store.bytes_by_part().values()),
    }
