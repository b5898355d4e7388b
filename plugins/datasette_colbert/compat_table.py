"""The private API of Datasette's pages of tables: filters, facets, columns and rows.

In: requests to a table, columns and rows of its page. Out: the same, read or changed. Leaves to others: everything else
that is private (compat.py, which also says which versions were seen).
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasette import Request
from datasette.utils import path_from_row_pks, path_with_replaced_args

from datasette_colbert.compat import Json, is_1_0, table_setting

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.filters import FilterArguments, Filters

# What ``_facet_results.html`` reads beside the facets.
FACET_CONTEXT = {"path_with_replaced_args": path_with_replaced_args}


def column_filters(datasette: Datasette, request: Request, database: str, table: str) -> Filters:
    """Return the column filters in a request's arguments.

    Private: ``datasette.filters.Filters``; ``datasette.app.ureg``, ``Datasette.table_metadata()`` (0.65).
    """
    from datasette.filters import Filters

    # As Datasette's pages of tables separate filters from their other arguments.
    pairs = sorted(
        (key, value)
        for key in request.args
        if not key.startswith("_") or "__" in key
        for value in request.args.getlist(key)
    )
    if is_1_0(datasette):
        return Filters(pairs)
    from datasette.app import ureg

    return Filters(pairs, datasette.table_metadata(database, table).get("units", {}), ureg)


def words_of_filter(filters: Filters, column: str, lookup: str, value: object) -> str | None:
    """Return one filter in words; None if Datasette has no such lookup. Private: ``Filters._filters_by_key``."""
    one = filters._filters_by_key.get(lookup)
    return None if one is None else str(one.human_clause(column, value))


def filter_lookups() -> tuple[tuple[str, str, bool], ...]:
    """Return key, sign, and whether it takes no value, of every comparison. Private: ``Filters.lookups()``."""
    from datasette.filters import Filters

    return tuple(Filters([]).lookups())


def plugin_filters(
    datasette: Datasette, request: Request, database: str, table: str
) -> Sequence[Awaitable[FilterArguments | None]]:
    """Return what Datasette and all plugins make of a request's other arguments. Private: calling a hook."""
    from datasette.plugins import pm

    hooks: Sequence[Awaitable[FilterArguments | None]] = pm.hook.filters_from_request(
        request=request, database=database, table=table, datasette=datasette
    )
    return hooks


async def column_facets(
    datasette: Datasette, request: Request, database: str, table: str, sql: str, params: Mapping[str, object]
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Return the facets of a request over the rows of *sql*, and columns that could be one, each with its page.

    Private: ``datasette.facets.ColumnFacet``.
    """
    from datasette.facets import ColumnFacet

    config = {"facets": table_setting(datasette, database, table, "facets") or []}
    option = {"table_config" if is_1_0(datasette) else "metadata": config}
    facet = ColumnFacet(datasette, request, database, sql=sql, table=table, params=dict(params), **option)
    suggested = await facet.suggest() if datasette.setting("suggest_facets") else []
    results, _ = await facet.facet_results()
    results = sorted(results, key=lambda one: (len(one["results"]), one["name"]), reverse=True)
    return results, [(one["name"], one["toggle_url"]) for one in suggested]


def score_column(name: str) -> Json:
    """Return a column of scores. Private: what ``_table.html`` reads of columns."""
    return {
        "name": name,
        "sortable": False,
        "is_pk": False,
        # Keeps the scripts of Datasette from offering to hide the column, or to facet by it.
        "is_special_link_column": True,
        "type": "",
        "notnull": 0,
        "description": None,
    }


def with_score(row: Any, name: str, score: float | None, text: str) -> object:
    """Return a row of a page with a score after its first cell. Private: what ``_table.html`` reads of rows."""
    row = copy.copy(row)
    row.cells = [*row.cells[:1], {"column": name, "value_type": "float", "raw": score, "value": text}, *row.cells[1:]]
    return row


def path_of_row(row: object, values: Mapping[str, object], key_columns: Sequence[str]) -> str:
    """Return the path of a row of ``_table.html``. Private: ``Row.row_path`` (1.0), ``path_from_row_pks()``."""
    path = getattr(row, "row_path", None)
    return str(path_from_row_pks(values, key_columns, False) if path is None else path)
