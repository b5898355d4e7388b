"""What Datasette 0.65 and 1.0 call differently.

In: a Datasette. Out: one answer for both. Leaves to others: what to ask.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasette import Request, Response
    from datasette.app import Datasette

MANAGE = "colbert-manage"
Actor = Mapping[str, Any] | None


def is_1_0(datasette: Datasette) -> bool:
    """Whether permissions are resources and actions, errors are lists, and configuration is not metadata."""
    return hasattr(datasette, "allowed")


async def may_view(datasette: Datasette, actor: Actor, database: str, table: str) -> bool:
    """Return whether the actor may see a table, as Datasette's own pages decide it."""
    if is_1_0(datasette):
        from datasette.resources import TableResource

        return bool(await datasette.allowed(action="view-table", resource=TableResource(database, table), actor=actor))
    from datasette import Forbidden

    try:
        await datasette.ensure_permissions(
            actor, [("view-table", (database, table)), ("view-database", database), "view-instance"]
        )
    except Forbidden:
        return False
    return True


async def visible(datasette: Datasette, actor: Actor, database: str, tables: Collection[str]) -> set[str]:
    """Return those of *tables* that the actor may see."""
    return {table for table in set(tables) if await may_view(datasette, actor, database, table)}


async def may_view_database(datasette: Datasette, actor: Actor, database: str) -> bool:
    """Return whether the actor may see a database at all."""
    if is_1_0(datasette):
        from datasette.resources import DatabaseResource

        return bool(await datasette.allowed(action="view-database", resource=DatabaseResource(database), actor=actor))
    seen, _ = await datasette.check_visibility(actor, permissions=[("view-database", database), "view-instance"])
    return bool(seen)


async def may_manage(datasette: Datasette, actor: Actor, database: str) -> bool:
    """Return whether the actor may make, sync and drop indexes in a database."""
    if is_1_0(datasette):
        from datasette.resources import DatabaseResource

        return bool(await datasette.allowed(action=MANAGE, resource=DatabaseResource(database), actor=actor))
    return bool(await datasette.permission_allowed(actor, MANAGE, resource=database, default=False))


def configured_to_manage(datasette: Datasette, actor: Actor, database: str) -> bool | None:
    """Return what the configuration of 0.65 says of the actor in ``permissions``, which only 1.0 reads by itself."""
    from datasette.utils import actor_matches_allow

    for place in (datasette.metadata(database=database), datasette.metadata()):
        allow = (place.get("permissions") or {}).get(MANAGE)
        if allow is not None:
            return bool(actor_matches_allow(actor, allow))
    return True if actor and actor.get("id") == "root" else None


def actions(datasette: Datasette) -> list[Any]:
    """Return the permissions of this plugin, which only 1.0 asks for."""
    from datasette.permissions import Action
    from datasette.resources import DatabaseResource

    return [
        Action(
            name=MANAGE, description="Create, sync, rebuild and drop ColBERT indexes", resource_class=DatabaseResource
        )
    ]


def load_sqlite_utils_plugins(datasette: Datasette) -> None:
    """Load what 1.0 loads in several threads at once with the first pages of tables, where one of them then fails."""
    if is_1_0(datasette):
        from sqlite_utils.plugins import ensure_plugins_loaded

        ensure_plugins_loaded()


def error_body(datasette: Datasette, message: str, status: int) -> dict[str, Any]:
    """Return what Datasette itself says in JSON about an error."""
    if is_1_0(datasette):
        return {"ok": False, "error": message, "errors": [message], "status": status}
    return {"ok": False, "error": message, "status": status, "title": None}


def json_response(
    datasette: Datasette, body: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return *body* as JSON, for other sites too where Datasette was started with --cors."""
    from datasette import Response
    from datasette.utils import CustomJSONEncoder, add_cors_headers

    headers = dict(headers or {})
    if datasette.cors:
        add_cors_headers(headers)
    return Response.json(body, status=status, headers=headers, default=CustomJSONEncoder().default)


def error_response(
    datasette: Datasette, message: str, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error as Datasette's JSON says it."""
    return json_response(datasette, error_body(datasette, message, status), status, headers)


def column_filters(datasette: Datasette, request: Request, database: str, table: str) -> Any:
    """Return Datasette's ``Filters`` for the column filters in a request's arguments."""
    from datasette.filters import Filters

    # As Datasette's table pages tell filters from their other arguments.
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


def prepared(datasette: Datasette, database: str) -> sqlite3.Connection:
    """Return a new connection that reads a database as Datasette's own do, with all functions that filters may use."""
    conn: sqlite3.Connection = datasette.databases[database].connect()
    datasette._prepare_connection(conn, database)
    return conn


def table_setting(datasette: Datasette, database: str, table: str, name: str) -> Any:
    """Return what the configuration says of a table, such as its ``label_column``."""
    if is_1_0(datasette):
        found: Mapping[str, Any] = datasette.config
        for key in ("databases", database, "tables", table):
            # What is written down and left empty is None.
            found = found.get(key) or {}
        return found.get(name)
    return datasette.table_metadata(database, table).get(name)


async def column_facets(
    datasette: Datasette, request: Request, database: str, table: str, sql: str, params: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the facets that a request asks for over the rows of *sql*, as Datasette's pages show them."""
    results, _ = await _column_facet(datasette, request, database, table, sql, params).facet_results()
    return sorted(results, key=lambda one: (len(one["results"]), one["name"]), reverse=True)


async def suggested_facets(
    datasette: Datasette, request: Request, database: str, table: str, sql: str, params: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return the columns by which rows of *sql* fall into few groups, and the page with each as a facet."""
    suggested = await _column_facet(datasette, request, database, table, sql, params).suggest()
    return [(one["name"], one["toggle_url"]) for one in suggested]


def _column_facet(
    datasette: Datasette, request: Request, database: str, table: str, sql: str, params: Mapping[str, Any]
) -> Any:
    from datasette.facets import ColumnFacet

    configured = {"facets": table_setting(datasette, database, table, "facets") or []}
    config = {"table_config" if is_1_0(datasette) else "metadata": configured}
    return ColumnFacet(datasette, request, database, sql=sql, table=table, params=dict(params), **config)


def rows_response(datasette: Datasette, request: Request, data: dict[str, Any]) -> Response:
    """Return rows, dicts of equal keys, as Datasette itself shows rows in JSON: ``_shape`` and ``_nl`` work."""
    from datasette.renderer import json_renderer
    from datasette.utils import add_cors_headers

    data["columns"] = [*data["rows"][0]] if data["rows"] else []
    if is_1_0(datasette):
        response: Response = json_renderer(request, request.args, data, None)
    else:
        data["rows"] = [[*row.values()] for row in data["rows"]]
        response = json_renderer(request.args, data, "table")
    if datasette.cors:
        add_cors_headers(response.headers)
    return response
