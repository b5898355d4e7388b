"""Searches in threads of our own, a few at a time, each with a time limit.

In: what to search for. Out: hits, explanations, or one of two refusals. Leaves to others: who may search (access.py),
how the core searches (core.py), what a page makes of the result (context.py).

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
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from colbert_sqlite import ColbertError, SourceError
from datasette_colbert.compat import is_internal
from datasette_colbert.core import (
    Query,
    RankedRow,
    View,
    default_model,
    encode_query,
    load_shared_model,
    registered_indexes,
    view_of,
)
from datasette_colbert.open_indexes import OpenIndexes
from datasette_colbert.settings import settings_for
from datasette_colbert.state import remove_state, state_of

if TYPE_CHECKING:
    from datasette.app import Datasette

    from colbert_sqlite import Explanation, Hit, Index
    from datasette_colbert.core import PrimaryKey

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
        """Begin no search from now on."""
        self._threads.shutdown(wait=False, cancel_futures=True)

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
            model = settings_for(self._datasette, database, index.settings.table).model
            query = encode_query(index, request.query, model)
            with self._view(index, request) as view:
                rows = _best_rows(view, query, request, mode)
                first_rank = (page.start or 0) + 1
                pairs = [*view.hits(query, rows[page], first_rank=first_rank, explain=explain)]
            hits = [hit for hit, _ in pairs]
            explanations = {hit.rank: explanation for hit, explanation in pairs if explanation is not None}
            pks, scores = [row.pk for row in rows], [row.score for row in rows]
            return SearchResult(facts, mode, pks, scores, hits, explanations, _milliseconds_since(start))

        return self._indexes.use(database, name, search)

    @contextmanager
    def _view(self, index: Index, request: SearchRequest) -> Iterator[View]:
        """One state of an index. A filter has the time that Datasette lets any SQL take.

        :raises ValueError: if the filter can't be used, or takes longer
        """
        if request.where is None:
            with view_of(index) as view:
                yield view
            return
        deadline, limit = self._indexes.deadline, self._datasette.setting("sql_time_limit_ms")
        with ExitStack() as stack:
            try:
                with self._indexes.sooner(limit / 1000):
                    view = stack.enter_context(view_of(index, request.where, request.params))
            except sqlite3.OperationalError as error:
                if str(error) != "interrupted" or monotonic() >= deadline:
                    raise
                raise ValueError(f"the filters take longer than {limit} ms: use fewer or simpler ones") from None
            except SourceError as error:
                if _is_broken(index):
                    raise
                raise ValueError(str(error)) from None
            yield view

    def _warm(self, database: str) -> None:
        settings = settings_for(self._datasette, database)
        for name, state, _ in registered_indexes(self._indexes.connection(database)):
            if state == "ready" and settings.serves(name):
                try:
                    self._indexes.deadline = float("inf")
                    self._search(database, name, SearchRequest("warm", 1, "colbert"), slice(1), True)
                except Exception as error:
                    logger.warning("index %r of database %r can't be searched: %s", name, database, error)
                    continue
                model = self._indexes.use(database, name, lambda index: index.settings.model)
                if settings.sql_functions is not False and model == (settings.model or default_model()):
                    # Under its name, as colbert_score() and others ask for it. They say if it is not there.
                    with suppress(ColbertError):
                        load_shared_model(model)


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


def _best_rows(view: View, query: Query, request: SearchRequest, mode: str) -> list[RankedRow]:
    """The rows that answer a request, best first."""
    k, first = request.k, request.first or request.k
    # One more says whether there is a second page.
    rows = view.search(query, min(k, first + 1), mode, effort=min(k, first))
    if k > first + 1:
        head = rows[:first]
        keys = {row.pk for row in head}
        rows = [*head, *(row for row in view.search(query, k, mode, effort=k) if row.pk not in keys)][:k]
    return rows


def _is_broken(index: Index) -> bool:
    """Whether an index can't be searched without filters either."""
    try:
        with view_of(index):
            return False
    except SourceError:
        return True


def _facts(index: Index) -> IndexFacts:
    # Settings are those of the last reading: the index may have been built again, of another table.
    pending_changes, settings = index.pending_changes, index.settings
    return IndexFacts(
        table=settings.table,
        columns=tuple(settings.columns),
        key_columns=index.key_columns,
        heading=settings.heading,
        pending_changes=pending_changes,
        has_fts=index.has_fts(),
    )


def _facts_and_rows(index: Index) -> IndexFacts:
    return _facts(index)._replace(rows=index.counts["rows"])


def service_of(datasette: Datasette) -> Service:
    """Return the service of a Datasette, the same one every time."""
    return state_of(datasette, Service)


def close_service(datasette: Datasette) -> None:
    """Let a Datasette that shuts down search no more."""
    if (service := remove_state(datasette, Service)) is not None:
        service.close()
