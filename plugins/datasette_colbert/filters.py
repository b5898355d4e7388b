"""A request's arguments as conditions on a table, just as Datasette's own table page reads them.

In: a request. Out: SQL, its parameters, words for people. Leaves to others: searching with it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from datasette_colbert.compat import column_filters

if TYPE_CHECKING:
    from datasette import Request
    from datasette.app import Datasette

# Arguments of this plugin, which are no filters: those of its own pages, those that Datasette's table page may have.
TABLE_ARGUMENTS = frozenset({"_colbert", "_colbert_index", "_colbert_mode"})
OWN_ARGUMENTS = TABLE_ARGUMENTS | {"q", "_mode", "_page", "_size", "_explain"}


class Conditions(NamedTuple):
    """What rows must be like. ``where`` is None where they may be anything. ``labels`` has each argument that is a
    filter, and its value, with what it means in words; ``described`` is what Datasette itself says of all of them but
    the column filters.
    """

    where: str | None
    params: dict[str, Any]
    labels: dict[tuple[str, str], str]
    described: tuple[str, ...] = ()


async def conditions(
    datasette: Datasette, request: Request, database: str, table: str, own: Collection[str] = OWN_ARGUMENTS
) -> Conditions:
    """Return what a request's arguments say about the rows of a table: column filters, and those of plugins.

    :param own: arguments to pass over
    :raises datasette.utils.asgi.BadRequest: if one of them can't be used
    :raises datasette.Forbidden: if the actor may not use one of them
    """
    from datasette.plugins import pm
    from datasette.utils import await_me_maybe
    from datasette.utils.asgi import BadRequest

    request = without(request, own)
    filters = column_filters(datasette, request, database, table)
    columns = {column.lower() for column in await datasette.databases[database].table_columns(table)} | {"rowid"}
    for column, _, _ in filters.selections():
        if column.lower() not in columns:
            raise BadRequest(f"table {table} has no column {column!r} to filter by")
    clauses, params = filters.build_where_clauses(table)
    labels = _column_labels(request, filters)
    described: list[str] = []
    for hook in pm.hook.filters_from_request(request=request, database=database, table=table, datasette=datasette):
        found = await await_me_maybe(hook)
        if found:
            clauses += found.where_clauses
            params |= found.params
            labels |= _other_labels(request, found)
            described += found.human_descriptions
    where = " and ".join(f"({clause}\n)" for clause in clauses) if clauses else None
    return Conditions(where, params, labels, tuple(described))


def _column_labels(request: Request, filters: Any) -> dict[tuple[str, str], str]:
    labels = {}
    for column, lookup, value in filters.selections():
        known = filters._filters_by_key.get(lookup)
        for key in (f"{column}__{lookup}", column):
            if known is not None and str(value) in map(str, request.args.getlist(key)):
                labels[key, str(value)] = known.human_clause(column, value)
                break
    return labels


def _other_labels(request: Request, found: Any) -> dict[tuple[str, str], str]:
    """What other arguments, such as ``_search`` and ``_where``, mean, as far as the plugin of each says so."""
    pairs = [
        (key, value)
        for key in request.args
        for value in request.args.getlist(key)
        if key in ("_where", "_through") or (key.startswith("_search") and key != "_searchmode")
    ]
    words = list(found.human_descriptions) or [
        one["text"] for one in found.extra_context.get("extra_wheres_for_ui", [])
    ]
    own = [pair for pair in pairs if any(pair[1] in word for word in words) or pair[0] == "_through"]
    return dict(zip(own, words, strict=False))


def are_blobs(pks: Iterable[Any]) -> bool:
    """Return whether a primary key has a BLOB in it, which JSON can't say."""
    return any(isinstance(part, bytes) for pk in pks for part in (pk if isinstance(pk, tuple) else (pk,)))


def keys_condition(key_columns: Sequence[str], pks: Iterable[Any], param: str) -> tuple[str, dict[str, str]]:
    """Return a condition that holds for the rows with these primary keys, and its one parameter."""
    from colbert_sqlite.indexes import quote_identifier

    columns = [quote_identifier(column) for column in key_columns]
    if len(columns) == 1:
        return f"{columns[0]} in (select value from json_each(:{param}))", {param: json.dumps([*pks])}
    values = ", ".join(f"json_extract(value, '$[{i}]')" for i in range(len(columns)))
    where = f"({', '.join(columns)}) in (select {values} from json_each(:{param}))"
    return where, {param: json.dumps([list(pk) for pk in pks])}


def without(request: Request, names: Iterable[str]) -> Request:
    """Return the request as it would be without some arguments."""
    from datasette import Request

    left = [(key, value) for key, value in parse_qsl(request.query_string, keep_blank_values=True) if key not in names]
    return Request({**request.scope, "query_string": urlencode(left).encode()}, None)
