"""The Datasette plugin: gives connections the functions ``colbert_search(…)`` and others.

Its settings are those of the plugin ``colbert-sqlite`` in Datasette's configuration, for all databases or for one::

    {"plugins": {"colbert-sqlite": {"sql_functions": false, "model": "minilm"}}}
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pluggy import HookimplMarker

from colbert_sqlite import sql_functions

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

# What datasette.hookimpl is, without importing Datasette.
hookimpl = HookimplMarker("datasette")

PLUGIN = "colbert-sqlite"
# A setting out of the environment is a text.
SWITCHES = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


@hookimpl
def startup(datasette: Datasette) -> None:
    """Refuse a wrong configuration before anything is served."""
    for database in (None, *datasette.databases):
        _has_functions(datasette.plugin_config(PLUGIN, database=database) or {})


@hookimpl
def prepare_connection(conn: sqlite3.Connection, database: str, datasette: Datasette) -> None:
    settings: dict[str, Any] = datasette.plugin_config(PLUGIN, database=database) or {}
    if not _has_functions(settings) or database not in datasette.databases:
        return
    # Where SQL can join databases, it can search them.
    others = datasette.databases.items() if database == "_memory" and datasette.crossdb else ()
    sql_functions.prepare(
        conn,
        database=_uri(datasette, datasette.databases[database]),
        attached={name: uri for name, other in others if (uri := _uri(datasette, other))},
        model=settings.get("model"),
        # Loading another one may take minutes, gigabytes, or a hub.
        any_model=False,
    )


def _has_functions(settings: dict[str, Any]) -> bool:
    switch = settings.get("sql_functions", True)
    try:
        return SWITCHES[str(switch).lower()]
    except KeyError:
        raise click.ClickException(f"{PLUGIN}: sql_functions must be true or false, not {switch!r}") from None


def _uri(datasette: Datasette, database: Database) -> str | None:
    """How to open a database as Datasette itself does; None for one in memory."""
    if database.is_memory or database.path is None:
        return None
    options = "mode=ro" if database.is_mutable else "mode=ro&immutable=1"
    if database.is_mutable and datasette.nolock:
        options += "&nolock=1"
    return f"{Path(database.path).absolute().as_uri()}?{options}"
