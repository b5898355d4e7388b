"""similar, for one row and for all."""

from __future__ import annotations

import json

import pytest
import sqlite_utils

from tests.cli.helpers import invoke


def test_similar_rows_of_a_row(path: str) -> None:
    rows = json.loads(invoke("similar", path, "posts", "1", "-k", "2").stdout)
    assert [*rows[0]] == ["rank", "score", "pk", "title", "passage"]
    assert rows[0]["pk"] in (2, 4)
    filtered = invoke(
        "similar", path, "posts", "1", "--where", "created > :since", "-p", "since", "2021", "-c", "created"
    )
    assert {row["created"] for row in json.loads(filtered.stdout)} == {"2022", "2023"}
    assert "title" in invoke("similar", path, "posts", "1", "-t").stdout.splitlines()[0]


def test_similar_rows_of_all_rows(path: str) -> None:
    result = invoke("similar", path, "posts", "--all", "--into", "related", "-k", "2")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "Finding rows like 4 rows\nTable related: 8 rows like 4 rows\n"
    written = list(sqlite_utils.Database(path).query("select id as pk, rank, related_id as related_pk from related"))
    printed = json.loads(invoke("similar", path, "posts", "--all", "-k", "2", "--silent").stdout)
    assert [{name: row[name] for name in ("pk", "rank", "related_pk")} for row in printed] == written
    assert invoke("similar", path, "posts", "--all", "--into", "posts").stderr == (
        "Error: 'posts' exists already, with other columns than id, rank, related_id, score: choose another name "
        "for the table of similar rows\n"
    )


@pytest.mark.parametrize(
    "words", [["1", "--all"], [], ["1", "--into", "related"], ["--all", "--threshold", "0.5"]], ids=str
)
def test_similar_wants_a_row_or_all(path: str, words: list[str]) -> None:
    result = invoke("similar", path, "posts", *words)
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_row_that_is_not_there(path: str) -> None:
    result = invoke("similar", path, "posts", "99")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: index 'posts' has no text of row '99': the row is missing, not synced, or empty\n"


def test_our_own_tables_are_no_place_for_similar_rows(path: str) -> None:
    result = invoke("similar", path, "posts", "--all", "--into", "_colbert_x")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: '_colbert_x' is a name that this package uses: choose another for the table of similar rows\n",
    )
