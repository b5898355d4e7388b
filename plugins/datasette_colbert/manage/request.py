"""A request to one of the pages that manage indexes, and who may send it.

In: a request to Datasette. Out: the same with its database, once the actor may manage it; the fields of its form.
Leaves to others: what is done about it.

Whoever may manage the indexes of a database must also see a table to learn of its indexes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import parse_qs

from datasette import Forbidden, Request, Response
from datasette.utils.asgi import BadRequest

from datasette_colbert.compat import MANAGE, Json, json_response, may_manage, visible_tables
from datasette_colbert.manage.read_only import why_read_only
from datasette_colbert.responses import Failure, error_response, html_response, wants_json
from datasette_colbert.urls import manage_page_url, requested_database

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

Result = TypeVar("Result")


class ManageRequest(NamedTuple):
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
        """Return the URL of one of these pages."""
        return manage_page_url(self.datasette, self.database, page, **args)

    async def read(self, function: Callable[[sqlite3.Connection], Result]) -> Result:
        """Return what *function* returns for a connection that reads, in one of Datasette's threads."""
        result: Result = await self.db.execute_fn(function)
        return result

    async def visible_tables(self, tables: Collection[str]) -> set[str]:
        """Return those of *tables* that the actor may see."""
        return await visible_tables(self.datasette, self.request.actor, self.database, tables)

    async def html(self, template: str, failure: Failure | None = None, **context: object) -> Response:
        """Return a page."""
        context |= {
            "database": self.database,
            "manage_url": self.url("manage"),
            "read_only": why_read_only(self.db),
        }
        return await html_response(self.datasette, self.request, template, context, failure)

    def json(self, body: Json, status: int = 200) -> Response:
        """Return *body* as JSON that says it is no error."""
        return json_response(self.datasette, {"ok": True, **body}, status)

    def refuse_read_only(self) -> None:
        """Make sure that the database can be written.

        :raises datasette.Forbidden: if not
        """
        if why_not := why_read_only(self.db):
            raise Forbidden(why_not)


async def answer_managers(
    datasette: Datasette, request: Request, answer: Callable[[ManageRequest], Awaitable[Response]]
) -> Response:
    """Return what *answer* says to an actor who may manage; to others, that they may not, as a page or as JSON."""
    manage_request = ManageRequest(datasette, request, requested_database(datasette, request))
    try:
        if not await may_manage(datasette, request.actor, manage_request.database):
            raise Forbidden(f"Permission denied: {MANAGE}")
        return await answer(manage_request)
    except Forbidden as error:
        if wants_json(request):
            return error_response(datasette, Failure(str(error), 403))
        raise


class Fields(NamedTuple):
    """The fields of a form, or of a JSON object with the same names."""

    values: dict[str, list[str]]

    def first(self, name: str) -> str:
        """Return the first value of a field, empty if there is none."""
        return self.values.get(name, [""])[0]


async def fields_of(request: Request) -> Fields:
    """Return the fields in the body of a request.

    :raises datasette.BadRequest: if it is neither a form nor a JSON object
    """
    body = (await request.post_body()).decode(errors="replace")
    if not request.headers.get("content-type", "").startswith("application/json"):
        return Fields(parse_qs(body))
    try:
        fields = {name: value if isinstance(value, list) else [value] for name, value in json.loads(body).items()}
    except (ValueError, AttributeError):
        raise BadRequest("the body must be a JSON object, or a form") from None
    return Fields({name: [str(value) for value in values] for name, values in fields.items()})
