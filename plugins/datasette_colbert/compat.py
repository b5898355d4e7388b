"""Every private or undocumented API of Datasette that the plugin uses, and what 0.65 and 1.0 call differently.

In: a Datasette, and requests to it. Out: one answer for both versions. Leaves to others: filters, facets and the page
of a table (compat_table.py, the second half of this file).

Each private API is named where it is used. All were seen in 0.65.5 and 1.0a41; what only one of them has is marked so.
Datasette's templates are private too: our ``table.html``, ``row.html`` and ``_table.html`` extend those of that name,
and the search page includes ``_facet_results.html``.

Whatever imports ``datasette.app`` is imported inside functions: that module loads this plugin while it is imported.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasette import Forbidden, Request, Response, actor_matches_allow
from datasette.utils import (
    CustomJSONEncoder,
    add_cors_headers,
    filters_should_redirect,
    path_with_added_args,
    path_with_removed_args,
    path_with_replaced_args,
    urlsafe_components,
)
from datasette.utils.asgi import Base400

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database
    from datasette.permissions import Action

MANAGE = "colbert-manage"
Actor = Mapping[str, object] | None
Json = dict[str, object]


def is_1_0(datasette: Datasette) -> bool:
    """Whether this Datasette is a 1.0: permissions are resources, errors are lists, configuration is no metadata."""
    return hasattr(datasette, "allowed")


async def may_view(datasette: Datasette, actor: Actor, database: str, table: str) -> bool:
    """Return whether the actor may see a table, as Datasette's own pages decide it."""
    if is_1_0(datasette):
        from datasette.resources import TableResource

        return bool(await datasette.allowed(action="view-table", resource=TableResource(database, table), actor=actor))
    try:
        await datasette.ensure_permissions(
            actor, [("view-table", (database, table)), ("view-database", database), "view-instance"]
        )
    except Forbidden:
        return False
    return True


async def visible_tables(datasette: Datasette, actor: Actor, database: str, tables: Collection[str]) -> set[str]:
    """Return those of *tables* that the actor may see."""
    return {table for table in set(tables) if await may_view(datasette, actor, database, table)}


async def may_view_database(datasette: Datasette, actor: Actor, database: str) -> bool:
    """Return whether the actor may see a database at all."""
    if is_1_0(datasette):
        from datasette.resources import DatabaseResource

        return bool(await datasette.allowed(action="view-database", resource=DatabaseResource(database), actor=actor))
    visible, _ = await datasette.check_visibility(actor, permissions=[("view-database", database), "view-instance"])
    return bool(visible)


async def may_manage(datasette: Datasette, actor: Actor, database: str) -> bool:
    """Return whether the actor may create, sync and drop indexes in a database."""
    if is_1_0(datasette):
        from datasette.resources import DatabaseResource

        return bool(await datasette.allowed(action=MANAGE, resource=DatabaseResource(database), actor=actor))
    return bool(await datasette.permission_allowed(actor, MANAGE, resource=database, default=False))


def configured_to_manage(datasette: Datasette, actor: Actor, database: str | None) -> bool | None:
    """Return what ``permissions`` in the configuration of 0.65 says; only 1.0 reads it by itself.

    Private: ``Datasette.metadata()`` (0.65).
    """
    for section in (datasette.metadata(database=database), datasette.metadata()):
        allow = (section.get("permissions") or {}).get(MANAGE)
        if allow is not None:
            return bool(actor_matches_allow(actor, allow))
    return True if actor and actor.get("id") == "root" else None


def actions() -> list[Action]:
    """Return the permissions of this plugin, which only 1.0 asks for."""
    from datasette.permissions import Action
    from datasette.resources import DatabaseResource

    description = "Create, sync, rebuild and drop ColBERT indexes"
    return [Action(name=MANAGE, description=description, resource_class=DatabaseResource)]


def configuration(datasette: Datasette) -> Mapping[str, object]:
    """Return the whole configuration, which 0.65 calls metadata.

    Private: ``Datasette.config`` (1.0), ``Datasette._metadata_local`` (0.65).
    """
    return getattr(datasette, "config", None) or getattr(datasette, "_metadata_local", None) or {}


def table_setting(datasette: Datasette, database: str, table: str, name: str) -> Any:
    """Return what the configuration says of a table, such as its ``label_column``.

    Private: ``Datasette.config`` (1.0), ``Datasette.table_metadata()`` (0.65).
    """
    if is_1_0(datasette):
        section: Any = datasette.config
        for key in ("databases", database, "tables", table):
            # A key without a value is None.
            section = section.get(key) or {}
        return section.get(name)
    return datasette.table_metadata(database, table).get(name)


def is_internal(datasette: Datasette, database: str) -> bool:
    """Whether a database is Datasette's own.

    Private: the names ``_internal`` and ``_memory``; ``Database.is_temp_disk`` (1.0).
    """
    return database in ("_internal", "_memory") or bool(getattr(datasette.databases[database], "is_temp_disk", False))


def database_at(datasette: Datasette, route: str) -> str | None:
    """Return the name of the database that pages call *route*; None if there is none. Private: ``Database.route``."""
    return next((name for name, database in datasette.databases.items() if database.route == route), None)


def joined_databases(datasette: Datasette) -> Mapping[str, Database]:
    """Return the databases that SQL on ``_memory`` can join, by name. Private: ``Datasette.crossdb``."""
    return datasette.databases if datasette.crossdb else {}


def database_uri(datasette: Datasette, database: Database) -> str | None:
    """Return the URI by which Datasette opens a database; None for one in memory. Private: ``Datasette.nolock``."""
    if database.is_memory or database.path is None:
        return None
    options = "mode=ro" if database.is_mutable else "mode=ro&immutable=1"
    if database.is_mutable and datasette.nolock:
        options += "&nolock=1"
    return f"{Path(database.path).absolute().as_uri()}?{options}"


def open_database(datasette: Datasette, database: str) -> sqlite3.Connection:
    """Return a new connection that reads a database, with all functions that filters may use.

    Private: ``Database.connect()``, ``Datasette._prepare_connection()``.
    """
    conn: sqlite3.Connection = datasette.databases[database].connect()
    datasette._prepare_connection(conn, database)
    return conn


def carry_context(datasette: Datasette) -> None:
    """Let Datasette's threads see the context variables of a request, which 0.65 does not by itself.

    Private: ``Datasette.executor``, whose ``submit`` is replaced.
    """
    executor = datasette.executor
    if executor is None or getattr(executor, "carries_context", False):
        return
    submit = executor.submit

    def submit_with_context(function: Callable[..., object], /, *args: object, **kwargs: object) -> object:
        return submit(copy_context().run, function, *args, **kwargs)

    executor.submit = submit_with_context
    executor.carries_context = True


def load_sqlite_utils_plugins(datasette: Datasette) -> None:
    """Load the plugins of sqlite-utils before several threads of 1.0 do, one of which then fails.

    Private: ``sqlite_utils.plugins.ensure_plugins_loaded()``, seen in sqlite-utils 4.
    """
    if is_1_0(datasette):
        from sqlite_utils.plugins import ensure_plugins_loaded

        ensure_plugins_loaded()


def error_body(datasette: Datasette, message: str, status: int) -> Json:
    """Return what Datasette itself says in JSON about an error."""
    if is_1_0(datasette):
        return {"ok": False, "error": message, "errors": [message], "status": status}
    return {"ok": False, "error": message, "status": status, "title": None}


def page_error(message: str, title: str, status: int) -> Exception:
    """Return the error that Datasette's own pages show. Private: ``datasette.views.base.DatasetteError``."""
    from datasette.views.base import DatasetteError

    error: Exception = DatasetteError(message, title=title, status=status)
    return error


def is_answered_by_datasette(error: Exception) -> bool:
    """Whether Datasette itself has a page for an error. Private: ``Base400``, ``DatasetteError``."""
    from datasette.views.base import DatasetteError

    return isinstance(error, (Base400, DatasetteError))


def is_interrupted(error: Exception) -> bool:
    """Whether SQL took longer than Datasette lets it. Private: ``datasette.database.QueryInterrupted``."""
    from datasette.database import QueryInterrupted

    return isinstance(error, QueryInterrupted)


def json_response(
    datasette: Datasette, body: Json, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return *body* as JSON, for other sites too where Datasette was started with ``--cors``.

    Private: ``Datasette.cors``, ``add_cors_headers()``, ``CustomJSONEncoder`` of ``datasette.utils``.
    """
    headers = dict(headers or {})
    if datasette.cors:
        add_cors_headers(headers)
    return Response.json(body, status=status, headers=headers, default=CustomJSONEncoder().default)


def rows_response(datasette: Datasette, request: Request, data: Json, rows: Sequence[Json]) -> Response:
    """Return rows, dicts of equal keys, as Datasette shows rows in JSON: ``_shape`` and ``_nl`` work.

    Private: ``datasette.renderer.json_renderer()``, and as in :func:`json_response`.
    """
    from datasette.renderer import json_renderer

    data = {**data, "columns": [*rows[0]] if rows else []}
    if is_1_0(datasette):
        response: Response = json_renderer(request, request.args, {**data, "rows": [*rows]}, None)
    else:
        response = json_renderer(request.args, {**data, "rows": [[*row.values()] for row in rows]}, "table")
    if datasette.cors:
        add_cors_headers(response.headers)
    return response


def path_with(request: Request, args: Mapping[str, str | None], path: str) -> str:
    """Return *path* with the request's arguments, some of them replaced. Private: ``path_with_replaced_args()``."""
    return str(path_with_replaced_args(request, args, path=path))


def path_without(request: Request, args: Mapping[str, str] | Collection[str], path: str) -> str:
    """Return *path* with the request's arguments but for some. Private: ``path_with_removed_args()``."""
    return str(path_with_removed_args(request, args, path=path))


def path_of_filter_form(request: Request, path: str) -> str | None:
    """Return *path* with the filter that a form sent as three arguments as one; None if it sent none.

    Private: ``filters_should_redirect()``, ``path_with_added_args()``.
    """
    redirect = filters_should_redirect(request.args)
    return str(path_with_added_args(request, redirect, path=path)) if redirect else None


def key_values(row_path: str) -> list[str]:
    """Return the values of a primary key in the path of a row. Private: ``urlsafe_components()``."""
    return [*urlsafe_components(row_path)]
