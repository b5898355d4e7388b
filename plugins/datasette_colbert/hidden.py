"""The tables that indexes are made of, hidden from lists and from whoever may not see what they were made from.

In: a Datasette, an actor. Out: rules for 0.65 and for 1.0. Leaves to others: which indexes there are (known.py).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING

from colbert_sqlite import serving
from datasette_colbert.access import once_per_request
from datasette_colbert.compat import MANAGE, Actor, Json, configured_to_manage, is_internal, visible_tables
from datasette_colbert.known import Unreadable, all_indexes, indexes_in_memory

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.permissions import PermissionSQL

_deciding: ContextVar[bool] = ContextVar("colbert_deciding", default=False)


async def forbidden_index_tables(datasette: Datasette, actor: Actor, database: str) -> set[str]:
    """Return the tables of indexes whose source tables the actor may not see."""
    return await once_per_request(_forbidden_index_tables, datasette, actor, database)


async def _forbidden_index_tables(datasette: Datasette, actor: Actor, database: str) -> set[str]:
    try:
        indexes = await all_indexes(datasette, database)
    except Unreadable:
        return await _all_index_tables(datasette, database)
    visible = await visible_tables(datasette, actor, database, [index.table for index in indexes])
    forbidden = [index.name for index in indexes if index.table not in visible]
    return {*serving.tables_of_indexes(forbidden)} if forbidden else set()


async def _all_index_tables(datasette: Datasette, database: str) -> set[str]:
    try:
        tables = await datasette.databases[database].table_names()
    except sqlite3.Error:
        # Then there is no page of any of them either.
        return set()
    return {table for table in tables if serving.is_index_table(table)}


def permission_0_65(
    datasette: Datasette, actor: Actor, action: str, resource: object
) -> Callable[[], Awaitable[bool | None]] | None:
    """Return what 0.65 asks of a plugin about one permission; None where this plugin has no opinion."""
    if action not in (MANAGE, "view-table"):
        return None

    async def decide() -> bool | None:
        if action == MANAGE:
            return configured_to_manage(datasette, actor, resource if isinstance(resource, str) else None)
        if not isinstance(resource, tuple):
            return None
        database, table = resource
        if not serving.is_index_table(table) or database not in datasette.databases:
            return None
        return False if table in await forbidden_index_tables(datasette, actor, database) else None

    return decide


def permission_rules(datasette: Datasette, actor: Actor) -> Awaitable[PermissionSQL | None] | None:
    """Return what denies, in 1.0, the tables of indexes whose source tables are forbidden."""
    # Deciding that calls the very hook that asks for these rules.
    return None if _deciding.get() else _permission_rules(datasette, actor)


async def _permission_rules(datasette: Datasette, actor: Actor) -> PermissionSQL | None:
    from datasette.permissions import PermissionSQL

    token = _deciding.set(True)
    try:
        forbidden = {
            database: await forbidden_index_tables(datasette, actor, database)
            for database in datasette.databases
            if not is_internal(datasette, database)
        }
    finally:
        _deciding.reset(token)
    rows = [[database, table] for database, tables in forbidden.items() for table in tables]
    if not rows:
        return None
    return PermissionSQL(
        sql="SELECT json_extract(value, '$[0]') AS parent, json_extract(value, '$[1]') AS child, 0 AS allow,"
        " 'part of a ColBERT index' AS reason"
        " FROM json_each(:colbert_parts)",
        params={"colbert_parts": json.dumps(rows)},
    )


def hiding_metadata(datasette: Datasette, database: str) -> Json:
    """Return metadata by which 0.65 hides the tables of the indexes that were read so far."""
    names = tuple(index.name for index in indexes_in_memory(datasette, database))
    return {"databases": {database: {"tables": _hidden_tables(names)}}} if names else {}


@lru_cache(maxsize=64)
def _hidden_tables(indexes: tuple[str, ...]) -> dict[str, dict[str, bool]]:
    return {table: {"hidden": True} for table in serving.tables_of_indexes(indexes)}
