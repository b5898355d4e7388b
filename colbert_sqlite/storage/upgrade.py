"""Brings an index of an earlier version of the format to this one.

In: a database. Out: tables as ``schema.py`` describes them. Leaves to others: encoding the rows of an index anew, where
what is stored can't be brought up.

=== ======================================================================================================
1   residuals without a scale: the rows must be encoded anew
2   no checksums, inverted lists of one piece, no triggers, no cells, no outliers
=== ======================================================================================================
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import IndexCorrupt
from colbert_sqlite.settings import IndexSettings
from colbert_sqlite.storage.blobs import CENTROIDS, CODES, FLOATS, GAPS, checksum, from_blob, from_blobs, unpack_ids
from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.lists import Pairs
from colbert_sqlite.storage.registry import Entry, drop_index, entry_of, prepare_registry, write_entry
from colbert_sqlite.storage.schema import (
    REGISTRY,
    SCHEMA_VERSION,
    create_queue,
    create_statements,
    qualified,
    table_name,
)
from colbert_sqlite.storage.store import Store
from colbert_sqlite.storage.stored_codec import StoredCodec

IN_PLACE_FROM = 2


class Outdated(NamedTuple):
    """An index of an earlier version."""

    name: str
    schema_version: int
    settings: IndexSettings
    model_fingerprint: str


def outdated(conn: sqlite3.Connection, name: str) -> Outdated | None:
    """Return the index of that name if an earlier version wrote it.

    :raises IndexCorrupt: if its registry entry can't be read
    """
    columns = "name, schema_version, settings, model_fingerprint"
    sql = f"SELECT {columns} FROM {qualified(REGISTRY)} WHERE name = ? AND state = 'ready'"
    row = conn.execute(sql, (name,)).fetchone()
    if row is None or not isinstance(row[1], int) or not 0 < row[1] < SCHEMA_VERSION:
        return None
    try:
        return Outdated(row[0], row[1], IndexSettings.from_json(row[2]), row[3])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IndexCorrupt(f"the registry entry of index {name!r} can't be read: {error}; drop it") from None


def upgrade_in_place(
    conn: sqlite3.Connection, name: str, cells_of: Callable[[NDArray[np.int8]], NDArray[np.uint16]]
) -> None:
    """Bring an index of version 2 to this version, in one transaction.

    :param cells_of: gives the coarse cells uint16 [n] of int8 centroid directions [n, dim]
    :raises IndexCorrupt: if what is stored contradicts itself
    """
    with atomic(conn):
        if "building" in {state for (state,) in _states(conn, name)}:
            drop_index(conn, name, "building")
        entry = _read_entry(conn, name)
        prepare_registry(conn)
        write_entry(conn, entry)
        store = Store(conn, entry)
        old = conn.execute(
            "SELECT nbits, dim, n_centroids, bucket_cutoffs, bucket_weights, avg_residual, scale_step, codes_dtype,"
            f" block_tokens, stream_tokens FROM {store.table('codec')}"
        ).fetchone()
        blobs = conn.execute(f"SELECT centroids FROM {store.table('centroids')} ORDER BY block").fetchall()
        lists = conn.execute(f"SELECT centroid, passage_ids FROM {store.table('ivf')} ORDER BY centroid").fetchall()
        if old is None:
            raise IndexCorrupt(f"index {name!r} has no codec: drop it, and build it again")
        for part in ("codec", "centroids", "ivf", "queue"):
            conn.execute(f"DROP TABLE {store.table(part)}")
        made = {table_name(entry.name, part) for part in ("codec", "centroids", "ivf", "outliers")}
        for statement in create_statements(entry.name, entry.key_columns, entry.key_types, building=False):
            if any(f"CREATE TABLE {qualified(table)} " in statement for table in made):
                conn.execute(statement)
        conn.execute(create_queue(entry.name, entry.key_columns, entry.key_types))
        _add_checksums(conn, store)
        _write_codec(store, old, [blob for (blob,) in blobs], cells_of)
        codec = store.read_codec()
        assert codec is not None
        store.codec.read_centroids(codec)
        if not all(0 <= centroid < codec.n_centroids for centroid, _ in lists):
            raise IndexCorrupt(f"inverted lists of index {name!r} are damaged: drop it, and build it again")
        # In version 2 the first gap of a list is that of its first id to 0.
        blobs = [from_blob(blob, GAPS, f"inverted list of index {name!r}") for _, blob in lists]
        ids, lengths = unpack_ids(np.array([gaps[:1].sum() for gaps in blobs], np.int64), [blob for _, blob in lists])
        centroids = np.repeat(np.array([centroid for centroid, _ in lists], np.int64), lengths)
        store.lists.write(Pairs(centroids, ids))


def _states(conn: sqlite3.Connection, name: str) -> list[tuple[str]]:
    return conn.execute(f"SELECT state FROM {qualified(REGISTRY)} WHERE name = ?", (name,)).fetchall()


def _read_entry(conn: sqlite3.Connection, name: str) -> Entry:
    cursor = conn.execute(f"SELECT * FROM {qualified(REGISTRY)} WHERE name = ?", (name,))
    columns = [column[0] for column in cursor.description]
    row = dict(zip(columns, cursor.fetchone(), strict=True))
    row.pop("checksum", None)
    try:
        entry = entry_of({**row, "schema_version": SCHEMA_VERSION, "queue_complete": 0})
        return dataclasses.replace(entry, generation=entry.generation + 1)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IndexCorrupt(f"the registry entry of index {name!r} can't be read: {error}; drop it") from None


def _add_checksums(conn: sqlite3.Connection, store: Store) -> None:
    conn.create_function("colbert_checksum", 1, checksum, deterministic=True)
    try:
        for part in ("codes", "residuals"):
            table = store.table(part)
            conn.execute(f"ALTER TABLE {table} ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0")
            conn.execute(f"UPDATE {table} SET checksum = colbert_checksum({part})")
    except sqlite3.OperationalError as error:
        if "user-defined function" not in str(error):
            raise
        raise IndexCorrupt(
            f"{part} of index {store.entry.name!r} are not all BLOBs: drop it, and build it again"
        ) from None
    finally:
        conn.create_function("colbert_checksum", 1, None)


def _write_codec(
    store: Store,
    old: tuple,  # type: ignore[type-arg]
    blobs: list[object],
    cells_of: Callable[[NDArray[np.int8]], NDArray[np.uint16]],
) -> None:
    nbits, dim, n_centroids, cutoffs, weights, avg_residual, scale_step, dtype, block_tokens, stream_tokens = old
    what = f"codec of index {store.entry.name!r}"
    values, _ = from_blobs(blobs, CENTROIDS, what)
    if (
        dtype not in CODES
        or not all(type(n) is int and n > 0 for n in (dim, n_centroids))
        or values.size != n_centroids * dim
    ):
        raise IndexCorrupt(f"the {what} contradicts itself: drop the index, and build it again")
    centroids = values.reshape(n_centroids, dim)
    store.codec.write_row(
        StoredCodec(
            nbits=nbits,
            dim=dim,
            n_centroids=n_centroids,
            bucket_cutoffs=from_blob(cutoffs, FLOATS, what),
            bucket_weights=from_blob(weights, FLOATS, what),
            avg_residual=avg_residual,
            scale_step=scale_step,
            codes_dtype=dtype,
            block_tokens=block_tokens,
            stream_tokens=stream_tokens,
            n_trained=n_centroids,
            trained_tokens=store.counts()["tokens"],
            recent_tokens=0.0,
            recent_residual=0.0,
        )
    )
    store.codec.write_centroids(centroids, cells_of(centroids), 0)
