"""What Datasette's own pages get: tables narrowed to the rows that answer words, similar rows, entries in menus.

In: requests to Datasette's pages of tables, rows and databases. Out: a filter, scores for the rows of a page, HTML and
links for it. Leaves to others: who may see what (access.py), searching (service.py), markup (templates).

Datasette lets a plugin filter rows, not order them. A search therefore finds as many rows as the page shows, and the
page puts them in order, through our ``_table.html``. JSON and CSV have the same rows, in Datasette's order.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from datasette_colbert.access import KnownIndex, known_indexes, visible_indexes
from datasette_colbert.compat import column_filters, is_1_0, table_setting
from datasette_colbert.filters import TABLE_ARGUMENTS, Conditions, are_blobs, conditions, keys_condition, without
from datasette_colbert.search_page import (
    Failure,
    Place,
    explained_failure,
    index_url,
    label_column,
    manage_url,
    managing_url,
    row_in_path,
    row_path,
    shown_hit,
    shown_score,
)
from datasette_colbert.service import Busy, Found, Question, TookTooLong, service_of
from datasette_colbert.settings import checked_mode, settings_for

if TYPE_CHECKING:
    from datasette import Request
    from datasette.app import Datasette

# Where a request keeps what was found for it: Datasette asks for the filter several times for one CSV file.
_FOUND = "colbert_table_search"
# Arguments that a new search does not keep: a page further on, an order of the rows of the search before.
_OF_ONE_SEARCH = frozenset({"_next", "_sort", "_sort_desc"})
# A page of one row is not to wait for something beside it.
SIMILAR_SECONDS = 1.0

Link = dict[str, str]
Slot = Callable[[], Awaitable[str]]


class Scored(NamedTuple):
    """The columns and rows of a table, as Datasette's ``_table.html`` shows them."""

    columns: list[dict[str, Any]]
    rows: list[Any]


@dataclass(frozen=True, slots=True)
class TableSearch:
    """What was found for the words of a request to a table.

    ``best_first`` tells whether the page is in the order of the scores; ``description`` is what Datasette says of the
    rows above them.
    """

    index: str
    question: Question
    found: Found
    best_first: bool
    description: str
    conditions: Conditions

    def scored(self, columns: Sequence[dict[str, Any]], rows: Sequence[Any], values: Sequence[Any]) -> Scored:
        """Return what a page shows with a column of scores, and in their order unless the reader chose another one.

        :param values: the rows again, as mappings from column to value
        """
        places = {row_path(row.pk): place for place, row in enumerate(self.found.ranked)}
        found = [places.get(self._path(row, of_row)) for row, of_row in zip(rows, values, strict=True)]
        taken = {str(column["name"]).lower() for column in columns}
        name = "ColBERT score" if "score" in taken else "score"
        shown = [self._with_score(row, place, name) for row, place in zip(rows, found, strict=True)]
        if self.best_first:
            # Datasette joins conditions with "and" whatever is in them: some rows may be none that we found.
            order = sorted(range(len(shown)), key=lambda i: len(places) if (place := found[i]) is None else place)
            shown = [shown[i] for i in order]
        column = {
            "name": name,
            "sortable": False,
            "is_pk": False,
            # Keeps the scripts of Datasette from offering to hide the column, or to facet by it.
            "is_special_link_column": True,
            "type": "",
            "notnull": 0,
            "description": None,
        }
        return Scored([*columns[:1], column, *columns[1:]], shown)

    def _path(self, row: Any, values: Any) -> str:
        """The primary key of a row of the page, as in its URL."""
        known = getattr(row, "row_path", None)
        if known is not None:
            return str(known)
        from datasette.utils import path_from_row_pks

        return str(path_from_row_pks(values, self.found.facts.key_columns, False))

    def _with_score(self, row: Any, place: int | None, name: str) -> Any:
        score = None if place is None else self.found.ranked[place].score
        shown = "" if score is None else shown_score(score, self.found.mode)
        row = copy.copy(row)
        row.cells = [
            *row.cells[:1],
            {"column": name, "value_type": "float", "raw": score, "value": shown},
            *row.cells[1:],
        ]
        return row


async def narrowed(datasette: Datasette, request: Request, database: str, table: str) -> Any:
    """Return Datasette's ``FilterArguments`` for ``?_colbert=``; None where there are no words, or no index.

    The other filters of the request are searched with, so that as many rows are found as there would be without them.

    :raises datasette.views.base.DatasetteError: if the search fails
    """
    from datasette.filters import FilterArguments

    words = (request.args.get("_colbert") or "").strip()
    indexes = await table_indexes(datasette, request.actor, database, table) if words else []
    if not indexes:
        return None
    index = indexes[0]
    try:
        index = _chosen(request, indexes)
        search = await _search(datasette, request, Place(database, index), words)
        facts = search.found.facts
        pks = [row.pk for row in search.found.ranked]
        if are_blobs(pks):
            raise ValueError(f"table {table} has BLOBs for keys, which no filter can name: use the search page")
        where, params = keys_condition(facts.key_columns, pks, "colbert_keys")
    except Exception as error:
        raise _refusal(explained_failure(error, database, index.name)) from None
    request.scope[_FOUND] = search
    return FilterArguments([where], params, [_description(words)])


async def table_indexes(datasette: Datasette, actor: Any, database: str, table: str) -> list[KnownIndex]:
    """Return the indexes of one table that the actor may search, by name."""
    indexes = await visible_indexes(datasette, actor, database)
    return sorted(index for index in indexes if index.table.lower() == table.lower())


def _chosen(request: Request, indexes: Sequence[KnownIndex]) -> KnownIndex:
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


async def _search(datasette: Datasette, request: Request, place: Place, words: str) -> TableSearch:
    database, table = place.database, place.known.table
    settings = settings_for(datasette, database, table)
    mode = checked_mode("_colbert_mode", request.args.get("_colbert_mode") or settings.mode)
    filters = await conditions(datasette, request, database, table, TABLE_ARGUMENTS)
    k = _n_rows(datasette, request, database, table, settings.max_k)
    question = Question(
        words, k, mode, filters.where, filters.params, is_default_mode=not request.args.get("_colbert_mode")
    )
    known: TableSearch | None = request.scope.get(_FOUND)
    if known is not None and (known.index, known.question) == (place.known.name, question):
        return known
    rest = column_filters(datasette, without(request, TABLE_ARGUMENTS), database, table)
    return TableSearch(
        index=place.known.name,
        question=question,
        found=await service_of(datasette).search(database, place.known.name, question),
        best_first=not (request.args.get("_sort") or request.args.get("_sort_desc")),
        description=rest.human_description_en([*filters.described, _description(words)]),
        conditions=filters,
    )


def _n_rows(datasette: Datasette, request: Request, database: str, table: str, most: int) -> int:
    """How many rows the page has, so that all that are found are on it; *most* where it is not a page."""
    if request.args.get("_stream"):
        return most
    size = request.args.get("_size") or table_setting(datasette, database, table, "size") or datasette.page_size
    try:
        n_rows = int(datasette.max_returned_rows if size == "max" else size)
    except ValueError:
        # Datasette itself is about to say what is wrong with it.
        n_rows = most
    return min(n_rows, most) if n_rows > 0 else most


def _description(words: str) -> str:
    return f'text best answers "{words}"'


def _refusal(failure: Failure) -> Exception:
    from datasette.views.base import DatasetteError

    error: Exception = DatasetteError(failure.sentence, title="Search", status=failure.status)
    # For with_headers(), which gets any exception.
    error.colbert_failure = failure  # type: ignore[attr-defined]
    return error


def with_headers(exception: Exception, responses: Sequence[Any]) -> list[Any]:
    """Return the responses to an exception, with ``Retry-After`` if it is one of ours that says so."""
    failure: Failure | None = getattr(exception, "colbert_failure", None)
    if failure is None or not failure.headers:
        return [*responses]
    return [_with(failure.headers, response) for response in responses]


async def _with(headers: dict[str, str], awaitable: Any) -> Any:
    from datasette.utils import await_me_maybe

    response = await await_me_maybe(awaitable)
    if response is not None:
        response.headers.update(headers)
    return response


def template_vars(
    datasette: Datasette, request: Request | None, view_name: str | None, database: str | None, table: str | None
) -> dict[str, Any]:
    """Return what our templates of the pages of tables and rows need."""
    if request is None or database is None or table is None or view_name not in ("table", "row"):
        return {}
    found: dict[str, Any] = {}
    search: TableSearch | None = request.scope.get(_FOUND)
    if view_name == "table" and search is not None:
        found["colbert_scored"] = search.scored
        if search.best_first:
            # Else the page would show, and its form would hand on, that it is sorted by the key, or as configured.
            found |= {"sort": None, "sort_desc": None, "human_description_en": search.description}
    if not is_1_0(datasette):
        # 1.0 has hooks for these.
        top = top_of_table if view_name == "table" else top_of_row
        found["colbert_top"] = _slot(top, datasette, request, database, table)
    return found


def _slot(top: Callable[..., Awaitable[str | None]], *args: Any) -> Slot:
    async def filled() -> str:
        from markupsafe import Markup

        return Markup(await top(*args) or "")

    return filled


async def top_of_table(datasette: Datasette, request: Request, database: str, table: str) -> str | None:
    """Return the search box above an indexed table; None for any other table."""
    indexes = await table_indexes(datasette, request.actor, database, table)
    if not indexes:
        return None
    search: TableSearch | None = request.scope.get(_FOUND)
    action = str(datasette.urls.table(database, table))
    context = {
        "action": action,
        "words": request.args.get("_colbert") or "",
        "indexes": [index.name for index in indexes],
        "chosen": search.index if search else request.args.get("_colbert_index"),
        "hidden": [*_kept(request, len(indexes))],
        "search": search,
        "more_url": _more_url(datasette, request, database, search) if search else "",
        "clear_url": _clear_url(request, action) if search else "",
    }
    return str(await datasette.render_template("_colbert_table.html", context, request=request))


def _kept(request: Request, n_indexes: int) -> Sequence[tuple[str, str]]:
    """The arguments that the search box hands on."""
    # With several indexes the box has a field for that itself.
    own = {"_colbert", "_colbert_index"} if n_indexes > 1 else {"_colbert"}
    return [
        (key, value) for key in request.args if key not in own | _OF_ONE_SEARCH for value in request.args.getlist(key)
    ]


def _more_url(datasette: Datasette, request: Request, database: str, search: TableSearch) -> str:
    """The search page with the same words, filters and facets."""
    pairs = [("q", search.question.query)]
    if mode := request.args.get("_colbert_mode"):
        pairs.append(("_mode", mode))
    # A column may be called what the search page calls the words.
    pairs += [("q__exact" if key == "q" else key, value) for key, value in search.conditions.labels]
    pairs += [("_facet", value) for value in request.args.getlist("_facet")]
    return f"{index_url(datasette, database, search.index)}?{urlencode(pairs)}"


def _clear_url(request: Request, action: str) -> str:
    from datasette.utils import path_with_removed_args

    return str(path_with_removed_args(request, {*TABLE_ARGUMENTS, "_next"}, path=action))


async def top_of_row(datasette: Datasette, request: Request, database: str, table: str) -> str | None:
    """Return links to the rows most like the one on the page; None where the row is in no index."""
    n_rows = settings_for(datasette, database, table).similar_rows
    indexes = await table_indexes(datasette, request.actor, database, table) if n_rows else []
    if not indexes:
        return None
    place, pks = Place(database, indexes[0]), request.url_vars["pks"]
    hits: Sequence[Any] = ()
    try:
        pk, _ = await row_in_path(datasette, database, table, pks)
        found = await asyncio.wait_for(
            service_of(datasette).similar(database, place.known.name, pk, n_rows), SIMILAR_SECONDS
        )
        label = await label_column(datasette, place, found.facts)
        hits = [shown_hit(datasette, place, found, hit, label) for hit in found.hits]
    except (asyncio.TimeoutError, Busy, TookTooLong):
        pass
    except Exception as error:
        _log(error, place)
        return None
    context = {"hits": hits, "more_url": index_url(datasette, database, place.known.name, "similar", pks)}
    return str(await datasette.render_template("_colbert_row.html", context, request=request))


def _log(error: Exception, place: Place) -> None:
    """Have the server's log say what is wrong with an index, if anything is: the page of a row does without."""
    from datasette.utils.asgi import Base400

    if not isinstance(error, Base400):
        explained_failure(error, place.database, place.known.name)


async def table_links(datasette: Datasette, request: Request, actor: Any, database: str, table: str) -> list[Link]:
    """Return the entries of a table's menu."""
    indexes = await table_indexes(datasette, actor, database, table)
    links = [
        _link(
            index_url(datasette, database, index.name),
            _of("Search with ColBERT", index, indexes),
            "Find rows by what they mean, and see which words answer.",
        )
        for index in indexes
    ]
    if not indexes and await _could_be_indexed(datasette, database, table):
        if await manage_url(datasette, request, database):
            url = managing_url(datasette, database, "create", table=table)
            links.append(_link(url, "Create a ColBERT index", "Make the rows of this table searchable by meaning."))
    return links


async def _could_be_indexed(datasette: Datasette, database: str, table: str) -> bool:
    db = datasette.databases[database]
    if not db.is_mutable or table in await db.hidden_table_names():
        return False
    # One that is being built, or isn't served, is one too.
    return all(index.table.lower() != table.lower() for index in await known_indexes(datasette, database))


async def row_links(datasette: Datasette, request: Request, actor: Any, database: str, table: str) -> list[Link]:
    """Return the entries of a row's menu."""
    indexes = await table_indexes(datasette, actor, database, table)
    return [
        _link(
            index_url(datasette, database, index.name, "similar", request.url_vars["pks"]),
            _of("Similar rows", index, indexes),
            "The rows of this table that are most like this one.",
        )
        for index in indexes
    ]


async def database_links(datasette: Datasette, request: Request, actor: Any, database: str) -> list[Link]:
    """Return the entries of a database's menu."""
    links = []
    if await visible_indexes(datasette, actor, database):
        links.append(_link(index_url(datasette, database), "Search with ColBERT", "Find rows by what they mean."))
    if managing := await manage_url(datasette, request, database):
        links.append(_link(managing, "Manage ColBERT indexes", "Create, sync, rebuild and drop them."))
    return links


def _of(label: str, index: KnownIndex, indexes: Sequence[KnownIndex]) -> str:
    return label if len(indexes) == 1 else f"{label}: {index.name}"


def _link(href: str, label: str, description: str) -> Link:
    # Only 1.0 shows descriptions.
    return {"href": href, "label": label, "description": description}
