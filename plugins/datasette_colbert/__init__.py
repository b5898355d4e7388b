"""The hooks of the Datasette plugin. Each is a line; the room it names does the rest."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import TYPE_CHECKING

from datasette import Request
from pluggy import HookimplMarker

from datasette_colbert import access, compat, guard, hidden, known, menus, row_page, table_page
from datasette_colbert.index_list import index_list
from datasette_colbert.manage import auto_sync, create_page, job_page, jobs, pages
from datasette_colbert.search_page import search
from datasette_colbert.service import close_service, service_of
from datasette_colbert.settings import PLUGIN, check_settings
from datasette_colbert.similar_page import similar
from datasette_colbert.template_vars import template_vars

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.filters import FilterArguments
    from datasette.permissions import Action, PermissionSQL
    from pluggy import Result

__all__ = ["PLUGIN"]

# What datasette.hookimpl is, with types.
hookimpl = HookimplMarker("datasette")

Receive = Callable[[], Awaitable[object]]
Send = Callable[[object], Awaitable[None]]
App = Callable[[Mapping[str, object], Receive, Send], Awaitable[None]]


@hookimpl
def startup(datasette: Datasette) -> Awaitable[None]:
    """Refuse a wrong configuration before anything is served."""
    check_settings(datasette)
    compat.carry_context(datasette)
    compat.load_sqlite_utils_plugins(datasette)
    return known.read_registries(datasette)


@hookimpl
def asgi_wrapper(datasette: Datasette) -> Callable[[App], App]:
    def wrap(app: App) -> App:
        async def serve(scope: Mapping[str, object], receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                # Only a server has one: commands such as --get must not wait for models.
                service_of(datasette).warm()
                auto_sync.start_auto_sync(datasette)
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            with access.answering_request():
                await app(scope, receive, send)

        return serve

    return wrap


@hookimpl
def shutdown(datasette: Datasette) -> None:
    auto_sync.close_auto_sync(datasette)
    jobs.close_jobs(datasette)
    close_service(datasette)


@hookimpl(hookwrapper=True)
def actor_from_request(datasette: Datasette, request: Request) -> Generator[None, Result[list[object]], None]:
    outcome = yield
    outcome.force_result([access.resolve_actor(datasette, request, outcome.get_result())])


@hookimpl
def prepare_connection(conn: sqlite3.Connection, database: str, datasette: Datasette) -> None:
    guard.prepare_connection(datasette, conn, database)


@hookimpl
def register_routes() -> list[tuple[str, object]]:
    database = r"^/(?P<database>[^/]+)/-/colbert"
    index = rf"{database}/(?P<index>[^/]+?)"
    return [
        (rf"{database}(\.json)?$", index_list),
        (rf"{index}(\.json|\.csv)?$", search),
        (rf"{index}/similar/(?P<pks>[^/]+?)(\.json)?$", similar),
        (rf"{database}-manage(\.json)?$", pages.manage),
        (rf"{database}-create(\.json)?$", create_page.create),
        (rf"{database}-jobs/(?P<id>[\w-]+)(\.json)?$", job_page.job),
    ]


@hookimpl
def register_actions() -> list[Action]:
    return compat.actions()


@hookimpl
def permission_allowed(
    datasette: Datasette, actor: compat.Actor, action: str, resource: object
) -> Callable[[], Awaitable[bool | None]] | None:
    """In 0.65: root may manage, and nobody sees the tables of an index whose source table they may not see."""
    return hidden.permission_0_65(datasette, actor, action, resource)


@hookimpl
def permission_resources_sql(
    datasette: Datasette, actor: compat.Actor, action: str
) -> Awaitable[PermissionSQL | None] | None:
    """In 1.0: nobody sees the tables of an index whose source table they may not see."""
    return hidden.permission_rules(datasette, actor) if action == "view-table" else None


@hookimpl
def get_metadata(datasette: Datasette, key: str | None, database: str | None, table: str | None) -> compat.Json:
    """In 0.65: hide the tables that indexes are made of. 1.0 does so by itself."""
    # Only where Datasette asks which tables are hidden: everybody can read all metadata together.
    return hidden.hiding_metadata(datasette, database) if database and key is None and table is None else {}


@hookimpl
def filters_from_request(
    datasette: Datasette, request: Request, database: str, table: str
) -> Awaitable[FilterArguments | None]:
    return table_page.filter_by_search(datasette, request, database, table)


@hookimpl
def extra_template_vars(
    datasette: Datasette, request: Request | None, view_name: str | None, database: str | None, table: str | None
) -> compat.Json:
    return template_vars(datasette, request, view_name, database, table)


@hookimpl(hookwrapper=True)
def handle_exception(exception: Exception) -> Generator[None, Result[list[object]], None]:
    guard.add_reason(exception)
    outcome = yield
    outcome.force_result(table_page.with_headers(exception, outcome.get_result()))


@hookimpl
def top_table(datasette: Datasette, request: Request, database: str, table: str) -> Awaitable[str | None]:
    """In 1.0; our ``table.html`` does it in 0.65."""
    return table_page.top_of_table(datasette, request, database, table)


@hookimpl
def top_row(datasette: Datasette, request: Request, database: str, table: str) -> Awaitable[str | None]:
    """In 1.0; our ``row.html`` does it in 0.65."""
    return row_page.top_of_row(datasette, request, database, table)


@hookimpl
def table_actions(
    datasette: Datasette, actor: compat.Actor, database: str, table: str, request: Request
) -> Awaitable[list[menus.Link]]:
    return menus.table_links(datasette, request, actor, database, table)


@hookimpl
def row_actions(
    datasette: Datasette, actor: compat.Actor, request: Request, database: str, table: str
) -> Awaitable[list[menus.Link]]:
    return menus.row_links(datasette, request, actor, database, table)


@hookimpl
def database_actions(
    datasette: Datasette, actor: compat.Actor, database: str, request: Request
) -> Awaitable[list[menus.Link]]:
    return menus.database_links(datasette, request, actor, database)
