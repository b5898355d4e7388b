"""The sqlite-utils plugin: hands over the commands ``sqlite-utils colbert …``, which are in ``cli.py``, and gives every
connection the functions ``colbert_search(…)`` and others.
"""

from __future__ import annotations

import sqlite3

import click
from pluggy import HookimplMarker

from colbert_sqlite import register
from sqlite_utils_colbert.cli import colbert

# What sqlite_utils.hookimpl is, without the 20 to 50 ms of importing sqlite_utils on every colbert-sqlite search.
hookimpl = HookimplMarker("sqlite_utils")


@hookimpl
def register_commands(cli: click.Group) -> None:
    cli.add_command(colbert)


@hookimpl
def prepare_connection(conn: sqlite3.Connection) -> None:
    register(conn, hold=False)
