"""search and similar on the command line: modes, several indexes, SQL for the same rows, tables of similar rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils
from click.testing import CliRunner, Result
from sqlite_utils_colbert.cli import colbert

from colbert_sqlite import Index, register
from colbert_sqlite.encoders import Encoder

POSTS = [
    {"id": 1, "title": "Bread", "created": "2019", "body": "Flour, water, salt and a warm oven."},
    {"id": 2, "title": "Tea", "created": "2021", "body": "Boil the water, warm the pot."},
    {"id": 3, "title": "Comets", "created": "2022", "body": "Ice and dust, and a tail away from the sun."},
    {"id": 4, "title": "Moths", "created": "2023", "body": "Flour moths eat flour, and only flour."},
]
Run = Callable[..., Result]


@pytest.fixture
def path(tmp_path: Path, encoder: Encoder) -> str:
    """A database with an index of four posts, and an FTS5 table beside it."""
    db = sqlite_utils.Database(tmp_path / "blog.db")
    db["posts"].insert_all(POSTS, pk="id")
    db["posts"].enable_fts(["title", "body"], create_triggers=True)
    Index.create(db, "posts", ["body"], heading="title", model=encoder)
    db.conn.close()
    return str(tmp_path / "blog.db")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def invoke(*words: str) -> Result:
        return CliRunner().invoke(colbert, list(words), prog_name="colbert-sqlite")

    return invoke


def pks(result: Result) -> list[Any]:
    assert result.exit_code == 0, result.output
    return [row["pk"] for row in json.loads(result.stdout)]


def test_a_mode_can_be_chosen(run: Run, path: str) -> None:
    assert set(pks(run("search", path, "posts", "flour", "--mode", "fts"))) == {1, 4}
    assert set(pks(run("search", path, "posts", "flour", "--mode", "hybrid"))) == {1, 2, 3, 4}
    weighted = ("--mode", "hybrid", "--fusion", "weighted", "--weight", "0.2", "-k", "1")
    assert pks(run("search", path, "posts", "flour", *weighted)) == [4]


def test_fusion_without_hybrid_is_wrong_usage(run: Run, path: str) -> None:
    result = run("search", path, "posts", "flour", "--fusion", "rrf")
    assert (result.exit_code, "hybrid" in result.stderr) == (2, True)


def test_a_threshold_leaves_rows_out(run: Run, path: str) -> None:
    assert pks(run("search", path, "posts", "Flour moths eat flour", "--threshold", "0.8")) == [4]
    result = run("search", path, "posts", "flour", "--threshold", "2")
    assert (result.exit_code, result.stderr) == (1, "Error: threshold must be a number from 0 to 1, not 2.0\n")


def test_without_fts_the_error_says_how_to_make_one(run: Run, path: str) -> None:
    sqlite_utils.Database(path)["posts"].disable_fts()
    result = run("search", path, "posts", "flour", "--mode", "hybrid")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: table 'posts' has no FTS5 index: make one with: sqlite-utils enable-fts {path} posts title body "
        "--create-triggers\n"
    )


def test_several_indexes_of_several_files_make_one_ranking(
    run: Run, path: str, tmp_path: Path, encoder: Encoder
) -> None:
    other = tmp_path / "notes.db"
    db = sqlite_utils.Database(other)
    db["notes"].insert_all(
        [{"key": "a", "text": "Flour, flour and more flour."}, {"key": "b", "text": "Ink."}], pk="key"
    )
    Index.create(db, "notes", ["text"], model=encoder)
    db.conn.close()
    result = run("search", path, "posts", "flour moths", "--also", str(other), "notes", "-k", "3")
    rows = json.loads(result.stdout)
    assert [(row["rank"], row["pk"], row["index"], row["title"]) for row in rows[:2]] == [
        (1, 4, "posts", "Moths"),
        (2, "a", "notes", None),
    ]
    assert [row["database"] for row in rows] == [path, str(other), path]
    assert len({tuple(row) for row in rows}) == 1
    table = run("search", path, "posts", "flour moths", "--also", str(other), "notes", "-k", "2", "-t")
    assert table.exit_code == 0


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--mode", "hybrid", "-k", "2"],
        ["--where", "created >= '2020'", "-k", "2"],
        ["-c", "title", "-c", "id", "--threshold", "0.3"],
    ],
    ids=str,
)
def test_the_sql_finds_the_rows_that_the_search_finds(run: Run, path: str, options: list[str]) -> None:
    found = pks(run("search", path, "posts", "it's flour; and 'water'", *options))
    sql = run("search", path, "posts", "it's flour; and 'water'", *options, "--sql").stdout
    conn = sqlite3.connect(path)
    register(conn)
    conn.row_factory = sqlite3.Row
    rows = conn.execute(sql).fetchall()
    assert [row["id"] for row in rows] == found
    if "-c" in options:
        assert [*rows[0].keys()] == ["title", "id", "score"]
    else:
        assert [*rows[0].keys()] == ["id", "title", "created", "body", "score"]


def test_parameters_of_a_filter_stay_parameters_of_the_sql(run: Run, path: str) -> None:
    options = ["--where", "created >= :since -- recent", "-p", "since", "2022"]
    sql = run("search", path, "posts", "flour", *options, "--sql").stdout
    conn = sqlite3.connect(path)
    register(conn)
    assert [row[0] for row in conn.execute(sql, {"since": "2022"})] == pks(
        run("search", path, "posts", "flour", *options)
    )


def test_sql_of_compound_keys(run: Run, tmp_path: Path, encoder: Encoder) -> None:
    path = tmp_path / "docs.db"
    db = sqlite_utils.Database(path)
    db['the "docs"'].insert_all(
        [{"a b": "x", "n": 1, "text": "Flour."}, {"a b": "x", "n": 2, "text": "Ink."}], pk=("a b", "n")
    )
    Index.create(db, 'the "docs"', ["text"], model=encoder)
    sql = run("search", str(path), 'the "docs"', "ink", "--where", "n < 9", "--sql").stdout
    register(db.conn)
    assert [(row[0], row[1]) for row in db.conn.execute(sql)] == [("x", 2), ("x", 1)]


@pytest.mark.parametrize(
    "options", [["--nprobe", "3"], ["--mode", "hybrid", "--weight", "0.3"], ["--also", "x.db", "x"]]
)
def test_what_sql_cannot_say_is_refused(run: Run, path: str, options: list[str]) -> None:
    if options[0] == "--also":
        options = ["--also", path, "posts"]
    result = run("search", path, "posts", "flour", *options, "--sql")
    assert result.exit_code == 2
    assert (
        f"--sql prints a SELECT, which can't say {options[-2] if options[0] == '--mode' else options[0]}"
        in result.stderr
    )


def test_similar_rows_of_a_row(run: Run, path: str) -> None:
    rows = json.loads(run("similar", path, "posts", "1", "-k", "2").stdout)
    assert [*rows[0]] == ["rank", "score", "pk", "title", "passage"]
    assert rows[0]["pk"] in (2, 4)
    filtered = run("similar", path, "posts", "1", "--where", "created > :since", "-p", "since", "2021", "-c", "created")
    assert {row["created"] for row in json.loads(filtered.stdout)} == {"2022", "2023"}
    assert "title" in run("similar", path, "posts", "1", "-t").stdout.splitlines()[0]


def test_similar_rows_of_all_rows(run: Run, path: str) -> None:
    result = run("similar", path, "posts", "--all", "--into", "related", "-k", "2")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "Finding rows like 4 rows\nTable related: 8 rows like 4 rows\n"
    written = list(sqlite_utils.Database(path).query("select id as pk, rank, related_id as related_pk from related"))
    printed = json.loads(run("similar", path, "posts", "--all", "-k", "2", "--silent").stdout)
    assert [{name: row[name] for name in ("pk", "rank", "related_pk")} for row in printed] == written
    assert run("similar", path, "posts", "--all", "--into", "posts").stderr == (
        "Error: 'posts' is there already and has other columns than id, rank, related_id, score: choose another name "
        "for the table of similar rows\n"
    )


@pytest.mark.parametrize(
    "words", [["1", "--all"], [], ["1", "--into", "related"], ["--all", "--threshold", "0.5"]], ids=str
)
def test_similar_wants_a_row_or_all(run: Run, path: str, words: list[str]) -> None:
    result = run("similar", path, "posts", *words)
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_row_that_is_not_there(run: Run, path: str) -> None:
    result = run("similar", path, "posts", "99")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: index 'posts' has no text of a row '99': it is not there, not synced, or empty\n"


def test_rows_that_wait_for_a_sync_are_told(run: Run, path: str) -> None:
    sqlite_utils.Database(path)["posts"].insert({"id": 9, "title": "New", "body": "Flour, quite new."})
    result = run("search", path, "posts", "flour", "-k", "1")
    assert result.stderr == "1 row has changed since the last sync, and may be missing here.\n"
    run("sync", path, "posts", "--silent")
    assert run("search", path, "posts", "flour", "-k", "1").stderr == ""


def test_a_threshold_shows_what_it_looks_at(run: Run, path: str) -> None:
    [row] = json.loads(run("search", path, "posts", "flour", "-k", "1", "--threshold", "0").stdout)
    assert 0 < row["normalized_score"] <= 1
    assert "normalized_score" not in run("search", path, "posts", "flour", "-k", "1").stdout


def test_sql_with_parameters_says_how_to_give_them(run: Run, path: str) -> None:
    options = ["--where", "created >= :since", "-p", "since", "20 22", "--sql"]
    result = run("search", path, "posts", "flour", *options)
    assert result.stderr == "To run it with sqlite-utils query, add: -p since '20 22'\n"


def test_our_own_tables_are_no_place_for_similar_rows(run: Run, path: str) -> None:
    result = run("similar", path, "posts", "--all", "--into", "_colbert_x")
    assert (result.exit_code, result.stderr) == (
        1,
        "Error: '_colbert_x' is a name that this package uses: choose another for the table of similar rows\n",
    )
