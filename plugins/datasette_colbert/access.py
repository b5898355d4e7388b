"""Which indexes the sender of a request may search.

In: a Datasette, an actor. Out: the indexes whose tables the actor may see. Leaves to others: Datasette's permissions
(compat.py), SQL functions (guard.py), the tables of indexes (hidden.py).

A SQL function runs in one of Datasette's threads and can't wait for a permission check, which may need that very
thread. So what the actor may see is decided together with who the actor is, and travels with the request in a context
variable. Where it does not arrive, as in the thread that writes, the actor is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import iscoroutine
from typing import TYPE_CHECKING, TypeVar, cast

from datasette import NotFound, Request
from datasette.utils import await_me_maybe, tilde_decode

from datasette_colbert.compat import Actor, database_at, is_1_0, visible_tables
from datasette_colbert.known import Unreadable, all_indexes
from datasette_colbert.settings import settings_for
from datasette_colbert.urls import requested_database

if TYPE_CHECKING:
    from datasette.app import Datasette

    from colbert_sqlite.serving import RegisteredIndex

Result = TypeVar("Result")

NO_INDEX = "There is no such ColBERT index"
# Requests that run no SQL.
STATIC_PATHS = ("/-/static", "/favicon.ico")
ARBITRARY_SQL_ARGUMENTS = ("sql", "_where")


@dataclass(slots=True)
class RequestAccess:
    """Who sent the request that is being answered, and what they may search, by database.

    ``is_decided`` is False until both are there. ``writes_sql``: the request may have SQL that its sender wrote.
    ``cache`` has what was looked up for this request, by function, database and actor. ``error`` is what was wrong
    with the last call of a SQL function that failed.
    """

    is_decided: bool = False
    actor: Actor = None
    writes_sql: bool = False
    searchable: dict[str, frozenset[str]] = field(default_factory=dict)
    cache: dict[tuple[object, str, str], object] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """The database and the index that a request is about."""

    database: str
    index: RegisteredIndex


_access: ContextVar[RequestAccess | None] = ContextVar("colbert_access", default=None)


def request_access() -> RequestAccess | None:
    """Return the access of the request that is being answered; None where there is no request."""
    return _access.get()


@contextmanager
def answering_request() -> Iterator[None]:
    """Keep what is looked up for a request until it is answered."""
    token = _access.set(RequestAccess())
    try:
        yield
    finally:
        _access.reset(token)


def key_of_actor(actor: Actor) -> str:
    """Return a text that is the same for the same actor."""
    return json.dumps(actor, sort_keys=True, default=str)


def resolve_actor(datasette: Datasette, request: Request, actors: Sequence[object]) -> Callable[[], Awaitable[Actor]]:
    """Return what awaits *actors* as Datasette does, and decides what the first one may search."""

    async def resolved() -> Actor:
        actor: Actor = None
        problem: Exception | None = None
        for one in actors:
            if actor and not is_1_0(datasette):
                # 0.65 awaits no more of them; Python would warn of a coroutine that is left.
                if iscoroutine(one):
                    one.close()
                continue
            try:
                # 1.0 awaits them all.
                next_actor = await await_me_maybe(one)
            except Exception as error:
                problem = problem or error
                continue
            actor = actor or next_actor or None
        if problem is not None:
            raise problem
        await _decide(datasette, request, actor or request.scope.get("actor"))
        return actor

    return resolved


async def _decide(datasette: Datasette, request: Request, actor: Actor) -> None:
    access = _access.get()
    if access is None or request.path.startswith(STATIC_PATHS):
        return
    access.actor = actor
    access.writes_sql = (
        request.method != "GET"
        or any(name in request.args for name in ARBITRARY_SQL_ARGUMENTS)
        or request.path.rpartition("/-/")[2].partition(".")[0] == "query"
    )
    database = _database_of_page(datasette, request)
    for name in [database] if database else list(datasette.databases):
        if settings_for(datasette, name).sql_functions is not False:
            indexes = await visible_indexes(datasette, actor, name)
            access.searchable[name] = frozenset(index.name.lower() for index in indexes)
    access.is_decided = True


def _database_of_page(datasette: Datasette, request: Request) -> str | None:
    """The database of a request's page; None for any other page, and where SQL can join databases."""
    path = request.path.removeprefix(datasette.setting("base_url").rstrip("/"))
    route = tilde_decode(path.lstrip("/").partition("/")[0])
    database = database_at(datasette, route) or database_at(datasette, route.rpartition(".")[0])
    return None if database == "_memory" else database


async def once_per_request(
    find: Callable[[Datasette, Actor, str], Awaitable[Result]], datasette: Datasette, actor: Actor, database: str
) -> Result:
    """Return what *find* returns, called once for a request.

    Several parts of a page ask, Datasette does for every table of it, and once more for anonymous visitors.
    """
    access, key = _access.get(), (find, database, key_of_actor(actor))
    if access is None:
        return await find(datasette, actor, database)
    if key not in access.cache:
        access.cache[key] = await find(datasette, actor, database)
    return cast(Result, access.cache[key])


async def visible_indexes(datasette: Datasette, actor: Actor, database: str) -> list[RegisteredIndex]:
    """Return the indexes of a database that are served and whose tables the actor may see.

    All are checked, whichever is needed: the time that takes says nothing about a single one.
    """
    return await once_per_request(_visible_indexes, datasette, actor, database)


async def _visible_indexes(datasette: Datasette, actor: Actor, database: str) -> list[RegisteredIndex]:
    settings = settings_for(datasette, database)
    try:
        indexes = await all_indexes(datasette, database)
    except Unreadable:
        # A page that has nothing to do with indexes must not fail for that.
        return []
    served = [index for index in indexes if index.state == "ready" and settings.serves(index.name)]
    tables = await visible_tables(datasette, actor, database, [index.table for index in served])
    return [index for index in served if index.table in tables]


async def visible_indexes_of_table(
    datasette: Datasette, actor: Actor, database: str, table: str
) -> list[RegisteredIndex]:
    """Return the indexes of one table that the actor may search, by name."""
    indexes = await visible_indexes(datasette, actor, database)
    return sorted(index for index in indexes if index.table.lower() == table.lower())


async def requested_index(datasette: Datasette, request: Request) -> Target:
    """Return the database and the index in a request's path.

    :raises datasette.NotFound: if there is none, or the actor may not see it: nobody can tell which
    """
    database, name = requested_database(datasette, request), tilde_decode(request.url_vars["index"]).lower()
    for index in await visible_indexes(datasette, request.actor, database):
        if index.name.lower() == name:
            return Target(database, index)
    raise NotFound(NO_INDEX)
