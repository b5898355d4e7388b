"""A request's arguments as conditions on a table, as Datasette's own page of the table reads them.

In: a request. Out: SQL, its parameters, words for people. Leaves to others: searching with it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, urlencode

from datasette import Request
from datasette.utils import await_me_maybe
from datasette.utils.asgi import BadRequest

from colbert_sqlite.serving import quote_identifier
from datasette_colbert.compat_table import column_filters, plugin_filters, words_of_filter

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.filters import FilterArguments, Filters

    from colbert_sqlite.serving import PrimaryKey

# Arguments of this plugin, which are no filters: those of Datasette's page of a table, those of the search page.
TABLE_ARGUMENTS = frozenset({"_colbert", "_colbert_index", "_colbert_mode"})
SEARCH_ARGUMENTS = TABLE_ARGUMENTS | {"q", "_mode", "_page", "_size", "_explain"}


class Conditions(NamedTuple):
    """What rows must be like.

    ``where`` is None where they may be anything. ``labels`` has each argument that is a filter, with its value, in
    words. ``descriptions`` are Datasette's own words for all but the column filters.
    """

    where: str | None
    params: dict[str, object]
    labels: dict[tuple[str, str], str]
    descriptions: tuple[str, ...] = ()


async def conditions(
    datasette: Datasette, request: Request, database: str, table: str, skip: Collection[str] = SEARCH_ARGUMENTS
) -> Conditions:
    """Return the conditions in a request's arguments: column filters, and those of plugins.

    :param skip: arguments that are no filters
    :raises datasette.utils.asgi.BadRequest: if one of them can't be used
    :raises datasette.Forbidden: if the actor may not use one of them
    """
    request = without_arguments(request, skip)
    filters = column_filters(datasette, request, database, table)
    columns = {column.lower() for column in await datasette.databases[database].table_columns(table)} | {"rowid"}
    for column, _, _ in filters.selections():
        if column.lower() not in columns:
            raise BadRequest(f"table {table} has no column {column!r} to filter by")
    clauses, params = filters.build_where_clauses(table)
    labels = _column_labels(request, filters)
    descriptions: list[str] = []
    for hook in plugin_filters(datasette, request, database, table):
        if arguments := await await_me_maybe(hook):
            clauses += arguments.where_clauses
            params |= arguments.params
            labels |= _other_labels(request, arguments)
            descriptions += arguments.human_descriptions
    where = " and ".join(f"({clause}\n)" for clause in clauses) if clauses else None
    return Conditions(where, params, labels, tuple(descriptions))


def _column_labels(request: Request, filters: Filters) -> dict[tuple[str, str], str]:
    labels = {}
    for column, lookup, value in filters.selections():
        words = words_of_filter(filters, column, lookup, value)
        for key in (f"{column}__{lookup}", column):
            if words is not None and str(value) in map(str, request.args.getlist(key)):
                labels[key, str(value)] = words
                break
    return labels


def _other_labels(request: Request, arguments: FilterArguments) -> dict[tuple[str, str], str]:
    """Words for other arguments, such as ``_search`` and ``_where``, as far as the plugin of each has some."""
    pairs = [
        (key, value)
        for key in request.args
        for value in request.args.getlist(key)
        if key in ("_where", "_through") or (key.startswith("_search") and key != "_searchmode")
    ]
    words = list(arguments.human_descriptions) or [
        one["text"] for one in arguments.extra_context.get("extra_wheres_for_ui", [])
    ]
    own = [pair for pair in pairs if any(pair[1] in word for word in words) or pair[0] == "_through"]
    return dict(zip(own, words, strict=False))


def are_blobs(pks: Iterable[PrimaryKey]) -> bool:
    """Return whether a primary key has a BLOB in it, which JSON and paths can't say."""
    return any(isinstance(part, bytes) for pk in pks for part in (pk if isinstance(pk, tuple) else (pk,)))


def keys_condition(key_columns: Sequence[str], pks: Iterable[PrimaryKey], param: str) -> tuple[str, dict[str, object]]:
    """Return a condition that holds for the rows with these primary keys, and its one parameter."""
    columns = [quote_identifier(column) for column in key_columns]
    if len(columns) == 1:
        return f"{columns[0]} in (select value from json_each(:{param}))", {param: json.dumps([*pks])}
    values = ", ".join(f"json_extract(value, '$[{i}]')" for i in range(len(columns)))
    where = f"({', '.join(columns)}) in (select {values} from json_each(:{param}))"
    return where, {param: json.dumps([*pks])}


def without_arguments(request: Request, names: Iterable[str]) -> Request:
    """Return the request as it would be without some arguments."""
    pairs = parse_qsl(request.query_string, keep_blank_values=True)
    rest = [(key, value) for key, value in pairs if key not in names]
    return Request({**request.scope, "query_string": urlencode(rest).encode()}, None)
