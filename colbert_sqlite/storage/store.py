"""Every statement about an index, as methods that take and return arrays and tuples.

In: encoded passages, codecs, keys. Out: rows of the tables ``schema.py`` creates. Leaves to others: transactions
that span several calls (``connection.atomic``), reading token data for a search (``snapshot.py``), scores.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import BuildInterrupted, IndexCorrupt, IndexExists, IndexNotFound, SchemaVersionError
from colbert_sqlite.settings import IndexSettings
from colbert_sqlite.storage.blobs import CENTROIDS, CODES, FLOATS, codes_dtype, from_blob, from_blobs, pack_ids
from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.schema import (
    CREATE_REGISTRY,
    PARTS,
    REGISTRY,
    SCHEMA_VERSION,
    create_statements,
    key_columns,
    qualified,
    quote_identifier,
    table_name,
)
from colbert_sqlite.storage.source import Key, Source

CENTROIDS_PER_BLOCK = 1024

# What a leaf page of a table holds beside the BLOB of its only row: page header, cell pointer, cell and record
# headers (https://sqlite.org/fileformat2.html), and the few bytes some builds reserve at the end of each page.
_PAGE_OVERHEAD = 64

_REGISTRY = qualified(REGISTRY)


# Larger weights of residuals, and smaller ones, come from damage: products with them would overflow.
_LARGEST_WEIGHT = 1e6


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the registry."""

    name: str
    state: str
    schema_version: int
    source_table: str
    key_columns: tuple[str, ...]
    key_types: tuple[str, ...]
    settings: IndexSettings
    model: str
    model_fingerprint: str
    dim: int
    generation: int
    build_id: str
    created: str
    updated: str


@dataclass(frozen=True, slots=True)
class StoredCodec:
    """The codec of an index as it is stored: int8 centroid directions, not yet normalised."""

    nbits: int
    dim: int
    centroids: NDArray[np.int8]
    bucket_cutoffs: NDArray[np.float32]
    bucket_weights: NDArray[np.float32]
    avg_residual: float
    scale_step: float
    codes_dtype: str
    block_tokens: int
    stream_tokens: int

    @property
    def bytes_per_token(self) -> int:
        return _bytes_per_token(self.dim, self.nbits)


class EncodedPassage(NamedTuple):
    """A compressed passage: ``codes`` uint32 [doclen], ``residuals`` uint8 [doclen, bytes_per_token]."""

    start: int
    end: int
    codes: NDArray[np.uint32]
    residuals: NDArray[np.uint8]


class EncodedRow(NamedTuple):
    """One source row, compressed; no passages when it has no text."""

    key: Key
    content_hash: bytes
    passages: list[EncodedPassage]


class PassageRow(NamedTuple):
    """Where a passage comes from."""

    key: Key
    ordinal: int
    start: int
    end: int
    content_hash: bytes


def has_registry(conn: sqlite3.Connection) -> bool:
    sql = "SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = ?"
    return conn.execute(sql, (REGISTRY,)).fetchone() is not None


class Registered(NamedTuple):
    """What can be said of an index whatever the version of its format."""

    name: str
    state: str
    schema_version: int


def registered(conn: sqlite3.Connection) -> list[Registered]:
    """Return every index, and every build in progress, of any version."""
    if not has_registry(conn):
        return []
    cursor = conn.execute(f"SELECT name, state, schema_version FROM {_REGISTRY} ORDER BY name, state DESC")
    return [Registered(*row) for row in cursor]


def read_entries(conn: sqlite3.Connection, name: str) -> list[Entry]:
    """Return the registry's rows of one index: the one in use, the one being built.

    :raises SchemaVersionError: if it was written by another version of the format
    :raises IndexCorrupt: if a row can't be read
    """
    if not has_registry(conn):
        return []
    cursor = conn.execute(
        f"SELECT name, state, schema_version, source_table, key_columns, settings, model, model_fingerprint, dim,"
        f" generation, build_id, created, updated FROM {_REGISTRY} WHERE name = ? ORDER BY state DESC",
        (name,),
    )
    entries = []
    for row in cursor.fetchall():
        name, state, version, table, keys, settings, *rest = row
        if version != SCHEMA_VERSION:
            raise SchemaVersionError(
                f"index {name!r} has schema version {version}, this release reads {SCHEMA_VERSION}: drop it, then "
                "build it again with: sqlite-utils colbert index"
            )
        try:
            if not all(isinstance(text, str) for text in (*rest[:2], *rest[4:])):
                raise ValueError("a text of it is no text")
            names, types = zip(*json.loads(keys), strict=True)
            entries.append(Entry(name, state, version, table, names, types, IndexSettings.from_json(settings), *rest))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise IndexCorrupt(f"the registry entry of index {name!r} can't be read: {error}; drop it") from None
    return entries


def _read_if_possible(conn: sqlite3.Connection, name: str, state: str) -> Entry | None:
    """Return an entry that is about to be replaced; None also for one of another version, or damaged."""
    try:
        return read_entry(conn, name, state)
    except (SchemaVersionError, IndexCorrupt):
        return None


def refuse_to_replace(conn: sqlite3.Connection, name: str, replace: bool) -> None:
    """Make sure that no index in use is replaced unasked.

    :raises IndexExists: if there is one of that name and *replace* is not set
    """
    if not replace and any(e.name.lower() == name.lower() and e.state == "ready" for e in registered(conn)):
        raise IndexExists(
            f"there is an index {name!r} already: rebuild it, replace it by one of other settings with replace=True "
            "(--replace), or give this one another name"
        )


def drop_index(conn: sqlite3.Connection, name: str, state: str) -> None:
    """Remove the tables of an index, or of its build, and their registry entry. Call inside ``atomic``."""
    for part in PARTS:
        table = qualified(table_name(name, part, building=state == "building"))
        conn.execute(f"DROP TABLE IF EXISTS {table}")
    conn.execute(f"DELETE FROM {_REGISTRY} WHERE name = ? AND state = ?", (name, state))
    if not conn.execute(f"SELECT 1 FROM {_REGISTRY} LIMIT 1").fetchone():
        conn.execute(f"DROP TABLE {_REGISTRY}")


def read_entry(conn: sqlite3.Connection, name: str, state: str = "ready") -> Entry | None:
    return next((entry for entry in read_entries(conn, name) if entry.state == state), None)


class Store:
    """The tables of one index: the ones in use, or the ones of a build in progress."""

    def __init__(self, conn: sqlite3.Connection, entry: Entry) -> None:
        self.conn = conn
        self.entry = entry
        self._building = entry.state == "building"
        self._keys = ", ".join(map(quote_identifier, key_columns(entry.key_columns)))
        self._key_equals = " AND ".join(f"{quote_identifier(key)} = ?" for key in key_columns(entry.key_columns))

    @classmethod
    def open(cls, conn: sqlite3.Connection, name: str) -> Store:
        """Return the index in use.

        :raises IndexNotFound: if there is none of that name, or only one whose build never ended
        """
        entries = read_entries(conn, name)
        for entry in entries:
            if entry.state == "ready":
                return cls(conn, entry)
        if entries:
            raise IndexNotFound(
                f"index {name!r} is not complete: its first build is running, or was interrupted and goes on when the "
                "command that began it is run again"
            )
        names = sorted({entry.name for entry in registered(conn)})
        has = f"it has {', '.join(names)}" if names else "it has none: make one with sqlite-utils colbert index"
        raise IndexNotFound(f"no index {name!r} in this database; {has}")

    def table(self, part: str) -> str:
        """Return the quoted name of one table of this index."""
        return qualified(table_name(self.entry.name, part, building=self._building))

    # A build: create, fill, put in use.

    @classmethod
    def start_build(
        cls,
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
            current = _read_if_possible(conn, name, "ready")
            now = _now()
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
                created=now if current is None else current.created,
                updated=now,
            )
            unfinished = _read_if_possible(conn, name, "building")
            same = ("key_columns", "key_types", "settings", "model_fingerprint", "dim", "source_table")
            if unfinished is not None and all(getattr(unfinished, f) == getattr(entry, f) for f in same):
                conn.execute(
                    f"UPDATE {_REGISTRY} SET build_id = ? WHERE name = ? AND state = 'building'", (build_id, name)
                )
                return cls(conn, unfinished)
            if (name.lower(), "building") in {(known.name.lower(), known.state) for known in registered(conn)}:
                drop_index(conn, name, "building")
            conn.execute(CREATE_REGISTRY)
            for statement in create_statements(entry.name, source.keys, source.key_types, building=True):
                conn.execute(statement)
            store = cls(conn, entry)
            if current is not None:
                # Ids are never used again, not even by a rebuild: whoever kept one may trust it.
                conn.execute(
                    "INSERT INTO main.sqlite_sequence (name, seq)"
                    " SELECT ?, seq FROM main.sqlite_sequence WHERE name = ?",
                    (table_name(entry.name, "passages", building=True), table_name(entry.name, "passages")),
                )
            conn.execute(
                f"INSERT INTO {_REGISTRY} (name, state, schema_version, source_table, key_columns, settings, model,"
                " model_fingerprint, dim, generation, build_id, created, updated)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    entry.name,
                    entry.state,
                    entry.schema_version,
                    entry.source_table,
                    json.dumps([*zip(entry.key_columns, entry.key_types, strict=True)]),
                    entry.settings.to_json(),
                    entry.model,
                    entry.model_fingerprint,
                    entry.dim,
                    entry.generation,
                    entry.build_id,
                    entry.created,
                    entry.updated,
                ),
            )
            return store

    def check_build(self, build_id: str) -> None:
        """Make sure, inside a write transaction, that the build is still ours.

        :raises BuildInterrupted: if another process has taken it over or ended it
        """
        sql = f"SELECT build_id FROM {_REGISTRY} WHERE name = ? AND state = 'building'"
        row = self.conn.execute(sql, (self.entry.name,)).fetchone() if has_registry(self.conn) else None
        if row is None or row[0] != build_id:
            raise BuildInterrupted(
                f"another process took over the build of index {self.entry.name!r}, or dropped it; this one stops"
            )

    def publish(self) -> Store:
        """Put the finished build in the place of the index in use, and return it. Call inside ``atomic``."""
        name = self.entry.name
        # Without it SQLite refuses the renames when a view of the user's is broken, and rewrites their triggers.
        (legacy,) = self.conn.execute("PRAGMA legacy_alter_table").fetchone()
        self.conn.execute("PRAGMA legacy_alter_table = ON")
        try:
            for part in PARTS:
                final = table_name(name, part)
                self.conn.execute(f"DROP TABLE IF EXISTS {qualified(final)}")
                self.conn.execute(f"ALTER TABLE {self.table(part)} RENAME TO {quote_identifier(final)}")
        finally:
            self.conn.execute(f"PRAGMA legacy_alter_table = {legacy}")
        self.conn.execute(f"DELETE FROM {_REGISTRY} WHERE name = ? AND state = 'ready'", (name,))
        self.conn.execute(f"UPDATE {_REGISTRY} SET state = 'ready', updated = ? WHERE name = ?", (_now(), name))
        return Store.open(self.conn, name)

    # The codec.

    def write_codec(
        self,
        *,
        nbits: int,
        centroids: NDArray[np.int8],
        bucket_cutoffs: NDArray[np.float32],
        bucket_weights: NDArray[np.float32],
        avg_residual: float,
        scale_step: float,
    ) -> None:
        """Store a trained codec; *centroids* int8 [n_centroids, dim] are directions of any length."""
        n_centroids, dim = centroids.shape
        (page_size,) = self.conn.execute("PRAGMA page_size").fetchone()
        block_tokens = max(1, (page_size - _PAGE_OVERHEAD) // _bytes_per_token(dim, nbits))
        self.conn.execute(
            f"INSERT INTO {self.table('codec')} VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (
                nbits,
                dim,
                n_centroids,
                bucket_cutoffs.astype(FLOATS).tobytes(),
                bucket_weights.astype(FLOATS).tobytes(),
                avg_residual,
                scale_step,
                codes_dtype(n_centroids),
                block_tokens,
            ),
        )
        self.conn.executemany(
            f"INSERT INTO {self.table('centroids')} VALUES (?, ?)",
            (
                (i, centroids[first : first + CENTROIDS_PER_BLOCK].astype(CENTROIDS).tobytes())
                for i, first in enumerate(range(0, n_centroids, CENTROIDS_PER_BLOCK))
            ),
        )

    def read_codec(self) -> StoredCodec | None:
        """Return the codec; None while a build has not trained it yet.

        :raises IndexCorrupt: if sizes contradict each other
        """
        row = self.conn.execute(
            "SELECT nbits, dim, n_centroids, bucket_cutoffs, bucket_weights, avg_residual, scale_step, codes_dtype,"
            f" block_tokens, stream_tokens FROM {self.table('codec')}"
        ).fetchone()
        if row is None:
            return None
        nbits, dim, n_centroids, cutoffs, weights, avg_residual, scale_step, dtype, block_tokens, stream_tokens = row
        blobs = self.conn.execute(f"SELECT centroids FROM {self.table('centroids')} ORDER BY block").fetchall()
        name = self.entry.name
        centroids, _ = from_blobs([blob for (blob,) in blobs], CENTROIDS, f"centroids of index {name!r}")
        bucket_cutoffs = from_blob(cutoffs, FLOATS, f"bucket_cutoffs of {name!r}").astype(np.float32)
        bucket_weights = from_blob(weights, FLOATS, f"bucket_weights of {name!r}").astype(np.float32)
        sound = (
            all(type(n) is int for n in (nbits, dim, n_centroids, block_tokens, stream_tokens))
            and nbits in (1, 2, 4, 8)
            and dim == self.entry.dim
            and centroids.size == n_centroids * dim > 0
            and len(bucket_weights) == len(bucket_cutoffs) + 1 == 1 << nbits
            and isinstance(scale_step, float)
            # Residuals of unit vectors; written so that NaN is refused too.
            and 0 <= (largest_weight := float(np.abs(bucket_weights).max())) < _LARGEST_WEIGHT
            and (largest_weight == 0 or largest_weight > 1 / _LARGEST_WEIGHT)
            and 0 < scale_step < _LARGEST_WEIGHT
            and dtype in CODES
            and 0 < block_tokens <= 1 << 16
            and 0 <= stream_tokens < 1 << 40
        )
        if not sound:
            raise IndexCorrupt(f"the codec of index {name!r} contradicts itself: rebuild the index")
        return StoredCodec(
            nbits=nbits,
            dim=dim,
            centroids=centroids.astype(np.int8, copy=False).reshape(n_centroids, dim),
            bucket_cutoffs=bucket_cutoffs,
            bucket_weights=bucket_weights,
            avg_residual=avg_residual,
            scale_step=scale_step,
            codes_dtype=dtype,
            block_tokens=block_tokens,
            stream_tokens=stream_tokens,
        )

    # Rows and their passages.

    def content_hash(self, key: Key) -> bytes | None:
        """Return the content hash a row was indexed with; None if it is not indexed."""
        row = self.conn.execute(
            f"SELECT content_hash FROM {self.table('passages')} WHERE {self._key_equals} AND ordinal = 0", key
        ).fetchone()
        return None if row is None else row[0]

    def missing_keys(self, source: Source, limit: int) -> list[Key]:
        """Return keys of source rows that are not indexed, at most *limit* of them."""
        keys = ", ".join(map(quote_identifier, source.keys))
        indexed = f"SELECT {self._keys} FROM {self.table('passages')} WHERE ordinal = 0"
        sql = (
            f"SELECT * FROM (SELECT {keys} FROM {source.from_where()}) WHERE ({keys}) NOT IN ({indexed}) LIMIT {limit}"
        )
        return self.conn.execute(sql, dict(source.params)).fetchall()

    def vanished_keys(self, source: Source) -> list[Key]:
        """Return the keys of indexed rows that are gone from the source or left its condition."""
        keys = ", ".join(map(quote_identifier, source.keys))
        sql = (
            f"SELECT {self._keys} FROM {self.table('passages')} WHERE ordinal = 0"
            f" EXCEPT SELECT {keys} FROM {source.from_where()}"
        )
        return self.conn.execute(sql, dict(source.params)).fetchall()

    def append(self, rows: Sequence[EncodedRow]) -> None:
        """Add rows that are not indexed yet. Call inside ``atomic``."""
        codec = self.read_codec()
        assert codec is not None
        dtype = CODES[codec.codes_dtype]
        position = codec.stream_tokens
        residuals = []
        insert = (
            f'INSERT INTO {self.table("passages")} ({self._keys}, ordinal, start, "end", doclen, residual_start,'
            f" content_hash) VALUES ({', '.join('?' * len(self.entry.key_columns))}, ?, ?, ?, ?, ?, ?)"
        )
        insert_codes = f"INSERT INTO {self.table('codes')} VALUES (?, ?)"
        for row in rows:
            if not row.passages:
                self.conn.execute(insert, (*row.key, 0, 0, 0, 0, position, row.content_hash))
            for ordinal, passage in enumerate(row.passages):
                doclen = len(passage.codes)
                cursor = self.conn.execute(
                    insert, (*row.key, ordinal, passage.start, passage.end, doclen, position, row.content_hash)
                )
                self.conn.execute(insert_codes, (cursor.lastrowid, passage.codes.astype(dtype).tobytes()))
                residuals.append(passage.residuals.tobytes())
                position += doclen
        self._append_residuals(codec, b"".join(residuals))
        self.conn.execute(f"UPDATE {self.table('codec')} SET stream_tokens = ?", (position,))

    def _append_residuals(self, codec: StoredCodec, data: bytes) -> None:
        size = codec.block_tokens * codec.bytes_per_token
        block, offset = divmod(codec.stream_tokens * codec.bytes_per_token, size)
        table = self.table("residuals")
        if offset:
            row = self.conn.execute(f"SELECT residuals FROM {table} WHERE block = ?", (block,)).fetchone()
            if row is None or len(row[0]) != offset:
                raise IndexCorrupt(f"the last block of residuals of index {self.entry.name!r} is damaged: rebuild it")
            data = row[0] + data
        self.conn.executemany(
            f"REPLACE INTO {table} VALUES (?, ?)",
            ((block + i, data[first : first + size]) for i, first in enumerate(range(0, len(data), size))),
        )

    def delete(self, keys: Iterable[Key]) -> None:
        """Remove rows from a build in progress, before it has inverted lists. Call inside ``atomic``."""
        codec = self.read_codec()
        assert codec is not None
        passages = self.table("passages")
        for key in keys:
            found = self.conn.execute(
                f"SELECT passage_id, residual_start, doclen FROM {passages} WHERE {self._key_equals}", key
            ).fetchall()
            for passage_id, start, doclen in found:
                self.conn.execute(f"DELETE FROM {passages} WHERE passage_id = ?", (passage_id,))
                self.conn.execute(f"DELETE FROM {self.table('codes')} WHERE passage_id = ?", (passage_id,))
                self._free_residuals(codec, passage_id, start, start + doclen)

    def _free_residuals(self, codec: StoredCodec, passage_id: int, start: int, end: int) -> None:
        # Ids and stream positions grow together, so the neighbours by id are the neighbours in the stream.
        passages = self.table("passages")
        (before,) = self.conn.execute(
            f"SELECT residual_start + doclen FROM {passages} WHERE passage_id < ? ORDER BY passage_id DESC LIMIT 1",
            (passage_id,),
        ).fetchone() or (0,)
        (after,) = self.conn.execute(
            f"SELECT residual_start FROM {passages} WHERE passage_id > ? ORDER BY passage_id LIMIT 1", (passage_id,)
        ).fetchone() or (codec.stream_tokens,)
        first_free = -(-min(before, start) // codec.block_tokens)
        end_free = max(after, end) // codec.block_tokens
        self.conn.execute(
            f"DELETE FROM {self.table('residuals')} WHERE block >= ? AND block < ?", (first_free, end_free)
        )

    def iter_codes(self, codec: StoredCodec) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]]:
        """Yield (passage ids, doclens, codes) of all passages, a bounded number of tokens at a time."""
        cursor = self.conn.execute(f"SELECT passage_id, codes FROM {self.table('codes')} ORDER BY passage_id")
        dtype = CODES[codec.codes_dtype]
        while batch := cursor.fetchmany(4096):
            codes, offsets = from_blobs([blob for _, blob in batch], dtype, f"codes of index {self.entry.name!r}")
            yield np.array([passage_id for passage_id, _ in batch], np.int64), np.diff(offsets), codes

    def write_inverted_lists(self, lists: Iterable[tuple[int, NDArray[np.int64]]]) -> None:
        """Store, for each centroid, the ascending ids of the passages that have a token in it."""
        self.conn.executemany(
            f"REPLACE INTO {self.table('ivf')} VALUES (?, ?)", ((centroid, pack_ids(ids)) for centroid, ids in lists)
        )

    def clear_inverted_lists(self) -> None:
        self.conn.execute(f"DELETE FROM {self.table('ivf')}")

    # Keys and passages, for searching.

    def passage_rows(self, passage_ids: Sequence[int]) -> dict[int, PassageRow]:
        """Return where these passages come from."""
        cursor = self.conn.execute(
            f'SELECT passage_id, ordinal, start, "end", content_hash, {self._keys} FROM {self.table("passages")}'
            " WHERE passage_id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(passage_ids)),),
        )
        return {row[0]: PassageRow(tuple(row[5:]), row[1], row[2], row[3], row[4]) for row in cursor}

    def passage_ids_where(self, source: Source) -> NDArray[np.int64]:
        """Return the sorted ids of the passages whose row meets the condition of *source*."""
        names = [(quote_identifier(key), quote_identifier(f"key {i}")) for i, key in enumerate(source.keys)]
        ours = map(quote_identifier, key_columns(self.entry.key_columns))
        # In FROM the condition sees no column of ours, which it might otherwise take for one of its own.
        sql = (
            f"SELECT passage_id FROM (SELECT {', '.join(f'{key} AS {alias}' for key, alias in names)}"
            f" FROM {source.from_where()}) AS matching JOIN {self.table('passages')} AS p"
            f" ON {' AND '.join(f'p.{key} = matching.{alias}' for key, (_, alias) in zip(ours, names, strict=True))}"
            " WHERE p.doclen > 0 ORDER BY passage_id"
        )
        return _ids(self.conn.execute(sql, dict(source.params)))

    def passage_ids_of(self, keys: Iterable[Key]) -> NDArray[np.int64]:
        """Return the sorted ids of the passages of these rows.

        :raises ValueError: if a key is nothing that SQLite can store
        """
        sql = f"SELECT passage_id FROM {self.table('passages')} WHERE doclen > 0 AND {self._key_equals}"
        found: set[int] = set()
        for key in keys:
            try:
                found.update(row[0] for row in self.conn.execute(sql, key))
            except (OverflowError, sqlite3.InterfaceError, sqlite3.ProgrammingError) as error:
                raise ValueError(f"{key!r} can't be a key: {error}") from None
        return np.array(sorted(found), np.int64)

    def count_rows(self, passage_ids: NDArray[np.int64] | None) -> int:
        """Return how many rows these passages, or all of them, come from."""
        if passage_ids is None:
            sql = f"SELECT count(*) FROM {self.table('passages')} WHERE ordinal = 0 AND doclen > 0"
            n: int = self.conn.execute(sql).fetchone()[0]
            return n
        sql = (
            f"SELECT count(*) FROM (SELECT DISTINCT {self._keys} FROM {self.table('passages')}"
            " WHERE passage_id IN (SELECT value FROM json_each(?)))"
        )
        (n,) = self.conn.execute(sql, (json.dumps(passage_ids.tolist()),)).fetchone()
        return n

    def counts(self) -> dict[str, int]:
        """Return how much is indexed: rows, rows without text, passages, tokens."""
        row = self.conn.execute(
            "SELECT count(*) FILTER (WHERE ordinal = 0), count(*) FILTER (WHERE doclen = 0),"
            f" count(*) FILTER (WHERE doclen > 0), coalesce(sum(doclen), 0) FROM {self.table('passages')}"
        ).fetchone()
        return dict(zip(("rows", "rows_without_text", "passages", "tokens"), row, strict=True))

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of each table's pages, its automatic indexes included.

        Where SQLite was compiled without ``dbstat``, the bytes of the values alone.
        """
        sizes = {}
        for part in PARTS:
            name = table_name(self.entry.name, part, building=self._building)
            try:
                # In an aggregate, pageno is the number of pages; pgsize overflows at 4 GB.
                (size,) = self.conn.execute(
                    "SELECT sum(pageno) * (SELECT page_size FROM pragma_page_size) FROM dbstat WHERE aggregate = TRUE"
                    " AND name IN (SELECT name FROM main.sqlite_master WHERE tbl_name = ?)",
                    (name,),
                ).fetchone()
            except sqlite3.OperationalError:
                columns = [row[1] for row in self.conn.execute("SELECT * FROM pragma_table_info(?, 'main')", (name,))]
                lengths = " + ".join(f"coalesce(length(CAST({quote_identifier(c)} AS BLOB)), 0)" for c in columns)
                (size,) = self.conn.execute(f"SELECT sum({lengths}) FROM {self.table(part)}").fetchone()
            sizes[part] = size or 0
        return sizes


def _bytes_per_token(dim: int, nbits: int) -> int:
    """A byte of scale, and the packed buckets."""
    return 1 + -(-dim * nbits // 8)


def _ids(cursor: sqlite3.Cursor) -> NDArray[np.int64]:
    return np.fromiter((row[0] for row in cursor), np.int64)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
