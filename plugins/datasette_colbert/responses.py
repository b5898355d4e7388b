"""Answers in the form that a request asks for, and what a reader learns of an error.

In: rows, pages, errors. Out: responses. Leaves to others: what is in them; Datasette's own JSON (compat.py).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from datasette import Request, Response

from colbert_sqlite import ColbertError
from datasette_colbert.compat import error_body, is_answered_by_datasette, is_interrupted, json_response
from datasette_colbert.service import RETRY_AFTER_SECONDS, Busy, TookTooLong

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("colbert_sqlite")


class Failure(NamedTuple):
    """Why there is no answer: a sentence for the reader, and the status of the response."""

    sentence: str
    status: int

    @property
    def for_people(self) -> str:
        return f"{self.sentence[:1].upper()}{self.sentence[1:]}."

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_AFTER_SECONDS)} if self.status == 503 else {}


def failure_of(error: Exception, database: str, index: str) -> Failure:
    """Return what a reader learns of an error; the rest goes to the log.

    :raises Exception: the error, if Datasette itself answers it
    """
    if isinstance(error, (Busy, TookTooLong)):
        return Failure(str(error), 503)
    if is_answered_by_datasette(error):
        raise error
    if isinstance(error, ValueError):
        return Failure(str(error), 400)
    if is_interrupted(error):
        return Failure("the filters take too long: use fewer or simpler ones", 400)
    is_expected = isinstance(error, (ColbertError, sqlite3.Error))
    logger.error("index %r of database %r: %s", index, database, error, exc_info=None if is_expected else error)
    return Failure("This index can't be searched at the moment. What is wrong is in the server's log", 500)


def wants_json(request: Request) -> bool:
    """Whether a request asks for JSON."""
    return str(request.path).endswith(".json")


def wants_csv(request: Request) -> bool:
    """Whether a request asks for CSV."""
    return str(request.path).endswith(".csv")


def error_response(datasette: Datasette, failure: Failure) -> Response:
    """Return a failure as Datasette says it in JSON."""
    body = error_body(datasette, failure.sentence, failure.status)
    return json_response(datasette, body, failure.status, failure.headers)


async def html_response(
    datasette: Datasette,
    request: Request,
    template: str,
    context: Mapping[str, object],
    failure: Failure | None = None,
) -> Response:
    """Return a page, with the status of a failure if there is one."""
    html = await datasette.render_template(template, {**context}, request=request)
    return Response.html(html, status=failure.status if failure else 200, headers=failure.headers if failure else None)


async def failure_response(datasette: Datasette, request: Request, failure: Failure) -> Response:
    """Return a failure that leaves nothing to show, as a page or as JSON."""
    if wants_json(request):
        return error_response(datasette, failure)
    context = {**error_body(datasette, failure.sentence, failure.status), "title": "Search"}
    return await html_response(datasette, request, "error.html", context, failure)
