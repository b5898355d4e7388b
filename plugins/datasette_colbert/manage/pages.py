"""The pages where indexes are made, synced, rebuilt and dropped, and their JSON.

In: requests of actors who may do so. Out: responses; what is asked for goes to the jobs of this server. Leaves to
others: the work (jobs.py), what there is (status.py, candidates.py), permissions (compat.py), markup (templates).

A GET changes nothing. Whoever may manage the indexes of a database still has to see a table to learn of its indexes.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import parse_qs
from weakref import WeakKeyDictionary

from colbert_sqlite.errors import ColbertError, IndexExists
from colbert_sqlite.settings import IndexSettings
from datasette_colbert.access import is_internal, known_indexes
from datasette_colbert.compat import MANAGE, error_response, json_response, may_manage, rows_response, visible
from datasette_colbert.manage.candidates import Candidate, Table, candidate, tables
from datasette_colbert.manage.jobs import AutoSync, Create, Drop, Job, Jobs, Rebuild, Sync, Work, unfinished
from datasette_colbert.manage.status import Status, statuses
from datasette_colbert.search_page import NO_INDEX, database_of, index_url, managing_url, wants_json
from datasette_colbert.settings import settings_for

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Callable, Mapping

    from datasette import Request, Response
    from datasette.app import Datasette
    from datasette.database import Database

Result = TypeVar("Result")
NO_JOB = "There is no such job"
NO_TABLE = "There is no such table"
STAGES = {
    "": "Getting ready",
    "encode": "Encoding rows",
    "compare": "Comparing rows with the index",
    "train": "Training the codec",
    "write": "Writing the inverted lists",
    "wait": "Waiting for another process that writes this index",
}
COUNTED_STAGES = ("encode", "compare")
# Finds exact words only; it is there to try things out.
NO_MODEL = "hashing"


class Asked(NamedTuple):
    """A request of an actor who may manage the indexes of a database."""

    datasette: Datasette
    request: Request
    database: str

    @property
    def db(self) -> Database:
        return self.datasette.databases[self.database]

    @property
    def wants_json(self) -> bool:
        return wants_json(self.request)

    def url(self, page: str, **args: str) -> str:
        """The URL of one of these pages."""
        return managing_url(self.datasette, self.database, page, **args)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownJob:
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
    job: ShownJob | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What somebody chose on the page that makes an index; at first, what is proposed."""

    columns: tuple[str, ...] = ()
    heading: str = ""
    name: str = ""
    model: str = ""


class Given(NamedTuple):
    """The fields of a form that was sent."""

    fields: dict[str, list[str]]

    def first(self, name: str) -> str:
        """The first value of a field, empty if there is none."""
        return self.fields.get(name, [""])[0]


class Model(NamedTuple):
    """A model to choose."""

    value: str
    label: str


def routes() -> list[tuple[str, Any]]:
    """Return what ``register_routes`` wants to know."""
    place = r"^/(?P<database>[^/]+)/-/colbert-"
    return [
        (rf"{place}manage(\.json)?$", manage),
        (rf"{place}create(\.json)?$", create),
        (rf"{place}jobs/(?P<id>[\w-]+)(\.json)?$", follow),
    ]


async def manage(datasette: Datasette, request: Request) -> Response:
    """``/{database}/-/colbert-manage``: how every index is, and what can be done about it."""
    return await _answered(datasette, request, _change if request.method == "POST" else _list)


async def create(datasette: Datasette, request: Request) -> Response:
    """``/{database}/-/colbert-create?table=``: choose a table and its columns, and have them indexed."""
    return await _answered(datasette, request, _create if request.method == "POST" else _choose)


async def follow(datasette: Datasette, request: Request) -> Response:
    """``/{database}/-/colbert-jobs/{id}``: how far a job is."""
    return await _answered(datasette, request, _cancel if request.method == "POST" else _show_job)


_jobs: WeakKeyDictionary[Datasette, Jobs] = WeakKeyDictionary()
_followed: WeakKeyDictionary[Datasette, list[AutoSync]] = WeakKeyDictionary()


def jobs_of(datasette: Datasette) -> Jobs:
    """Return the jobs of a Datasette, the same object every time."""
    return _jobs.setdefault(datasette, Jobs())


def start_auto_sync(datasette: Datasette) -> None:
    """Begin to follow every database whose indexes are to be synced by themselves and that can be written."""
    seconds = settings_for(datasette).auto_sync_seconds
    if not seconds or datasette in _followed:
        return
    _followed[datasette] = [
        AutoSync(jobs_of(datasette), name, str(db.path), seconds, model_of=partial(_model_of, datasette, name))
        for name, db in datasette.databases.items()
        if not is_internal(datasette, name) and not why_read_only(db)
    ]
    for followed in _followed[datasette]:
        followed.start()


def _model_of(datasette: Datasette, database: str, table: str) -> str | None:
    return settings_for(datasette, database, table).model


def close(datasette: Datasette) -> None:
    """Follow no database any more, and cancel the jobs there are, without waiting for them."""
    for followed in _followed.pop(datasette, ()):
        followed.close()
    if datasette in _jobs:
        _jobs[datasette].close(0)


def why_read_only(db: Database) -> str:
    """Return a sentence on why the indexes of a database can't be changed here; empty if they can."""
    if db.is_memory or db.path is None:
        return "This database is in memory, and indexes are kept in files."
    if not db.is_mutable:
        return "This database is served as immutable: its indexes can be searched, and are changed elsewhere."
    if not all(_is_writable(path) for path in (Path(db.path), Path(db.path).absolute().parent)):
        return "The server may not write the file of this database or its folder: its indexes can be searched only."
    return ""


def _is_writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


async def _answered(datasette: Datasette, request: Request, answer: Callable[[Asked], Awaitable[Response]]) -> Response:
    """What *answer* says to an actor who may ask; to others, that they may not, in the form they asked for."""
    from datasette import Forbidden

    asked = Asked(datasette, request, database_of(datasette, request))
    try:
        if not await may_manage(datasette, request.actor, asked.database):
            raise Forbidden(f"Permission denied: {MANAGE}")
        return await answer(asked)
    except Forbidden as error:
        if asked.wants_json:
            return error_response(datasette, str(error), 403)
        raise


async def _list(asked: Asked) -> Response:
    indexes = await _indexes(asked)
    if name := asked.request.args.get("drop"):
        return await _page(asked, "colbert_drop.html", index=_named(indexes, name))
    recent = await _visible_jobs(asked)
    if asked.wants_json:
        data = {
            "database": asked.database,
            "read_only": why_read_only(asked.db),
            "rows": [_index_json(asked, index) for index in indexes],
            "jobs": [_job_json(asked, job) for job in recent],
        }
        return rows_response(asked.datasette, asked.request, data)
    shown = [_shown(asked, job) for job in recent]
    return await _page(asked, "colbert_manage.html", indexes=indexes, jobs=shown, create_url=asked.url("create"))


def _index_json(asked: Asked, index: ManagedIndex) -> dict[str, Any]:
    job = jobs_of(asked.datasette).get(index.job.id) if index.job else None
    return {
        **asdict(index.status),
        "is_served": index.is_served,
        "url": index.url,
        "job": _job_json(asked, job) if job else None,
    }


async def _change(asked: Asked) -> Response:
    from datasette.utils.asgi import BadRequest

    _refuse_read_only(asked)
    given = await _given(asked)
    if not given.first("index"):
        raise BadRequest("index is missing: its name says which one")
    index = _named(await _indexes(asked), given.first("index"))
    return await _submitted(asked, await _work(asked, index.status, given.first("action")))


async def _work(asked: Asked, status: Status, action: str) -> Work:
    """What *action* means for an index.

    :raises datasette.BadRequest: if it means nothing
    """
    from datasette.utils.asgi import BadRequest

    target: dict[str, str] = {
        "database": asked.database,
        "path": str(asked.db.path),
        "index": status.name,
        "table": status.table,
    }
    model = settings_for(asked.datasette, asked.database, status.table).model
    if action == "sync":
        return Sync(**target, model=model)
    if action == "rebuild":
        return Rebuild(**target, model=model)
    if action not in ("drop", "continue"):
        raise BadRequest("action must be sync, rebuild, continue or drop")
    await _refuse_unseen_builds(asked, status.name)
    if action == "drop":
        return Drop(**target)
    try:
        return await _read(asked, lambda conn: unfinished(conn, asked.database, target["path"], status.name))
    except ColbertError as error:
        raise BadRequest(str(error)) from None


async def _refuse_unseen_builds(asked: Asked, name: str) -> None:
    """Make sure that the actor may see the tables of all that has this name: an index, and the build of another one.

    :raises datasette.NotFound: if not
    """
    from datasette import NotFound

    known = await known_indexes(asked.datasette, asked.database)
    tables = {index.table for index in known if index.name.lower() == name.lower()}
    if tables - await visible(asked.datasette, asked.request.actor, asked.database, tables):
        raise NotFound(NO_INDEX)


async def _submitted(asked: Asked, work: Work) -> Response:
    """Have the work done, and go where its progress can be seen.

    :raises datasette.BadRequest: if an index of that name has another job, and the actor may not see what of
    """
    from datasette import Response
    from datasette.utils.asgi import BadRequest

    actor_id = (asked.request.actor or {}).get("id")
    job = jobs_of(asked.datasette).submit(work, None if actor_id is None else str(actor_id))
    if job.work is not work:
        if job.id not in [visible_job.id for visible_job in await _visible_jobs(asked)]:
            raise BadRequest(f"an index called {work.index!r} is being worked on: choose another name")
        if asked.wants_json:
            sentence = f"index {work.index!r} has another job, {job.work.kind}: wait until it is over, or cancel it"
            return error_response(asked.datasette, sentence, 409)
        asked.datasette.add_message(
            asked.request,
            f"Index {work.index} has this job already; what you asked for can be done when it is over.",
            asked.datasette.WARNING,
        )
    if asked.wants_json:
        return json_response(asked.datasette, {"ok": True, **_job_json(asked, job)}, 202)
    return Response.redirect(_job_url(asked, job))


async def _choose(asked: Asked) -> Response:
    """Which table, or which columns of it."""
    name = asked.request.args.get("table")
    found = await _tables(asked)
    if not name:
        if asked.wants_json:
            return rows_response(
                asked.datasette, asked.request, {"database": asked.database, "rows": [asdict(one) for one in found]}
            )
        urls = {one.name: asked.url("create", table=one.name) for one in found}
        return await _page(asked, "colbert_create.html", tables=found, urls_of=urls)
    chosen = await _candidate(asked, found, name)
    proposed = tuple(column.name for column in chosen.columns if column.proposed)
    models = await _models(asked, chosen.table)
    form = Form(
        columns=proposed,
        heading="" if proposed == (chosen.heading,) else chosen.heading,
        model=models[0].value if models[0].value != NO_MODEL else "",
    )
    if asked.wants_json:
        return json_response(
            asked.datasette, {"ok": True, **asdict(chosen), "models": [model.value for model in models]}
        )
    return await _form_page(asked, chosen, models, form)


async def _create(asked: Asked) -> Response:
    _refuse_read_only(asked)
    given = await _given(asked)
    chosen = await _candidate(asked, await _tables(asked), given.first("table"))
    models = await _models(asked, chosen.table)
    form = Form(
        columns=tuple(given.fields.get("column", ())),
        heading=given.first("heading"),
        name=given.first("name").strip(),
        model=given.first("model"),
    )
    if not form.model and models[0].value != NO_MODEL:
        form = replace(form, model=models[0].value)
    try:
        if form.model not in [model.value for model in models]:
            raise ValueError(f"choose one of the models: {', '.join(model.value for model in models)}")
        work = await _read(asked, lambda conn: _creation(asked, conn, chosen.table, form))
    except (ColbertError, ValueError) as error:
        if asked.wants_json:
            return error_response(asked.datasette, str(error), 400)
        return await _form_page(asked, chosen, models, form, str(error))
    return await _submitted(asked, work)


def _creation(asked: Asked, conn: sqlite3.Connection, table: str, form: Form) -> Create:
    """What a form asks for.

    :raises ColbertError: if the table can't be indexed so, or there is an index of that name
    :raises ValueError: if no column is chosen, or a name is none
    """
    from colbert_sqlite.storage.connection import plain_rows
    from colbert_sqlite.storage.registry import registered
    from colbert_sqlite.storage.source import Source

    settings = IndexSettings(table=table, columns=form.columns, model=form.model, heading=form.heading or None)
    name = form.name or table
    with plain_rows(conn):
        Source.inspect(conn, table, settings.columns, heading=settings.heading)
        states = [known.state for known in registered(conn) if known.name.lower() == name.lower()]
        if "ready" in states:
            raise IndexExists(f"there is an index called {name!r}: give this one another name, or rebuild that one")
        if states:
            raise IndexExists(
                f"a build of an index called {name!r} is not finished: continue or drop it, or choose another name"
            )
    return Create(
        database=asked.database,
        path=str(asked.db.path),
        index=form.name or table,
        table=table,
        settings=settings,
    )


async def _show_job(asked: Asked) -> Response:
    found = await _job(asked)
    if asked.wants_json:
        return json_response(asked.datasette, {"ok": True, **_job_json(asked, found)})
    work = found.work
    known = await known_indexes(asked.datasette, asked.database)
    states = {index.state for index in known if index.name.lower() == work.index.lower()}
    return await _page(
        asked,
        "colbert_job.html",
        job=_shown(asked, found),
        search_url=index_url(asked.datasette, asked.database, work.index) if "ready" in states else "",
        can_continue=found.is_over and "building" in states,
    )


async def _cancel(asked: Asked) -> Response:
    from datasette import Response

    found = jobs_of(asked.datasette).cancel((await _job(asked)).id)
    assert found is not None
    if asked.wants_json:
        return json_response(asked.datasette, {"ok": True, **_job_json(asked, found)})
    return Response.redirect(_job_url(asked, found))


async def _indexes(asked: Asked) -> list[ManagedIndex]:
    """The indexes of the tables that the actor may see, with their jobs."""
    if asked.db.path is None:
        return []
    found = await _read(asked, statuses)
    seen = await visible(asked.datasette, asked.request.actor, asked.database, [status.table for status in found])
    settings = settings_for(asked.datasette, asked.database)
    return [
        ManagedIndex(
            status=status,
            url=index_url(asked.datasette, asked.database, status.name),
            table_url=str(asked.datasette.urls.table(asked.database, status.table)),
            is_served=settings.serves(status.name),
            job=_current(asked, status.name),
        )
        for status in found
        if status.table in seen
    ]


def _named(indexes: list[ManagedIndex], name: str) -> ManagedIndex:
    """The index of that name.

    :raises datasette.NotFound: if there is none, or none that the actor may see: nobody can tell which
    """
    from datasette import NotFound

    for index in indexes:
        if index.status.name.lower() == name.lower():
            return index
    raise NotFound(NO_INDEX)


def _current(asked: Asked, index: str) -> ShownJob | None:
    latest = jobs_of(asked.datasette).latest(asked.database, index)
    return None if latest is None or latest.is_over else _shown(asked, latest)


async def _visible_jobs(asked: Asked) -> list[Job]:
    """The jobs of this database and of tables that the actor may see, the newest first."""
    known = [job for job in jobs_of(asked.datasette).all() if job.work.database == asked.database]
    seen = await visible(asked.datasette, asked.request.actor, asked.database, [job.work.table for job in known])
    return [job for job in known if job.work.table in seen]


async def _job(asked: Asked) -> Job:
    """The job that a request is about.

    :raises datasette.NotFound: if there is none, or none that the actor may see
    """
    from datasette import NotFound

    for known in await _visible_jobs(asked):
        if known.id == asked.request.url_vars["id"]:
            return known
    raise NotFound(NO_JOB)


async def _tables(asked: Asked) -> list[Table]:
    """The tables that the actor may see, without hidden ones."""
    if asked.db.path is None:
        return []
    hidden = set(await asked.db.hidden_table_names())
    names = [name for name in await asked.db.table_names() if name not in hidden]
    seen = await visible(asked.datasette, asked.request.actor, asked.database, names)
    return await _read(asked, lambda conn: tables(conn, [name for name in names if name in seen]))


async def _candidate(asked: Asked, found: list[Table], name: str) -> Candidate:
    """The table of that name, and its columns.

    :raises datasette.NotFound: if there is none, or none that the actor may see
    :raises datasette.BadRequest: if it can't be indexed
    """
    from datasette import NotFound
    from datasette.utils.asgi import BadRequest

    for table in found:
        if table.name == name:
            if table.why_not:
                raise BadRequest(table.why_not)
            return await _read(asked, lambda conn: candidate(conn, name))
    raise NotFound(NO_TABLE)


async def _models(asked: Asked, table: str) -> list[Model]:
    """The models that can be chosen, the configured one first; never another, which might be anything."""
    configured = settings_for(asked.datasette, asked.database, table).model
    return await asyncio.to_thread(_models_here, configured)


def _models_here(configured: str | None) -> list[Model]:
    from colbert_sqlite.encoders import known_models

    here = {
        model.alias: Model(model.alias, f"{model.alias}: {model.dim} dimensions, {model.megabytes} MB")
        for model in known_models()
        if model.on_this_machine and model.alias != NO_MODEL
    }
    if configured and configured != NO_MODEL:
        here = {configured: here.get(configured) or Model(configured, configured), **here}
    return [*here.values(), Model(NO_MODEL, f"{NO_MODEL}: no model, finds the same words only, to try things out")]


async def _form_page(asked: Asked, chosen: Candidate, models: list[Model], form: Form, error: str = "") -> Response:
    return await _page(
        asked,
        "colbert_create.html",
        400 if error else 200,
        candidate=chosen,
        models=models,
        form=form,
        error=error,
        has_model=models[0].value != NO_MODEL,
        table_url=str(asked.datasette.urls.table(asked.database, chosen.table)),
        create_url=asked.url("create"),
    )


async def _page(asked: Asked, template: str, status: int = 200, **context: Any) -> Response:
    from datasette import Response

    context |= {
        "database": asked.database,
        "manage_url": asked.url("manage"),
        "read_only": why_read_only(asked.db),
    }
    html = await asked.datasette.render_template(template, context, request=asked.request)
    return Response.html(html, status=status)


def _shown(asked: Asked, job: Job) -> ShownJob:
    is_counted = job.state == "running" and job.stage in COUNTED_STAGES
    url = _job_url(asked, job)
    return ShownJob(
        id=job.id,
        kind=job.work.kind,
        index=job.work.index,
        table=job.work.table,
        state=job.state,
        is_over=job.is_over,
        # A drop is one transaction: it does not look up in between.
        can_be_cancelled=not job.is_over and not job.cancelling and (job.work.kind, job.state) != ("drop", "running"),
        text=_text(job),
        done=job.done if is_counted else 0,
        total=job.total if is_counted else 0,
        url=url,
        json_url=f"{url}.json",
    )


def _job_url(asked: Asked, job: Job) -> str:
    return asked.url(f"jobs/{job.id}")


def _job_json(asked: Asked, job: Job) -> dict[str, Any]:
    shown = _shown(asked, job)
    return {**job.to_dict(), "is_over": shown.is_over, "text": shown.text, "url": shown.url}


def _text(job: Job) -> str:
    """How a job is, in a sentence."""
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
    counts: Mapping[str, int] = job.result
    if job.work.kind == "drop":
        return "Dropped."
    if job.work.kind == "sync":
        parts = [f"{counts[name]:,} {name}" for name in ("added", "updated", "deleted")]
    else:
        parts = [_counted(counts[name], name) for name in ("rows", "passages", "tokens")]
    return f"Done: {', '.join(parts)}."


def _counted(n: int, things: str) -> str:
    return f"{n:,} {things.removesuffix('s') if n == 1 else things}"


def _duration(seconds: int) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{round(seconds / size)} {unit}"
    return _counted(seconds, "seconds")


async def _read(asked: Asked, function: Callable[[sqlite3.Connection], Result]) -> Result:
    """What *function* makes of a connection that reads, in one of Datasette's threads."""
    result: Result = await asked.db.execute_fn(function)
    return result


async def _given(asked: Asked) -> Given:
    """The fields of a form, or of a JSON object with the same names.

    :raises datasette.BadRequest: if the body is neither
    """
    from datasette.utils.asgi import BadRequest

    body = (await asked.request.post_body()).decode(errors="replace")
    if not asked.request.headers.get("content-type", "").startswith("application/json"):
        return Given(parse_qs(body))
    try:
        fields = {name: value if isinstance(value, list) else [value] for name, value in json.loads(body).items()}
    except (ValueError, AttributeError):
        raise BadRequest("the body must be a JSON object, or a form") from None
    return Given({name: [str(value) for value in values] for name, values in fields.items()})


def _refuse_read_only(asked: Asked) -> None:
    """Make sure that the database can be written.

    :raises datasette.Forbidden: if not
    """
    from datasette import Forbidden

    if why_not := why_read_only(asked.db):
        raise Forbidden(why_not)
