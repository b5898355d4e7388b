"""search: modes, several indexes, SQL for the same rows."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import sqlite_utils

from colbert_sqlite import Index, register
from colbert_sqlite.encoders import Encoder
from tests.cli.helpers import error, invoke, pks, run


def test_a_mode_can_be_chosen(path: str) -> None:
    assert set(pks(invoke("search", path, "posts", "flour", "--mode", "fts"))) == {1, 4}
    assert set(pks(invoke("search", path, "posts", "flour", "--mode", "hybrid"))) == {1, 2, 3, 4}
    weighted = ("--mode", "hybrid", "--fusion", "weighted", "--weight", "0.2", "-k", "1")
    assert pks(invoke("search", path, "posts", "flour", *weighted)) == [4]


def test_fusion_without_hybrid_is_wrong_usage(path: str) -> None:
    result = invoke("search", path, "posts", "flour", "--fusion", "rrf")
    assert (result.exit_code, "hybrid" in result.stderr) == (2, True)


def test_a_threshold_leaves_rows_out(path: str) -> None:
    assert pks(invoke("search", path, "posts", "Flour moths eat flour", "--threshold", "0.8")) == [4]
    result = invoke("search", path, "posts", "flour", "--threshold", "2")
    assert (result.exit_code, result.stderr) == (1, "Error: threshold must be a number from 0 to 1, not 2.0\n")


def test_without_fts_the_error_says_how_to_make_one(path: str) -> None:
    sqlite_utils.Database(path)["posts"].disable_fts()
    result = invoke("search", path, "posts", "flour", "--mode", "hybrid")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: table 'posts' has no FTS5 index: make one with: sqlite-utils enable-fts {path} posts title body "
        "--create-triggers\n"
    )


def test_several_indexes_of_several_files_make_one_ranking(path: str, tmp_path: Path, encoder: Encoder) -> None:
    other = tmp_path / "notes.db"
    db = sqlite_utils.Database(other)
    db["notes"].insert_all(
        [{"key": "a", "text": "Flour, flour and more flour."}, {"key": "b", "text": "Ink."}], pk="key"
    )
    Index.create(db, "notes", ["text"], model=encoder)
    db.conn.close()
    result = invoke("search", path, "posts", "flour moths", "--also", str(other), "notes", "-k", "3")
    rows = json.loads(result.stdout)
    assert [(row["rank"], row["pk"], row["index"], row["title"]) for row in rows[:2]] == [
        (1, 4, "posts", "Moths"),
        (2, "a", "notes", None),
    ]
    assert [row["database"] for row in rows] == [path, str(other), path]
    assert len({tuple(row) for row in rows}) == 1
    table = invoke("search", path, "posts", "flour moths", "--also", str(other), "notes", "-k", "2", "-t")
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
def test_the_sql_finds_the_rows_that_the_search_finds(path: str, options: list[str]) -> None:
    found = pks(invoke("search", path, "posts", "it's flour; and 'water'", *options))
    sql = invoke("search", path, "posts", "it's flour; and 'water'", *options, "--sql").stdout
    conn = sqlite3.connect(path)
    register(conn)
    conn.row_factory = sqlite3.Row
    rows = conn.execute(sql).fetchall()
    assert [row["id"] for row in rows] == found
    if "-c" in options:
        assert [*rows[0].keys()] == ["title", "id", "score"]
    else:
        assert [*rows[0].keys()] == ["id", "title", "created", "body", "score"]


def test_parameters_of_a_filter_stay_parameters_of_the_sql(path: str) -> None:
    options = ["--where", "created >= :since -- recent", "-p", "since", "2022"]
    sql = invoke("search", path, "posts", "flour", *options, "--sql").stdout
    conn = sqlite3.connect(path)
    register(conn)
    assert [row[0] for row in conn.execute(sql, {"since": "2022"})] == pks(
        invoke("search", path, "posts", "flour", *options)
    )


def test_sql_of_compound_keys(tmp_path: Path, encoder: Encoder) -> None:
    path = tmp_path / "docs.db"
    db = sqlite_utils.Database(path)
    db['the "docs"'].insert_all(
        [{"a b": "x", "n": 1, "text": "Flour."}, {"a b": "x", "n": 2, "text": "Ink."}], pk=("a b", "n")
    )
    Index.create(db, 'the "docs"', ["text"], model=encoder)
    sql = invoke("search", str(path), 'the "docs"', "ink", "--where", "n < 9", "--sql").stdout
    register(db.conn)
    assert [(row[0], row[1]) for row in db.conn.execute(sql)] == [("x", 2), ("x", 1)]


@pytest.mark.parametrize(
    "options", [["--nprobe", "3"], ["--mode", "hybrid", "--weight", "0.3"], ["--also", "x.db", "x"], ["--csv"]]
)
def test_what_sql_cannot_say_is_refused(path: str, options: list[str]) -> None:
    if options[0] == "--also":
        options = ["--also", path, "posts"]
    result = invoke("search", path, "posts", "flour", *options, "--sql")
    assert result.exit_code == 2
    assert (
        f"--sql prints a SELECT, which can't say {options[-2] if options[0] == '--mode' else options[0]}"
        in result.stderr
    )


def test_rows_that_wait_for_a_sync_are_counted(path: str) -> None:
    sqlite_utils.Database(path)["posts"].insert({"id": 9, "title": "New", "body": "Flour, quite new."})
    result = invoke("search", path, "posts", "flour", "-k", "1")
    assert result.stderr == "1 row has changed since the last sync, and may be missing here.\n"
    invoke("sync", path, "posts", "--silent")
    assert invoke("search", path, "posts", "flour", "-k", "1").stderr == ""


def test_a_threshold_shows_what_it_looks_at(path: str) -> None:
    [row] = json.loads(invoke("search", path, "posts", "flour", "-k", "1", "--threshold", "0").stdout)
    assert 0 < row["normalized_score"] <= 1
    assert "normalized_score" not in invoke("search", path, "posts", "flour", "-k", "1").stdout


def test_sql_with_parameters_says_how_to_pass_them(path: str) -> None:
    options = ["--where", "created >= :since", "-p", "since", "20 22", "--sql"]
    result = invoke("search", path, "posts", "flour", *options)
    assert result.stderr == "To run it with sqlite-utils query, add: -p since '20 22'\n"


def test_where_filters_with_parameters(indexed: str) -> None:
    condition = "created >= :since and body > ''"
    words = ("search", indexed, "posts", "glue", "--where", condition, "-p", "since", "2021")
    assert [hit["pk"] for hit in json.loads(run(*words).stdout)] == [3]


def test_search_never_writes(indexed: str) -> None:
    before = Path(indexed).read_bytes()
    run("search", indexed, "posts", "glue")
    run("info", indexed, "posts")
    run("list", indexed)
    assert Path(indexed).read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ("nothing", "glue"),
        ("posts", ""),
        ("posts", "glue", "--where", "nothing = 1"),
        ("posts", "glue", "--where", "id = :id"),
        ("posts", "glue", "--nprobe", "0"),
    ],
    ids=" ".join,
)
def test_a_wrong_search_is_one_line(indexed: str, words: tuple[str, ...]) -> None:
    assert error("search", indexed, *words).startswith("Error: ")
