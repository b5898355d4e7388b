"""The page that lists the indexes of a database and what can be done about each.

In: requests of actors who may manage. Out: responses, and work for the jobs. Leaves to others: the work (work.py), how
an index is (status.py), creating one (create_page.py), markup (templates).

A GET changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasette import NotFound, Request, Response
from datasette.utils.asgi import BadRequest

from colbert_sqlite import ColbertError
from datasette_colbert.access import NO_INDEX
from datasette_colbert.compat import Json, rows_response
from datasette_colbert.known import all_indexes
from datasette_colbert.manage.context import ManagedIndex, index_json, job_json, managed_index, page_job
from datasette_colbert.manage.job_page import submit, visible_jobs
from datasette_colbert.manage.read_only import why_read_only
from datasette_colbert.manage.request import ManageRequest, answer_managers, fields_of
from datasette_colbert.manage.status import Status, statuses
from datasette_colbert.manage.work import Drop, Rebuild, Sync, Work, continue_build
from datasette_colbert.settings import settings_for

if TYPE_CHECKING:
    from datasette.app import Datasette


async def manage(datasette: Datasette, request: Request) -> Response:
    """``/{database}/-/colbert-manage``: how every index is; a POST syncs, rebuilds, continues or drops one."""
    return await answer_managers(datasette, request, _change if request.method == "POST" else _list)


async def _list(request: ManageRequest) -> Response:
    indexes = await _indexes(request)
    if name := request.request.args.get("drop"):
        return await request.html("colbert_drop.html", index=_named(indexes, name))
    jobs = await visible_jobs(request)
    if request.wants_json:
        data: Json = {
            "database": request.database,
            "read_only": why_read_only(request.db),
            "jobs": [job_json(request, job) for job in jobs],
        }
        rows = [index_json(request, index) for index in indexes]
        return rows_response(request.datasette, request.request, data, rows)
    return await request.html(
        "colbert_manage.html",
        indexes=indexes,
        jobs=[page_job(request, job) for job in jobs],
        create_url=request.url("create"),
    )


async def _change(request: ManageRequest) -> Response:
    request.refuse_read_only()
    fields = await fields_of(request.request)
    if not fields.first("index"):
        raise BadRequest("index is missing: its name says which one")
    index = _named(await _indexes(request), fields.first("index"))
    return await submit(request, await _work(request, index.status, fields.first("action")))


async def _work(request: ManageRequest, status: Status, action: str) -> Work:
    """The work that *action* means for an index.

    :raises datasette.BadRequest: if there is no such action
    """
    database, path, name = request.database, str(request.db.path), status.name
    target = {"database": database, "path": path, "index": name, "table": status.table}
    model = settings_for(request.datasette, database, status.table).model
    if action == "sync":
        return Sync(**target, model=model)
    if action == "rebuild":
        return Rebuild(**target, model=model)
    if action not in ("drop", "continue"):
        raise BadRequest("action must be sync, rebuild, continue or drop")
    await _refuse_invisible_builds(request, name)
    if action == "drop":
        return Drop(**target)
    try:
        return await request.read(lambda conn: continue_build(conn, database, path, name))
    except ColbertError as error:
        raise BadRequest(str(error)) from None


async def _refuse_invisible_builds(request: ManageRequest, name: str) -> None:
    """Make sure that the actor may see the tables of all that has this name: an index, and the build of another one.

    :raises datasette.NotFound: if not
    """
    indexes = await all_indexes(request.datasette, request.database)
    tables = {index.table for index in indexes if index.name.lower() == name.lower()}
    if tables - await request.visible_tables(tables):
        raise NotFound(NO_INDEX)


async def _indexes(request: ManageRequest) -> list[ManagedIndex]:
    """The indexes of the tables that the actor may see, with their jobs."""
    if request.db.path is None:
        return []
    all_statuses = await request.read(statuses)
    visible = await request.visible_tables([status.table for status in all_statuses])
    return [managed_index(request, status) for status in all_statuses if status.table in visible]


def _named(indexes: list[ManagedIndex], name: str) -> ManagedIndex:
    """The index of that name.

    :raises datasette.NotFound: if there is none, or the actor may not see it: nobody can tell which
    """
    for index in indexes:
        if index.status.name.lower() == name.lower():
            return index
    raise NotFound(NO_INDEX)
