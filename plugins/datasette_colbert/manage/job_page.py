"""The page of a job: how far it is, and a button that cancels it.

In: requests of actors who may manage. Out: responses. Leaves to others: the jobs (jobs.py), markup (templates).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasette import NotFound, Request, Response
from datasette.utils.asgi import BadRequest

from datasette_colbert.known import all_indexes
from datasette_colbert.manage.context import job_json, job_url, page_job
from datasette_colbert.manage.jobs import Job, jobs_of
from datasette_colbert.manage.request import ManageRequest, answer_managers
from datasette_colbert.responses import Failure, error_response
from datasette_colbert.urls import index_url

if TYPE_CHECKING:
    from datasette.app import Datasette

    from datasette_colbert.manage.work import Work

NO_JOB = "There is no such job"


async def job(datasette: Datasette, request: Request) -> Response:
    """``/{database}/-/colbert-jobs/{id}``: how far a job is; a POST cancels it."""
    return await answer_managers(datasette, request, _cancel if request.method == "POST" else _look)


async def visible_jobs(request: ManageRequest) -> list[Job]:
    """Return the jobs of this database and of tables that the actor may see, the newest first."""
    jobs = [job for job in jobs_of(request.datasette).all() if job.work.database == request.database]
    visible = await request.visible_tables([job.work.table for job in jobs])
    return [job for job in jobs if job.work.table in visible]


async def submit(request: ManageRequest, work: Work) -> Response:
    """Have work done, and go to the page of its job.

    :raises datasette.BadRequest: if an index of that name has a job of a table that the actor may not see
    """
    datasette, actor_id = request.datasette, (request.request.actor or {}).get("id")
    job = jobs_of(datasette).submit(work, None if actor_id is None else str(actor_id))
    if job.work is not work:
        if job.id not in [visible.id for visible in await visible_jobs(request)]:
            raise BadRequest(f"an index called {work.index!r} is being worked on: choose another name")
        if request.wants_json:
            sentence = f"index {work.index!r} has another job, {job.work.kind}: wait until it is over, or cancel it"
            return error_response(datasette, Failure(sentence, 409))
        datasette.add_message(
            request.request,
            f"Index {work.index} has this job already; your request can be done when it is over.",
            datasette.WARNING,
        )
    if request.wants_json:
        return request.json(job_json(request, job), 202)
    return Response.redirect(job_url(request, job))


async def _look(request: ManageRequest) -> Response:
    job = await _requested_job(request)
    if request.wants_json:
        return request.json(job_json(request, job))
    index = job.work.index
    indexes = await all_indexes(request.datasette, request.database)
    states = {one.state for one in indexes if one.name.lower() == index.lower()}
    return await request.html(
        "colbert_job.html",
        job=page_job(request, job),
        search_url=index_url(request.datasette, request.database, index) if "ready" in states else "",
        can_continue=job.is_over and "building" in states,
    )


async def _cancel(request: ManageRequest) -> Response:
    job = jobs_of(request.datasette).cancel((await _requested_job(request)).id)
    assert job is not None
    if request.wants_json:
        return request.json(job_json(request, job))
    return Response.redirect(job_url(request, job))


async def _requested_job(request: ManageRequest) -> Job:
    """The job in a request's path.

    :raises datasette.NotFound: if there is none, or the actor may not see it: nobody can tell which
    """
    for job in await visible_jobs(request):
        if job.id == request.request.url_vars["id"]:
            return job
    raise NotFound(NO_JOB)
