"""Datasette's page of a table, with the rows that answer the words in ``?_colbert=``.

In: requests to Datasette's pages of tables. Out: a filter, scores for the rows of a page, a search box. Leaves to
others: who may see what (access.py), searching (service.py), markup (templates).

Datasette lets a plugin filter rows, not order them. So a search takes as many rows as the page has, and the page puts
them in order, through our ``_table.html``. JSON and CSV have the same rows, in Datasette's order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from datasette import Request, Response
from datasette.utils import await_me_maybe

from datasette_colbert.access import Target, visible_indexes_of_table
from datasette_colbert.compat import Json, page_error, path_without, table_setting
from datasette_colbert.compat_table import column_filters, path_of_row, score_column, with_score
from datasette_colbert.context import score_text
from datasette_colbert.filters import (
    TABLE_ARGUMENTS,
    Conditions,
    are_blobs,
    conditions,
    keys_condition,
    without_arguments,
)
from datasette_colbert.responses import Failure, failure_of
from datasette_colbert.service import SearchRequest, SearchResult, service_of
from datasette_colbert.settings import checked_mode, settings_for
from datasette_colbert.urls import index_url, row_path

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.filters import FilterArguments

    from colbert_sqlite.serving import RegisteredIndex

# Where a request keeps its search: Datasette asks for the filter several times for one CSV file.
_SEARCH = "colbert_table_search"
# Arguments that a new search does not keep: a page further on, an order of the rows of the search before.
_OF_ONE_SEARCH = frozenset({"_next", "_sort", "_sort_desc"})


class ScoredTable(NamedTuple):
    """The columns and rows of a table, as Datasette's ``_table.html`` reads them."""

    columns: list[Json]
    rows: list[object]


@dataclass(frozen=True, slots=True)
class TableSearch:
    """The search of a request to a table.

    ``best_first``: the page is in the order of the scores. ``description`` is what Datasette says above the rows.
    """

    index: str
    request: SearchRequest
    result: SearchResult
    best_first: bool
    description: str
    conditions: Conditions

    def scored(
        self, columns: Sequence[Json], rows: Sequence[object], values: Sequence[Mapping[str, object]]
    ) -> ScoredTable:
        """Return a page with a column of scores, and in their order unless the reader chose another one.

        :param values: the rows again, as mappings from column to value
        """
        result = self.result
        number_of = {row_path(pk): number for number, pk in enumerate(result.pks)}
        names = {str(column["name"]).lower() for column in columns}
        name = "ColBERT score" if "score" in names else "score"
        numbers, scored = [], []
        for row, of_row in zip(rows, values, strict=True):
            # Datasette joins conditions with "and" whatever is in them: the search may not have this row.
            number = number_of.get(path_of_row(row, of_row, result.facts.key_columns))
            score = None if number is None else result.scores[number]
            text = "" if score is None else score_text(score, result.mode)
            numbers.append(len(number_of) if number is None else number)
            scored.append(with_score(row, name, score, text))
        if self.best_first:
            scored = [scored[i] for i in sorted(range(len(scored)), key=numbers.__getitem__)]
        return ScoredTable([*columns[:1], score_column(name), *columns[1:]], scored)


def search_of(request: Request) -> TableSearch | None:
    """Return the search of a request to a table; None if it has none."""
    search: TableSearch | None = request.scope.get(_SEARCH)
    return search


async def filter_by_search(datasette: Datasette, request: Request, database: str, table: str) -> FilterArguments | None:
    """Return the filter for ``?_colbert=``; None where there are no words, or no index.

    The search has the other filters of the request too, so that they leave as many rows as the page has.

    :raises Exception: if the search fails; Datasette's page says why
    """
    from datasette.filters import FilterArguments

    words = (request.args.get("_colbert") or "").strip()
    indexes = await visible_indexes_of_table(datasette, request.actor, database, table) if words else []
    if not indexes:
        return None
    index = indexes[0]
    try:
        index = _chosen_index(request, indexes)
        search = await _search(datasette, request, Target(database, index), words)
        if are_blobs(search.result.pks):
            raise ValueError(f"table {table} has BLOBs for keys, which no filter can name: use the search page")
        where, params = keys_condition(search.result.facts.key_columns, search.result.pks, "colbert_keys")
    except Exception as error:
        raise _page_error(failure_of(error, database, index.name)) from None
    request.scope[_SEARCH] = search
    return FilterArguments([where], params, [_description(words)])


def _chosen_index(request: Request, indexes: Sequence[RegisteredIndex]) -> RegisteredIndex:
    """The index that a request names, else the first.

    :raises ValueError: if the table has none of that name
    """
    name = request.args.get("_colbert_index")
    if not name:
        return indexes[0]
    for index in indexes:
        if index.name.lower() == name.lower():
            return index
    names = ", ".join(index.name for index in indexes)
    raise ValueError(f"table {indexes[0].table} has no ColBERT index {name!r}; it has {names}")


async def _search(datasette: Datasette, request: Request, target: Target, words: str) -> TableSearch:
    database, index = target.database, target.index
    settings = settings_for(datasette, database, index.table)
    mode = checked_mode("_colbert_mode", request.args.get("_colbert_mode") or settings.mode)
    filters = await conditions(datasette, request, database, index.table, TABLE_ARGUMENTS)
    search_request = SearchRequest(
        words,
        _n_rows(datasette, request, target, settings.max_k),
        mode,
        filters.where,
        filters.params,
        is_default_mode=not request.args.get("_colbert_mode"),
    )
    earlier = search_of(request)
    if earlier is not None and (earlier.index, earlier.request) == (index.name, search_request):
        return earlier
    others = column_filters(datasette, without_arguments(request, TABLE_ARGUMENTS), database, index.table)
    return TableSearch(
        index=index.name,
        request=search_request,
        result=await service_of(datasette).search(database, index.name, search_request),
        best_first=not (request.args.get("_sort") or request.args.get("_sort_desc")),
        description=others.human_description_en([*filters.descriptions, _description(words)]),
        conditions=filters,
    )


def _n_rows(datasette: Datasette, request: Request, target: Target, max_k: int) -> int:
    """How many rows the page has, so that all that match are on it; *max_k* where it is not a page."""
    if request.args.get("_stream"):
        return max_k
    size = (
        request.args.get("_size")
        or table_setting(datasette, target.database, target.index.table, "size")
        or datasette.setting("default_page_size")
    )
    try:
        n_rows = int(datasette.setting("max_returned_rows") if size == "max" else size)
    except ValueError:
        # Datasette itself is about to say what is wrong with it.
        n_rows = max_k
    return min(n_rows, max_k) if n_rows > 0 else max_k


def _description(words: str) -> str:
    return f'text best answers "{words}"'


def _page_error(failure: Failure) -> Exception:
    error = page_error(failure.sentence, "Search", failure.status)
    # For with_headers(), which gets any exception.
    error.colbert_failure = failure  # type: ignore[attr-defined]
    return error


def with_headers(
    exception: Exception, responses: Sequence[Response | Awaitable[Response] | None]
) -> list[Response | Awaitable[Response] | None]:
    """Return the responses to an exception, with ``Retry-After`` if it is one of ours that says so."""
    failure: Failure | None = getattr(exception, "colbert_failure", None)
    if failure is None or not failure.headers:
        return [*responses]
    return [_with(failure.headers, response) for response in responses]


async def _with(headers: Mapping[str, str], awaitable: Response | Awaitable[Response] | None) -> Response | None:
    response = await await_me_maybe(awaitable)
    if response is not None:
        response.headers.update(headers)
    return response


async def top_of_table(datasette: Datasette, request: Request, database: str, table: str) -> str | None:
    """Return the search box above an indexed table; None for any other table."""
    indexes = await visible_indexes_of_table(datasette, request.actor, database, table)
    if not indexes:
        return None
    search = search_of(request)
    action = str(datasette.urls.table(database, table))
    context = {
        "action": action,
        "words": request.args.get("_colbert") or "",
        "indexes": [index.name for index in indexes],
        "chosen": search.index if search else request.args.get("_colbert_index"),
        "hidden": [*_hidden_arguments(request, len(indexes))],
        "search": search,
        "more_url": _more_url(datasette, request, database, search) if search else "",
        "clear_url": path_without(request, {*TABLE_ARGUMENTS, "_next"}, action) if search else "",
    }
    return str(await datasette.render_template("_colbert_table.html", context, request=request))


def _hidden_arguments(request: Request, n_indexes: int) -> Sequence[tuple[str, str]]:
    """The arguments that the search box hands on."""
    # With several indexes the box has a field for that itself.
    own = {"_colbert", "_colbert_index"} if n_indexes > 1 else {"_colbert"}
    return [
        (key, value) for key in request.args if key not in own | _OF_ONE_SEARCH for value in request.args.getlist(key)
    ]


def _more_url(datasette: Datasette, request: Request, database: str, search: TableSearch) -> str:
    """The search page with the same words, filters and facets."""
    pairs = [("q", search.request.query)]
    if mode := request.args.get("_colbert_mode"):
        pairs.append(("_mode", mode))
    # A column may have the name of the search page's argument for the words.
    pairs += [("q__exact" if key == "q" else key, value) for key, value in search.conditions.labels]
    pairs += [("_facet", value) for value in request.args.getlist("_facet")]
    return f"{index_url(datasette, database, search.index)}?{urlencode(pairs)}"
