"""Searches in threads of our own, a few at a time, each with a time limit.

In: what to search for. Out: hits, explanations, or one of two refusals. Leaves to others: who may search (access.py),
how the core searches, what a page makes of the result (context.py).

Encoding and searching take the processor for some ten milliseconds, which the event loop can't spare, and Datasette's
threads for SQL should not. Each of our threads has connections of its own, which Datasette prepares like its own, so
that filters may call whatever Datasette's SQL may. All threads share the encoders.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from colbert_sqlite import ColbertError, Filter, SearchSettings, SourceError, serving
from datasette_colbert.compat import is_internal
from datasette_colbert.open_indexes import OpenIndexes
from datasette_colbert.settings import settings_for
from datasette_colbert.state import remove_state, state_of

if TYPE_CHECKING:
    from datasette.app import Datasette

    from colbert_sqlite import Explanation, Hit, Index, Query
    from colbert_sqlite.serving import Allowed, PrimaryKey, RankedRow, View

logger = logging.getLogger("colbert_sqlite")

Result = TypeVar("Result")
RETRY_AFTER_SECONDS = 2
TOO_MANY = "too many searches at a time: try again in some seconds"


class Busy(ColbertError):
    """Too many searches at a time: try again."""


class TookTooLong(ColbertError):
    """The search needs more time than it may have."""


class SearchRequest(NamedTuple):
    """What to search for. ``where`` is a condition on the table, ``params`` are its named parameters.

    ``first`` is the number of rows on the first page. They are searched for as if no more were needed, which is faster,
    and stay the first whatever *k* is. A mode that nobody chose (``is_default_mode``) gives way to colbert where the
    table has no FTS5 index.
    """

    query: str
    k: int
    mode: str
    where: str | None = None
    params: Mapping[str, object] = {}
    first: int | None = None
    is_default_mode: bool = False


class IndexFacts(NamedTuple):
    """What a page says of an index itself.

    ``rows`` is None where they were not counted, ``pending_changes`` where a sync would compare all rows. ``has_fts``:
    the modes fts and hybrid can be used.
    """

    table: str
    columns: tuple[str, ...]
    key_columns: tuple[str, ...]
    heading: str | None
    pending_changes: int | None
    has_fts: bool
    rows: int | None = None


class SearchResult(NamedTuple):
    """All rows that match, by ``pks`` and ``scores``; the hits of one page of them; explanations by rank.

    ``mode`` is the mode of the search, empty for similar rows. ``milliseconds`` is the time of the search alone,
    without waiting for a thread.
    """

    facts: IndexFacts
    mode: str
    pks: list[PrimaryKey]
    scores: list[float]
    hits: list[Hit]
    explanations: dict[int, Explanation]
    milliseconds: float


class Service:
    """The searches of one Datasette."""

    def __init__(self, datasette: Datasette) -> None:
        settings = settings_for(datasette)
        self._datasette = datasette
        self._limit = settings.search_time_limit_ms / 1000
        self._max_unfinished = settings.num_search_threads + settings.max_queued_searches
        self._threads = ThreadPoolExecutor(settings.num_search_threads, thread_name_prefix="colbert-search")
        self._indexes = OpenIndexes(datasette)
        self._lock = threading.Lock()
        self._n_unfinished = 0

    async def search(
        self, database: str, index: str, request: SearchRequest, *, page: slice = slice(0), explain: bool = False
    ) -> SearchResult:
        """Return the rows that answer a request, and the hits of one page of them, with explanations if *explain*.

        :raises Busy: if too many others wait
        :raises TookTooLong: if it took longer than it may
        :raises ColbertError: as ``Index.search``
        :raises ValueError: as ``Index.search``
        """
        return await self._run(lambda: self._search(database, index, request, page, explain))

    async def similar(self, database: str, index: str, pk: PrimaryKey, k: int) -> SearchResult:
        """Return the rows most like one. Errors as in :meth:`search`."""

        def similar(opened: Index) -> SearchResult:
            start = perf_counter()
            hits = opened.similar(pk, k)
            facts, pks, scores = _facts(opened), [hit.pk for hit in hits], [hit.score for hit in hits]
            return SearchResult(facts, "", pks, scores, hits, {}, _milliseconds_since(start))

        return await self._run(lambda: self._indexes.use(database, index, similar))

    async def facts(self, database: str, index: str) -> IndexFacts:
        """Return the facts of an index, its rows counted. Errors as in :meth:`search`."""
        return await self._run(lambda: self._indexes.use(database, index, _facts_and_rows))

    def warm(self) -> None:
        """Search every index once, in the background: models, kernels and centroids are then in memory."""
        for database in self._datasette.databases:
            if not is_internal(self._datasette, database):
                self._threads.submit(self._warm, database)

    def close(self) -> None:
        """Begin no search from now on, and close the connections as soon as no search uses them."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._indexes.close()

    async def _run(self, function: Callable[[], Result]) -> Result:
        """What *function* returns in one of the threads. Errors as in :meth:`search`."""
        with self._lock:
            if self._n_unfinished >= self._max_unfinished:
                raise Busy(TOO_MANY)
            self._n_unfinished += 1
        deadline, context = monotonic() + self._limit, contextvars.copy_context()
        future = self._threads.submit(context.run, self._run_until, deadline, function)
        # A search that nobody waits for any more still takes a thread.
        future.add_done_callback(self._count_down)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._limit)
        except (asyncio.TimeoutError, TimeoutError):
            if future.cancelled():
                raise Busy(TOO_MANY) from None
            raise self._took_too_long() from None
        except sqlite3.OperationalError as error:
            if str(error) == "interrupted":
                raise self._took_too_long() from None
            raise

    def _took_too_long(self) -> TookTooLong:
        return TookTooLong(f"the search takes longer than {self._limit:g} seconds: use fewer or simpler filters")

    def _count_down(self, _: Future[Result]) -> None:
        with self._lock:
            self._n_unfinished -= 1

    def _run_until(self, deadline: float, function: Callable[[], Result]) -> Result:
        self._indexes.deadline = deadline
        return function()

    def _search(self, database: str, name: str, request: SearchRequest, page: slice, explain: bool) -> SearchResult:
        def search(index: Index) -> SearchResult:
            start, facts = perf_counter(), _facts(index)
            mode = _usable_mode(request, facts)
            serving.check_queries([request.query])
            model = settings_for(self._datasette, database, facts.table).model
            encoder = serving.encoder_of(index, model)
            query = serving.encode_query(encoder, request.query)
            explainer = serving.Explainer(encoder, query) if explain else None
            hits, explanations = [], {}
            with self._view(index, request) as (view, allowed):
                rows = _best_rows(view, allowed, query, request, mode)
                first_rank = (page.start or 0) + 1
                for hit, passage in serving.hits_with_passages(view, rows[page], query, first_rank=first_rank):
                    hits.append(hit)
                    # A row that changed since it was indexed has no passage to explain.
                    if explainer is not None and passage is not None:
                        explanations[hit.rank] = explainer.explain(passage)
            pks, scores = [serving.pk_of(row.key) for row in rows], [row.score for row in rows]
            return SearchResult(facts, mode, pks, scores, hits, explanations, _milliseconds_since(start))

        return self._indexes.use(database, name, search)

    @contextmanager
    def _view(self, index: Index, request: SearchRequest) -> Iterator[tuple[View, Allowed]]:
        """One state of an index, and the passages that a filter lets through.

        A filter has the time that Datasette lets any SQL take.

        :raises ValueError: if the filter can't be used, or takes longer
        """
        with index.read() as view:
            # An index that can't be searched without filters either is no fault of the filter.
            _ = view.source
            allowed = None if request.where is None else self._passage_ids(view, request)
            yield view, allowed

    def _passage_ids(self, view: View, request: SearchRequest) -> Allowed:
        deadline, limit = self._indexes.deadline, self._datasette.setting("sql_time_limit_ms")
        try:
            with self._indexes.sooner(limit / 1000):
                return view.passage_ids(Filter(request.where, request.params))
        except sqlite3.OperationalError as error:
            if str(error) != "interrupted" or monotonic() >= deadline:
                raise
            raise ValueError(f"the filters take longer than {limit} ms: use fewer or simpler ones") from None
        except SourceError as error:
            raise ValueError(str(error)) from None

    def _warm(self, database: str) -> None:
        settings = settings_for(self._datasette, database)
        for name in self._indexes.names(database):
            if settings.serves(name):
                try:
                    self._indexes.deadline = float("inf")
                    self._search(database, name, SearchRequest("warm", 1, "colbert"), slice(1), True)
                except Exception as error:
                    logger.warning("index %r of database %r can't be searched: %s", name, database, error)
                    continue
                model = self._indexes.use(database, name, lambda index: index.settings.model)
                if settings.sql_functions is not False and model == (settings.model or serving.DEFAULT_MODEL):
                    # Under its name, as colbert_score() and others ask for it. They say if it is not there.
                    with suppress(ColbertError):
                        serving.encoder_named(model)


def _milliseconds_since(start: float) -> float:
    return (perf_counter() - start) * 1000


def _usable_mode(request: SearchRequest, facts: IndexFacts) -> str:
    """The mode of a request, or colbert where a default mode can't be used.

    :raises ValueError: if the mode of the reader's choice can't be used
    """
    if request.mode == "colbert" or facts.has_fts:
        return request.mode
    if not request.is_default_mode:
        raise ValueError(f"table {facts.table} has no FTS5 index, which mode {request.mode} needs")
    return "colbert"


def _best_rows(view: View, allowed: Allowed, query: Query, request: SearchRequest, mode: str) -> list[RankedRow]:
    """The rows that answer a request, best first."""

    def search(k: int, settings: SearchSettings) -> list[RankedRow]:
        [rows] = serving.search(view, [query], replace(settings, k=k), allowed)
        return rows

    k, first = request.k, request.first or request.k
    # One more says whether there is a second page.
    rows = search(min(k, first + 1), SearchSettings.for_k(min(k, first), mode=mode))
    if k > first + 1:
        head = rows[:first]
        keys = {row.key for row in head}
        others = (row for row in search(k, SearchSettings.for_k(k, mode=mode)) if row.key not in keys)
        rows = [*head, *others][:k]
    return rows


def _facts(index: Index) -> IndexFacts:
    with index.read() as view:
        return _facts_of(view)


def _facts_and_rows(index: Index) -> IndexFacts:
    with index.read() as view:
        return _facts_of(view)._replace(rows=view.store.passages.counts().rows)


def _facts_of(view: View) -> IndexFacts:
    entry = view.store.entry
    return IndexFacts(
        table=entry.settings.table,
        columns=tuple(entry.settings.columns),
        key_columns=entry.key_columns,
        heading=entry.settings.heading,
        pending_changes=serving.pending_changes(view),
        has_fts=serving.has_fts(view),
    )


def service_of(datasette: Datasette) -> Service:
    """Return the service of a Datasette, the same one every time."""
    return state_of(datasette, Service)


def close_service(datasette: Datasette) -> None:
    """Let a Datasette that shuts down search no more."""
    if (service := remove_state(datasette, Service)) is not None:
        service.close()
