"""The page that creates an index: choose a table, its columns and a model.

In: requests of actors who may manage. Out: responses, and work for the jobs. Leaves to others: what to propose
(candidates.py), the build (work.py), markup (templates).
"""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from datasette import NotFound, Request, Response
from datasette.utils.asgi import BadRequest

from colbert_sqlite import ColbertError, IndexExists, IndexSettings, serving
from datasette_colbert.compat import rows_response
from datasette_colbert.manage.candidates import Candidate, Table, candidate, tables
from datasette_colbert.manage.job_page import submit
from datasette_colbert.manage.request import Fields, ManageRequest, answer_managers, fields_of
from datasette_colbert.manage.work import Create
from datasette_colbert.responses import Failure, error_response
from datasette_colbert.settings import settings_for

if TYPE_CHECKING:
    from datasette.app import Datasette

NO_TABLE = "There is no such table"
# Finds exact words only; it is there to try things out.
NO_MODEL = "hashing"


class Model(NamedTuple):
    """A model to choose."""

    value: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The choices on the page that creates an index; at first, what it proposes."""

    columns: tuple[str, ...] = ()
    heading: str = ""
    name: str = ""
    model: str = ""


async def create(datasette: Datasette, request: Request) -> Response:
    """``/{database}/-/colbert-create?table=``: choose a table and its columns; a POST creates the index."""
    return await answer_managers(datasette, request, _create if request.method == "POST" else _choose)


async def _choose(request: ManageRequest) -> Response:
    """Choose a table, or columns of the one that is named."""
    name = request.request.args.get("table")
    choices = await _tables(request)
    if not name:
        if request.wants_json:
            rows = [asdict(table) for table in choices]
            return rows_response(request.datasette, request.request, {"database": request.database}, rows)
        urls = {table.name: request.url("create", table=table.name) for table in choices}
        return await request.html("colbert_create.html", tables=choices, urls_of=urls)
    table = await _candidate(request, choices, name)
    models = await _models(request, table.table)
    if request.wants_json:
        return request.json({**asdict(table), "models": [model.value for model in models]})
    return await _form_page(request, table, models, _proposal(table, models))


async def _create(request: ManageRequest) -> Response:
    """Create the index that a form describes, or show the form again with what is wrong."""
    request.refuse_read_only()
    fields = await fields_of(request.request)
    table = await _candidate(request, await _tables(request), fields.first("table"))
    models = await _models(request, table.table)
    form = _form(fields, models)
    try:
        if form.model not in [model.value for model in models]:
            raise ValueError(f"choose one of the models: {', '.join(model.value for model in models)}")
        work = await request.read(lambda conn: _work(request, conn, table.table, form))
    except (ColbertError, ValueError) as error:
        failure = Failure(str(error), 400)
        if request.wants_json:
            return error_response(request.datasette, failure)
        return await _form_page(request, table, models, form, failure)
    return await submit(request, work)


def _proposal(table: Candidate, models: list[Model]) -> Form:
    columns = tuple(column.name for column in table.columns if column.proposed)
    return Form(
        columns=columns,
        heading="" if columns == (table.heading,) else table.heading,
        model=models[0].value if models[0].value != NO_MODEL else "",
    )


def _form(fields: Fields, models: list[Model]) -> Form:
    form = Form(
        columns=tuple(fields.values.get("column", ())),
        heading=fields.first("heading"),
        name=fields.first("name").strip(),
        model=fields.first("model"),
    )
    if not form.model and models[0].value != NO_MODEL:
        form = replace(form, model=models[0].value)
    return form


def _work(request: ManageRequest, conn: sqlite3.Connection, table: str, form: Form) -> Create:
    """The work that a form asks for.

    :raises ColbertError: if the table can't be indexed so, or there is an index of that name
    :raises ValueError: if no column is chosen, or a name can't be one
    """
    settings = IndexSettings(table=table, columns=form.columns, model=form.model, heading=form.heading or None)
    name = form.name or table
    serving.check_source(conn, table, settings.columns, heading=settings.heading)
    states = [index.state for index in serving.registered_indexes(conn) if index.name.lower() == name.lower()]
    if "ready" in states:
        raise IndexExists(f"index {name!r} exists already: rebuild it, or use another name")
    if states:
        raise IndexExists(
            f"a build of an index called {name!r} is not finished: continue or drop it, or choose another name"
        )
    return Create(database=request.database, path=str(request.db.path), index=name, table=table, settings=settings)


async def _tables(request: ManageRequest) -> list[Table]:
    """The tables that the actor may see, without hidden ones."""
    if request.db.path is None:
        return []
    hidden = set(await request.db.hidden_table_names())
    names = [name for name in await request.db.table_names() if name not in hidden]
    visible = await request.visible_tables(names)
    return await request.read(lambda conn: tables(conn, [name for name in names if name in visible]))


async def _candidate(request: ManageRequest, choices: list[Table], name: str) -> Candidate:
    """The table of that name, and its columns.

    :raises datasette.NotFound: if there is none, or the actor may not see it
    :raises datasette.BadRequest: if it can't be indexed
    """
    for table in choices:
        if table.name == name:
            if table.why_not:
                raise BadRequest(table.why_not)
            return await request.read(lambda conn: candidate(conn, name))
    raise NotFound(NO_TABLE)


async def _models(request: ManageRequest, table: str) -> list[Model]:
    """The models to choose from, the configured one first; never another, which might be anything."""
    configured = settings_for(request.datasette, request.database, table).model
    return await asyncio.to_thread(_models_to_choose, configured)


def _models_to_choose(configured: str | None) -> list[Model]:
    from colbert_sqlite import known_models

    models = {
        model.alias: Model(model.alias, f"{model.alias}: {model.dim} dimensions, {model.megabytes} MB")
        for model in known_models()
        if model.on_this_machine and model.alias != NO_MODEL
    }
    if configured and configured != NO_MODEL:
        models = {configured: models.get(configured) or Model(configured, configured), **models}
    return [*models.values(), Model(NO_MODEL, f"{NO_MODEL}: no model, finds the same words only, to try things out")]


async def _form_page(
    request: ManageRequest, table: Candidate, models: list[Model], form: Form, failure: Failure | None = None
) -> Response:
    return await request.html(
        "colbert_create.html",
        failure,
        candidate=table,
        models=models,
        form=form,
        error=failure.sentence if failure else "",
        has_model=models[0].value != NO_MODEL,
        table_url=str(request.datasette.urls.table(request.database, table.table)),
        create_url=request.url("create"),
    )
