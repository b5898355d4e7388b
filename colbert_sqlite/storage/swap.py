"""A build beside the index in use, and the moment they are swapped.

In: a source table, settings. Out: the tables of a build, then the same in use. Leaves to others: filling them
(``build.py``).
"""

from __future__ import annotations

import dataclasses
import sqlite3

from colbert_sqlite.errors import BuildInterrupted
from colbert_sqlite.settings import IndexSettings
from colbert_sqlite.storage import triggers
from colbert_sqlite.storage.codec import CodecTables
from colbert_sqlite.storage.codes import Codes
from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.ivf import InvertedLists
from colbert_sqlite.storage.outliers import Outliers
from colbert_sqlite.storage.passages import Passages
from colbert_sqlite.storage.registry import (
    CREATE_REGISTRY,
    Entry,
    delete_entry,
    drop_index,
    has_registry,
    now,
    read_if_possible,
    refuse_to_replace,
    registered,
    write_entry,
)
from colbert_sqlite.storage.residuals import Residuals
from colbert_sqlite.storage.schema import (
    BUILT_PARTS,
    REGISTRY,
    SCHEMA_VERSION,
    Tables,
    qualified,
    quote_identifier,
    table_name,
)
from colbert_sqlite.storage.source import Source
from colbert_sqlite.storage.store import Store

# A build goes on if it has these in common with the unfinished one.
_DECISIVE = ("key_columns", "key_types", "settings", "model_fingerprint", "dim", "source_table")


def definitions(tables: Tables) -> list[str]:
    """Return the CREATE statements of an index, or of a build of it, without the queue."""
    return [
        Passages.definition(tables),
        Codes.definition(tables),
        Residuals.definition(tables),
        *CodecTables.definitions(tables),
        InvertedLists.definition(tables),
        Outliers.definition(tables),
    ]


def begin_build(
    conn: sqlite3.Connection,
    name: str,
    source: Source,
    settings: IndexSettings,
    fingerprint: str,
    dim: int,
    *,
    build_id: str,
    replace: bool,
) -> Store:
    """Return the build in progress of equal settings, taken over by *build_id*, or begin a new one.

    :raises IndexExists: if there is an index of that name and *replace* is not set
    """
    with atomic(conn):
        refuse_to_replace(conn, name, replace)
        current = read_if_possible(conn, name, "ready")
        entry = Entry(
            name=name if current is None else current.name,
            state="building",
            schema_version=SCHEMA_VERSION,
            source_table=source.table,
            key_columns=source.keys,
            key_types=source.key_types,
            settings=settings,
            model=settings.model,
            model_fingerprint=fingerprint,
            dim=dim,
            generation=1 if current is None else current.generation + 1,
            build_id=build_id,
            created=now() if current is None else current.created,
            updated=now(),
            queue_complete=False,
        )
        unfinished = read_if_possible(conn, name, "building")
        if unfinished is not None and all(getattr(unfinished, f) == getattr(entry, f) for f in _DECISIVE):
            store = Store(conn, dataclasses.replace(unfinished, build_id=build_id))
            keeps_queue = True
        else:
            store = _new_build(conn, entry)
            keys = entry.key_columns, entry.key_types
            keeps_queue = current is not None and (current.key_columns, current.key_types) == keys
        write_entry(conn, store.entry)
        _prepare_queue(store, source, keep=keeps_queue)
        return store


def _new_build(conn: sqlite3.Connection, entry: Entry) -> Store:
    """Create the tables of a build, and drop those of another one."""
    if (entry.name.lower(), "building") in {(one.name.lower(), one.state) for one in registered(conn)}:
        drop_index(conn, entry.name, "building")
    conn.execute(CREATE_REGISTRY)
    store = Store(conn, entry)
    for statement in definitions(store.tables):
        conn.execute(statement)
    return store


def _prepare_queue(store: Store, source: Source, *, keep: bool) -> None:
    """Queue from now on what changes, so that nothing that changes during a build is missed."""
    conn, name = store.conn, store.entry.name
    if not keep or not store.queue.exists():
        triggers.remove(conn, name)
        store.queue.drop()
        store.queue.create()
    expected = store.expected_triggers(source)
    ready = read_if_possible(conn, name, "ready")
    if ready is not None and triggers.installed(conn, name) != expected:
        # If the build is interrupted, the index in use must not trust triggers that saw but a part.
        write_entry(conn, dataclasses.replace(ready, queue_complete=False))
    triggers.install(conn, name, expected)


def check_build(store: Store) -> None:
    """Make sure, inside a write transaction, that the build is still ours.

    :raises BuildInterrupted: if another process has taken it over or ended it
    """
    name = store.entry.name
    sql = f"SELECT build_id FROM {qualified(REGISTRY)} WHERE name = ? AND state = 'building'"
    row = store.conn.execute(sql, (name,)).fetchone() if has_registry(store.conn) else None
    if row is None or row[0] != store.entry.build_id:
        raise BuildInterrupted(f"another process took over the build of index {name!r}, or dropped it: this one stops")


def publish(store: Store, source: Source) -> Store:
    """Put the finished build in the place of the index in use, and return it. Call inside ``atomic``."""
    conn, name = store.conn, store.entry.name
    # Without it SQLite refuses the renames when a view of the user's is broken, and rewrites their triggers.
    (legacy,) = conn.execute("PRAGMA legacy_alter_table").fetchone()
    conn.execute("PRAGMA legacy_alter_table = ON")
    try:
        for part in BUILT_PARTS:
            final = table_name(name, part)
            conn.execute(f"DROP TABLE IF EXISTS {qualified(final)}")
            conn.execute(f"ALTER TABLE {store.table(part)} RENAME TO {quote_identifier(final)}")
    finally:
        conn.execute(f"PRAGMA legacy_alter_table = {legacy}")
    for state in ("ready", "building"):
        delete_entry(conn, name, state)
    is_watched = store.entry.settings.triggers and triggers.installed(conn, name) == store.expected_triggers(source)
    ready = dataclasses.replace(store.entry, state="ready", updated=now(), queue_complete=is_watched)
    write_entry(conn, ready)
    return Store(conn, ready)
