"""The sqlite-utils plugin: the commands ``sqlite-utils colbert …``, and SQL functions on every connection.

In: the command line and the connections of sqlite-utils. Out: one more group of commands, and functions such as
``colbert_search(…)``. Leaves to others: the commands (cli.py), the functions (the library).
"""

from __future__ import annotations

import sqlite3

import click

from colbert_sqlite import register
from sqlite_utils_colbert.cli import colbert
from sqlite_utils_colbert.compat import hookimpl


@hookimpl
def register_commands(cli: click.Group) -> None:
    cli.add_command(colbert)


@hookimpl
def prepare_connection(conn: sqlite3.Connection) -> None:
    # A connection in memory would stay open for ever if its functions held it.
    register(conn, hold=False)
