"""Searching in threads of our own, so many at a time, for so long.

In: what to search. Out: hits, explanations, or one of two refusals. Leaves to others: who may (access.py), what the
page makes of it (pages.py).

Encoding and searching take the processor for some ten milliseconds, which the event loop can't spare, and Datasette's
threads for SQL should not. Each of our threads keeps connections of its own, prepared as Datasette prepares its own, so
that filters may call whatever Datasette's SQL may. The encoders are shared by all.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from colbert_sqlite.errors import ColbertError, IndexNotFound, ModelMismatch, SourceError
from datasette_colbert.access import is_internal
from datasette_colbert.compat import prepared
from datasette_colbert.settings import settings_for

if TYPE_CHECKING:
    import numpy as np
    from datasette.app import Datasette
    from numpy.typing import NDArray

    from colbert_sqlite.encoders import Encoder
    from colbert_sqlite.explain import Explanation
    from colbert_sqlite.index import Index
    from colbert_sqlite.results import Hit
    from colbert_sqlite.search import Ranked, Searcher

logger = logging.getLogger("colbert_sqlite")

Result = TypeVar("Result")
RETRY_AFTER_SECONDS = 2
# SQLite asks whether to go on after so many of its instructions, about every millisecond.
INSTRUCTIONS = 10_000


class Busy(ColbertError):
    """Too many searches at a time: try again."""


class TookTooLong(ColbertError):
    """The search needs more time than it may have."""


class Question(NamedTuple):
    """What is searched for. ``where`` is a condition on the table, ``params`` are its named parameters.

    ``first`` is how many rows a first page shows: they are found as if no more were wanted, which is faster, and stay
    the first whatever *k* is. A mode that nobody chose gives way to colbert where the table has no FTS5 index.
    """

    query: str
    k: int
    mode: str
    where: str | None = None
    params: Mapping[str, Any] = {}
    first: int | None = None
    is_default_mode: bool = False


class RankedRow(NamedTuple):
    """A row that was found, by its primary key, and what it is ranked by."""

    pk: Any
    score: float


class Facts(NamedTuple):
    """What a page says of an index itself.

    ``rows`` is None where they were not counted, ``pending_changes`` where a sync would compare all rows. ``has_fts``
    tells whether the modes fts and hybrid can be used.
    """

    table: str
    columns: tuple[str, ...]
    key_columns: tuple[str, ...]
    heading: str | None
    pending_changes: int | None
    has_fts: bool
    rows: int | None = None


class Found(NamedTuple):
    """All rows that were found, and of those to be shown the hits and, by rank, the explanations.

    ``mode`` is the one that was searched in, empty for similar rows. ``milliseconds`` is how long that took, without
    waiting for a thread.
    """

    facts: Facts
    mode: str
    ranked: list[RankedRow]
    hits: list[Hit]
    explanations: dict[int, Explanation]
    milliseconds: float


class Service:
    """The searches of one Datasette."""

    def __init__(self, datasette: Datasette) -> None:
        settings = settings_for(datasette)
        self._datasette = datasette
        self._limit = settings.search_time_limit_ms / 1000
        self._most = settings.num_search_threads + settings.max_queued_searches
        self._threads = ThreadPoolExecutor(settings.num_search_threads, thread_name_prefix="colbert-search")
        self._own = threading.local()
        self._lock = threading.Lock()
        self._unfinished = 0

    async def search(
        self, database: str, index: str, question: Question, *, shown: slice = slice(0), explain: bool = False
    ) -> Found:
        """Return the rows that answer a question, and the hits of a slice of them, explained if wanted.

        :raises Busy: if too many others wait
        :raises TookTooLong: if it took longer than it may
        :raises ColbertError: as ``Index.search``
        :raises ValueError: as ``Index.search``
        """
        return await self._run(lambda: self._search(database, index, question, shown, explain))

    async def similar(self, database: str, index: str, pk: Any, k: int) -> Found:
        """Return the rows most like one. Errors as in :meth:`search`."""
        return await self._run(lambda: self._similar(database, index, pk, k))

    async def facts(self, database: str, index: str) -> Facts:
        """Return what is known of an index, its rows counted. Errors as in :meth:`search`."""
        return await self._run(lambda: self._opened(database, index, _counted))

    def warm(self) -> None:
        """Have every index searched once, in the background: models, kernels and centroids are then in memory."""
        for database in self._datasette.databases:
            if not is_internal(self._datasette, database):
                self._threads.submit(self._warm, database)

    def close(self) -> None:
        """Let no search begin any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Callable[[], Result]) -> Result:
        with self._lock:
            if self._unfinished >= self._most:
                raise Busy("too many searches at a time: try again in some seconds")
            self._unfinished += 1
        deadline, context = monotonic() + self._limit, contextvars.copy_context()
        future = self._threads.submit(context.run, self._before, deadline, function)
        # A search that nobody waits for any more still takes a thread.
        future.add_done_callback(self._finished)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._limit)
        except (asyncio.TimeoutError, TimeoutError):
            if future.cancelled():
                raise Busy("too many searches at a time: try again in some seconds") from None
            raise TookTooLong(self._too_long()) from None
        except sqlite3.OperationalError as error:
            if str(error) == "interrupted":
                raise TookTooLong(self._too_long()) from None
            raise

    def _too_long(self) -> str:
        return f"the search takes longer than {self._limit:g} seconds: use fewer or simpler filters"

    def _finished(self, _: Future[Any]) -> None:
        with self._lock:
            self._unfinished -= 1

    def _before(self, deadline: float, function: Callable[[], Result]) -> Result:
        self._own.deadline = deadline
        return function()

    def _search(self, database: str, name: str, question: Question, shown: slice, explain: bool) -> Found:
        return self._opened(database, name, lambda index: self._found(database, index, question, shown, explain))

    def _found(self, database: str, index: Index, question: Question, shown: slice, explain: bool) -> Found:
        from colbert_sqlite.encoders.queries import check_queries, encode_queries
        from colbert_sqlite.explain import Explainer
        from colbert_sqlite.storage.source import pk_of

        started, facts = perf_counter(), _facts(index)
        if question.mode != "colbert" and not facts.has_fts:
            if not question.is_default_mode:
                raise ValueError(f"table {facts.table} has no FTS5 index, which mode {question.mode} needs")
            question = question._replace(mode="colbert")
        check_queries([question.query])
        encoder = self._encoder(database, index)
        [embeddings] = encode_queries(encoder, [question.query])
        params = question.params if question.where else None
        explainer = Explainer(encoder, question.query, embeddings) if explain else None
        hits, explanations = [], {}
        with self._filtered(index, question.where, params) as (searcher, allowed):
            ranked = _ranked(searcher, question, embeddings, allowed)
            first_rank = (shown.start or 0) + 1
            for hit, passage in searcher.hits_to_explain(ranked[shown], len(embeddings), first_rank=first_rank):
                hits.append(hit)
                if explainer is not None and passage is not None:
                    explanations[hit.rank] = explainer.explain(*passage)
        milliseconds = (perf_counter() - started) * 1000
        rows = [RankedRow(pk_of(row.place.key), row.score) for row in ranked]
        return Found(facts, question.mode, rows, hits, explanations, milliseconds)

    @contextmanager
    def _filtered(
        self, index: Index, where: str | None, params: Mapping[str, Any] | None
    ) -> Iterator[tuple[Searcher, NDArray[np.int64] | None]]:
        """A state of the index, and the passages that a filter allows, which has the time that any SQL has here.

        :raises ValueError: if the filter can't be used, or takes longer
        """
        if where is None:
            with index.searcher() as entered:
                yield entered
            return
        deadline, limit = self._own.deadline, self._datasette.setting("sql_time_limit_ms")
        with ExitStack() as stack:
            self._own.deadline = min(deadline, monotonic() + limit / 1000)
            try:
                entered = stack.enter_context(index.searcher(where, params))
            except sqlite3.OperationalError as error:
                if str(error) != "interrupted" or monotonic() >= deadline:
                    raise
                raise ValueError(f"the filters take longer than {limit} ms: use fewer or simpler ones") from None
            except SourceError as error:
                if _is_broken(index):
                    raise
                raise ValueError(str(error)) from None
            finally:
                self._own.deadline = deadline
            yield entered

    def _similar(self, database: str, name: str, pk: Any, k: int) -> Found:
        def found(index: Index) -> Found:
            started = perf_counter()
            hits = index.similar(pk, k)
            ranked = [RankedRow(hit.pk, hit.score) for hit in hits]
            return Found(_facts(index), "", ranked, hits, {}, (perf_counter() - started) * 1000)

        return self._opened(database, name, found)

    def _encoder(self, database: str, index: Index) -> Encoder:
        """The model of an index: the configured one if it is that, else as the index names it."""
        from colbert_sqlite.encoders.cache import shared_encoder, with_query_cache

        configured = settings_for(self._datasette, database, index.settings.table).model
        return with_query_cache(shared_encoder(index.model_fingerprint, lambda: index.encoder, configured=configured))

    def _opened(self, database: str, name: str, use: Callable[[Index], Result]) -> Result:
        """What *use* makes of an index of this thread's own."""
        from colbert_sqlite.index import Index

        conn, indexes = self._connection(database)
        with self._in_time(conn):
            if (index := indexes.get(name)) is not None:
                try:
                    return use(index)
                except (IndexNotFound, ModelMismatch):
                    # Dropped, or built anew with another model, since it was opened.
                    del indexes[name]
            index = Index.open(conn, name)
            result = use(index)
            indexes[name] = index
            return result

    def _connection(self, database: str) -> tuple[sqlite3.Connection, dict[str, Index]]:
        """This thread's connection to a database, and the indexes it has open."""
        own: dict[str, tuple[object, sqlite3.Connection, dict[str, Index]]] = self._own.__dict__.setdefault("open", {})
        db = self._datasette.databases[database]
        known = own.get(database)
        # Another one may have come to be called that.
        if known is None or known[0] is not db:
            known = own[database] = db, prepared(self._datasette, database), {}
        return known[1], known[2]

    @contextmanager
    def _in_time(self, conn: sqlite3.Connection) -> Iterator[None]:
        """Have SQLite stop what runs past the deadline."""
        own = self._own
        conn.set_progress_handler(lambda: monotonic() > own.deadline, INSTRUCTIONS)
        try:
            yield
        finally:
            conn.set_progress_handler(None, INSTRUCTIONS)

    def _warm(self, database: str) -> None:
        from colbert_sqlite.encoders import DEFAULT_MODEL
        from colbert_sqlite.encoders.cache import cached_encoder
        from colbert_sqlite.indexes import registered_names

        settings = settings_for(self._datasette, database)
        for name in registered_names(self._connection(database)[0]):
            if settings.serves(name):
                try:
                    self._own.deadline = float("inf")
                    self._search(database, name, Question("warm", 1, "colbert"), slice(1), True)
                except Exception as error:
                    logger.warning("index %r of database %r can't be searched: %s", name, database, error)
                    continue
                model = self._opened(database, name, lambda index: index.settings.model)
                if settings.sql_functions is not False and model == (settings.model or DEFAULT_MODEL):
                    # Under its name, as colbert_score() and others ask for it. They say if it is not there.
                    with suppress(ColbertError):
                        cached_encoder(model)


def _ranked(
    searcher: Searcher, question: Question, embeddings: NDArray[np.float32], allowed: NDArray[np.int64] | None
) -> list[Ranked]:
    """The rows that answer a question, best first."""
    from colbert_sqlite.settings import SearchSettings

    def best(k: int, settings_for_k: int) -> list[Ranked]:
        settings = SearchSettings.for_k(settings_for_k, mode=question.mode)
        return searcher.search([question.query], [embeddings], k, settings, allowed)[0]

    k, first = question.k, question.first or question.k
    # One more tells whether there is a second page.
    ranked = best(min(k, first + 1), min(k, first))
    if k > first + 1:
        head = ranked[:first]
        keys = {row.place.key for row in head}
        ranked = [*head, *(row for row in best(k, k) if row.place.key not in keys)][:k]
    return ranked


def _is_broken(index: Index) -> bool:
    """Whether an index can't be searched without filters either."""
    try:
        with index.searcher():
            return False
    except SourceError:
        return True


def _facts(index: Index) -> Facts:
    # Settings are those of the last reading: the index may have been built anew, of another table.
    pending_changes, settings = index.pending_changes, index.settings
    return Facts(
        table=settings.table,
        columns=tuple(settings.columns),
        key_columns=index.key_columns,
        heading=settings.heading,
        pending_changes=pending_changes,
        has_fts=index.has_fts(),
    )


def _counted(index: Index) -> Facts:
    return _facts(index)._replace(rows=index.counts["rows"])


_services: WeakKeyDictionary[Datasette, Service] = WeakKeyDictionary()


def service_of(datasette: Datasette) -> Service:
    """Return the service of a Datasette, the same one every time."""
    if datasette not in _services:
        _services[datasette] = Service(datasette)
    return _services[datasette]


def close_service(datasette: Datasette) -> None:
    """Let a Datasette that shuts down search no more."""
    if (service := _services.pop(datasette, None)) is not None:
        service.close()
