"""The addresses of the plugin's pages, read and written.

In: a request, or a database, an index and a row. Out: what the path names, or a URL. Leaves to others: whether there is
such a thing, and who may see it (access.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from datasette import NotFound, Request
from datasette.utils import tilde_decode, tilde_encode

from datasette_colbert.compat import database_at, is_internal, may_manage

if TYPE_CHECKING:
    from datasette.app import Datasette

    from colbert_sqlite.serving import PrimaryKey


def requested_database(datasette: Datasette, request: Request) -> str:
    """Return the name of the database in a request's path.

    :raises datasette.NotFound: if there is none
    """
    name = database_at(datasette, tilde_decode(request.url_vars["database"]))
    if name is None or is_internal(datasette, name):
        raise NotFound("Database not found")
    return name


def index_url(datasette: Datasette, database: str, index: str = "", *more: str) -> str:
    """Return the page of an index, a page below it, or the page of all indexes of a database."""
    path = "/".join(["-", "colbert", *([tilde_encode(index)] if index else []), *more])
    return f"{datasette.urls.database(database)}/{path}"


def similar_url(datasette: Datasette, database: str, index: str, pk: PrimaryKey) -> str:
    """Return the page of the rows most like one."""
    return index_url(datasette, database, index, "similar", row_path(pk))


def row_url(datasette: Datasette, database: str, table: str, pk: PrimaryKey) -> str:
    """Return Datasette's page of a row."""
    return str(datasette.urls.row(database, table, row_path(pk)))


def row_path(pk: PrimaryKey) -> str:
    """Return a primary key as the path of a row has it."""
    return ",".join(tilde_encode(str(part)) for part in (pk if isinstance(pk, tuple) else (pk,)))


def json_url(path: str, request: Request) -> str:
    """Return *path* as JSON, with the arguments of a request."""
    query = f"?{request.query_string}" if request.query_string else ""
    return f"{path}.json{query}"


async def manage_url(datasette: Datasette, request: Request, database: str) -> str:
    """Return the page where the actor may manage the indexes of a database; empty if they may not."""
    if is_internal(datasette, database) or not await may_manage(datasette, request.actor, database):
        return ""
    return manage_page_url(datasette, database, "manage")


def manage_page_url(datasette: Datasette, database: str, page: str, **args: str) -> str:
    """Return one of the pages that manage indexes: "manage", "create", or "jobs/" and an id."""
    query = f"?{urlencode(args)}" if args else ""
    return f"{datasette.urls.database(database)}/-/colbert-{page}{query}"
