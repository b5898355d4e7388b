"""The noun users hold: one index in one database.

In: a database, the name of a table, queries. Out: hits and facts. Leaves to others: every algorithm and every
statement; this module wires encoders, engine and storage together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder, backend_for, load_encoder
from colbert_sqlite.engine import plaid
from colbert_sqlite.engine.codec import ResidualCodec
from colbert_sqlite.errors import ColbertError, IndexCorrupt, ModelError, ModelMismatch, SourceError
from colbert_sqlite.indexing import ProgressCallback, build, codec_from
from colbert_sqlite.passages import DEFAULT_MAX_TOKENS, extract
from colbert_sqlite.results import Hit, Passage
from colbert_sqlite.settings import MOST_K, MOST_NDOCS, MOST_NPROBE, Html, IndexSettings, SearchSettings
from colbert_sqlite.storage.check import check
from colbert_sqlite.storage.connection import Database, atomic, connect, plain_rows, reading
from colbert_sqlite.storage.scratch import remove_scratch, scratch_path
from colbert_sqlite.storage.snapshot import Snapshot
from colbert_sqlite.storage.source import Key, Source
from colbert_sqlite.storage.store import Store, StoredCodec, drop_index, read_entry, refuse_to_replace, registered
from colbert_sqlite.timing import BuildReport

# How much wider the second attempt looks when the first found too few rows; the third scores everything.
_WIDER = 4
# Queries of one batch that share what they read, and what they may hold of centroid scores: 64 MB.
_QUERIES_AT_ONCE = 16
_SCORES_IN_MEMORY = 1 << 25


class Index:
    """A ColBERT index of one table, inside the database of that table.

    Made by :meth:`create` or :meth:`open`. Searching never writes. Use it as a context manager, or call :meth:`close`,
    when it was opened from a path. Like its connection, it belongs to the thread that made it.
    """

    def __init__(
        self, store: Store, *, owns_connection: bool, load: Callable[[bool], Encoder], backend: Callable[[], str]
    ) -> None:
        self._store = store
        self._owns_connection = owns_connection
        self._load = load
        self._backend = backend
        self._loaded: Encoder | None = None
        self._codec: tuple[str, StoredCodec, ResidualCodec] | None = None
        self.build_report: BuildReport | None = None
        """Time and memory of each stage of the build that made this object, or of its rebuild; None after open."""

    @classmethod
    def create(
        cls,
        db: Database,
        table: str,
        columns: Sequence[str],
        *,
        name: str | None = None,
        model: str | Encoder | None = None,
        nbits: int = 4,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        heading: str | None = None,
        html: Html = "auto",
        max_tokens: int | None = None,
        pool_factor: int = 1,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | None = None,
        trust_remote_code: bool = False,
        backend: str = "auto",
        progress: ProgressCallback | None = None,
        replace: bool = False,
    ) -> Index:
        """Build an index of *columns* of *table* and return it.

        The build commits as it goes: interrupt it, run it again with the same arguments, and it goes on. An index
        that is replaced stays in use until the new one is complete.

        :param db: a path, a ``sqlite3.Connection`` or a ``sqlite_utils.Database``
        :param name: name of the index; default: that of the table
        :param model: alias, folder or hub id of a ColBERT model, or an encoder; default: ``minilm``
        :param nbits: bits of residual per dimension: 1, 2, 4 or 8
        :param where: SQL condition; only rows that meet it are indexed. *params* are its named parameters
        :param heading: column, such as a title, repeated at the top of every passage of a row
        :param html: strip HTML markup: ``auto``, ``yes`` or ``no``
        :param max_tokens: longest passage in tokens; default: the model's document length, at most 256
        :param pool_factor: keep one token in so many, merging those of a passage that are most alike; needs scipy
        :param device: ``cpu``, ``cuda``, ``mps``; default: the best there is
        :param dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``, what the model computes in
        :param backend: ``torch``, ``onnx``, or ``auto``, the faster there is
        :param progress: called with a :class:`Progress` after every chunk of rows
        :raises ValueError: if an argument is out of range
        :raises IndexExists: if there is an index of that name and *replace* is not set
        :raises SourceError: if the table or a column is missing, or the table has no primary key
        :raises ModelNotFound: if the model is not on this machine and can't be fetched
        :raises ModelError: if its files are damaged, unsafe or not a ColBERT model
        :raises MissingDependency: if a package that the model, or pooling, needs is not installed
        :raises BuildInterrupted: if another process takes over the build
        """
        report = BuildReport()
        conn, owned = connect(db)
        try:
            if isinstance(columns, str):
                raise ValueError(f"columns is a list of names: [{columns!r}]")
            # All this before the model: a wrong argument should not cost the seconds of loading it.
            with plain_rows(conn):
                source = Source.inspect(conn, table, columns, heading=heading, where=where, params=params)
                name = _checked_name(source.table if name is None else name)
                refuse_to_replace(conn, name, replace)
            settings = IndexSettings(
                table=source.table,
                columns=source.columns,
                model="",
                nbits=nbits,
                where=where,
                params=dict(params or {}),
                heading=source.heading,
                html=html,
                max_tokens=max_tokens,
                pool_factor=pool_factor,
            )
            if isinstance(model, str) or model is None:
                with report.step("load"):
                    encoder = load_encoder(
                        model,
                        device=device,
                        dtype=dtype,
                        batch_size=batch_size,
                        trust_remote_code=trust_remote_code,
                        backend=backend,
                        indexing=True,
                    )
            else:
                encoder = model
            settings = dataclasses.replace(
                settings, model=encoder.name, max_tokens=_passage_tokens(max_tokens, encoder)
            )
            with plain_rows(conn):
                store = build(conn, name, source, settings, encoder, progress or _ignore, report, replace=replace)
        except BaseException:
            if owned:
                conn.close()
            raise
        index = cls(store, owns_connection=owned, load=lambda _: encoder, backend=lambda: encoder.backend)
        index.build_report = report
        return index

    @classmethod
    def open(
        cls,
        db: Database,
        name: str,
        *,
        model: str | Encoder | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | None = None,
        trust_remote_code: bool = False,
        backend: str = "auto",
    ) -> Index:
        """Return the index called *name*. The model is loaded when the first query needs it.

        :param model: where the model is now, if not under the name the index was built with
        :raises IndexNotFound: if there is no such index
        """
        conn, owned = connect(db)
        try:
            with plain_rows(conn):
                store = Store.open(conn, name)
        except BaseException:
            if owned:
                conn.close()
            raise

        def load(indexing: bool) -> Encoder:
            if model is not None and not isinstance(model, str):
                return model
            return load_encoder(
                model or store.entry.model,
                device=device,
                dtype=dtype,
                batch_size=batch_size,
                trust_remote_code=trust_remote_code,
                backend=backend,
                # Where the user names a model, that model is looked at.
                fingerprint=None if model else store.entry.model_fingerprint,
                indexing=indexing,
            )

        def describe() -> str:
            if model is not None and not isinstance(model, str):
                return model.backend
            return backend_for(
                model or store.entry.model,
                fingerprint=store.entry.model_fingerprint,
                device=device,
                dtype=dtype,
                backend=backend,
            )

        return cls(store, owns_connection=owned, load=load, backend=describe)

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Index {self.name!r} of table {self._store.entry.source_table!r}>"

    def close(self) -> None:
        """Close the connection, if it is ours."""
        if self._owns_connection:
            self._store.conn.close()

    @property
    def name(self) -> str:
        return self._store.entry.name

    @property
    def settings(self) -> IndexSettings:
        return self._store.entry.settings

    @property
    def counts(self) -> dict[str, int]:
        """Rows, rows without text, passages and tokens in the index."""
        with self._reading():
            return self._store.counts()

    @property
    def encoder(self) -> Encoder:
        """The model, loaded on first use.

        :raises ModelMismatch: if it is not the one the index was built with
        """
        return self._encoder(indexing=False)

    def _encoder(self, *, indexing: bool) -> Encoder:
        if self._loaded is None:
            kernels = Thread(target=plaid.load_kernels, args=[self._store.entry.settings.nbits])
            kernels.start()
            try:
                encoder, entry = self._load(indexing), self._store.entry
            finally:
                # A process forked meanwhile would inherit numba's lock.
                kernels.join()
            if (encoder.fingerprint, encoder.dim) != (entry.model_fingerprint, entry.dim):
                raise ModelMismatch(
                    f"index {entry.name!r} was built with {entry.model!r} (dim {entry.dim}, fingerprint "
                    f"{entry.model_fingerprint[:12]}), not {encoder.name!r} (dim {encoder.dim}, fingerprint "
                    f"{encoder.fingerprint[:12]}): pass the model it was built with, or build it again with --replace"
                )
            self._loaded = encoder
        return self._loaded

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        pks: Iterable[Any] | None = None,
        nprobe: int | None = None,
        ndocs: int | None = None,
    ) -> list[Hit]:
        """Return the *k* rows that answer *query* best, or as many as match, best first.

        :param where: SQL condition on the source table; *params* are its named parameters
        :param pks: score exactly these rows; keys that are not indexed are passed over
        :param nprobe: centroids probed per query token; this and *ndocs* default to ``SearchSettings.for_k(k)``
        :param ndocs: passages whose codes are read; a quarter of them is scored exactly
        :raises ValueError: if the query is empty, or *k*, a key or a setting is out of range
        :raises SourceError: if *where* can't be used, or the key of the table was changed
        :raises IndexNotFound: if the index was dropped meanwhile
        :raises IndexCorrupt: if stored data contradicts itself
        :raises ModelNotFound: if the model is not on this machine and can't be fetched
        :raises ModelMismatch: if it is not the one the index was built with
        """
        return self.search_many([query], k, where=where, params=params, pks=pks, nprobe=nprobe, ndocs=ndocs)[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        pks: Iterable[Any] | None = None,
        nprobe: int | None = None,
        ndocs: int | None = None,
    ) -> list[list[Hit]]:
        """Return for each query what :meth:`search` returns, all from one generation of the index.

        They are encoded in one batch, and what several of them need is read once. Arguments and errors as there.
        """
        if type(k) is not int or not 1 <= k <= MOST_K:
            raise ValueError(f"k must be a whole number from 1 to {MOST_K:,}, not {k!r}")
        if isinstance(pks, (str, bytes)):
            raise ValueError(f"pks is a list of primary keys: [{pks!r}]")
        if isinstance(queries, (str, bytes)):
            raise ValueError(f"queries is a list of texts: [{queries!r}]")
        for query in queries:
            _check_query(query)
        default = SearchSettings.for_k(k)
        settings = SearchSettings(
            nprobe=default.nprobe if nprobe is None else nprobe, ndocs=default.ndocs if ndocs is None else ndocs
        )
        if not queries:
            return []
        embeddings = self.encoder.encode_queries(queries)
        for query, embedding in zip(queries, embeddings, strict=True):
            if len(embedding) == 0:
                raise ValueError(f"model {self.encoder.name!r} leaves nothing of the query {query!r}: use other words")
        if not all(np.isfinite(embedding).all() for embedding in embeddings):
            raise ModelError(
                f"model {self.encoder.name!r} gives embeddings that are no numbers: its files are damaged, or it needs "
                "dtype float32"
            )
        with self._reading():
            return self._ranked(embeddings, k, settings, self._allowed(where, params, pks))

    def info(self) -> dict[str, Any]:
        """Return settings, counts and sizes in bytes, as plain values.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises IndexCorrupt: if its codec contradicts itself
        """
        with self._reading():
            entry, codec = self._store.entry, self._read_codec()[1]
            bytes_by_part = self._store.bytes_by_part()
            summary = _summary(self._store)
            tokens = summary["tokens"]
            total = sum(bytes_by_part.values())
            return {
                **summary,
                "heading": entry.settings.heading,
                "where": entry.settings.where,
                "params": entry.settings.params,
                "html": entry.settings.html,
                "max_tokens": entry.settings.max_tokens,
                "pool_factor": entry.settings.pool_factor,
                "key_columns": list(entry.key_columns),
                "model_fingerprint": entry.model_fingerprint,
                "backend": self._backend(),
                "n_centroids": codec.n_centroids,
                "generation": entry.generation,
                "schema_version": entry.schema_version,
                "created": entry.created,
                "updated": entry.updated,
                "bytes_by_part": bytes_by_part,
                "bytes_per_token": round(total / tokens, 2) if tokens else None,
            }

    def verify(self) -> list[str]:
        """Return a sentence per problem found in the stored data; none when the index is sound.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises SourceError: if the table is gone or its key was changed
        """
        with self._reading():
            return check(self._store, self._source())

    def rebuild(
        self,
        *,
        progress: ProgressCallback | None = None,
    ) -> dict[str, int]:
        """Train new centroids and encode every row again, with the same settings; return the counts.

        Readers keep the old index until the new one is complete.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises SourceError: if the table is gone or can no longer be indexed
        :raises BuildInterrupted: if another process takes over the build
        """
        report = BuildReport()
        with report.step("load"):
            encoder = self._encoder(indexing=True)
        with self._reading():
            entry = self._store.entry
            source = self._inspect()
        with plain_rows(self._store.conn):
            self._store = build(
                self._store.conn, entry.name, source, entry.settings, encoder, progress or _ignore, report, replace=True
            )
        self.build_report = report
        return self.counts

    def drop(self) -> None:
        """Remove the index, and what an interrupted rebuild of it left. The source table is not touched."""
        drop(self._store.conn, self.name)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One consistent view of the index as it is now, for several SELECTs."""
        conn = self._store.conn
        with plain_rows(conn), reading(conn):
            fingerprint = self._store.entry.model_fingerprint
            self._store = Store.open(conn, self.name)
            if self._store.entry.model_fingerprint != fingerprint:
                raise ModelMismatch(f"index {self.name!r} was replaced by one of another model: open it again")
            yield

    def _inspect(self, where: str | None = None, params: Mapping[str, Any] | None = None) -> Source:
        """The source table, narrowed by the index's own condition or by another."""
        settings = self.settings
        return Source.inspect(
            self._store.conn,
            settings.table,
            settings.columns,
            heading=settings.heading,
            where=settings.where if where is None else where,
            params=settings.params if where is None else params,
        )

    def _source(self, where: str | None = None, params: Mapping[str, Any] | None = None) -> Source:
        """The same, for reading: its rows must still be told apart as they were."""
        source, entry = self._inspect(where, params), self._store.entry
        if (source.keys, source.key_types) != (entry.key_columns, entry.key_types):
            raise SourceError(
                f"the primary key of table {source.table!r} was {', '.join(entry.key_columns)} when index "
                f"{self.name!r} was built, and is {', '.join(source.keys)} now: rebuild the index"
            )
        return source

    def _read_codec(self) -> tuple[StoredCodec, ResidualCodec]:
        build_id = self._store.entry.build_id
        if self._codec is None or self._codec[0] != build_id:
            stored = self._store.read_codec()
            if stored is None:
                raise IndexCorrupt(f"index {self.name!r} has no codec: build it again with --replace")
            self._codec = build_id, stored, codec_from(stored)
        return self._codec[1:]

    def _allowed(
        self, where: str | None, params: Mapping[str, Any] | None, pks: Iterable[Any] | None
    ) -> NDArray[np.int64] | None:
        allowed = None
        if where is not None:
            allowed = self._store.passage_ids_where(self._source(where, params))
        if pks is not None:
            of_keys = self._store.passage_ids_of(self._key(pk) for pk in pks)
            allowed = of_keys if allowed is None else np.intersect1d(allowed, of_keys, assume_unique=True)
        return allowed

    def _key(self, pk: Any) -> Key:
        key = tuple(pk) if isinstance(pk, (tuple, list)) else (pk,)
        columns = self._store.entry.key_columns
        if len(key) != len(columns):
            raise ValueError(
                f"a key of {self.settings.table!r} has {len(columns)} values ({', '.join(columns)}): {pk!r}"
            )
        return key

    def _ranked(
        self,
        embeddings: Sequence[NDArray[np.float32]],
        k: int,
        settings: SearchSettings,
        allowed: NDArray[np.int64] | None,
    ) -> list[list[Hit]]:
        stored, codec = self._read_codec()
        snapshot = Snapshot(self._store, stored)
        wider = SearchSettings(
            nprobe=min(_WIDER * settings.nprobe, MOST_NPROBE),
            ndocs=min(_WIDER * max(settings.ndocs, _WIDER * k), MOST_NDOCS),
        )
        longest = max(map(len, embeddings))
        at_once = max(1, min(_QUERIES_AT_ONCE, _SCORES_IN_MEMORY // (codec.n_centroids * longest)))
        ranked: list[list[Hit]] = []
        for first in range(0, len(embeddings), at_once):
            batch = embeddings[first : first + at_once]
            found = plaid.search_many(batch, codec, snapshot, settings, allowed)
            for embedding, (passage_ids, scores) in zip(batch, found, strict=True):
                hits = self._hits(passage_ids, scores, k)
                # Candidates may share rows, or rows may be gone: look wider before returning fewer than there are.
                for exhaustive in (False, True):
                    if len(hits) == k:
                        break
                    n_scored = len(passage_ids)
                    scored_all = snapshot.has_at_most(n_scored) if allowed is None else n_scored == len(allowed)
                    if scored_all or len(hits) == self._store.count_rows(allowed):
                        break
                    passage_ids, scores = plaid.search(embedding, codec, snapshot, wider, allowed, exhaustive)
                    hits = self._hits(passage_ids, scores, k)
                ranked.append(hits)
        return ranked

    def _hits(self, passage_ids: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> list[Hit]:
        entry = self._store.entry
        settings = entry.settings
        source = self._source()
        hits: list[Hit] = []
        seen: set[Key] = set()
        batch = 4 * k
        for first in range(0, len(passage_ids), batch):
            ids = passage_ids[first : first + batch].tolist()
            rows = self._store.passage_rows(ids)
            for passage_id, score in zip(ids, scores[first : first + batch].tolist(), strict=True):
                if passage_id not in rows:
                    raise IndexCorrupt(
                        f"index {self.name!r} lists passage {passage_id}, which is not there: run verify"
                    )
                place = rows[passage_id]
                if place.key in seen:
                    continue
                seen.add(place.key)
                found = source.read_whole_row(self._store.conn, place.key)
                if found is None:
                    continue
                row, raw = found
                assert settings.max_tokens is not None
                text = extract(raw.values, raw.heading, html=settings.html, max_tokens=settings.max_tokens).text
                hits.append(
                    Hit(
                        rank=len(hits) + 1,
                        score=score,
                        pk=place.key[0] if len(place.key) == 1 else place.key,
                        row=row,
                        passage=Passage(text[place.start : place.end], place.start, place.end, place.ordinal),
                        index=entry.name,
                        stale=raw.content_hash != place.content_hash,
                    )
                )
                if len(hits) == k:
                    return hits
        return hits


def list_indexes(db: Database) -> list[dict[str, Any]]:
    """Return name, state, table, columns, model, dim, nbits and counts of every index, unfinished ones too.

    An index that this release can't read has only name, state "unreadable", and the problem.
    """
    conn, owned = connect(db)
    try:
        with plain_rows(conn), reading(conn):
            found = []
            for known in registered(conn):
                try:
                    entry = read_entry(conn, known.name, known.state)
                    assert entry is not None
                    found.append(_summary(Store(conn, entry)))
                except ColbertError as error:
                    found.append({"name": known.name, "state": "unreadable", "problem": str(error)})
            return found
    finally:
        if owned:
            conn.close()


def drop(db: Database, name: str) -> None:
    """Remove an index, finished or not, of whatever version.

    :raises IndexNotFound: if there is none of that name
    """
    conn, owned = connect(db)
    try:
        with plain_rows(conn):
            known = [entry for entry in registered(conn) if entry.name.lower() == name.lower()]
            if not known:
                Store.open(conn, name)
            with atomic(conn):
                for entry in known:
                    drop_index(conn, entry.name, entry.state)
            if (path := scratch_path(conn, name)) is not None:
                remove_scratch(path)
    finally:
        if owned:
            conn.close()


def _summary(store: Store) -> dict[str, Any]:
    entry = store.entry
    return {
        "name": entry.name,
        "state": entry.state,
        "table": entry.source_table,
        "columns": [*entry.settings.columns],
        "model": entry.model,
        "dim": entry.dim,
        "nbits": entry.settings.nbits,
        **store.counts(),
        "bytes": sum(store.bytes_by_part().values()),
    }


def _check_query(query: object) -> None:
    if not isinstance(query, str):
        raise ValueError(f"a query is one text, not {query!r}")
    if not query.strip():
        raise ValueError("the query is empty")
    try:
        query.encode()
    except UnicodeEncodeError:
        raise ValueError("the query has characters that are no Unicode text: surrogates") from None


def _checked_name(name: str) -> str:
    if not name.strip() or "\0" in name:
        raise ValueError(f"an index needs a name, and {name!r} is none")
    return name


def _passage_tokens(max_tokens: int | None, encoder: Encoder) -> int:
    if max_tokens is None:
        return min(DEFAULT_MAX_TOKENS, encoder.document_length)
    if max_tokens > encoder.document_length:
        raise ValueError(
            f"max_tokens is {max_tokens}, but model {encoder.name!r} takes passages of {encoder.document_length} tokens"
        )
    return max_tokens


def _ignore(_: object) -> None:
    pass
