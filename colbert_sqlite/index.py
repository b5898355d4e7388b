"""The noun users hold: one index in one database.

In: a database, the name of a table, queries. Out: hits and facts. Leaves to others: every algorithm and every
statement; this module wires encoders, engine and storage together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from colbert_sqlite import indexes
from colbert_sqlite.build import build
from colbert_sqlite.codec import CodecCache
from colbert_sqlite.create import create_index
from colbert_sqlite.encoders import Encoder
from colbert_sqlite.encoders.queries import check_queries
from colbert_sqlite.errors import MissingDependency, ModelError, ModelMismatch, ModelNotFound
from colbert_sqlite.explain import Explainer, Explanation
from colbert_sqlite.info import bytes_reclaimable, index_info, pending_changes
from colbert_sqlite.model import Model
from colbert_sqlite.optimize import optimize
from colbert_sqlite.progress import BuildReport, IndexCounts, ProgressCallback, SyncResult, no_progress
from colbert_sqlite.query import Query, encode_queries, encode_query
from colbert_sqlite.results import Hit, IndexInfo, Similar
from colbert_sqlite.search import hits, passage_to_explain, search
from colbert_sqlite.settings import Backend, Filter, Fusion, Html, IndexSettings, Mode, ModelOptions, SearchSettings
from colbert_sqlite.similar import similar, similar_settings, similar_to_each
from colbert_sqlite.storage.connection import Database, atomic, file_of, plain_rows, reading
from colbert_sqlite.storage.lock import writing
from colbert_sqlite.storage.registry import Entry
from colbert_sqlite.storage.similar_table import try_related, write_related
from colbert_sqlite.storage.source import Source, pk_of
from colbert_sqlite.storage.store import Store
from colbert_sqlite.storage.threads import Connections, connections_to
from colbert_sqlite.sync import sync
from colbert_sqlite.values import plain_value
from colbert_sqlite.verify import check, repair
from colbert_sqlite.view import View, inspect_source


class Index:
    """A ColBERT index of one table, inside the database of that table.

    Made by :meth:`create` or :meth:`open`. Searching never writes. Use it as a context manager, or call :meth:`close`,
    when it was opened from a path. Opened from a path it may be used by any number of threads at once: each has a
    connection of its own. Opened on a connection it belongs to the thread that opened it.
    """

    def __init__(self, connections: Connections, entry: Entry, model: Model) -> None:
        self._connections = connections
        self._entry = entry
        self._model = model
        self._codecs = CodecCache()
        with connections.use() as session:
            self.database = file_of(session.conn)
            """Path of the file that the index is in; empty for a database in memory."""
        self.build_report: BuildReport | None = None
        """Time and memory of each stage of the build that made this object, or of its last write; None after open."""

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
        :param nbits: this and the arguments up to *pool_factor*, and *triggers*, are fields of :class:`IndexSettings`
        :param device: this and the arguments up to *backend* are fields of :class:`ModelOptions`
        :param progress: called with a :class:`Progress` after every chunk of rows
        :param replace: replace an index of that name
        :raises ValueError: if an argument is out of range
        :raises IndexExists: if there is an index of that name and *replace* is not set
        :raises SourceError: if the table or a column is missing, or the table has no primary key
        :raises ModelNotFound: if the model is not on this machine and can't be fetched
        :raises ModelError: if its files are damaged, unsafe or not a ColBERT model
        :raises MissingDependency: if a package that the model, or pooling, needs is not installed
        :raises BuildInterrupted: if another process takes over the build
        """
        options = ModelOptions(
            device=device, dtype=dtype, batch_size=batch_size, trust_remote_code=trust_remote_code, backend=backend
        )
        if isinstance(columns, str):
            raise ValueError(f"columns is a list of names: [{columns!r}]")
        settings = IndexSettings(
            table=table,
            columns=tuple(columns),
            model="",
            nbits=nbits,
            where=where,
            params={key: plain_value(value) for key, value in (params or {}).items()},
            heading=heading,
            html=html,
            max_tokens=max_tokens,
            pool_factor=pool_factor,
            triggers=triggers,
        )
        created = create_index(db, name, settings, model, options, progress=progress, replace=replace)
        index = cls(created.connections, created.entry, created.model)
        index.build_report = created.report
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
        backend: Backend = "auto",
    ) -> Index:
        """Return the index called *name*. The model is loaded when the first query needs it.

        :param model: where the model is now, if not under the name the index was built with
        :raises IndexNotFound: if there is no such index
        :raises WrongThread: if *db* is a connection that belongs to another thread
        """
        options = ModelOptions(
            device=device, dtype=dtype, batch_size=batch_size, trust_remote_code=trust_remote_code, backend=backend
        )
        connections = connections_to(db, name)
        try:
            return open_index(connections, name, model, options)
        except BaseException:
            connections.close()
            raise

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Index {self.name!r} of table {self.settings.table!r}>"

    def close(self) -> None:
        """Close the connections that were opened here."""
        self._connections.close()

    @property
    def name(self) -> str:
        return self._entry.name

    @property
    def settings(self) -> IndexSettings:
        return self._entry.settings

    @property
    def model_fingerprint(self) -> str:
        """Hex digest of what decides the embeddings; indexes with the same one can share an encoder."""
        return self._entry.model_fingerprint

    @property
    def key_columns(self) -> tuple[str, ...]:
        return self._entry.key_columns

    @property
    def is_loaded(self) -> bool:
        """Whether the model has been loaded."""
        return self._model.is_loaded

    def load_encoder(self) -> Encoder:
        """Return the model, loaded on first use.

        :raises ModelMismatch: if it is not the one the index was built with
        :raises ModelNotFound: if it is not on this machine and can't be fetched
        """
        return self._model.load()

    @contextmanager
    def read(self) -> Iterator[View]:
        """One generation of the index, for several reads, whatever others commit meanwhile.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises ModelMismatch: if it was replaced by one of another model
        """
        with self._connections.use() as session, plain_rows(session.conn), reading(session.conn):
            store = Store.open(session.conn, self.name)
            if store.entry.model_fingerprint != self.model_fingerprint:
                raise ModelMismatch(f"index {self.name!r} was replaced by one of another model: open it again")
            self._entry = store.entry
            yield View(store, self._codecs, session.checked, self.database)

    @contextmanager
    def _write(self, progress: ProgressCallback | None) -> Iterator[Store]:
        """The tables of the index as it is now, which nobody else writes meanwhile."""
        with self._connections.use() as session, writing(session.conn, self.name, progress):
            with self.read() as view:
                store = view.store
            yield store

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
        settings = SearchSettings.for_k(
            k, mode=mode, fusion=fusion, weight=weight, threshold=threshold, nprobe=nprobe, ndocs=ndocs
        )
        return self._search([query], settings, Filter.of(where, params, pks))[0]

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
        return self._search(queries, settings, Filter.of(where, params, pks))

    def _search(self, texts: Sequence[str], settings: SearchSettings, filter: Filter) -> list[list[Hit]]:
        check_queries(texts)
        return self.search_encoded(encode_queries(self.load_encoder(), texts), settings, filter) if texts else []

    def search_encoded(
        self, queries: Sequence[Query], settings: SearchSettings | None = None, filter: Filter | None = None
    ) -> list[list[Hit]]:
        """Return what :meth:`search_many` returns, of queries that are encoded already; the model is not loaded.

        :param queries: as the model of this index encodes them
        :param settings: default: those for the ten best rows
        :raises ShapeError: if a query has no tokens, or another ``dim`` than the index
        """
        if not queries:
            return []
        with self.read() as view:
            ranked = search(view, queries, settings or SearchSettings.for_k(10), view.passage_ids(filter or Filter()))
            return [hits(view, rows, query) for rows, query in zip(ranked, queries, strict=True)]

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
        settings = similar_settings(k, nprobe=nprobe, ndocs=ndocs, threshold=threshold)
        filter = Filter.of(where, params, pks)
        with self.read() as view:
            [(query, rows)] = similar(view, [view.key(pk)], settings, view.passage_ids(filter))
            return hits(view, rows, query)

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
    ) -> list[Similar]:
        """Return the *k* rows most like each row, row after row, all from one state of the index.

        :param into: name of a table to write them to: the row's key, ``rank``, the similar row's key and ``score``;
            what an earlier call wrote there is replaced
        :param where: only rows that meet it have similar ones, and are similar to others
        :raises SourceError: if *into* is a table that something else made

        Otherwise as :meth:`similar`.
        """
        settings, filter = similar_settings(k, nprobe=nprobe, ndocs=ndocs), Filter.of(where, params)
        with self._connections.use() as session, plain_rows(session.conn):
            with self.read() as view:
                source = view.source
            if into is not None:
                try_related(session.conn, source, into)
            with self.read() as view:
                rows = similar_to_each(view, settings, filter, progress or no_progress)
            if into is not None:
                write_related(session.conn, source, into, rows)
        return [Similar(pk_of(row.key), row.rank, pk_of(row.related), row.score) for row in rows]

    def explain(self, query: str, pk: Any, *, ordinal: int | None = None) -> Explanation:
        """Return which query token met which token of a row's passage, as a search scores them.

        :param ordinal: which passage of the row; default: the best one
        :raises ValueError: if the query is empty, or the row has no passage of that number
        :raises SourceError: if the row is not in the index, has no text, or changed after it was indexed
        :raises ModelNotFound: if the model is not on this machine and can't be fetched
        """
        check_queries([query])
        encoder = self.load_encoder()
        encoded = encode_query(encoder, query)
        with self.read() as view:
            passage = passage_to_explain(view, view.key(pk), encoded, plain_value(ordinal))
        return Explainer(encoder, encoded).explain(passage)

    def info(self) -> IndexInfo:
        """Return settings, counts and sizes in bytes.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises IndexCorrupt: if its codec contradicts itself
        """
        with self.read() as view:
            return index_info(view, self._model)

    def counts(self) -> IndexCounts:
        """Return how much is indexed: rows, rows without text, passages and tokens."""
        with self.read() as view:
            return view.store.counts()

    def pending_changes(self) -> int | None:
        """Return how many changed rows the next sync looks at; None where it has to compare all rows."""
        with self.read() as view:
            return pending_changes(view)

    def verify(self) -> list[str]:
        """Return a sentence per problem found; none when the index is sound and in step with its table.

        What is stored is compared with itself, with its checksums and with the table, and the model with the
        fingerprint it had. Rows that the next :meth:`sync` will bring up are no problem.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises IndexCorrupt: if its registry entry is damaged
        :raises SourceError: if the table is gone or its key was changed
        """
        with self.read() as view:
            problems = check(view.store, view.source).problems
        try:
            self.load_encoder()
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
        with self._write(progress) as store:
            return self._sync(store, self._source(), progress, BuildReport(), full=full)

    def _sync(
        self,
        store: Store,
        source: Source,
        progress: ProgressCallback | None,
        report: BuildReport,
        *,
        full: bool = False,
    ) -> SyncResult:
        self.build_report = report
        return sync(store, source, self._model, self._codecs, progress or no_progress, report, full=full)

    def repair(self, *, progress: ProgressCallback | None = None) -> SyncResult:
        """Remove what :meth:`verify` finds damaged and encode the rows it belonged to again; then :meth:`sync` fully.

        Return how many rows were added, updated, deleted and compared. Errors as in :meth:`sync`.

        :raises IndexCorrupt: if codec or registry entry are damaged: only building it again helps then
        """
        with self._write(progress) as store:
            with self.read() as view:
                source, findings = view.source, check(view.store, view.source)
            if findings.passages or findings.rows or findings.orphans:
                # What is removed could not be encoded again without it.
                self.load_encoder()
            if findings.damaged:
                with atomic(store.conn):
                    repair(store.check_ready(), findings)
            return self._sync(store, source, progress, BuildReport(), full=True)

    def optimize(self, *, progress: ProgressCallback | None = None) -> int:
        """Close the gaps that deleted rows left, without encoding anything; return the bytes made free.

        The file keeps them for reuse until it is vacuumed.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises IndexCorrupt: if residuals are damaged
        """
        with self._write(progress) as store:
            with self.read() as view:
                before = bytes_reclaimable(view)
            optimize(store)
            with self.read() as view:
                return before - bytes_reclaimable(view)

    def rebuild(self, *, progress: ProgressCallback | None = None) -> IndexCounts:
        """Train new centroids and encode every row again, with the same settings; return the counts.

        Readers keep the old index until the new one is complete.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises SourceError: if the table is gone or can no longer be indexed
        :raises BuildInterrupted: if another process takes over the build
        """
        report = BuildReport()
        with report.step("load"):
            encoder = self._model.load(many=True)
        with self._write(progress) as store:
            with self.read() as view:
                # The key of the table may have changed: then it is built with the new one.
                entry, source = view.store.entry, inspect_source(view.store)
            store = build(
                store.conn, entry.name, source, entry.settings, encoder, progress or no_progress, report, replace=True
            )
            self._entry, self.build_report = store.entry, report
            if entry.settings.triggers:
                # Rows may have changed meanwhile.
                self._sync(store, source, progress, report)
            return self.counts()

    def drop(self) -> None:
        """Remove the index, and what an interrupted rebuild of it left. The source table is not touched."""
        with self._connections.use() as session:
            indexes.drop(session.conn, self.name)

    def _source(self) -> Source:
        with self.read() as view:
            return view.source


def open_index(
    connections: Connections, name: str, model: str | Encoder | None = None, options: ModelOptions | None = None
) -> Index:
    """Return the index called *name* of a database. Arguments and errors as in :meth:`Index.open`."""
    with connections.use() as session, plain_rows(session.conn):
        entry = Store.open(session.conn, name).entry
    return Index(connections, entry, Model(entry, model, options or ModelOptions()))
