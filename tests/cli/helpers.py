"""What the tests of the commands share."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

from click.testing import CliRunner, Result
from sqlite_utils_colbert.cli import colbert

# Seconds that a busy machine may take for what is done in less than one.
PATIENCE = 300

POSTS = [
    (1, "Keeping a sourdough starter", "Feed the starter with flour and water every day.", "2019-05-01", None),
    (
        2,
        "Patching a bicycle tube",
        "Roughen the rubber, spread the glue, wait, press the patch.",
        "2020-06-02",
        b"\x00\xff",
    ),
    (3, "Backups that restore", "A backup of the database is worth what its restore is worth.", "2021-07-03", None),
    (4, "An empty post", "", "2022-08-04", None),
]


def invoke(*words: str, columns: int = 100) -> Result:
    """The outcome of a command."""
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(colbert, words)


def run(*words: str, exit_code: int = 0, columns: int = 100) -> Result:
    """The outcome of a command that ends with that exit code."""
    result = invoke(*words, columns=columns)
    assert result.exit_code == exit_code, result.output
    return result


def error(*words: str) -> str:
    """The one line on stderr of a command that fails."""
    result = run(*words, exit_code=1)
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    return line


def pks(result: Result) -> list[Any]:
    """The keys of the rows that a command printed as JSON."""
    assert result.exit_code == 0, result.output
    return [row["pk"] for row in json.loads(result.stdout)]


def execute(path: str, sql: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(sql)
        db.commit()
