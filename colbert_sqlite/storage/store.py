"""The tables of one index, as methods that take and return arrays and tuples.

In: encoded passages, codecs, keys. Out: rows of the tables ``schema.py`` creates. Leaves to others: transactions
that span several calls (``connection.atomic``), reading token data for a search (``postings.py``), scores. Codec, token
stream and inverted lists have files of their own.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import BuildInterrupted, IndexCorrupt, IndexNotFound
from colbert_sqlite.progress import IndexCounts
from colbert_sqlite.settings import IndexSettings
from colbert_sqlite.storage import triggers
from colbert_sqlite.storage.blobs import CODES, HALVES, checksum, from_blob, from_blobs, verified
from colbert_sqlite.storage.codec import CodecTables, StoredCodec
from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.ivf import PASSAGE_MASK, InvertedLists, Pairs
from colbert_sqlite.storage.registry import (
    Entry,
    drop_index,
    has_registry,
    now,
    read_entry,
    read_if_possible,
    refuse_to_replace,
    registered,
    table_exists,
    write_entry,
)
from colbert_sqlite.storage.residuals import TokenStream
from colbert_sqlite.storage.schema import (
    BUILT_PARTS,
    CREATE_REGISTRY,
    PARTS,
    REGISTRY,
    SCHEMA_VERSION,
    Tables,
    create_queue,
    create_statements,
    key_columns,
    qualified,
    quote_identifier,
    table_name,
)
from colbert_sqlite.storage.source import Key, Source

_REGISTRY = qualified(REGISTRY)

# Tokens that count as added lately: beyond so many, the older ones count half as much.
RECENT_TOKENS = 1 << 17


class Outlier(NamedTuple):
    """A token far from every centroid: its place in its passage, and its embedding float16 [dim]."""

    position: int
    embedding: NDArray[np.float16]


class EncodedPassage(NamedTuple):
    """A compressed passage: ``codes`` uint32 [doclen], ``residuals`` uint8 [doclen, bytes_per_token]."""

    start: int
    end: int
    codes: NDArray[np.uint32]
    residuals: NDArray[np.uint8]
    outliers: Sequence[Outlier] = ()


class EncodedRow(NamedTuple):
    """One source row, compressed; no passages when it has no text.

    ``residual`` is the sum of the mean absolute residuals of its tokens.
    """

    key: Key
    content_hash: bytes
    passages: list[EncodedPassage]
    residual: float = 0.0

    @property
    def n_tokens(self) -> int:
        return sum(len(passage.codes) for passage in self.passages)


class PassageRow(NamedTuple):
    """Where a passage comes from."""

    key: Key
    ordinal: int
    start: int
    end: int
    content_hash: bytes


class Store:
    """The tables of one index: the ones in use, or the ones of a build in progress."""

    def __init__(self, conn: sqlite3.Connection, entry: Entry) -> None:
        self.conn = conn
        self.entry = entry
        self._tables = Tables(conn, entry.name, entry.state == "building")
        self.codec = CodecTables(self._tables, entry.dim)
        self.stream = TokenStream(self._tables)
        self.lists = InvertedLists(self._tables)
        self._keys = ", ".join(map(quote_identifier, key_columns(entry.key_columns)))
        self._key_equals = " AND ".join(f"{quote_identifier(key)} = ?" for key in key_columns(entry.key_columns))

    @classmethod
    def open(cls, conn: sqlite3.Connection, name: str) -> Store:
        """Return the index in use.

        :raises IndexNotFound: if there is none of that name, or only one whose build never ended
        """
        entry = read_entry(conn, name)
        if entry is not None:
            return cls(conn, entry)
        names = sorted({known.name for known in registered(conn)})
        if name.lower() in map(str.lower, names):
            raise IndexNotFound(
                f"index {name!r} is not complete: its first build is running, or was interrupted and goes on when the "
                "command that began it is run again"
            )
        has = f"it has {', '.join(names)}" if names else "it has none: make one with sqlite-utils colbert index"
        raise IndexNotFound(f"no index {name!r} in this database; {has}")

    def table(self, part: str) -> str:
        """Return the quoted name of one table of this index."""
        return self._tables.quoted(part)

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
            same = ("key_columns", "key_types", "settings", "model_fingerprint", "dim", "source_table")
            if unfinished is not None and all(getattr(unfinished, f) == getattr(entry, f) for f in same):
                store = cls(conn, dataclasses.replace(unfinished, build_id=build_id))
                write_entry(conn, store.entry)
                store._prepare_queue(source, keep=True)
                return store
            if (name.lower(), "building") in {(known.name.lower(), known.state) for known in registered(conn)}:
                drop_index(conn, name, "building")
            conn.execute(CREATE_REGISTRY)
            for statement in create_statements(entry.name, source.keys, source.key_types, building=True):
                conn.execute(statement)
            store = cls(conn, entry)
            # Ids are never used again, not even by a rebuild: whoever kept one may trust it.
            conn.execute(
                "INSERT INTO main.sqlite_sequence (name, seq) SELECT ?, seq FROM main.sqlite_sequence"
                " WHERE name = ? AND seq BETWEEN 0 AND ?",
                (table_name(entry.name, "passages", building=True), table_name(entry.name, "passages"), PASSAGE_MASK),
            )
            write_entry(conn, entry)
            keys = entry.key_columns, entry.key_types
            store._prepare_queue(source, keep=current is not None and (current.key_columns, current.key_types) == keys)
            return store

    def _prepare_queue(self, source: Source, *, keep: bool) -> None:
        """Queue from now on what changes, so that nothing that changes during a build is missed."""
        entry, queue = self.entry, self.table("queue")
        if not keep or not self.has_queue():
            triggers.remove(self.conn, entry.name)
            self.conn.execute(f"DROP TABLE IF EXISTS {queue}")
            self.create_queue()
        wanted = self.expected_triggers(source)
        ready = read_if_possible(self.conn, entry.name, "ready")
        if ready is not None and triggers.installed(self.conn, entry.name) != wanted:
            # If the build is interrupted, the index in use must not trust triggers that saw but a part.
            write_entry(self.conn, dataclasses.replace(ready, queue_complete=False))
        triggers.install(self.conn, entry.name, wanted)

    def expected_triggers(self, source: Source) -> dict[str, str]:
        """Return the triggers this index should have on its table, none if it is to have none."""
        return triggers.expected(self.conn, self.entry.name, source) if self.entry.settings.triggers else {}

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

    def publish(self, source: Source) -> Store:
        """Put the finished build in the place of the index in use, and return it. Call inside ``atomic``."""
        name = self.entry.name
        # Without it SQLite refuses the renames when a view of the user's is broken, and rewrites their triggers.
        (legacy,) = self.conn.execute("PRAGMA legacy_alter_table").fetchone()
        self.conn.execute("PRAGMA legacy_alter_table = ON")
        try:
            for part in BUILT_PARTS:
                final = table_name(name, part)
                self.conn.execute(f"DROP TABLE IF EXISTS {qualified(final)}")
                self.conn.execute(f"ALTER TABLE {self.table(part)} RENAME TO {quote_identifier(final)}")
        finally:
            self.conn.execute(f"PRAGMA legacy_alter_table = {legacy}")
        self.conn.execute(f"DELETE FROM {_REGISTRY} WHERE name = ? AND state = 'ready'", (name,))
        self.conn.execute(f"DELETE FROM {_REGISTRY} WHERE name = ? AND state = 'building'", (name,))
        watched = self.entry.settings.triggers and triggers.installed(self.conn, name) == self.expected_triggers(source)
        ready = dataclasses.replace(self.entry, state="ready", updated=now(), queue_complete=watched)
        write_entry(self.conn, ready)
        return Store(self.conn, ready)

    def check_ready(self) -> Store:
        """Return the index as it is now, inside a write transaction; it must still be the one that was opened.

        :raises IndexNotFound: if it was dropped
        :raises BuildInterrupted: if it was built anew
        """
        store = Store.open(self.conn, self.entry.name)
        if store.entry.build_id != self.entry.build_id:
            raise BuildInterrupted(f"index {self.entry.name!r} was built anew meanwhile; this command stops")
        return store

    def is_being_built(self) -> bool:
        """Whether there is an unfinished build beside this index, of the same settings."""
        unfinished = read_if_possible(self.conn, self.entry.name, "building")
        return unfinished is not None and unfinished.settings == self.entry.settings

    def update_entry(self, **changes: Any) -> None:
        """Note a change of the index, and of some of its registry entry. Call inside ``atomic``."""
        self.entry = dataclasses.replace(self.entry, generation=self.entry.generation + 1, updated=now(), **changes)
        write_entry(self.conn, self.entry)

    # Rows and their passages.

    def content_hash(self, key: Key) -> bytes | None:
        """Return the content hash a row was indexed with; None if it is not indexed."""
        row = self.conn.execute(
            f"SELECT content_hash FROM {self.table('passages')} WHERE {self._key_equals} AND ordinal = 0", key
        ).fetchone()
        return None if row is None else row[0]

    def missing_keys(self, source: Source, limit: int = -1) -> list[Key]:
        """Return keys of source rows that are not indexed, at most *limit* of them if it is not negative."""
        keys = ", ".join(map(quote_identifier, source.keys))
        indexed = f"SELECT {self._keys} FROM {self.table('passages')} WHERE ordinal = 0"
        sql = (
            f"SELECT * FROM (SELECT {keys} FROM {source.from_where(source.has_key)})"
            f" WHERE ({source.compared_keys}) NOT IN ({indexed}) LIMIT {limit}"
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

    def append(self, rows: Sequence[EncodedRow], *, recent: bool = False) -> Pairs:
        """Add rows that are not indexed yet, and return what is to be added to the inverted lists.

        Call inside ``atomic``.

        :param recent: count their tokens as added lately
        """
        codec = self.codec.load()
        dtype = CODES[codec.codes_dtype]
        position = codec.stream_tokens
        residuals = []
        centroids, owners = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        insert = (
            f'INSERT INTO {self.table("passages")} ({self._keys}, ordinal, start, "end", doclen, residual_start,'
            f" content_hash) VALUES ({', '.join('?' * len(self.entry.key_columns))}, ?, ?, ?, ?, ?, ?)"
        )
        insert_codes = f"INSERT INTO {self.table('codes')} VALUES (?, ?, ?)"
        insert_outlier = f"INSERT INTO {self.table('outliers')} VALUES (?, ?, ?, ?)"
        for row in rows:
            if not row.passages:
                self.conn.execute(insert, (*row.key, 0, 0, 0, 0, position, row.content_hash))
            for ordinal, passage in enumerate(row.passages):
                doclen = len(passage.codes)
                passage_id = self.conn.execute(
                    insert, (*row.key, ordinal, passage.start, passage.end, doclen, position, row.content_hash)
                ).lastrowid
                if passage_id is None or passage_id > PASSAGE_MASK:
                    raise IndexCorrupt(f"index {self.entry.name!r} has run out of passage ids: drop it, then build it")
                codes = passage.codes.astype(dtype).tobytes()
                self.conn.execute(insert_codes, (passage_id, codes, checksum(codes)))
                for outlier in passage.outliers:
                    embedding = outlier.embedding.astype(HALVES).tobytes()
                    self.conn.execute(insert_outlier, (passage_id, outlier.position, embedding, checksum(embedding)))
                residuals.append(passage.residuals.tobytes())
                distinct = np.unique(passage.codes).astype(np.int64)
                centroids.append(distinct)
                owners.append(np.full(len(distinct), passage_id, np.int64))
                position += doclen
        self.stream.append(codec, b"".join(residuals))
        changes: dict[str, Any] = {"stream_tokens": position}
        if recent:
            n_recent = codec.recent_tokens + sum(row.n_tokens for row in rows)
            residual = codec.recent_residual + sum(row.residual for row in rows)
            share = 0.5 if n_recent > RECENT_TOKENS else 1.0
            changes |= {"recent_tokens": share * n_recent, "recent_residual": share * residual}
        self.codec.update(dataclasses.replace(codec, **changes))
        return Pairs(np.concatenate(centroids), np.concatenate(owners))

    def delete(self, keys: Iterable[Key]) -> Pairs:
        """Remove rows, and return what is to be removed from the inverted lists. Call inside ``atomic``.

        :raises IndexCorrupt: if codes of them are damaged
        """
        codec = self.codec.load()
        passages, codes = self.table("passages"), self.table("codes")
        centroids, owners = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for key in keys:
            found = self.conn.execute(
                f"SELECT passage_id, residual_start, doclen, codes, checksum FROM {passages}"
                f" LEFT JOIN {codes} USING (passage_id) WHERE {self._key_equals}",
                key,
            ).fetchall()
            for passage_id, start, doclen, blob, check in found:
                if doclen:
                    what = f"codes of index {self.entry.name!r}"
                    distinct = np.unique(from_blob(verified([(blob, check)], what)[0], CODES[codec.codes_dtype], what))
                    centroids.append(distinct.astype(np.int64))
                    owners.append(np.full(len(distinct), passage_id, np.int64))
                self.stream.free(codec, passage_id, start, doclen)
                self.forget_passage(passage_id)
        return Pairs(np.concatenate(centroids), np.concatenate(owners))

    def forget_passage(self, passage_id: int) -> None:
        """Remove a passage from all tables but inverted lists and residuals. Call inside ``atomic``."""
        for part in ("passages", "codes", "outliers"):
            self.conn.execute(f"DELETE FROM {self.table(part)} WHERE passage_id = ?", (passage_id,))

    # Growing.

    def count_outliers(self) -> int:
        n: int = self.conn.execute(f"SELECT count(*) FROM {self.table('outliers')}").fetchone()[0]
        return n

    def take_outliers(self, codec: StoredCodec) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16]]:
        """Remove all outliers and return them: passage ids and positions int64 [n], embeddings float16 [n, dim].

        Call inside ``atomic``.

        :raises IndexCorrupt: if they are damaged
        """
        outliers = self.table("outliers")
        rows = self.conn.execute(
            f"SELECT embedding, checksum, passage_id, position FROM {outliers} ORDER BY passage_id, position"
        ).fetchall()
        what = f"outliers of index {self.entry.name!r}"
        values, _ = from_blobs(verified(rows, what), HALVES, what)
        places = [place for row in rows for place in row[2:]]
        if len(values) != len(rows) * codec.dim or not all(type(place) is int and place >= 0 for place in places):
            raise IndexCorrupt(f"{what} are damaged: run verify, then repair")
        self.conn.execute(f"DELETE FROM {outliers}")
        return (
            np.array([row[2] for row in rows], np.int64),
            np.array([row[3] for row in rows], np.int64),
            values.astype(np.float16, copy=False).reshape(-1, codec.dim),
        )

    def recode(
        self,
        passage_ids: NDArray[np.int64],
        positions: NDArray[np.int64],
        codes: NDArray[np.uint32],
        residuals: NDArray[np.uint8],
        *,
        less_residual: float,
    ) -> None:
        """Give some tokens other codes and residuals, in codes, residuals and inverted lists. Call inside ``atomic``.

        :param passage_ids: int64 [n], rising; *positions* int64 [n] are those of the tokens in their passages
        :param less_residual: by how much the sum of the mean absolute residuals of the tokens added lately falls
        :raises IndexCorrupt: if passages are missing or damaged
        """
        codec = self.codec.load()
        dtype, what = CODES[codec.codes_dtype], f"codes of index {self.entry.name!r}"
        removed, added = [Pairs.at(np.empty(0, np.int64))], [Pairs.at(np.empty(0, np.int64))]
        for passage_id in np.unique(passage_ids).tolist():
            mine = slice(*np.searchsorted(passage_ids, [passage_id, passage_id + 1]))
            row = self.conn.execute(
                f"SELECT codes, checksum, residual_start, doclen FROM {self.table('codes')}"
                f" JOIN {self.table('passages')} USING (passage_id) WHERE passage_id = ?",
                (passage_id,),
            ).fetchone()
            if row is None:
                raise IndexCorrupt(f"{what} are damaged: run verify, then repair")
            before = from_blob(verified([row], what)[0], dtype, what)
            start, doclen = row[2:]
            if (
                len(before) != doclen
                or positions[mine].max() >= doclen
                or type(start) is not int
                or not 0 <= start <= codec.stream_tokens - doclen
            ):
                raise IndexCorrupt(f"{what} are damaged: run verify, then repair")
            after = before.copy()
            after[positions[mine]] = codes[mine]
            blob = after.tobytes()
            self.conn.execute(
                f"UPDATE {self.table('codes')} SET codes = ?, checksum = ? WHERE passage_id = ?",
                (blob, checksum(blob), passage_id),
            )
            self.stream.overwrite(codec, start + positions[mine], residuals[mine])
            for pairs, there, here in ((removed, before, after), (added, after, before)):
                distinct = np.setdiff1d(there, here).astype(np.int64)
                pairs.append(Pairs(distinct, np.full(len(distinct), passage_id, np.int64)))
        self.lists.change(Pairs.joined(removed), Pairs.joined(added))
        residual = max(0.0, codec.recent_residual - less_residual)
        self.codec.update(dataclasses.replace(codec, recent_residual=residual))

    def compact(self, after: int, end: int) -> tuple[int, int] | None:
        """Move the residuals of some passages to where those before them end, so that no space is left between.

        Call inside ``atomic``, first with 0 and 0, then with what was returned, until that is None: then the stream
        ends behind the last passage.

        :raises IndexCorrupt: if residuals are damaged
        """
        codec = self.codec.load()
        place = self.stream.compact(codec, after, end)
        if place is None:
            self.stream.end_at(codec, end)
            self.codec.update(dataclasses.replace(codec, stream_tokens=end))
        return place

    def iter_codes(self, codec: StoredCodec) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]]:
        """Yield (passage ids, doclens, codes) of all passages, a bounded number of tokens at a time.

        :raises IndexCorrupt: if codes are damaged
        """
        cursor = self.conn.execute(f"SELECT codes, checksum, passage_id FROM {self.table('codes')} ORDER BY passage_id")
        dtype, what = CODES[codec.codes_dtype], f"codes of index {self.entry.name!r}"
        while batch := cursor.fetchmany(4096):
            codes, offsets = from_blobs(verified(batch, what), dtype, what)
            yield np.array([row[2] for row in batch], np.int64), np.diff(offsets), codes

    # Repair.

    def missing_parts(self) -> list[str]:
        """Return the parts whose tables are not there."""
        return [part for part in PARTS if not table_exists(self.conn, self._tables.name(part))]

    def keys_of(self, passage_ids: Iterable[int]) -> list[Key]:
        """Return the keys of the rows that these passages belong to."""
        sql = f"SELECT DISTINCT {self._keys} FROM {self.table('passages')} WHERE passage_id = ?"
        return [row for passage_id in passage_ids for row in self.conn.execute(sql, (passage_id,))]

    def strays(self, keys: Iterable[Key]) -> set[int]:
        """Return ids of passages of these rows that are neither the first of a row nor follow one of the same row."""
        sql = f"SELECT passage_id, ordinal FROM {self.table('passages')} WHERE {self._key_equals}"
        strays: set[int] = set()
        for key in keys:
            places = dict(self.conn.execute(sql, key).fetchall())
            strays.update(passage_id for passage_id, n in places.items() if n != 0 and passage_id - 1 not in places)
        return strays

    def forget(self, keys: Iterable[Key], passage_ids: Iterable[int]) -> None:
        """Remove all passages of rows, and others, unread, from all tables but inverted lists and residuals.

        Call inside ``atomic``.
        """
        sql = f"SELECT passage_id FROM {self.table('passages')} WHERE {self._key_equals}"
        of_rows = {row[0] for key in keys for row in self.conn.execute(sql, key)}
        for passage_id in of_rows.union(passage_ids):
            self.forget_passage(passage_id)

    # The queue.

    def has_queue(self) -> bool:
        return table_exists(self.conn, table_name(self.entry.name, "queue"))

    def create_queue(self) -> None:
        """Create the queue where it is missing. Call inside ``atomic``."""
        self.conn.execute(create_queue(self.entry.name, self.entry.key_columns, self.entry.key_types))

    def enqueue(self, keys: Iterable[Key]) -> None:
        """Note that rows may have changed. Call inside ``atomic``."""
        places = ", ".join("?" * len(self.entry.key_columns))
        self.conn.executemany(f"INSERT INTO {self.table('queue')} VALUES ({places}) ON CONFLICT DO NOTHING", keys)

    def dequeue(self, keys: Iterable[Key]) -> None:
        """Forget that rows may have changed. Call inside ``atomic``."""
        self.conn.executemany(f"DELETE FROM {self.table('queue')} WHERE {self._key_equals}", keys)

    def queued(self, after: Key | None, limit: int) -> list[Key]:
        """Return keys in the queue, in their order, beginning behind *after*."""
        beyond = "" if after is None else f" WHERE ({self._keys}) > ({', '.join('?' * len(after))})"
        sql = f"SELECT {self._keys} FROM {self.table('queue')}{beyond} ORDER BY {self._keys} LIMIT {limit}"
        return self.conn.execute(sql, after or ()).fetchall()

    def is_queued(self, key: Key) -> bool:
        sql = f"SELECT 1 FROM {self.table('queue')} WHERE {self._key_equals}"
        return self.conn.execute(sql, key).fetchone() is not None

    def queue_length(self) -> int:
        n: int = self.conn.execute(f"SELECT count(*) FROM {self.table('queue')}").fetchone()[0]
        return n

    # Keys and passages, for searching.

    def passage_rows(self, passage_ids: Sequence[int]) -> dict[int, PassageRow]:
        """Return where these passages come from.

        :raises IndexCorrupt: if their places are no numbers
        """
        cursor = self.conn.execute(
            f'SELECT passage_id, ordinal, start, "end", content_hash, {self._keys} FROM {self.table("passages")}'
            " WHERE passage_id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(passage_ids)),),
        )
        rows = cursor.fetchall()
        if not all(type(place) is int and place >= 0 for row in rows for place in row[1:4]):
            raise IndexCorrupt(f"passages of index {self.entry.name!r} are damaged: run verify, then repair")
        return {row[0]: PassageRow(tuple(row[5:]), row[1], row[2], row[3], row[4]) for row in rows}

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

    def indexed_keys(self, passage_ids: NDArray[np.int64] | None) -> list[Key]:
        """Return the keys of the rows of these passages, or of all rows with text, in the order they were indexed."""
        only = "" if passage_ids is None else " AND passage_id IN (SELECT value FROM json_each(?))"
        given = () if passage_ids is None else (json.dumps(passage_ids.tolist()),)
        return self.conn.execute(
            f"SELECT {self._keys} FROM {self.table('passages')} WHERE doclen > 0{only}"
            f" GROUP BY {self._keys} ORDER BY min(passage_id)",
            given,
        ).fetchall()

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

    def counts(self) -> IndexCounts:
        """Return how much is indexed.

        :raises IndexCorrupt: if doclens are no numbers
        """
        row = self.conn.execute(
            "SELECT count(*) FILTER (WHERE ordinal = 0), count(*) FILTER (WHERE doclen = 0),"
            f" count(*) FILTER (WHERE doclen > 0), coalesce(sum(doclen), 0) FROM {self.table('passages')}"
        ).fetchone()
        if type(row[-1]) is not int or row[-1] < 0:
            raise IndexCorrupt(f"passages of index {self.entry.name!r} are damaged: run verify, then repair")
        return IndexCounts(*row)

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of each table's pages, its automatic indexes included.

        Where SQLite was compiled without ``dbstat``, the bytes of the values alone.
        """
        sizes = {}
        for part in PARTS:
            name = self._tables.name(part)
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


def _ids(cursor: sqlite3.Cursor) -> NDArray[np.int64]:
    return np.fromiter((row[0] for row in cursor), np.int64)
