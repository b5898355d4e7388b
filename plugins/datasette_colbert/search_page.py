"""The pages that search, and their JSON.

In: requests. Out: responses. Leaves to others: who may see what (access.py), searching (service.py), markup
(templates).
"""

from __future__ import annotations

import asyncio
import csv
import io
import logging
import re
import sqlite3
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from colbert_sqlite.errors import ColbertError, SourceError
from datasette_colbert.access import KnownIndex, is_internal, visible_indexes
from datasette_colbert.compat import (
    column_facets,
    error_body,
    error_response,
    may_manage,
    may_view_database,
    rows_response,
    suggested_facets,
    table_setting,
)
from datasette_colbert.context import Choice, SearchPage, ShownFilter, ShownHit, ShownIndex, SimilarPage
from datasette_colbert.filters import Conditions, are_blobs, conditions, keys_condition
from datasette_colbert.service import RETRY_AFTER_SECONDS, Busy, Facts, Found, Question, TookTooLong, service_of
from datasette_colbert.settings import PluginSettings, checked_mode, settings_for

if TYPE_CHECKING:
    from datasette import Request, Response
    from datasette.app import Datasette

    from colbert_sqlite.results import Hit

logger = logging.getLogger("colbert_sqlite")

N_EXAMPLES = 3
MOST_DIGITS = 9
MODE_TITLES = {
    "colbert": "Rows by what they mean",
    "hybrid": "Rows by what they mean and by full-text search, together",
    "fts": "Rows that full-text search finds, ordered by what they mean",
}
NO_INDEX = "There is no such ColBERT index"
_ISO_DATE = re.compile(r"(\d{4}-\d\d-\d\d)([T ]\d\d:\d\d.*)?$")
_DATE_NAMES = ("publish", "date", "created", "posted", "added", "updated")


class Place(NamedTuple):
    """The database and the index that a request is about."""

    database: str
    known: KnownIndex


class Failure(NamedTuple):
    """Why there is no answer: a sentence for the reader, and the status of the response."""

    sentence: str
    status: int

    @property
    def for_people(self) -> str:
        return f"{self.sentence[:1].upper()}{self.sentence[1:]}."

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_AFTER_SECONDS)} if self.status == 503 else {}


async def index_list(datasette: Datasette, request: Request) -> Response:
    """``/{database}/-/colbert``: the indexes of a database that the actor may search."""
    from datasette import Forbidden, Response

    database = database_of(datasette, request)
    if not await may_view_database(datasette, request.actor, database):
        raise Forbidden("You do not have permission to view this database")
    shown = []
    for index in await visible_indexes(datasette, request.actor, database):
        try:
            facts = await service_of(datasette).facts(database, index.name)
        except Exception as error:
            failure = explained_failure(error, database, index.name)
            if failure.status == 503:
                return await _failed(datasette, request, failure)
            shown.append(shown_index(datasette, database, index, None))
        else:
            shown.append(shown_index(datasette, database, index, facts))
    if wants_json(request):
        rows = [
            {"name": one.name, "table": one.table, "columns": [*one.columns], "rows": one.rows, "url": one.url}
            for one in shown
        ]
        return rows_response(datasette, request, {"database": database, "rows": rows})
    context = {
        "database": database,
        "indexes": shown,
        "query": request.args.get("q") or "",
        "manage_url": await manage_url(datasette, request, database),
    }
    return Response.html(await datasette.render_template("colbert_indexes.html", context, request=request))


async def search(datasette: Datasette, request: Request) -> Response:
    """``/{database}/-/colbert/{index}?q=``: the rows that answer a query, as a page or as JSON."""
    from datasette import Response
    from datasette.utils import filters_should_redirect, path_with_added_args, path_with_replaced_args

    place = await _place(datasette, request)
    if redirect := filters_should_redirect(request.args):
        path = index_url(datasette, place.database, place.known.name)
        return Response.redirect(path_with_added_args(request, redirect, path=path))
    search = _Search(datasette, request, place)
    await search.run()
    if wants_json(request):
        # A hundred explanations are megabytes.
        return await asyncio.to_thread(search.json)
    if _wants_csv(request):
        return search.csv()
    context = {
        "database": place.database,
        "page": await search.page(),
        "path_with_replaced_args": path_with_replaced_args,
    }
    return await _html(datasette, request, "colbert_search.html", context, search.failure)


async def similar(datasette: Datasette, request: Request) -> Response:
    """``/{database}/-/colbert/{index}/similar/{pks}``: the rows most like one."""
    place = await _place(datasette, request)
    pk, row = await row_in_path(datasette, place.database, place.known.table, request.url_vars["pks"])
    settings = settings_for(datasette, place.database, place.known.table)
    found, failure = None, None
    try:
        found = await service_of(datasette).similar(place.database, place.known.name, pk, settings.page_size)
    except SourceError as error:
        logger.info("similar rows: %s", error)
        failure = Failure("this row is not in the index: it is empty, or was not there at the last sync", 404)
    except Exception as error:
        failure = explained_failure(error, place.database, place.known.name)
    if wants_json(request):
        if found is None:
            assert failure is not None
            return error_response(datasette, failure.sentence, failure.status, failure.headers)
        return rows_response(
            datasette,
            request,
            {
                "database": place.database,
                "index": place.known.name,
                "pk": pk,
                "rows": [_hit_json(datasette, request, place.database, found.facts, hit) for hit in found.hits],
            },
        )
    facts = found.facts if found else None
    label = await label_column(datasette, place, facts)
    page = SimilarPage(
        index=shown_index(datasette, place.database, place.known, facts),
        title=_title(row, label, pk),
        row_url=_row_url(datasette, place, pk),
        hits=tuple(shown_hit(datasette, place, found, hit, label) for hit in found.hits) if found else (),
        error=failure.for_people if failure else "",
        milliseconds=found.milliseconds if found else None,
        json_url=_json_url(index_url(datasette, place.database, place.known.name, "similar", row_path(pk)), request),
    )
    context = {"database": place.database, "page": page}
    return await _html(datasette, request, "colbert_similar.html", context, failure)


class _Search:
    """One request to the search page."""

    def __init__(self, datasette: Datasette, request: Request, place: Place) -> None:
        self._datasette = datasette
        self._request = request
        self._place = place
        self._settings: PluginSettings = settings_for(datasette, place.database, place.known.table)
        self._query = (request.args.get("q") or "").strip()
        self._found: Found | None = None
        self._facts: Facts | None = None
        self._conditions = Conditions(None, {}, {})
        self._mode = self._settings.mode
        self._page_number, self._size = 1, self._settings.page_size
        # Not the path of the request, which may or may not have the base_url in it.
        self._path = index_url(datasette, place.database, place.known.name)
        self.failure: Failure | None = None

    async def run(self) -> None:
        """Search, or note why that failed."""
        place, service = self._place, service_of(self._datasette)
        try:
            self._mode, self._page_number, self._size = self._arguments()
            await self._check_columns()
            self._conditions = await conditions(self._datasette, self._request, place.database, place.known.table)
            if not self._query:
                self._facts = await service.facts(place.database, place.known.name)
                return
            # Facets count all rows that can be reached by paging.
            has_facets = table_setting(self._datasette, place.database, place.known.table, "facets")
            deep = self._page_number > 1 or "_facet" in self._request.args or bool(has_facets)
            k = self._settings.max_k if deep else min(self._size + 1, self._settings.max_k)
            question = Question(
                self._query,
                k,
                self._mode,
                self._conditions.where,
                self._conditions.params,
                first=self._size,
                is_default_mode=not self._request.args.get("_mode"),
            )
            self._found = await service.search(
                place.database, place.known.name, question, shown=self._slice, explain=self._explains
            )
            self._facts, self._mode = self._found.facts, self._found.mode
        except Exception as error:
            self.failure = explained_failure(error, place.database, place.known.name)

    def _arguments(self) -> tuple[str, int, int]:
        """The mode, the number of the page and its size.

        :raises ValueError: if one of them can't be
        """
        args = self._request.args
        mode = checked_mode("_mode", args.get("_mode") or self._settings.mode)
        most = self._settings.max_k
        asked_size = str(most) if args.get("_size") == "max" else args.get("_size")
        size = _whole(asked_size, "_size", self._settings.page_size, most)
        return mode, _whole(args.get("_page"), "_page", 1, most), size

    async def _check_columns(self) -> None:
        """Make sure that ``_col``, ``_nocol`` and ``_facet`` name columns.

        :raises ValueError: if not
        """
        columns = await self._datasette.databases[self._place.database].table_columns(self._place.known.table)
        args = self._request.args
        for name in [name for arg in ("_col", "_nocol", "_facet") for name in args.getlist(arg)]:
            if name not in columns:
                raise ValueError(f"table {self._place.known.table} has no column {name!r}")

    @property
    def _explains(self) -> bool:
        if _wants_csv(self._request):
            return False
        return not wants_json(self._request) or bool(self._request.args.get("_explain"))

    @property
    def _slice(self) -> slice:
        return slice((self._page_number - 1) * self._size, self._page_number * self._size)

    @property
    def _hits(self) -> Sequence[Hit]:
        return self._found.hits if self._found else []

    @property
    def _has_more(self) -> bool:
        return self._found is not None and len(self._found.ranked) > self._slice.stop

    def csv(self) -> Response:
        """The rows of this page, best first."""
        from datasette import Response

        if self.failure is not None:
            return Response.text(self.failure.sentence, status=self.failure.status, headers=self.failure.headers)
        datasette, place, out = self._datasette, self._place, io.StringIO(newline="")
        assert self._facts is not None
        rows = [_hit_json(datasette, self._request, place.database, self._facts, hit) for hit in self._hits]
        writer = csv.writer(out)
        columns = [*rows[0]["row"]] if rows else []
        ours = ("rank", "score", "normalized_score", "stale", "passage")
        # A column of the table that is called as one of ours keeps its name.
        writer.writerow([*(f"colbert_{name}" if name in columns else name for name in ours), *columns])
        for row in rows:
            writer.writerow([*(row[name] for name in ours), *(row["row"][column] for column in columns)])
        return Response(out.getvalue(), content_type="text/csv; charset=utf-8")

    def json(self) -> Response:
        if self.failure is not None:
            return error_response(self._datasette, self.failure.sentence, self.failure.status, self.failure.headers)
        datasette, place = self._datasette, self._place
        assert self._facts is not None
        rows = []
        for hit in self._hits:
            row = _hit_json(datasette, self._request, place.database, self._facts, hit)
            if self._explains and self._found is not None:
                explanation = self._found.explanations.get(hit.rank)
                row["explanation"] = explanation.to_dict() if explanation else None
            rows.append(row)
        next_url = self._url(".json", _page=str(self._page_number + 1)) if self._has_more else None
        data = {
            "database": place.database,
            "index": place.known.name,
            "table": place.known.table,
            "query": self._query,
            "mode": self._mode,
            "pending_changes": self._facts.pending_changes,
            "milliseconds": round(self._found.milliseconds, 1) if self._found else None,
            "next": str(self._page_number + 1) if next_url else None,
            "next_url": datasette.absolute_url(self._request, next_url) if next_url else None,
            "rows": rows,
        }
        return rows_response(datasette, self._request, data)

    async def page(self) -> SearchPage:
        datasette, place, request = self._datasette, self._place, self._request
        label = await label_column(datasette, place, self._facts)
        facets, choices = await self._facets() if self._found and self._found.hits else ([], ())
        explanations = self._found.explanations.values() if self._found else ()
        return SearchPage(
            index=shown_index(datasette, place.database, place.known, self._facts),
            query=self._query,
            mode=self._mode,
            modes=tuple(self._modes()),
            hits=tuple(shown_hit(datasette, place, self._found, hit, label) for hit in self._hits if self._found),
            examples=await self._examples(label),
            words=next((tuple(match.text for match in one.matches) for one in explanations), ()),
            error=self.failure.for_people if self.failure else "",
            milliseconds=self._found.milliseconds if self._found else None,
            filters=tuple(
                ShownFilter(words, self._url_without({key: value, "_page": request.args.get("_page") or ""}))
                for (key, value), words in self._conditions.labels.items()
            ),
            clear_filters_url=self._url_without({"_page", *(key for key, _ in self._conditions.labels)}),
            filter_columns=tuple(await datasette.databases[place.database].table_columns(place.known.table)),
            filter_lookups=_lookups(),
            hidden=tuple(
                (key, value)
                for key in request.args
                if key not in ("q", "_page") and not key.startswith("_filter_")
                for value in request.args.getlist(key)
            ),
            facet_choices=choices,
            facets=facets,
            previous_url=self._url(_page=str(self._page_number - 1)) if self._page_number > 1 else "",
            next_url=self._url(_page=str(self._page_number + 1)) if self._has_more else "",
            json_url=_json_url(self._path, request),
            csv_url=self._url(".csv"),
            n_faceted=len(self._found.ranked) if self._found and facets else 0,
            manage_url=await manage_url(datasette, request, place.database),
            table_search_url=self._table_url(),
        )

    async def _examples(self, label: str | None) -> tuple[Choice, ...]:
        """Where there is no query yet: what some rows are called, to begin with."""
        from datasette.database import QueryInterrupted

        from colbert_sqlite.catalogue import quote_identifier

        if self._query or label is None:
            return ()
        column, table = quote_identifier(label), quote_identifier(self._place.known.table)
        try:
            rows = await self._datasette.databases[self._place.database].execute(
                f"select {column} from {table} where typeof({column}) = 'text' and {column} like '% %'"
                f" limit {N_EXAMPLES}"
            )
        except QueryInterrupted:
            return ()
        return tuple(Choice(value=row[0], label=row[0], url=self._url(q=row[0]), selected=False) for row in rows.rows)

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

    async def _facets(self) -> tuple[list[dict[str, Any]], tuple[Choice, ...]]:
        """The facets that are asked for, and those that could be, over all rows that were found."""
        datasette, place = self._datasette, self._place
        assert self._found is not None
        facts, pks = self._found.facts, [row.pk for row in self._found.ranked]
        if are_blobs(pks) or not datasette.setting("allow_facet"):
            return [], ()
        from colbert_sqlite.catalogue import quote_identifier

        where, params = keys_condition(facts.key_columns, pks, "colbert_keys")
        sql = f"select * from {quote_identifier(facts.table)} where {where}"
        asked = datasette, self._request, place.database, facts.table, sql, params
        choices = await suggested_facets(*asked) if datasette.setting("suggest_facets") else []
        return await column_facets(*asked), tuple(
            Choice(value=name, label=name, url=url, selected=False) for name, url in choices
        )

    def _url(self, suffix: str = "", **args: str | None) -> str:
        from datasette.utils import path_with_replaced_args

        return str(path_with_replaced_args(self._request, args, path=self._path + suffix))

    def _url_without(self, args: Mapping[str, str] | set[str]) -> str:
        from datasette.utils import path_with_removed_args

        return str(path_with_removed_args(self._request, args, path=self._path))

    def _table_url(self) -> str:
        """The table's own page, narrowed by the same search."""
        url = str(self._datasette.urls.table(self._place.database, self._place.known.table))
        if not self._query:
            return url
        pairs = [("_colbert", self._query), ("_colbert_index", self._place.known.name)]
        if self._mode != self._settings.mode:
            pairs.append(("_colbert_mode", self._mode))
        return f"{url}?{urlencode([*pairs, *self._conditions.labels])}"


def explained_failure(error: Exception, database: str, index: str) -> Failure:
    """Return what a reader is told of an error; what is none of their business goes to the log.

    :raises Exception: the error, if Datasette itself is to answer
    """
    from datasette.database import QueryInterrupted
    from datasette.utils.asgi import Base400
    from datasette.views.base import DatasetteError

    if isinstance(error, (Busy, TookTooLong)):
        return Failure(str(error), 503)
    if isinstance(error, (Base400, DatasetteError)):
        raise error
    if isinstance(error, ValueError):
        return Failure(str(error), 400)
    if isinstance(error, QueryInterrupted):
        return Failure("the filters take too long: use fewer or simpler ones", 400)
    known = isinstance(error, (ColbertError, sqlite3.Error))
    logger.error("index %r of database %r: %s", index, database, error, exc_info=None if known else error)
    return Failure("This index can't be searched at the moment. What is wrong is in the server's log", 500)


def shown_index(datasette: Datasette, database: str, index: KnownIndex, facts: Facts | None) -> ShownIndex:
    return ShownIndex(
        name=index.name,
        table=index.table,
        columns=facts.columns if facts else (),
        url=index_url(datasette, database, index.name),
        table_url=str(datasette.urls.table(database, index.table)),
        rows=facts.rows if facts else None,
        pending_changes=facts.pending_changes if facts else None,
    )


def index_url(datasette: Datasette, database: str, index: str = "", *more: str) -> str:
    """Return the page of an index, of something of it, or of all indexes of a database."""
    from datasette.utils import tilde_encode

    path = "/".join(["-", "colbert", *([tilde_encode(index)] if index else []), *more])
    return f"{datasette.urls.database(database)}/{path}"


async def manage_url(datasette: Datasette, request: Request, database: str) -> str:
    """Return the page where the actor may manage the indexes of a database; empty if they may not."""
    if is_internal(datasette, database) or not await may_manage(datasette, request.actor, database):
        return ""
    return managing_url(datasette, database, "manage")


def managing_url(datasette: Datasette, database: str, page: str, **args: str) -> str:
    """Return one of the pages where indexes are managed."""
    query = f"?{urlencode(args)}" if args else ""
    return f"{datasette.urls.database(database)}/-/colbert-{page}{query}"


async def row_in_path(datasette: Datasette, database: str, table: str, path: str) -> tuple[Any, dict[str, Any]]:
    """Return the primary key that a row's path says, as the values that the columns hold, and the row.

    :raises datasette.NotFound: if there is no such row
    """
    from datasette import NotFound
    from datasette.utils import urlsafe_components

    from colbert_sqlite.catalogue import quote_identifier

    values = urlsafe_components(path)
    columns = await datasette.databases[database].primary_keys(table)
    if not columns or len(columns) != len(values):
        raise NotFound(f"Record not found: {path}")
    where = " and ".join(f"{quote_identifier(column)} = :p{i}" for i, column in enumerate(columns))
    # A path is text: the affinity of the columns makes numbers of what are numbers.
    rows = await datasette.databases[database].execute(
        f"select * from {quote_identifier(table)} where {where}", {f"p{i}": value for i, value in enumerate(values)}
    )
    if not rows.rows:
        raise NotFound(f"Record not found: {path}")
    row = dict(rows.rows[0])
    key = tuple(row[column] for column in columns)
    return key if len(key) > 1 else key[0], row


def database_of(datasette: Datasette, request: Request) -> str:
    """The name of the database in a request's path.

    :raises datasette.NotFound: if there is none
    """
    from datasette import NotFound
    from datasette.utils import tilde_decode

    try:
        name = str(datasette.get_database(route=tilde_decode(request.url_vars["database"])).name)
    except KeyError:
        name = ""
    if not name or is_internal(datasette, name):
        raise NotFound("Database not found")
    return name


async def _place(datasette: Datasette, request: Request) -> Place:
    """The index a request is about.

    :raises datasette.NotFound: if there is none, or none that the actor may see: nobody can tell which
    """
    from datasette import NotFound
    from datasette.utils import tilde_decode

    database, name = database_of(datasette, request), tilde_decode(request.url_vars["index"]).lower()
    for index in await visible_indexes(datasette, request.actor, database):
        if index.name.lower() == name:
            return Place(database, index)
    raise NotFound(NO_INDEX)


async def _failed(datasette: Datasette, request: Request, failure: Failure) -> Response:
    if wants_json(request):
        return error_response(datasette, failure.sentence, failure.status, failure.headers)
    context = {**error_body(datasette, failure.sentence, failure.status), "title": "Search"}
    return await _html(datasette, request, "error.html", context, failure)


async def _html(
    datasette: Datasette, request: Request, template: str, context: dict[str, Any], failure: Failure | None
) -> Response:
    from datasette import Response

    html = await datasette.render_template(template, context, request=request)
    return Response.html(html, status=failure.status if failure else 200, headers=failure.headers if failure else None)


def wants_json(request: Request) -> bool:
    """Whether a page is asked for as JSON."""
    return str(request.path).endswith(".json")


def _wants_csv(request: Request) -> bool:
    return str(request.path).endswith(".csv")


def _json_url(path: str, request: Request) -> str:
    query = f"?{request.query_string}" if request.query_string else ""
    return f"{path}.json{query}"


def _whole(value: str | None, name: str, default: int, most: int) -> int:
    if not value:
        return default
    if not value.isdecimal() or len(value) > MOST_DIGITS or not 1 <= int(value) <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most}, not {value!r}")
    return int(value)


def _lookups() -> tuple[tuple[str, str, bool], ...]:
    from datasette.filters import Filters

    return tuple(Filters([]).lookups())


async def label_column(datasette: Datasette, place: Place, facts: Facts | None) -> str | None:
    """The column that a row is called by: the configured one, the index's heading, or what Datasette thinks."""
    table = place.known.table
    configured = table_setting(datasette, place.database, table, "label_column")
    heading = facts.heading if facts else None
    return configured or heading or await datasette.databases[place.database].label_column_for_table(table)


def _title(row: Mapping[str, Any], label: str | None, pk: Any) -> str:
    value = row.get(label) if label else None
    if isinstance(value, (str, int, float)) and str(value).strip():
        return str(value)
    return ", ".join(map(str, pk)) if isinstance(pk, tuple) else str(pk)


def shown_hit(datasette: Datasette, place: Place, found: Found, hit: Hit, label: str | None) -> ShownHit:
    heading = hit.row.get(found.facts.heading) if found.facts.heading else None
    return ShownHit(
        rank=hit.rank,
        score=shown_score(hit.score, found.mode),
        normalized_score=hit.normalized_score,
        title=_title(hit.row, label, hit.pk),
        url=_row_url(datasette, place, hit.pk),
        date=_date(hit.row),
        stale=hit.stale,
        heading=heading if isinstance(heading, str) else "",
        passage=hit.passage.text,
        # Paths are text: no row page of Datasette has a BLOB in its path either.
        similar_url=""
        if are_blobs([hit.pk])
        else index_url(datasette, place.database, place.known.name, "similar", row_path(hit.pk)),
        explanation=found.explanations.get(hit.rank),
    )


def shown_score(score: float, mode: str) -> str:
    """Return a score for people. Reciprocal ranks are small, and close to each other."""
    return f"{score:.{4 if mode == 'hybrid' else 2}f}"


def row_path(pk: Any) -> str:
    from datasette.utils import tilde_encode

    return ",".join(tilde_encode(str(part)) for part in (pk if isinstance(pk, tuple) else (pk,)))


def _row_url(datasette: Datasette, place: Place, pk: Any) -> str:
    return str(datasette.urls.row(place.database, place.known.table, row_path(pk)))


def _hit_json(datasette: Datasette, request: Request, database: str, facts: Facts, hit: Hit) -> dict[str, Any]:
    """A hit as JSON has it; ``row`` with the columns that ``_col`` and ``_nocol`` leave, as on Datasette's pages."""
    wanted, unwanted = request.args.getlist("_col"), request.args.getlist("_nocol")
    return {
        "rank": hit.rank,
        "score": hit.score,
        "normalized_score": hit.normalized_score,
        "pk": list(hit.pk) if isinstance(hit.pk, tuple) else hit.pk,
        "url": str(datasette.urls.row(database, facts.table, row_path(hit.pk))),
        "passage": hit.passage.text,
        "stale": hit.stale,
        "row": {
            column: value
            for column, value in hit.row.items()
            if (not wanted or column in wanted) and column not in unwanted
        },
    }


def _date(row: Mapping[str, Any]) -> str:
    """The day in a row's first date, those columns first whose names speak of publishing."""
    dates = {
        column: match[1]
        for column, value in row.items()
        if isinstance(value, str) and len(value) < 40 and (match := _ISO_DATE.match(value))
    }
    for name in _DATE_NAMES:
        for column, day in dates.items():
            if name in column.lower():
                return day
    return next(iter(dates.values()), "")
