"""The Datasette plugin: what it hooks into. Each hook is a line; what it does is in the room it names.

Imports of Datasette, and of whatever takes time, are inside functions: Datasette imports every plugin it starts with.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluggy import HookimplMarker

from colbert_sqlite import sql_functions
from datasette_colbert import access, compat
from datasette_colbert import search_page as pages
from datasette_colbert import table_page as tables
from datasette_colbert.manage import pages as managing
from datasette_colbert.service import close_service, service_of
from datasette_colbert.settings import PLUGIN, check_settings, settings_for

if TYPE_CHECKING:
    from datasette import Request
    from datasette.app import Datasette
    from datasette.database import Database

__all__ = ["PLUGIN"]

# What datasette.hookimpl is, without importing Datasette.
hookimpl = HookimplMarker("datasette")


@hookimpl
def startup(datasette: Datasette) -> Awaitable[None]:
    """Refuse a wrong configuration before anything is served."""
    check_settings(datasette)
    access.carry_context(datasette)
    compat.load_sqlite_utils_plugins(datasette)
    return access.read_registries(datasette)


@hookimpl
def asgi_wrapper(datasette: Datasette) -> Callable[[Any], Any]:
    def wrapped(app: Any) -> Any:
        async def serve(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                # Only a server has one: commands such as --get are not to wait for models.
                service_of(datasette).warm()
                managing.start_auto_sync(datasette)
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            end = access.begin()
            try:
                await app(scope, receive, send)
            finally:
                end()

        return serve

    return wrapped


@hookimpl
def shutdown(datasette: Datasette) -> None:
    managing.close(datasette)
    close_service(datasette)


@hookimpl(hookwrapper=True)
def actor_from_request(datasette: Datasette, request: Request) -> Generator[None, Any, None]:
    outcome = yield
    outcome.force_result([access.noting(datasette, request, outcome.get_result())])


@hookimpl
def prepare_connection(conn: sqlite3.Connection, database: str, datasette: Datasette) -> None:
    if database not in datasette.databases or settings_for(datasette, database).sql_functions is False:
        sql_functions.keep_as_is(conn)
        return
    settings = settings_for(datasette, database)
    # Where SQL can join databases, it can search them.
    others = datasette.databases.items() if database == "_memory" and datasette.crossdb else ()
    sql_functions.prepare(
        conn,
        database=_uri(datasette, datasette.databases[database]),
        attached={name: uri for name, other in others if (uri := _uri(datasette, other))},
        model=settings.model,
        # Loading another one may take minutes, gigabytes, or a hub.
        any_model=False,
        guard=access.Guard(datasette, database),
    )


@hookimpl
def register_routes() -> list[tuple[str, Any]]:
    database = r"^/(?P<database>[^/]+)/-/colbert"
    index = rf"{database}/(?P<index>[^/]+?)"
    return [
        (rf"{database}(\.json)?$", pages.index_list),
        (rf"{index}(\.json|\.csv)?$", pages.search),
        (rf"{index}/similar/(?P<pks>[^/]+?)(\.json)?$", pages.similar),
        *managing.routes(),
    ]


@hookimpl
def register_actions(datasette: Datasette) -> list[Any]:
    return compat.actions(datasette)


@hookimpl
def permission_allowed(
    datasette: Datasette, actor: compat.Actor, action: str, resource: Any
) -> Callable[[], Awaitable[bool | None]] | None:
    """In 0.65: root may manage, and nobody sees the parts of an index whose table they may not see."""
    if action not in (compat.MANAGE, "view-table"):
        return None

    async def decided() -> bool | None:
        if action == compat.MANAGE:
            return compat.configured_to_manage(datasette, actor, resource)
        database, table = resource
        if not table.lower().startswith("_colbert_") or database not in datasette.databases:
            return None
        return False if table in await access.hidden_parts(datasette, actor, database) else None

    return decided


@hookimpl
def permission_resources_sql(datasette: Datasette, actor: compat.Actor, action: str) -> Any:
    """In 1.0: nobody sees the parts of an index whose table they may not see."""
    return access.rules_for_parts(datasette, actor) if action == "view-table" else None


@hookimpl
def get_metadata(datasette: Datasette, key: str | None, database: str | None, table: str | None) -> dict[str, Any]:
    """In 0.65: hide the tables that indexes are made of. 1.0 does so by itself."""
    # Only where Datasette asks which tables are hidden: all metadata together can be read by everybody.
    is_asked = database is not None and key is None and table is None
    return access.hidden_tables(datasette, str(database)) if is_asked else {}


@hookimpl
def filters_from_request(datasette: Datasette, request: Request, database: str, table: str) -> Awaitable[Any]:
    return tables.narrowed(datasette, request, database, table)


@hookimpl
def extra_template_vars(
    datasette: Datasette, request: Request | None, view_name: str | None, database: str | None, table: str | None
) -> dict[str, Any]:
    return tables.template_vars(datasette, request, view_name, database, table)


@hookimpl(hookwrapper=True)
def handle_exception(exception: Exception) -> Generator[None, Any, None]:
    access.complete(exception)
    outcome = yield
    outcome.force_result(tables.with_headers(exception, outcome.get_result()))


@hookimpl
def top_table(datasette: Datasette, request: Request, database: str, table: str) -> Awaitable[str | None]:
    """In 1.0; our ``table.html`` does it in 0.65."""
    return tables.top_of_table(datasette, request, database, table)


@hookimpl
def top_row(datasette: Datasette, request: Request, database: str, table: str) -> Awaitable[str | None]:
    """In 1.0; our ``row.html`` does it in 0.65."""
    return tables.top_of_row(datasette, request, database, table)


@hookimpl
def table_actions(
    datasette: Datasette, actor: compat.Actor, database: str, table: str, request: Request
) -> Awaitable[list[tables.Link]]:
    return tables.table_links(datasette, request, actor, database, table)


@hookimpl
def row_actions(
    datasette: Datasette, actor: compat.Actor, request: Request, database: str, table: str
) -> Awaitable[list[tables.Link]]:
    return tables.row_links(datasette, request, actor, database, table)


@hookimpl
def database_actions(
    datasette: Datasette, actor: compat.Actor, database: str, request: Request
) -> Awaitable[list[tables.Link]]:
    return tables.database_links(datasette, request, actor, database)


def _uri(datasette: Datasette, database: Database) -> str | None:
    """How to open a database as Datasette itself does; None for one in memory."""
    if database.is_memory or database.path is None:
        return None
    options = "mode=ro" if database.is_mutable else "mode=ro&immutable=1"
    if database.is_mutable and datasette.nolock:
        options += "&nolock=1"
    return f"{Path(database.path).absolute().as_uri()}?{options}"
