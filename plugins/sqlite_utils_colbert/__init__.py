"""The sqlite-utils plugin, ``sqlite-utils colbert …``: hands its commands over, which are in ``cli.py``."""

from __future__ import annotations

import click
from pluggy import HookimplMarker

from sqlite_utils_colbert.cli import colbert

# What sqlite_utils.hookimpl is, without the 20 to 50 ms of importing sqlite_utils on every colbert-sqlite search.
hookimpl = HookimplMarker("sqlite_utils")


@hookimpl
def register_commands(cli: click.Group) -> None:
    cli.add_command(colbert)
