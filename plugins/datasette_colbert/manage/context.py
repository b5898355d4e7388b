"""What the templates and the JSON of the pages that manage indexes read.

In: jobs, the statuses of indexes. Out: names a template reads, dicts for JSON, jobs in words. Leaves to others: markup.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from datasette_colbert.compat import Json
from datasette_colbert.manage.jobs import Job, jobs_of
from datasette_colbert.settings import settings_for
from datasette_colbert.urls import index_url

if TYPE_CHECKING:
    from datasette_colbert.manage.request import ManageRequest
    from datasette_colbert.manage.status import Status

STAGES = {
    "": "Getting ready",
    "encode": "Encoding rows",
    "compare": "Comparing rows with the index",
    "train": "Training the codec",
    "write": "Writing the inverted lists",
    "wait": "Waiting for another process that writes this index",
}
COUNTED_STAGES = ("encode", "compare")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageJob:
    """A job on a page. ``done`` of ``total`` is for a progress bar; ``total`` is 0 where that can't be said."""

    id: str
    kind: str
    index: str
    table: str
    state: str
    is_over: bool
    can_be_cancelled: bool
    text: str
    done: int
    total: int
    url: str
    json_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedIndex:
    """An index on the page that lists them. ``job`` is the one that waits or runs for it."""

    status: Status
    url: str
    table_url: str
    is_served: bool
    job: PageJob | None


def managed_index(request: ManageRequest, status: Status) -> ManagedIndex:
    """Return an index for a page, with its job."""
    datasette, database = request.datasette, request.database
    latest = jobs_of(datasette).latest(database, status.name)
    return ManagedIndex(
        status=status,
        url=index_url(datasette, database, status.name),
        table_url=str(datasette.urls.table(database, status.table)),
        is_served=settings_for(datasette, database).serves(status.name),
        job=None if latest is None or latest.is_over else page_job(request, latest),
    )


def index_json(request: ManageRequest, index: ManagedIndex) -> Json:
    """Return an index for JSON."""
    job = jobs_of(request.datasette).get(index.job.id) if index.job else None
    return {
        **asdict(index.status),
        "is_served": index.is_served,
        "url": index.url,
        "job": job_json(request, job) if job else None,
    }


def page_job(request: ManageRequest, job: Job) -> PageJob:
    """Return a job for a page."""
    is_counted = job.state == "running" and job.stage in COUNTED_STAGES
    url = job_url(request, job)
    return PageJob(
        id=job.id,
        kind=job.work.kind,
        index=job.work.index,
        table=job.work.table,
        state=job.state,
        is_over=job.is_over,
        # A drop is one transaction: nothing can stop it in between.
        can_be_cancelled=not job.is_over and not job.cancelling and (job.work.kind, job.state) != ("drop", "running"),
        text=job_text(job),
        done=job.done if is_counted else 0,
        total=job.total if is_counted else 0,
        url=url,
        json_url=f"{url}.json",
    )


def job_url(request: ManageRequest, job: Job) -> str:
    """Return the page of a job."""
    return request.url(f"jobs/{job.id}")


def job_json(request: ManageRequest, job: Job) -> Json:
    """Return a job for JSON."""
    return {**job.to_dict(), "is_over": job.is_over, "text": job_text(job), "url": job_url(request, job)}


def job_text(job: Job) -> str:
    """Return how a job is, in a sentence."""
    if job.state == "waiting":
        return "Waiting for its turn."
    if job.state == "cancelled":
        return "Cancelled."
    if job.state == "failed":
        return f"Failed: {job.error}"
    if job.state == "done":
        return _result_text(job)
    text = STAGES.get(job.stage, job.stage)
    if job.stage in COUNTED_STAGES:
        text += f": {job.done:,} of {job.total:,}"
        if job.seconds_left is not None:
            text += f", about {_duration(job.seconds_left)} left"
    return f"{text}. Stops as soon as it can." if job.cancelling else f"{text}."


def _result_text(job: Job) -> str:
    counts = job.result
    if job.work.kind == "drop":
        return "Dropped."
    if job.work.kind == "sync":
        parts = [f"{counts[name]:,} {name}" for name in ("added", "updated", "deleted")]
    else:
        parts = [_count(counts[name], name) for name in ("rows", "passages", "tokens")]
    return f"Done: {', '.join(parts)}."


def _count(n: int, things: str) -> str:
    return f"{n:,} {things.removesuffix('s') if n == 1 else things}"


def _duration(seconds: int) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{round(seconds / size)} {unit}"
    return _count(seconds, "seconds")
