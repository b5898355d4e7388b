"""Who may search what.

In: a Datasette, an actor. Out: the indexes the actor may see, and a guard for the SQL functions. Leaves to others:
Datasette's permissions (compat.py), the functions themselves (colbert_sqlite/sql_functions.py).

A SQL function runs in one of Datasette's threads and can't wait for a permission check, which may need that very
thread. What the actor may see is therefore found out when the request's actor is, and travels with the request in a
context variable. Where it doesn't arrive, as in the thread that writes, nobody is known, and the functions are off
unless they are on for everybody.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import iscoroutine
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from colbert_sqlite.errors import ColbertError
from datasette_colbert.compat import Actor, is_1_0, visible
from datasette_colbert.settings import settings_for

if TYPE_CHECKING:
    from datasette import Request
    from datasette.app import Datasette
    from datasette.database import Database

logger = logging.getLogger("colbert_sqlite")

Result = TypeVar("Result")

# What is asked for there, no SQL answers.
STATIC = ("/-/static", "/favicon.ico")
MOST_ERRORS = 100
SECONDS_TO_RETRY = 5.0
# All that SQLite tells of an exception in a function, or in an aggregate.
SQLITE_SAYS = ("user-defined function raised exception", "method raised error")
ARBITRARY_SQL_ARGUMENTS = ("sql", "_where")


class KnownIndex(NamedTuple):
    """An index, "ready" or "building", and the table it is of."""

    name: str
    state: str
    table: str


@dataclass(slots=True)
class Asking:
    """Who sent the request that is being answered, and what they may search, by database.

    ``found`` is what was found out for it, by what, of which database, and for whom.
    """

    known: bool = False
    actor: Actor = None
    arbitrary: bool = False
    searchable: dict[str, frozenset[str]] = field(default_factory=dict)
    found: dict[tuple[object, str, str], Any] = field(default_factory=dict)
    error: str = ""


# By Datasette and database: what its file was like, and the indexes that were in it.
_known: WeakKeyDictionary[Datasette, dict[str, tuple[object, tuple[KnownIndex, ...]]]] = WeakKeyDictionary()
# By Datasette and actor: what was wrong with the last call of a SQL function that failed.
_errors: WeakKeyDictionary[Datasette, OrderedDict[str, str]] = WeakKeyDictionary()
# By Datasette and database: until when not to try again.
_unreadable: WeakKeyDictionary[Datasette, dict[str, float]] = WeakKeyDictionary()
_asking: ContextVar[Asking | None] = ContextVar("colbert_asking", default=None)
_deciding: ContextVar[bool] = ContextVar("colbert_deciding", default=False)


class Unreadable(ColbertError):
    """A database does not tell which indexes it has: it is locked, damaged or gone."""


class FunctionsOff(ColbertError):
    """Whoever runs this statement may not call the functions."""


class Guard:
    """What lets the SQL functions of one database's connections run; see ``sql.Guard``."""

    def __init__(self, datasette: Datasette, database: str) -> None:
        self._datasette = datasette
        self._database = database
        self._settings = settings_for(datasette, database)

    def check(self) -> None:
        if self._settings.sql_functions is True:
            return
        asking = _asking.get()
        if asking is None or not asking.known:
            raise FunctionsOff(
                "who runs this statement is not known: set sql_functions to true in the settings of the plugin"
            )
        if asking.actor is None and asking.arbitrary:
            raise FunctionsOff(
                "SQL of your own may call this only once you are signed in: use the search page, or a saved query, or "
                "set sql_functions to true in the settings of the plugin"
            )

    def searchable(self, schema: str) -> Collection[str] | None:
        asking = _asking.get()
        if asking is None or not asking.known:
            return None
        database = self._name_of(schema)
        return asking.searchable.get(database, frozenset())

    def most(self, schema: str) -> int | None:
        return settings_for(self._datasette, self._name_of(schema)).max_k

    def note(self, sentence: str) -> None:
        asking = _asking.get()
        if asking is None:
            return
        asking.error = sentence
        # Anonymous visitors are many, and what one did wrong is none of the others' business.
        if asking.actor is not None:
            errors = _errors.setdefault(self._datasette, OrderedDict())
            errors[_key_of(asking.actor)] = sentence
            while len(errors) > MOST_ERRORS:
                errors.popitem(last=False)

    def noted(self) -> str | None:
        asking = _asking.get()
        errors: Mapping[str, str] = _errors.get(self._datasette, OrderedDict())
        return None if asking is None or asking.actor is None else errors.get(_key_of(asking.actor))

    def _name_of(self, schema: str) -> str:
        if schema == "main":
            return self._database
        return next((name for name in self._datasette.databases if name.lower() == schema), schema)


def _key_of(actor: Actor) -> str:
    return json.dumps(actor, sort_keys=True, default=str)


def complete(exception: Exception) -> None:
    """Have a page that says no more than that a SQL function failed, say why."""
    asking, message = _asking.get(), getattr(exception, "message", None)
    if asking is None or not asking.error or not isinstance(message, str):
        return
    if any(text in message for text in SQLITE_SAYS):
        exception.message = f"{message}: {asking.error}"  # type: ignore[attr-defined]


def begin() -> Callable[[], None]:
    """Note that a request is being answered; call what is returned when that is done."""
    token = _asking.set(Asking())
    return lambda: _asking.reset(token)


def noting(datasette: Datasette, request: Request, actors: Sequence[Any]) -> Callable[[], Awaitable[Actor]]:
    """Return what evaluates *actors* as Datasette does, and notes the first one and what they may search."""

    async def evaluated() -> Actor:
        from datasette.utils import await_me_maybe

        actor, problem = None, None
        for one in actors:
            if actor and not is_1_0(datasette):
                # 0.65 asks no further; what is left would be warned of.
                if iscoroutine(one):
                    one.close()
                continue
            try:
                found = await await_me_maybe(one)
            except Exception as error:
                problem = problem or error
                continue
            actor = actor or found or None
        if problem is not None:
            raise problem
        await _note(datasette, request, actor or request.scope.get("actor"))
        return actor

    return evaluated


async def _note(datasette: Datasette, request: Request, actor: Actor) -> None:
    asking = _asking.get()
    if asking is None or request.path.startswith(STATIC):
        return
    asking.actor = actor
    asking.arbitrary = (
        request.method != "GET"
        or any(name in request.args for name in ARBITRARY_SQL_ARGUMENTS)
        or request.path.rpartition("/-/")[2].partition(".")[0] == "query"
    )
    named = _database_of(datasette, request)
    for name in [named] if named else list(datasette.databases):
        if settings_for(datasette, name).sql_functions is not False:
            indexes = await visible_indexes(datasette, actor, name)
            asking.searchable[name] = frozenset(index.name.lower() for index in indexes)
    asking.known = True


def _database_of(datasette: Datasette, request: Request) -> str | None:
    """The database whose page is asked for; None for any other page, and where SQL can join databases."""
    from datasette.utils import tilde_decode

    path = request.path.removeprefix(datasette.setting("base_url").rstrip("/"))
    route = tilde_decode(path.lstrip("/").partition("/")[0])
    by_route = {database.route: name for name, database in datasette.databases.items() if name != "_memory"}
    return by_route.get(route) or by_route.get(route.rpartition(".")[0])


async def visible_indexes(datasette: Datasette, actor: Actor, database: str) -> list[KnownIndex]:
    """Return the indexes of a database that are served and whose tables the actor may see.

    All are looked at whichever is wanted: how long that takes says nothing about a single one.
    """
    return await _once(_visible_indexes, datasette, actor, database)


async def _once(
    find: Callable[[Datasette, Actor, str], Awaitable[Result]], datasette: Datasette, actor: Actor, database: str
) -> Result:
    """What *find* says, asked once for a request.

    Several parts of a page want to know, Datasette asks for every table of it, and once more for anonymous visitors.
    """
    asking, key = _asking.get(), (find, database, _key_of(actor))
    if asking is None:
        return await find(datasette, actor, database)
    if key not in asking.found:
        asking.found[key] = await find(datasette, actor, database)
    found: Result = asking.found[key]
    return found


async def _visible_indexes(datasette: Datasette, actor: Actor, database: str) -> list[KnownIndex]:
    settings = settings_for(datasette, database)
    try:
        known = await known_indexes(datasette, database)
    except Unreadable:
        # A page that has nothing to do with indexes is not to fail for that.
        return []
    served = [index for index in known if index.state == "ready" and settings.serves(index.name)]
    tables = await visible(datasette, actor, database, [index.table for index in served])
    return [index for index in served if index.table in tables]


async def known_indexes(datasette: Datasette, database: str) -> tuple[KnownIndex, ...]:
    """Return all indexes of a database, unfinished ones too, from memory where the file is as it was.

    :raises Unreadable: if nothing tells which there are
    """
    db = datasette.databases[database]
    signature = _signature(db)
    memo = _known.setdefault(datasette, {})
    seen, known = memo.get(database, (None, ()))
    if signature is None or seen != signature:
        if monotonic() < _unreadable.setdefault(datasette, {}).get(database, 0):
            raise Unreadable(f"the indexes of database {database!r} can't be read")
        try:
            known = await db.execute_fn(_read_indexes)
        except (ColbertError, sqlite3.Error) as error:
            logger.error("the indexes of database %r can't be read: %s", database, error)
            # It may be locked, and every page would wait for it.
            _unreadable[datasette][database] = monotonic() + SECONDS_TO_RETRY
            raise Unreadable(str(error)) from None
        memo[database] = signature, known
    return known


async def read_registries(datasette: Datasette) -> None:
    """Find out which indexes there are, and say in the log which configured ones are not."""
    found: set[str] = set()
    wanted: set[str] = set()
    for database in datasette.databases:
        if not is_internal(datasette, database):
            wanted |= {name.lower() for name in settings_for(datasette, database).indexes or ()}
            try:
                found |= {index.name.lower() for index in await known_indexes(datasette, database)}
            except Unreadable:
                continue
    for name in sorted(wanted - found):
        logger.warning("the settings of the plugin name an index %r, and no database has one", name)


def _read_indexes(conn: sqlite3.Connection) -> tuple[KnownIndex, ...]:
    from colbert_sqlite.indexes import registered_sources

    return tuple(KnownIndex(*source) for source in registered_sources(conn))


def _signature(db: Database) -> tuple[object, ...] | None:
    """What differs once somebody committed something; None where nothing tells."""
    if db.is_memory or db.path is None:
        return None
    found: list[object] = []
    for path in (Path(db.path), Path(f"{db.path}-wal")):
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


async def hidden_parts(datasette: Datasette, actor: Actor, database: str) -> set[str]:
    """Return the index tables of a database that the actor may not see: they are made of tables they may not see."""
    return await _once(_hidden_parts, datasette, actor, database)


async def _hidden_parts(datasette: Datasette, actor: Actor, database: str) -> set[str]:
    from colbert_sqlite.indexes import REGISTRY, index_tables

    try:
        known = await known_indexes(datasette, database)
    except Unreadable:
        return await _whatever_looks_like_a_part(datasette, database)
    seen = await visible(datasette, actor, database, [index.table for index in known])
    forbidden = [index.name for index in known if index.table not in seen]
    return {REGISTRY, *(table for name in forbidden for table in index_tables(name))} if forbidden else set()


async def _whatever_looks_like_a_part(datasette: Datasette, database: str) -> set[str]:
    try:
        tables = await datasette.databases[database].table_names()
    except sqlite3.Error:
        # Nor is there a page of any of them.
        return set()
    return {table for table in tables if table.lower().startswith("_colbert_")}


def carry_context(datasette: Datasette) -> None:
    """Let Datasette's threads see what the request was that they work for, which 0.65 doesn't care for by itself."""
    executor = datasette.executor
    if executor is None or getattr(executor, "carries_context", False):
        return
    submit = executor.submit

    def submit_with_context(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return submit(copy_context().run, function, *args, **kwargs)

    executor.submit = submit_with_context
    executor.carries_context = True


def is_internal(datasette: Datasette, database: str) -> bool:
    """Whether a database is Datasette's own."""
    return database in ("_internal", "_memory") or bool(getattr(datasette.databases[database], "is_temp_disk", False))


def rules_for_parts(datasette: Datasette, actor: Actor) -> Awaitable[Any] | None:
    """Return what denies, in 1.0, the tables that indexes of forbidden tables are made of."""
    # Whether those are forbidden is asked of the very hook that wants to know.
    return None if _deciding.get() else _rules_for_parts(datasette, actor)


async def _rules_for_parts(datasette: Datasette, actor: Actor) -> Any:
    from datasette.permissions import PermissionSQL

    token = _deciding.set(True)
    try:
        hidden = {
            database: await hidden_parts(datasette, actor, database)
            for database in datasette.databases
            if not is_internal(datasette, database)
        }
    finally:
        _deciding.reset(token)
    rows = [[database, table] for database, tables in hidden.items() for table in tables]
    if not rows:
        return None
    return PermissionSQL(
        sql="SELECT json_extract(value, '$[0]') AS parent, json_extract(value, '$[1]') AS child, 0 AS allow,"
        " 'part of a ColBERT index' AS reason"
        " FROM json_each(:colbert_parts)",
        params={"colbert_parts": json.dumps(rows)},
    )


def hidden_tables(datasette: Datasette, database: str) -> dict[str, Any]:
    """Return metadata that hides the tables that indexes are made of, as far as indexes are known by now."""
    _, known = _known.get(datasette, {}).get(database, (None, ()))
    names = tuple(index.name for index in known)
    return {"databases": {database: {"tables": _hidden(names)}}} if names else {}


@lru_cache(maxsize=64)
def _hidden(indexes: tuple[str, ...]) -> dict[str, dict[str, bool]]:
    from colbert_sqlite.indexes import REGISTRY, index_tables

    return {
        table: {"hidden": True} for table in (REGISTRY, *(t for name in indexes for t in sorted(index_tables(name))))
    }
