"""The sqlite-utils plugin, ``sqlite-utils colbert …``: hands its commands over, which are in ``cli.py``."""

from __future__ import annotations

import click
from sqlite_utils import hookimpl

from sqlite_utils_colbert.cli import colbert


@hookimpl
def register_commands(cli: click.Group) -> None:
    cli.add_command(colbert)
