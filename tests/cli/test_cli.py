"""The group of commands, on both of its doors."""

from __future__ import annotations

import click
import pytest
from sqlite_utils_colbert import register_commands
from sqlite_utils_colbert.cli import colbert

from cli.helpers import run


def test_sqlite_utils_gets_the_same_group() -> None:
    cli = click.Group()
    register_commands(cli)
    assert cli.commands == {"colbert": colbert}


@pytest.mark.parametrize("name", sorted(colbert.commands))
def test_every_command_explains_itself_by_example(name: str) -> None:
    assert f"sqlite-utils colbert {name}" in run(name, "--help").stdout
