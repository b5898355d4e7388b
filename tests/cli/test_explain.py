"""The command explain, with the hashing model."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlite_utils_colbert.cli import colbert

from colbert_sqlite.index import Index

TABLE = """
query    passage      similarity    score
-------  ---------  ------------  -------  --------------------
"""


@pytest.fixture
def blog(db_path: Path) -> str:
    """The five posts with an index, titles as headings."""
    Index.create(db_path, "posts", ["body"], heading="title", model="hashing").close()
    return str(db_path)


@pytest.fixture
def releases(tmp_path: Path) -> str:
    """A table with a key of two columns, one of them a number."""
    path = tmp_path / "releases.db"
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE releases (repo TEXT, number INTEGER, notes TEXT, PRIMARY KEY (repo, number))")
    conn.execute("INSERT INTO releases VALUES ('datasette', 7, 'Facets by date'), ('llm', 7, 'Templates')")
    conn.commit()
    conn.close()
    Index.create(path, "releases", ["notes"], model="hashing").close()
    return str(path)


def run(*words: str, exit_code: int = 0, **env: str) -> Result:
    result = CliRunner(env={"COLUMNS": "100", **env}).invoke(colbert, ["explain", *words])
    assert result.exit_code == exit_code, result.output
    return result


def error(*words: str, exit_code: int = 1) -> str:
    result = run(*words, exit_code=exit_code)
    assert result.stdout == ""
    return result.stderr.splitlines()[-1]


def test_passage_matches_and_score(blog: str) -> None:
    lines = run(blog, "posts", "3", "restore the copy").stdout.splitlines()
    assert lines[:4] == [
        "Backups",
        "",
        "**Copy** **the** database every night. Try to **restore** **the** **copy** every month.",
        "",
    ]
    assert lines[4:6] == TABLE.strip().splitlines()
    assert [line.split()[:2] for line in lines[6:9]] == [["restore", "restore"], ["the", "the"], ["copy", "Copy"]]
    assert [line.count("█") > 15 for line in lines[6:9]] == [True] * 3
    assert re.fullmatch(r"Score \d\.\d\d, 0\.\d\d of it from special tokens \(\[CLS\]\); normalized 0\.\d\d", lines[-1])


def test_colors_are_for_terminals_and_those_who_ask(blog: str) -> None:
    words = (blog, "posts", "3", "restore")
    assert "\x1b[" not in run(*words).stdout
    assert "\x1b[" not in run(*words, "--no-color").stdout
    colored = run(*words, "--color", NO_COLOR="1").stdout
    assert "\x1b[30m\x1b[43m\x1b[1m\x1b[4mrestore\x1b[0m" in colored
    assert re.sub(r"\x1b\[\d+m", "", colored).splitlines()[0] == "Backups"
    assert "**" not in colored


@pytest.mark.parametrize(
    ("env", "wanted"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)]
)
def test_no_color_is_heeded_on_a_terminal(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], wanted: bool) -> None:
    from sqlite_utils_colbert.explain import wants_color

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert (wants_color(None), wants_color(True), wants_color(False)) == (wanted, True, False)


def test_json_has_everything(blog: str) -> None:
    found = json.loads(run(blog, "posts", "3", "restore the copy", "--json").stdout)
    with Index.open(blog, "posts") as index:
        expected = index.explain("restore the copy", 3)
    assert (found["query"], found["heading"], found["passage"]["text"]) == (
        "restore the copy",
        "Backups",
        expected.passage.text,
    )
    assert found["score"] == round(expected.score, 4)
    assert [match["text"] for match in found["matches"]] == ["restore", "the", "copy"]
    assert [found["words"][at]["text"] for at in found["matches"][2]["marked"]] == ["Copy", "copy"]


def test_html_is_that_of_the_library(blog: str) -> None:
    with Index.open(blog, "posts") as index:
        assert run(blog, "posts", "3", "restore", "--html").stdout == index.explain("restore", 3).to_html()


def test_a_key_of_several_columns_is_a_json_array(releases: str) -> None:
    assert "**date**" in run(releases, "releases", '["datasette", 7]', "date").stdout
    assert error(releases, "releases", "datasette", "date") == (
        "Error: a key of 'releases' has 2 values (repo, number), not 'datasette'"
    )
    assert error(releases, "releases", '["datasette", [7]]', "date", exit_code=2) == (
        "Error: Invalid value for 'PK': a key is text or a number, or a JSON array of these, not [\"datasette\", [7]]"
    )


def test_a_text_key_may_begin_with_a_bracket(tmp_path: Path) -> None:
    conn = sqlite3.connect(tmp_path / "notes.db")
    conn.execute("CREATE TABLE notes (name TEXT PRIMARY KEY, body TEXT)")
    conn.execute("INSERT INTO notes VALUES ('[draft', 'Bread needs salt'), ('017', 'Water boils')")
    conn.commit()
    Index.create(conn, "notes", ["body"], model="hashing")
    conn.close()
    assert "**salt**" in run(str(tmp_path / "notes.db"), "notes", "[draft", "salt").stdout
    assert "**Water**" in run(str(tmp_path / "notes.db"), "notes", "017", "water").stdout


def test_what_a_row_holds_does_not_steer_the_terminal(db_path: Path) -> None:
    conn = sqlite3.connect(db_path)
    conn.execute("UPDATE posts SET body = ? WHERE id = 1", ["\x1b[2J salt\r\n\x9b31m\tdough"])
    conn.commit()
    conn.close()
    Index.create(db_path, "posts", ["body"], model="hashing").close()
    lines = run(str(db_path), "posts", "1", "salt", "--color").stdout.split("\n")
    assert lines[:2] == ["\ufffd[2J \x1b[30m\x1b[43m\x1b[1m\x1b[4msalt\x1b[0m ", "\ufffd31m\tdough"]


def test_a_passage_by_its_number(blog: str) -> None:
    assert run(blog, "posts", "3", "restore", "--ordinal", "0").stdout == run(blog, "posts", "3", "restore").stdout
    assert error(blog, "posts", "3", "restore", "--ordinal", "5").startswith(
        "Error: ordinal must be a whole number from 0 to 0"
    )


@pytest.mark.parametrize("pk", ["5000", "99", "three"])
def test_a_row_that_is_not_there_or_has_no_text(blog: str, pk: str) -> None:
    assert error(blog, "posts", pk, "bread") == (
        f"Error: index 'posts' has no text of row '{pk}': the row is missing, not synced, or empty"
    )


def test_an_empty_query(blog: str) -> None:
    assert error(blog, "posts", "3", " ") == "Error: the query is empty"
