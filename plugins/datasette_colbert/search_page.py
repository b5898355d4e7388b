"""The page that searches an index, its JSON and its CSV.

In: a request. Out: a response. Leaves to others: who may see what (access.py), searching (service.py), filters
(filters.py), markup (templates).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from datasette import Request, Response

from colbert_sqlite.serving import quote_identifier
from datasette_colbert.access import Target, requested_index
from datasette_colbert.compat import (
    Json,
    is_interrupted,
    path_of_filter_form,
    path_with,
    path_without,
    rows_response,
    table_setting,
)
from datasette_colbert.compat_table import FACET_CONTEXT, column_facets, filter_lookups
from datasette_colbert.context import Choice, PageFilter, SearchPage, page_hits, page_index
from datasette_colbert.exports import hit_json, hits_csv
from datasette_colbert.filters import Conditions, are_blobs, conditions, keys_condition
from datasette_colbert.responses import Failure, error_response, failure_of, html_response, wants_csv, wants_json
from datasette_colbert.rows import label_column
from datasette_colbert.service import IndexFacts, SearchRequest, SearchResult, service_of
from datasette_colbert.settings import PluginSettings, checked_mode, settings_for
from datasette_colbert.urls import index_url, json_url, manage_url

if TYPE_CHECKING:
    from datasette.app import Datasette

    from colbert_sqlite import Hit

N_EXAMPLES = 3
MAX_DIGITS = 9
MODE_TITLES = {
    "colbert": "Rows by what they mean",
    "hybrid": "Rows by what they mean and by full-text search, together",
    "fts": "Rows that full-text search finds, ordered by what they mean",
}


async def search(datasette: Datasette, request: Request) -> Response:
    """``/{database}/-/colbert/{index}?q=``: the rows that answer a query, as a page, as JSON or as CSV."""
    target = await requested_index(datasette, request)
    path = index_url(datasette, target.database, target.index.name)
    if redirect := path_of_filter_form(request, path):
        return Response.redirect(redirect)
    search = _Search(datasette, request, target, path)
    await search.run()
    if wants_json(request):
        # A hundred explanations are megabytes.
        return await asyncio.to_thread(search.json)
    if wants_csv(request):
        return search.csv()
    context = {
        "database": target.database,
        "page": await search.page(),
        **FACET_CONTEXT,
    }
    return await html_response(datasette, request, "colbert_search.html", context, search.failure)


class _Arguments(NamedTuple):
    """The mode of a request to the search page, the number of its page and its size."""

    mode: str
    page: int
    size: int

    @property
    def slice(self) -> slice:
        return slice((self.page - 1) * self.size, self.page * self.size)


class _Search:
    """One request to the search page. ``run()`` fills in the result, or why there is none."""

    def __init__(self, datasette: Datasette, request: Request, target: Target, path: str) -> None:
        self._datasette = datasette
        self._request = request
        self._database, self._index = target.database, target.index
        self._target = target
        # Not the path of the request, which may or may not have the base_url in it.
        self._path = path
        self._settings: PluginSettings = settings_for(datasette, self._database, self._index.table)
        self._query = (request.args.get("q") or "").strip()
        self._arguments = _Arguments(self._settings.mode, 1, self._settings.page_size)
        self._mode = self._arguments.mode
        self._conditions = Conditions(None, {}, {})
        self._facts: IndexFacts | None = None
        self._result: SearchResult | None = None
        self.failure: Failure | None = None

    async def run(self) -> None:
        """Search, or keep why that failed."""
        service = service_of(self._datasette)
        try:
            self._arguments = _arguments(self._request, self._settings)
            self._mode = self._arguments.mode
            await self._check_columns()
            self._conditions = await conditions(self._datasette, self._request, self._database, self._index.table)
            if not self._query:
                self._facts = await service.facts(self._database, self._index.name)
                return
            self._result = await service.search(
                self._database,
                self._index.name,
                self._search_request(),
                page=self._arguments.slice,
                explain=self._explains,
            )
            self._facts, self._mode = self._result.facts, self._result.mode
        except Exception as error:
            self.failure = failure_of(error, self._database, self._index.name)

    def _search_request(self) -> SearchRequest:
        args, max_k = self._request.args, self._settings.max_k
        # Facets count all rows that can be reached by paging.
        has_facets = "_facet" in args or table_setting(self._datasette, self._database, self._index.table, "facets")
        return SearchRequest(
            self._query,
            max_k if self._arguments.page > 1 or has_facets else min(self._arguments.size + 1, max_k),
            self._arguments.mode,
            self._conditions.where,
            self._conditions.params,
            first=self._arguments.size,
            is_default_mode=not args.get("_mode"),
        )

    async def _check_columns(self) -> None:
        """Make sure that ``_col``, ``_nocol`` and ``_facet`` name columns.

        :raises ValueError: if not
        """
        columns = await self._datasette.databases[self._database].table_columns(self._index.table)
        args = self._request.args
        for name in [name for arg in ("_col", "_nocol", "_facet") for name in args.getlist(arg)]:
            if name not in columns:
                raise ValueError(f"table {self._index.table} has no column {name!r}")

    @property
    def _explains(self) -> bool:
        if wants_csv(self._request):
            return False
        return not wants_json(self._request) or bool(self._request.args.get("_explain"))

    @property
    def _hits(self) -> Sequence[Hit]:
        return self._result.hits if self._result else []

    @property
    def _has_more(self) -> bool:
        return self._result is not None and len(self._result.pks) > self._arguments.slice.stop

    def csv(self) -> Response:
        """The rows of this page, best first."""
        if self.failure is not None:
            return Response.text(self.failure.sentence, status=self.failure.status, headers=self.failure.headers)
        return hits_csv(self._request, self._hits)

    def json(self) -> Response:
        """The rows of this page, best first, and what the search was."""
        if self.failure is not None:
            return error_response(self._datasette, self.failure)
        datasette, facts, result = self._datasette, self._facts, self._result
        assert facts is not None
        rows = []
        for hit in self._hits:
            row = hit_json(datasette, self._request, self._database, facts.table, hit)
            if self._explains and result is not None:
                explanation = result.explanations.get(hit.rank)
                row["explanation"] = explanation.to_dict() if explanation else None
            rows.append(row)
        next_page = str(self._arguments.page + 1) if self._has_more else None
        next_url = self._url(".json", _page=next_page) if next_page else None
        data: Json = {
            "database": self._database,
            "index": self._index.name,
            "table": self._index.table,
            "query": self._query,
            "mode": self._mode,
            "pending_changes": facts.pending_changes,
            "milliseconds": round(result.milliseconds, 1) if result else None,
            "next": next_page,
            "next_url": datasette.absolute_url(self._request, next_url) if next_url else None,
        }
        return rows_response(datasette, self._request, data, rows)

    async def page(self) -> SearchPage:
        """What the template reads."""
        datasette, request, args, result = self._datasette, self._request, self._request.args, self._result
        heading = self._facts.heading if self._facts else None
        label = await label_column(datasette, self._database, self._index.table, heading)
        facets, facet_choices = await self._facets()
        explanations = result.explanations.values() if result else ()
        number, labels = self._arguments.page, self._conditions.labels
        return SearchPage(
            index=page_index(datasette, self._database, self._index, self._facts),
            query=self._query,
            mode=self._mode,
            modes=tuple(self._modes()),
            hits=page_hits(datasette, self._target, result, label) if result else (),
            examples=await self._examples(label),
            words=next((tuple(match.text for match in one.matches) for one in explanations), ()),
            error=self.failure.for_people if self.failure else "",
            milliseconds=result.milliseconds if result else None,
            filters=tuple(
                PageFilter(words, self._url_without({key: value, "_page": args.get("_page") or ""}))
                for (key, value), words in labels.items()
            ),
            clear_filters_url=self._url_without({"_page", *(key for key, _ in labels)}),
            filter_columns=tuple(await datasette.databases[self._database].table_columns(self._index.table)),
            filter_lookups=filter_lookups(),
            hidden=tuple(
                (key, value)
                for key in args
                if key not in ("q", "_page") and not key.startswith("_filter_")
                for value in args.getlist(key)
            ),
            facet_choices=facet_choices,
            facets=facets,
            previous_url=self._url(_page=str(number - 1)) if number > 1 else "",
            next_url=self._url(_page=str(number + 1)) if self._has_more else "",
            json_url=json_url(self._path, request),
            csv_url=self._url(".csv"),
            n_faceted=len(result.pks) if result and facets else 0,
            manage_url=await manage_url(datasette, request, self._database),
            table_search_url=self._table_url(),
        )

    async def _examples(self, label: str | None) -> tuple[Choice, ...]:
        """The titles of some rows as queries to begin with, where there is no query yet."""
        if self._query or label is None:
            return ()
        column, table = quote_identifier(label), quote_identifier(self._index.table)
        try:
            result = await self._datasette.databases[self._database].execute(
                f"select {column} from {table} where typeof({column}) = 'text' and {column} like '% %'"
                f" limit {N_EXAMPLES}"
            )
        except Exception as error:
            if is_interrupted(error):
                return ()
            raise
        return tuple(Choice(value=title, label=title, url=self._url(q=title)) for (title,) in result.rows)

    def _modes(self) -> list[Choice]:
        why_not = "" if self._facts is None or self._facts.has_fts else "the table has no FTS5 index"
        return [
            Choice(
                value=mode,
                label=mode,
                url=self._url(_mode=mode, _page=None),
                selected=mode == self._mode,
                why_not="" if mode == "colbert" else why_not,
                title=title,
            )
            for mode, title in MODE_TITLES.items()
        ]

    async def _facets(self) -> tuple[Sequence[Mapping[str, object]], tuple[Choice, ...]]:
        """The facets of the request over all rows that match, and columns that could be one."""
        result = self._result
        if result is None or not result.hits or are_blobs(result.pks) or not self._datasette.setting("allow_facet"):
            return [], ()
        table = result.facts.table
        where, params = keys_condition(result.facts.key_columns, result.pks, "colbert_keys")
        sql = f"select * from {quote_identifier(table)} where {where}"
        facets, suggested = await column_facets(self._datasette, self._request, self._database, table, sql, params)
        return facets, tuple(Choice(value=name, label=name, url=url) for name, url in suggested)

    def _url(self, suffix: str = "", **args: str | None) -> str:
        return path_with(self._request, args, self._path + suffix)

    def _url_without(self, args: Mapping[str, str] | set[str]) -> str:
        return path_without(self._request, args, self._path)

    def _table_url(self) -> str:
        """Datasette's page of the table, with the same search."""
        url = str(self._datasette.urls.table(self._database, self._index.table))
        if not self._query:
            return url
        pairs = [("_colbert", self._query), ("_colbert_index", self._index.name)]
        if self._mode != self._settings.mode:
            pairs.append(("_colbert_mode", self._mode))
        return f"{url}?{urlencode([*pairs, *self._conditions.labels])}"


def _arguments(request: Request, settings: PluginSettings) -> _Arguments:
    """The arguments of a request to the search page.

    :raises ValueError: if one of them is wrong
    """
    args, max_k = request.args, settings.max_k
    mode = checked_mode("_mode", args.get("_mode") or settings.mode)
    size = str(max_k) if args.get("_size") == "max" else args.get("_size")
    return _Arguments(
        mode,
        page=_whole_number(args.get("_page"), "_page", 1, max_k),
        size=_whole_number(size, "_size", settings.page_size, max_k),
    )


def _whole_number(value: str | None, name: str, default: int, maximum: int) -> int:
    if not value:
        return default
    if not value.isdecimal() or len(value) > MAX_DIGITS or not 1 <= int(value) <= maximum:
        raise ValueError(f"{name} must be a whole number from 1 to {maximum}, not {value!r}")
    return int(value)
