"""The page that lists the indexes of a database, and its JSON.

In: a request. Out: a response. Leaves to others: who may see what (access.py), the facts of an index (service.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasette import Forbidden, Request, Response

from datasette_colbert.access import visible_indexes
from datasette_colbert.compat import Json, may_view_database, rows_response
from datasette_colbert.context import page_index
from datasette_colbert.responses import failure_of, failure_response, html_response, wants_json
from datasette_colbert.service import service_of
from datasette_colbert.urls import manage_url, requested_database

if TYPE_CHECKING:
    from datasette.app import Datasette


async def index_list(datasette: Datasette, request: Request) -> Response:
    """``/{database}/-/colbert``: the indexes of a database that the actor may search."""
    database = requested_database(datasette, request)
    if not await may_view_database(datasette, request.actor, database):
        raise Forbidden("You do not have permission to view this database")
    indexes = []
    for index in await visible_indexes(datasette, request.actor, database):
        facts = None
        try:
            facts = await service_of(datasette).facts(database, index.name)
        except Exception as error:
            failure = failure_of(error, database, index.name)
            if failure.status == 503:
                return await failure_response(datasette, request, failure)
        indexes.append(page_index(datasette, database, index, facts))
    if wants_json(request):
        rows: list[Json] = [
            {"name": one.name, "table": one.table, "columns": [*one.columns], "rows": one.rows, "url": one.url}
            for one in indexes
        ]
        return rows_response(datasette, request, {"database": database}, rows)
    context = {
        "database": database,
        "indexes": indexes,
        "query": request.args.get("q") or "",
        "manage_url": await manage_url(datasette, request, database),
    }
    return await html_response(datasette, request, "colbert_indexes.html", context)
