"""The group of commands, on both of its doors."""

from __future__ import annotations

import ast
from pathlib import Path

import click
import pytest
import sqlite_utils_colbert
from sqlite_utils_colbert import register_commands
from sqlite_utils_colbert.cli import colbert

from tests.cli.helpers import run

FOLDER = Path(sqlite_utils_colbert.__file__).parent
SHARED = {"compat", "hits", "options", "output", "progress"}
COMMANDS = sorted({path.stem for path in FOLDER.glob("*.py")} - SHARED - {"__init__", "cli"})


def modules_imported_by(name: str) -> set[str]:
    nodes = ast.walk(ast.parse((FOLDER / f"{name}.py").read_text("utf-8")))
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def test_sqlite_utils_gets_the_same_group() -> None:
    cli = click.Group()
    register_commands(cli)
    assert cli.commands == {"colbert": colbert}


@pytest.mark.parametrize("name", sorted(colbert.commands))
def test_every_command_explains_itself_by_example(name: str) -> None:
    assert f"sqlite-utils colbert {name}" in run(name, "--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_imports_the_file_of_another(name: str) -> None:
    ours = {module for module in modules_imported_by(name) if module.startswith("sqlite_utils_colbert.")}
    assert {module.partition(".")[2] for module in ours} <= SHARED
