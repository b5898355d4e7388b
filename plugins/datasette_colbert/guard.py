"""Who may call the SQL functions, and search what with them.

In: the access of the request whose SQL runs. Out: a guard for each connection, and the reasons of its refusals. Leaves
to others: deciding on that access (access.py), the functions themselves (``colbert_sqlite``).
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Collection
from typing import TYPE_CHECKING

from colbert_sqlite import ColbertError, register, serving
from datasette_colbert.access import key_of_actor, request_access
from datasette_colbert.compat import database_uri, joined_databases
from datasette_colbert.settings import settings_for
from datasette_colbert.state import state_of

if TYPE_CHECKING:
    from datasette.app import Datasette

MAX_ERRORS = 100
# SQLite says no more of an exception in a function, or in an aggregate.
SQLITE_SENTENCES = ("user-defined function raised exception", "method raised error")


class FunctionsOff(ColbertError):
    """The actor may not call the functions in this statement."""


class LastErrors:
    """What was wrong with the last call that failed, by actor."""

    def __init__(self, datasette: Datasette) -> None:
        self._errors: OrderedDict[str, str] = OrderedDict()

    def add(self, actor: str, sentence: str) -> None:
        self._errors[actor] = sentence
        while len(self._errors) > MAX_ERRORS:
            self._errors.popitem(last=False)

    def get(self, actor: str) -> str | None:
        return self._errors.get(actor)


class Guard:
    """Lets the SQL functions of one database's connections run; see :class:`colbert_sqlite.serving.Guard`."""

    def __init__(self, datasette: Datasette, database: str) -> None:
        self._datasette = datasette
        self._database = database
        self._settings = settings_for(datasette, database)

    def check(self) -> None:
        if self._settings.sql_functions is True:
            return
        access = request_access()
        if access is None or not access.is_decided:
            raise FunctionsOff(
                "who runs this statement is not known: set sql_functions to true in the settings of the plugin"
            )
        if access.actor is None and access.writes_sql:
            raise FunctionsOff(
                "SQL of your own may call this only once you are signed in: use the search page, or a saved query, or "
                "set sql_functions to true in the settings of the plugin"
            )

    def searchable(self, schema: str) -> Collection[str] | None:
        access = request_access()
        if access is None or not access.is_decided:
            return None
        return access.searchable.get(self._database_of(schema), frozenset())

    def max_k(self, schema: str) -> int | None:
        return settings_for(self._datasette, self._database_of(schema)).max_k

    def record_error(self, sentence: str) -> None:
        access = request_access()
        if access is None:
            return
        access.error = sentence
        # Anonymous visitors are many: what one did wrong is nothing for the others.
        if access.actor is not None:
            state_of(self._datasette, LastErrors).add(key_of_actor(access.actor), sentence)

    def last_error(self) -> str | None:
        access = request_access()
        if access is None or access.actor is None:
            return None
        return state_of(self._datasette, LastErrors).get(key_of_actor(access.actor))

    def _database_of(self, schema: str) -> str:
        if schema == "main":
            return self._database
        return next((name for name in self._datasette.databases if name.lower() == schema), schema)


def prepare_connection(datasette: Datasette, conn: sqlite3.Connection, database: str) -> None:
    """Give a connection of Datasette the SQL functions, with a guard; or no functions where they are off."""
    if database not in datasette.databases or settings_for(datasette, database).sql_functions is False:
        serving.guard_connection(conn)
        return
    joined = joined_databases(datasette) if database == "_memory" else {}
    register(
        conn,
        database=database_uri(datasette, datasette.databases[database]),
        attached={name: uri for name, other in joined.items() if (uri := database_uri(datasette, other))},
        model=settings_for(datasette, database).model,
        # Another model may take minutes to load, gigabytes, or a hub.
        any_model=False,
        hold=False,
        guard=Guard(datasette, database),
    )


def add_reason(exception: Exception) -> None:
    """Add to the message of a page why a SQL function failed, which SQLite does not say."""
    access, message = request_access(), getattr(exception, "message", None)
    if access is None or not access.error or not isinstance(message, str):
        return
    if any(sentence in message for sentence in SQLITE_SENTENCES):
        exception.message = f"{message}: {access.error}"  # type: ignore[attr-defined]
