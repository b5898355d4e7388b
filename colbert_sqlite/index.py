"""The class that users hold: one index in one database.

In: a database, the name of a table, queries. Out: hits and reports. Leaves to others: every algorithm, every statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from colbert_sqlite import indexes
from colbert_sqlite.codec import CodecCache
from colbert_sqlite.create import build_in_step, create_index
from colbert_sqlite.encoders import Encoder
from colbert_sqlite.encoders.checks import check_queries
from colbert_sqlite.errors import ModelMismatch
from colbert_sqlite.explain import Explainer, Explanation
from colbert_sqlite.info import bytes_reclaimable, index_info
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
from colbert_sqlite.storage.similar_table import try_similar, write_similar
from colbert_sqlite.storage.source import pk_of
from colbert_sqlite.storage.store import Store
from colbert_sqlite.storage.threads import Connections, closed_on_error, connections_to
from colbert_sqlite.sync import sync
from colbert_sqlite.values import plain_value
from colbert_sqlite.verify import repair, verify
from colbert_sqlite.view import View, inspect_source


class Index:
    """A ColBERT index of one table, inside the database of that table.

    Get one from :meth:`create` or :meth:`open`. Opened by path, any number of threads may use it at once: each has a
    connection of its own, which :meth:`close` closes. Opened on a connection, it belongs to the thread of that.
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
        """Time and memory of each stage of the last build or write through this object; None before any."""

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
        params: Mapping[str, object] | None = None,
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

        The build commits as it goes: after an interruption, the same call finishes it. A replaced index stays in use
        until the new one is complete.

        :param db: a path, a ``sqlite3.Connection`` or a ``sqlite_utils.Database``
        :param name: of the index; default: the name of the table
        :param model: alias, folder or hub id of a ColBERT model, or an encoder; default: ``minilm``
        :param nbits: this and the arguments up to *pool_factor*, and *triggers*, are fields of :class:`IndexSettings`
        :param device: this and the arguments up to *backend* are fields of :class:`ModelOptions`
        :param progress: called with a :class:`Progress` after every chunk of rows
        :param replace: replace an index of that name
        :raises ValueError: if an argument is out of range
        :raises IndexExists: if an index of that name exists and *replace* is not set
        :raises SourceError: if the table or a column is missing, or the table has no primary key
        :raises BuildInterrupted: if another process takes over the build
        :raises ColbertError: as :func:`load_encoder`
        """
        options = ModelOptions(
            device=device, dtype=dtype, batch_size=batch_size, trust_remote_code=trust_remote_code, backend=backend
        )
        settings = IndexSettings(
            table=table,
            columns=columns,
            model="",
            nbits=nbits,
            where=where,
            params=params or {},
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

        :param model: an encoder, or the name of the model now; default: the name that the index was built with
        :raises IndexNotFound: if no index has that name
        :raises WrongThread: if *db* is a connection that belongs to another thread
        """
        options = ModelOptions(
            device=device, dtype=dtype, batch_size=batch_size, trust_remote_code=trust_remote_code, backend=backend
        )
        with closed_on_error(connections_to(db, name)) as connections:
            return open_index(connections, name, model, options)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *exception: object) -> None:
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
        """Return the model, loaded on first use. Errors as in :func:`load_encoder`, or :class:`ModelMismatch`."""
        return self._model.load()

    @contextmanager
    def read(self) -> Iterator[View]:
        """Yield a view of one generation of the index, for several reads, whatever others commit meanwhile.

        :raises IndexNotFound: if the index was dropped meanwhile
        :raises ModelMismatch: if it was replaced by one of another model
        """
        with self._connections.use() as session, plain_rows(session.conn), reading(session.conn):
            store = Store.open(session.conn, self.name)
            if store.entry.model_fingerprint != self.model_fingerprint:
                raise ModelMismatch(f"index {self.name!r} was replaced by one of another model: open it again")
            self._entry = store.entry
            yield View(store, self._codecs, session.checked[store.entry.name], self.database)

    @contextmanager
    def _write(self, progress: ProgressCallback | None) -> Iterator[BuildReport]:
        """Yield a report, kept if nothing fails, and let no one else write the index meanwhile."""
        with self._connections.use() as session, writing(session.conn, self.name, progress):
            report = BuildReport()
            yield report
            self.build_report = report

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        where: str | None = None,
        params: Mapping[str, object] | None = None,
        pks: Iterable[object] | None = None,
        mode: Mode | None = None,
        fusion: Fusion | None = None,
        weight: float | None = None,
        threshold: float | None = None,
        nprobe: int | None = None,
        ndocs: int | None = None,
    ) -> list[Hit]:
        """Return the *k* rows that answer *query* best, or as many as match, best first.

        :param where: SQL condition on the source table; *params* are its named parameters
        :param pks: score exactly these rows; keys that are not indexed are skipped
        :param mode: this and what follows are fields of :class:`SearchSettings`; default: ``SearchSettings.for_k(k)``
        :raises ValueError: if the query is empty, or *k*, a key or a setting is out of range
        :raises SourceError: if *where* can't be used, the table has no FTS5 index, or its key was changed
        :raises IndexCorrupt: if stored data contradicts itself
        :raises ColbertError: if the index was dropped meanwhile, or as :meth:`load_encoder`
        """
        settings = SearchSettings.for_k(
            k, mode=mode, fusion=fusion, weight=weight, threshold=threshold, nprobe=nprobe, ndocs=ndocs
        )
        return self._search([query], settings, Filter(where, params, pks))[0]

    def search_many(
        self,
        queries: Iterable[str],
        k: int = 10,
        *,
        where: str | None = None,
        params: Mapping[str, object] | None = None,
        pks: Iterable[object] | None = None,
        mode: Mode | None = None,
        fusion: Fusion | None = None,
        weight: float | None = None,
        threshold: float | None = None,
        nprobe: int | None = None,
        ndocs: int | None = None,
    ) -> list[list[Hit]]:
        """Return for each query what :meth:`search` returns, all from one generation of the index.

        The queries are encoded in one batch and share their reads. Arguments and errors as there.
        """
        settings = SearchSettings.for_k(
            k, mode=mode, fusion=fusion, weight=weight, threshold=threshold, nprobe=nprobe, ndocs=ndocs
        )
        return self._search(queries, settings, Filter(where, params, pks))

    def _search(self, texts: Iterable[str], settings: SearchSettings, filter: Filter) -> list[list[Hit]]:
        texts = check_queries(texts)
        return self.search_encoded(encode_queries(self.load_encoder(), texts), settings, filter) if texts else []

    def search_encoded(
        self, queries: Sequence[Query], settings: SearchSettings | None = None, filter: Filter | None = None
    ) -> list[list[Hit]]:
        """Return what :meth:`search_many` returns, for encoded queries. No model is loaded.

        :raises ShapeError: if a query has no tokens, or another ``dim`` than the index
        """
        if not queries:
            return []
        with self.read() as view:
            ranked = search(view, queries, settings or SearchSettings.for_k(10), view.passage_ids(filter or Filter()))
            return [hits(view, rows, query) for rows, query in zip(ranked, queries, strict=True)]

    def similar(
        self,
        pk: object,
        k: int = 10,
        *,
        where: str | None = None,
        params: Mapping[str, object] | None = None,
        pks: Iterable[object] | None = None,
        threshold: float | None = None,
        nprobe: int | None = None,
        ndocs: int | None = None,
    ) -> list[Hit]:
        """Return the *k* rows most like the row *pk*, never itself. No model is loaded.

        The most salient tokens of the row, at most 64, are the query; ``score`` is the mean of their best similarities.
        A row that changed after it was indexed is compared by its earlier text. Filters and settings as in
        :meth:`search`, with narrower defaults: nprobe 8, and ndocs 512 or 64 times k.

        :raises SourceError: if the row is not in the index or has no text
        """
        settings = similar_settings(k, nprobe=nprobe, ndocs=ndocs, threshold=threshold)
        filter = Filter(where, params, pks)
        with self.read() as view:
            [(query, rows)] = similar(view, [view.key(pk)], settings, view.passage_ids(filter))
            return hits(view, rows, query)

    def similar_all(
        self,
        k: int = 10,
        *,
        into: str | None = None,
        where: str | None = None,
        params: Mapping[str, object] | None = None,
        nprobe: int | None = None,
        ndocs: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> list[Similar]:
        """Return the *k* rows most like each row, from one generation of the index. Otherwise as :meth:`similar`.

        :param into: table to write them to: the row's key, ``rank``, the similar row's key, ``score``. It replaces the
            rows of an earlier call
        :param where: only rows that meet this condition are compared
        :raises SourceError: if *into* is a table with other columns
        """
        settings, filter = similar_settings(k, nprobe=nprobe, ndocs=ndocs), Filter(where, params)
        with self._connections.use() as session, plain_rows(session.conn):
            with self.read() as view:
                source = view.source
            if into is not None:
                try_similar(session.conn, source, into)
            with self.read() as view:
                rows = similar_to_each(view, settings, filter, progress or no_progress)
            if into is not None:
                write_similar(session.conn, source, into, rows)
        return [Similar(pk_of(row.key), row.rank, pk_of(row.related), row.score) for row in rows]

    def explain(self, query: str, pk: object, *, ordinal: int | None = None) -> Explanation:
        """Return which query token met which token of a row's passage, as a search scores them.

        :param ordinal: number of the passage in the row, from 0; default: the best passage
        :raises ValueError: if the query is empty, or the row has no passage with this *ordinal*
        :raises SourceError: if the row is not in the index, has no text, or changed after it was indexed
        """
        check_queries([query])
        encoder = self.load_encoder()
        encoded = encode_query(encoder, query)
        with self.read() as view:
            passage = passage_to_explain(view, view.key(pk), encoded, plain_value(ordinal))
        return Explainer(encoder, encoded).explain(passage)

    def info(self) -> IndexInfo:
        """Return settings, counts and sizes in bytes."""
        with self.read() as view:
            return index_info(view, self._model)

    def counts(self) -> IndexCounts:
        """Return the numbers of indexed rows, rows without text, passages and tokens."""
        with self.read() as view:
            return view.store.passages.counts()

    def verify(self) -> list[str]:
        """Return one sentence for each problem; an empty list if the index is sound and in step with its table.

        Compares stored data with its checksums and with the table, and the model with its fingerprint. Rows that the
        next :meth:`sync` encodes are not a problem.

        :raises SourceError: if the table is missing, or its key was changed
        """
        with self.read() as view:
            problems = verify(view.store, view.source).problems
        return [*problems, *self._model.problems()]

    def sync(self, *, full: bool = False, progress: ProgressCallback | None = None) -> SyncResult:
        """Bring the index in step with its table; return how many rows were added, updated, deleted and compared.

        With triggers, only the rows that they queued are read. All rows are compared, by their content hashes, with
        *full*, without triggers, and after triggers were lost; those are put back. If more rows are new than indexed,
        or a small index has doubled, all rows are encoded again, as by :meth:`rebuild`.

        Waits for another process that writes the same index. Loads the model only if a row needs encoding.

        :raises IndexBusy: if another process writes the index, and this connection is in a transaction
        :raises IndexCorrupt: if a part that must change is damaged
        :raises SourceError: if the table is missing, or its key was changed
        """
        callback = progress or no_progress
        with self._write(progress) as report:
            with self.read() as view:
                source = view.source
            return sync(view.store, source, self._model, self._codecs, callback, report, full=full)

    def repair(self, *, progress: ProgressCallback | None = None) -> SyncResult:
        """Remove damaged data and encode its rows again, then :meth:`sync` fully.

        :raises IndexCorrupt: if the codec or the registry entry is damaged: no row can restore those
        """
        callback = progress or no_progress
        with self._write(progress) as report:
            with self.read() as view:
                source, findings = view.source, verify(view.store, view.source)
            if findings.needs_model:
                # Before the removal: without a model, nothing could encode those rows again.
                self.load_encoder()
            if findings.damaged:
                with atomic(view.conn):
                    repair(view.store.check_ready(), findings)
            return sync(view.store, source, self._model, self._codecs, callback, report, full=True)

    def optimize(self, *, progress: ProgressCallback | None = None) -> int:
        """Close the gaps that deleted rows left, without encoding; return the bytes freed.

        The file keeps them for reuse until it is vacuumed.
        """
        with self._connections.use() as session, writing(session.conn, self.name, progress):
            with self.read() as view:
                before = bytes_reclaimable(view)
            optimize(view.store)
            with self.read() as view:
                return before - bytes_reclaimable(view)

    def rebuild(self, *, progress: ProgressCallback | None = None) -> IndexCounts:
        """Train new centroids and encode every row again, with the same settings; return the counts.

        Readers keep the old index until the new one is complete. The primary key of the table may have changed.

        :raises SourceError: if the table is missing or can no longer be indexed
        :raises BuildInterrupted: if another process takes over the build
        """
        callback = progress or no_progress
        with self._write(progress) as report:
            with report.step("load"):
                encoder = self._model.load(many=True)
            with self.read() as view:
                entry, source = view.store.entry, inspect_source(view.store)
            build_in_step(view.conn, entry.name, source, entry.settings, encoder, callback, report, replace=True)
            return self.counts()

    def drop(self) -> None:
        """Remove the index and any interrupted rebuild. The source table stays as it is."""
        with self._connections.use() as session:
            indexes.drop(session.conn, self.name)


def open_index(
    connections: Connections, name: str, model: str | Encoder | None = None, options: ModelOptions | None = None
) -> Index:
    """Return the index called *name* of a database. Arguments and errors as in :meth:`Index.open`."""
    with connections.use() as session, plain_rows(session.conn):
        entry = Store.open(session.conn, name).entry
    return Index(connections, entry, Model(entry, model, options or ModelOptions()))
