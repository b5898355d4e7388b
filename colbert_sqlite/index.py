"""The noun users hold: one index in one database.

In: a database, the name of a table, queries. Out: hits and facts. Leaves to others: every algorithm and every
statement; this module wires encoders, engine and storage together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.build import build
from colbert_sqlite.catalogue import drop, summary
from colbert_sqlite.codec import CodecCache
from colbert_sqlite.encoders import Encoder, load_encoder
from colbert_sqlite.encoders.queries import check_queries, encode_queries
from colbert_sqlite.errors import (
    MissingDependency,
    ModelError,
    ModelMismatch,
    ModelNotFound,
    SourceError,
)
from colbert_sqlite.explain import Explainer, Explanation
from colbert_sqlite.growth import drift, why_rebuild
from colbert_sqlite.model import Model
from colbert_sqlite.optimize import optimize
from colbert_sqlite.passages import DEFAULT_MAX_TOKENS
from colbert_sqlite.progress import BuildReport, IndexCounts, Progress, ProgressCallback, SyncResult, no_progress
from colbert_sqlite.results import Hit
from colbert_sqlite.searching import Searcher
from colbert_sqlite.settings import Backend, Fusion, Html, IndexSettings, Mode, ModelOptions, SearchSettings
from colbert_sqlite.storage import triggers
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.connection import Database, atomic, connect, file_of, plain_rows, reading
from colbert_sqlite.storage.fts import FullText
from colbert_sqlite.storage.lock import writing
from colbert_sqlite.storage.postings import Checked, StoredPostings
from colbert_sqlite.storage.registry import refuse_to_replace
from colbert_sqlite.storage.similar_table import try_similar, write_similar
from colbert_sqlite.storage.source import Key, Source, pk_of
from colbert_sqlite.storage.store import Store
from colbert_sqlite.sync import sync
from colbert_sqlite.verify import repair, verify


class Index:
    """A ColBERT index of one table, inside the database of that table.

    Made by :meth:`create` or :meth:`open`. Searching never writes. Use it as a context manager, or call :meth:`close`,
    when it was opened from a path. Like its connection, it belongs to the thread that made it.
    """

    def __init__(self, store: Store, model: Model, *, owns_connection: bool) -> None:
        self._store = store
        self._owns_connection = owns_connection
        self._model = model
        self._checked = Checked()
        self.database = file_of(store.conn)
        """Path of the file that the index is in; empty for a database in memory."""
        self._codecs = CodecCache()
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
        backend: Backend = "auto",
        triggers: bool = True,
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
        :param triggers: let triggers on the table note which rows change; without them :meth:`sync` compares every row
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
                triggers=triggers,
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
            with writing(conn, name, progress):
                store = build(conn, name, source, settings, encoder, progress or no_progress, report, replace=replace)
                index = cls(store, Model(store.entry, encoder, ModelOptions()), owns_connection=owned)
                index._catch_up(source, progress, report)
        except BaseException:
            if owned:
                conn.close()
            raise
        index.build_report = report
        return index

    def _catch_up(self, source: Source, progress: ProgressCallback | None, report: BuildReport) -> None:
        """Bring up the rows that changed while the index was built, if triggers noted them."""
        if self.settings.triggers:
            self._sync(source, progress, report)

    def _sync(
        self, source: Source, progress: ProgressCallback | None, report: BuildReport, *, full: bool = False
    ) -> SyncResult:
        return sync(self._store, source, self._model, self._codecs, progress or no_progress, report, full=full)

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
        backend: Backend = "auto",
    ) -> Index:
        """Return the index called *name*. The model is loaded when the first query needs it.

        :param model: where the model is now, if not under the name the index was built with
        :raises IndexNotFound: if there is no such index
        """
        options = ModelOptions(
            device=device, dtype=dtype, batch_size=batch_size, trust_remote_code=trust_remote_code, backend=backend
        )
        conn, owned = connect(db)
        try:
            with plain_rows(conn):
                store = Store.open(conn, name)
        except BaseException:
            if owned:
                conn.close()
            raise

        return cls(store, Model(store.entry, model, options), owns_connection=owned)

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
    def model_fingerprint(self) -> str:
        """Hex digest of what decides the embeddings; indexes with the same one can share an encoder."""
        return self._store.entry.model_fingerprint

    @property
    def is_loaded(self) -> bool:
        """Whether the model has been loaded."""
        return self._model.is_loaded

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The primary key of the source table."""
        return self._store.entry.key_columns

    def has_blob_keys(self) -> bool:
        """Return whether rows have BLOBs in their primary keys."""
        with self._reading():
            return self._source().has_blob_keys(self._store.conn)

    def has_fts(self) -> bool:
        """Return whether the table has an FTS5 index of its own, which the modes fts and hybrid need."""
        with self._reading():
            try:
                FullText.of(self._store.conn, self._source())
            except SourceError:
                return False
            return True

    def spelled(self, columns: Sequence[str]) -> list[str]:
        """Return names of columns of the source table as its schema spells them.

        :raises SourceError: if there is no such column
        """
        with plain_rows(self._store.conn):
            return list(Source.inspect(self._store.conn, self.settings.table, columns).columns)

    @property
    def counts(self) -> dict[str, int]:
        """Rows, rows without text, passages and tokens in the index."""
        with self._reading():
            return self._store.passages.counts().to_dict()

    @property
    def encoder(self) -> Encoder:
        """The model, loaded on first use.

        :raises ModelMismatch: if it is not the one the index was built with
        """
        return self._model.load()

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        pks: Iterable[Any] | None = None,
        mode: Mode | None = None,
        fusion: Fusion | None = None,
        weight: float | None = None,
        threshold: float | None = None,
        nprobe: int | None = None,
        ndocs: int | None = None,
    ) -> list[Hit]:
        """Return the *k* rows that answer *query* best, or as many as match, best first.

        :param where: SQL condition on the source table; *params* are its named parameters
        :param pks: score exactly these rows; keys that are not indexed are passed over
        :param mode: ``colbert``; ``fts``: of the rows that the table's own FTS5 index finds, in ColBERT's order;
            ``hybrid``: by both. FTS5 finds rows with any word of the query
        :param fusion: how hybrid joins both rankings: ``rrf``, by reciprocal ranks, or ``weighted``, by scores
        :param weight: share of ColBERT in hybrid, from 0 to 1; default 0.7
        :param threshold: leave out hits whose ``normalized_score`` is lower
        :param nprobe: centroids probed per query token; this and *ndocs* default to ``SearchSettings.for_k(k)``
        :param ndocs: passages whose codes are read; a quarter of them is scored exactly, in mode fts of as many rows
        :raises ValueError: if the query is empty, or *k*, a key or a setting is out of range
        :raises SourceError: if *where* can't be used, the table has no FTS5 index, or its key was changed
        :raises IndexNotFound: if the index was dropped meanwhile
        :raises IndexCorrupt: if stored data contradicts itself
        :raises ModelNotFound: if the model is not on this machine and can't be fetched
        :raises ModelMismatch: if it is not the one the index was built with
        """
        return self.search_many(
            [query],
            k,
            where=where,
            params=params,
            pks=pks,
            mode=mode,
            fusion=fusion,
            weight=weight,
            threshold=threshold,
            nprobe=nprobe,
            ndocs=ndocs,
        )[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        pks: Iterable[Any] | None = None,
        mode: Mode | None = None,
        fusion: Fusion | None = None,
        weight: float | None = None,
        threshold: float | None = None,
        nprobe: int | None = None,
        ndocs: int | None = None,
    ) -> list[list[Hit]]:
        """Return for each query what :meth:`search` returns, all from one generation of the index.

        They are encoded in one batch, and what several of them need is read once. Arguments and errors as there.
        """
        settings = SearchSettings.for_k(
            k, mode=mode, fusion=fusion, weight=weight, threshold=threshold, nprobe=nprobe, ndocs=ndocs
        )
        pks = _list_of_keys(pks)
        check_queries(queries)
        if not queries:
            return []
        return self.search_encoded(
            queries, encode_queries(self.encoder, queries), k, settings, where=where, params=params, pks=pks
        )

    def search_encoded(
        self,
        queries: Sequence[str],
        embeddings: Sequence[NDArray[np.float32]],
        k: int,
        settings: SearchSettings,
        *,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        pks: Iterable[Any] | None = None,
    ) -> list[list[Hit]]:
        """Return what :meth:`search_many` returns, of queries that are encoded already; the model is not loaded.

        :param embeddings: float32 [n_query_tokens, dim] of each query, as the model of this index gives them
        :param settings: ``SearchSettings.for_k(k)``, or others
        :raises ShapeError: if an embedding has no tokens, or another ``dim`` than the index
        """
        if not queries:
            return []
        with self.searcher(where, params, pks) as (searcher, allowed):
            ranked = searcher.search(queries, embeddings, k, settings, allowed)
            return [searcher.hits(rows, len(query)) for rows, query in zip(ranked, embeddings, strict=True)]

    @contextmanager
    def searcher(
        self,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        pks: Iterable[Any] | None = None,
    ) -> Iterator[tuple[Searcher, NDArray[np.int64] | None]]:
        """One state of the index, ready to be searched, and the passages that a filter allows; None for all."""
        with self._reading():
            yield self._searcher(), self._allowed(where, params, _list_of_keys(pks))

    def similar(
        self,
        pk: Any,
        k: int = 10,
        *,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        pks: Iterable[Any] | None = None,
        threshold: float | None = None,
        nprobe: int | None = None,
        ndocs: int | None = None,
    ) -> list[Hit]:
        """Return the *k* rows most like the row *pk*, never itself, from what is stored: no model is loaded.

        The row's most telling tokens, 64 at most, are looked for in the other rows; ``score`` is the mean of their best
        similarities. Filters and settings as in :meth:`search`, but for narrower defaults: nprobe 8, and ndocs 512 or
        64 times k.

        A row that changed after it was indexed is compared by its earlier text.

        :raises SourceError: if the row is not in the index or has no text
        """
        settings = _settings_of_similar(k, nprobe, ndocs, threshold)
        with self.searcher(where, params, pks) as (searcher, allowed):
            [ranked] = searcher.similar([self._key(pk)], k, settings, allowed)
            return searcher.hits(ranked, 1)

    def similar_all(
        self,
        k: int = 10,
        *,
        into: str | None = None,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        nprobe: int | None = None,
        ndocs: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> list[tuple[Any, list[tuple[Any, float]]]]:
        """Return every row's key, and the keys and scores of the *k* rows most like it, from one state of the index.

        :param into: name of a table to write them to: the row's key, ``rank``, the similar row's key and ``score``;
            what an earlier call wrote there is replaced
        :param where: only rows that meet it have similar ones, and are some
        :raises SourceError: if *into* is a table that something else made

        Otherwise as :meth:`similar`.
        """
        settings, found = _settings_of_similar(k, nprobe, ndocs), []
        conn, tell = self._store.conn, progress or no_progress
        if into is not None:
            with plain_rows(conn):
                try_similar(conn, self._source(), into)
        with self.searcher(where, params) as (searcher, allowed):
            every = ((key, searcher.source.key_now(conn, key)) for key in self._store.passages.keys(allowed))
            spelled = {key: now for key, now in every if now is not None}
            keys = [*spelled]
            tell(Progress("similar", 0, len(keys)))
            for key, ranked in zip(keys, searcher.similar(keys, k, settings, allowed), strict=True):
                found.append((spelled[key], [(spelled[row.place.key], row.score) for row in ranked]))
                tell(Progress("similar", len(found), len(keys)))
        if into is not None:
            with plain_rows(conn):
                write_similar(conn, searcher.source, into, found)
        return [(pk_of(key), [(pk_of(other), score) for other, score in ranked]) for key, ranked in found]

    def explain(self, query: str, pk: Any, *, ordinal: int | None = None) -> Explanation:
        """Return which query token met which token of a row's passage, as a search scores them.

        :param ordinal: which passage of the row; default: the best one
        :raises ValueError: if the query is empty, or the row has no passage of that number
        :raises SourceError: if the row is not in the index, has no text, or changed after it was indexed
        :raises ModelNotFound: if the model is not on this machine and can't be fetched
        """
        check_queries([query])
        encoder = self.encoder
        embeddings = encode_queries(encoder, [query])[0]
        with self.searcher() as (searcher, _):
            found = searcher.passage_of(self._key(pk), embeddings, ordinal)
        return Explainer(encoder, query, embeddings).explain(*found)

    def info(self) -> dict[str, Any]:
        """Return settings, counts and sizes in bytes, as plain values.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises IndexCorrupt: if its codec contradicts itself
        """
        with self._reading():
            entry, codec = self._store.entry, self._store.codec.load()
            bytes_by_part = self._store.bytes_by_part()
            facts = summary(self._store)
            tokens = facts["tokens"]
            total = sum(bytes_by_part.values())
            return {
                **facts,
                "heading": entry.settings.heading,
                "where": entry.settings.where,
                "params": entry.settings.params,
                "html": entry.settings.html,
                "max_tokens": entry.settings.max_tokens,
                "pool_factor": entry.settings.pool_factor,
                "key_columns": list(entry.key_columns),
                "model_fingerprint": entry.model_fingerprint,
                "backend": self._model.describe(),
                "triggers": entry.settings.triggers,
                "pending_changes": self._pending(),
                "n_centroids": codec.n_centroids,
                "n_centroids_added": codec.n_centroids - codec.n_trained,
                "drift": drift(codec),
                "rebuild_pays": why_rebuild(codec, tokens),
                "generation": entry.generation,
                "schema_version": entry.schema_version,
                "created": entry.created,
                "updated": entry.updated,
                "bytes_by_part": bytes_by_part,
                "bytes_reclaimable": self._reclaimable(codec),
                "bytes_per_token": round(total / tokens, 2) if tokens else None,
            }

    def why_rebuild(self) -> str | None:
        """Return why a :meth:`rebuild` would pay; None if it would not."""
        with self._reading():
            codec = self._store.codec.load()
            return why_rebuild(codec, self._store.passages.counts().tokens)

    @property
    def pending_changes(self) -> int | None:
        """How many changed rows the next sync looks at; None where it has to compare all rows."""
        with self._reading():
            return self._pending()

    def _pending(self) -> int | None:
        """How many rows the queue names; None where the next sync has to compare them all."""
        store = self._store
        watched = store.entry.queue_complete and store.queue.exists()
        if watched and triggers.installed(store.conn, self.name) == store.expected_triggers(self._source()):
            return store.queue.count()
        return None

    def verify(self) -> list[str]:
        """Return a sentence per problem found; none when the index is sound and in step with its table.

        What is stored is compared with itself, with its checksums and with the table, and the model with the
        fingerprint it had. Rows that the next :meth:`sync` will bring up are no problem.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises IndexCorrupt: if its registry entry is damaged
        :raises SourceError: if the table is gone or its key was changed
        """
        with self._reading():
            problems = verify(self._store, self._source()).problems
        try:
            self._model.load()
        except (ModelNotFound, ModelMismatch, ModelError, MissingDependency) as error:
            problems.append(str(error))
        return problems

    def sync(self, *, full: bool = False, progress: ProgressCallback | None = None) -> SyncResult:
        """Bring the index in step with its table; return how many rows were added, updated, deleted and compared.

        Where triggers note what changes, only that is looked at. All rows are compared, by their content hashes, where
        there are no triggers, where they were lost (with a table that was dropped or transformed: they are put back),
        and with *full*. Waits for another process that writes the same index.

        Where more rows are new than indexed, or an index of up to 262,144 tokens has twice as many as its codec was
        trained for, all rows are encoded again, with a codec trained on them, as by :meth:`rebuild`.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises IndexBusy: if another process writes the index and this connection is in a transaction
        :raises IndexCorrupt: if what has to change is damaged
        :raises SourceError: if the table is gone or its key was changed
        :raises ModelNotFound: if rows are to be encoded and the model is not on this machine
        :raises ModelMismatch: if it is not the one the index was built with
        """
        report = BuildReport()
        with writing(self._store.conn, self.name, progress):
            with self._reading():
                source = self._source()
            counts = self._sync(source, progress, report, full=full)
        self.build_report = report
        return counts

    def repair(self, *, progress: ProgressCallback | None = None) -> SyncResult:
        """Remove what :meth:`verify` finds damaged and encode the rows it belonged to again; then :meth:`sync` fully.

        Return how many rows were added, updated, deleted and compared. Errors as in :meth:`sync`.

        :raises IndexCorrupt: if codec or registry entry are damaged: only building it again helps then
        """
        report = BuildReport()
        with writing(self._store.conn, self.name, progress):
            with self._reading():
                source = self._source()
                found = verify(self._store, source)
            if found.needs_model:
                # What is removed could not be encoded again without it.
                self._model.load()
            if found.damaged:
                with atomic(self._store.conn):
                    repair(self._store.check_ready(), found)
            counts = self._sync(source, progress, report, full=True)
        self.build_report = report
        return counts

    def optimize(self, *, progress: ProgressCallback | None = None) -> int:
        """Close the gaps that deleted rows left, without encoding anything; return the bytes made free.

        The file keeps them for reuse until it is vacuumed.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises IndexCorrupt: if residuals are damaged
        """
        with writing(self._store.conn, self.name, progress):
            with self._reading():
                before = self._reclaimable(self._store.codec.load())
            optimize(self._store)
            with self._reading():
                return before - self._reclaimable(self._store.codec.load())

    def _reclaimable(self, codec: StoredCodec) -> int:
        """Bytes of residuals of passages that are gone."""
        return self._store.residuals.reclaimable_bytes(codec)

    def rebuild(
        self,
        *,
        progress: ProgressCallback | None = None,
    ) -> IndexCounts:
        """Train new centroids and encode every row again, with the same settings; return the counts.

        Readers keep the old index until the new one is complete.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises SourceError: if the table is gone or can no longer be indexed
        :raises BuildInterrupted: if another process takes over the build
        """
        report = BuildReport()
        with report.step("load"):
            encoder = self._model.load(many=True)
        with writing(self._store.conn, self.name, progress):
            with self._reading():
                entry = self._store.entry
                source = self._inspect()
            self._store = build(
                self._store.conn,
                entry.name,
                source,
                entry.settings,
                encoder,
                progress or no_progress,
                report,
                replace=True,
            )
            self._catch_up(source, progress, report)
            with self._reading():
                counts = self._store.passages.counts()
        self.build_report = report
        return counts

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
        try:
            return Source.inspect(
                self._store.conn,
                settings.table,
                settings.columns,
                heading=settings.heading,
                where=settings.where if where is None else where,
                params=settings.params if where is None else params,
            )
        except SourceError as error:
            if where is not None:
                raise
            raise SourceError(f"{error}: index {self.name!r} was made of that; drop it, or make it anew") from None

    def _source(self, where: str | None = None, params: Mapping[str, Any] | None = None) -> Source:
        """The same, for reading: its rows must still be told apart as they were."""
        source, entry = self._inspect(where, params), self._store.entry
        if (source.keys, source.key_types) != (entry.key_columns, entry.key_types):
            raise SourceError(
                f"the primary key of table {source.table!r} was {', '.join(entry.key_columns)} when index "
                f"{self.name!r} was built, and is {', '.join(source.keys)} now: rebuild the index"
            )
        return source

    def _allowed(
        self, where: str | None, params: Mapping[str, Any] | None, pks: Iterable[Any] | None
    ) -> NDArray[np.int64] | None:
        allowed = None
        if params and where is None:
            raise ValueError(f"params are the values of a condition, and there is no where: {', '.join(params)}")
        if where is not None:
            allowed = self._store.passages.ids_where(self._source(where, params))
        if pks is not None:
            of_keys = self._store.passages.ids_of(self._key(pk) for pk in pks)
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

    def _searcher(self) -> Searcher:
        codec = self._codecs.load(self._store)
        snapshot = StoredPostings(self._store, codec.stored, self._checked)
        return Searcher(self._store, self._source(), codec.residual, snapshot, self.database)


def _settings_of_similar(
    k: int, nprobe: int | None, ndocs: int | None, threshold: float | None = None
) -> SearchSettings:
    # So many tokens need no wide search: of the rows of three manuals, as many of the nearest five were of their page.
    return SearchSettings.for_k(
        k,
        nprobe=8 if nprobe is None else nprobe,
        ndocs=max(512, 64 * k) if ndocs is None else ndocs,
        threshold=threshold,
    )


def _list_of_keys(pks: Iterable[Any] | None) -> Iterable[Any] | None:
    if isinstance(pks, (str, bytes)):
        raise ValueError(f"pks is a list of primary keys: [{pks!r}]")
    return pks


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
