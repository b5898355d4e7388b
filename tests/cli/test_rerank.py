"""colbert rerank, on the rows of a SELECT and on JSON from stdin."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlite_utils_colbert.cli import colbert

POSTS = [
    (1, "Comets", "A comet is ice and dust.", "2019"),
    (2, "Sourdough", "Feed the starter with flour every day.", "2020"),
    (3, "Backups", "Copy the database every night.", "2021"),
    (4, None, None, "2022"),
]
SQL = "select id, title, body from posts"
MODEL = ("--model", "hashing")


@pytest.fixture
def blog(tmp_path: Path) -> str:
    path = tmp_path / "blog.db"
    db = sqlite3.connect(path)
    db.execute("create table posts (id integer primary key, title text, body text, created text)")
    db.executemany("insert into posts values (?, ?, ?, ?)", POSTS)
    db.commit()
    db.close()
    return str(path)


def run(*words: str, stdin: str | bytes | None = None, exit_code: int = 0) -> Result:
    result = CliRunner(env={"COLUMNS": "100"}).invoke(colbert, ["rerank", *words], input=stdin)
    assert result.exit_code == exit_code, result.output
    return result


def error(*words: str, stdin: str | bytes | None = None, exit_code: int = 1) -> str:
    result = run(*words, stdin=stdin, exit_code=exit_code)
    assert result.stdout == ""
    return result.stderr.splitlines()[-1].removeprefix("Error: ")


def rows(*words: str, stdin: str | bytes | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(*words, *MODEL, stdin=stdin).stdout)
    return found


def test_rows_come_in_order_with_rank_and_score_in_front(blog: str) -> None:
    found = rows(blog, SQL, "feed the sourdough starter")
    assert [list(row) for row in found] == [["rank", "score", "id", "title", "body"]] * 4
    assert [row["rank"] for row in found] == [1, 2, 3, 4]
    assert found[0]["id"] == 2
    assert found[0]["score"] > found[1]["score"] > found[2]["score"]


def test_a_row_without_text_comes_last_and_has_no_score(blog: str) -> None:
    assert rows(blog, SQL, "comet")[-1] == {"rank": 4, "score": None, "id": 4, "title": None, "body": None}


def test_limit_leaves_the_best(blog: str) -> None:
    assert [row["id"] for row in rows(blog, SQL, "copy the database", "-k", "1")] == [3]


def test_all_columns_that_hold_text_count_or_those_of_the_option(blog: str) -> None:
    assert rows(blog, SQL, "backups")[0]["id"] == 3
    assert (
        rows(blog, SQL, "sourdough", "-c", "Title")[0]["score"] > rows(blog, SQL, "sourdough", "-c", "body")[0]["score"]
    )
    both = rows(blog, SQL, "sourdough flour", "-c", "title", "-c", "body")
    assert both == rows(blog, SQL, "sourdough flour")


def test_a_number_counts_as_its_digits_where_it_is_named(blog: str) -> None:
    assert rows(blog, "select id from posts", "3", "-c", "id")[0]["id"] == 3


def test_parameters_are_bound(blog: str) -> None:
    found = rows(blog, f"{SQL} where created >= :since", "comet", "-p", "since", "2021")
    assert {row["id"] for row in found} == {3, 4}


def test_another_file_can_be_joined(blog: str, tmp_path: Path) -> None:
    other = tmp_path / "it's other.db"
    db = sqlite3.connect(other)
    db.execute("create table notes (id integer primary key, post integer, note text)")
    db.execute("insert into notes values (7, 3, 'restore it too')")
    db.commit()
    db.close()
    sql = "select * from posts join extra.notes as n on n.post = posts.id"
    [row] = rows(blog, sql, "restore", "--attach", "extra", str(other))
    assert (row["id"], row["id_2"], row["note"]) == (3, 7, "restore it too")


def test_functions_of_sqlite_utils_plugins_are_there(blog: str) -> None:
    from sqlite_utils import hookimpl
    from sqlite_utils.plugins import pm

    class Plugin:
        @hookimpl
        def prepare_connection(self, conn: sqlite3.Connection) -> None:
            conn.create_function("shout", 1, lambda text: text and text.upper())

    plugin = Plugin()
    pm.register(plugin)
    try:
        assert rows(blog, "select shout(title) as t from posts", "comets", "-k", "1")[0]["t"] == "COMETS"
    finally:
        pm.unregister(plugin)


def test_formats_are_those_of_search(blog: str) -> None:
    words = (blog, SQL, "comet", "-k", "2", *MODEL)
    assert [json.loads(line)["rank"] for line in run(*words, "--nl").stdout.splitlines()] == [1, 2]
    assert [row["id"] for row in csv.DictReader(io.StringIO(run(*words, "--csv").stdout))][0] == "1"
    assert run(*words, "--tsv").stdout.splitlines()[0] == "rank\tscore\tid\ttitle\tbody"
    assert run(*words, "-t").stdout.split()[:5] == ["rank", "score", "id", "title", "body"]
    assert run(*words, "--fmt", "github").stdout.startswith("|")
    assert "leave out --fmt or --csv" in error(*words, "--fmt", "github", "--csv", exit_code=2)


def test_verbose_says_what_answered(blog: str) -> None:
    assert run(blog, SQL, "comet", *MODEL, "-v").stderr.startswith("Answered by hashing, hashes of words, in ")


def test_no_rows_are_no_error(blog: str) -> None:
    result = run(blog, f"{SQL} where 0", "comet", *MODEL)
    assert (result.stdout, result.stderr) == ("[]\n", "There are no rows to rank.\n")


@pytest.mark.parametrize(
    "sql",
    [
        "delete from posts",
        "with x as (select 1) delete from posts",
        " -- a comment\n/* another */ insert into posts (id) values (9)",
        "pragma journal_mode = wal",
        "vacuum into 'copy.db'",
        "attach 'new.db' as new",
        "select 1; delete from posts",
        "select id from posts where (",
        "",
    ],
)
def test_nothing_but_one_select_is_run(blog: str, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(blog).parent
    monkeypatch.chdir(folder)
    before = Path(blog).read_bytes()
    assert error(blog, sql, "comet", *MODEL)
    assert Path(blog).read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["blog.db"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("delete from posts", "q"), "SQL must be a SELECT, not 'delete from posts'"),
        (("with x as (select 1) delete from posts", "q"), "SQL must be a SELECT, and this one writes"),
        (("select 1; select 2", "q"), "SQL must be one SELECT, and there are several statements"),
        ((SQL, "q", "-c", "nothing"), "no column 'nothing': there are id, title, body"),
        (("select id from posts", "q"), "no column holds text; name the one to rank by with -c: there are id"),
        ((SQL, " "), "the query is empty"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(blog: str, words: tuple[str, ...], message: str) -> None:
    assert error(blog, *words, *MODEL) == message


def test_a_parameter_without_a_value_is_an_error(blog: str) -> None:
    assert "give each :name in SQL its value with -p NAME VALUE" in error(blog, "select :a as a", "q", *MODEL)


def test_a_value_is_passed_by_name(blog: str) -> None:
    assert error(blog, "select * from posts where id = ?", "q", *MODEL) == (
        "SQL has a ? for a value: write :name and give its value with -p NAME VALUE"
    )


def test_the_file_that_can_not_be_attached_is_named(blog: str, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("no database " * 500)
    assert error(blog, "select * from z.t", "q", *MODEL, "--attach", "z", str(other)) == (
        f"{other} can't be attached as 'z': file is not a database"
    )
    assert error(blog, SQL, "q", *MODEL, "--attach", "main", blog) == (
        f"{blog} can't be attached as 'main': database main is already in use"
    )


def test_columns_that_would_have_the_same_name_are_kept(blog: str) -> None:
    sql = "select title as rank, body as 'row.rank', id as Score from posts"
    [row] = rows(blog, sql, "comet", "-k", "1")
    assert {**row, "score": None} == {
        "rank": 1,
        "score": None,
        "row.rank": "Comets",
        "row.rank_2": "A comet is ice and dust.",
        "row.Score": 1,
    }


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert "no database file" in error(str(tmp_path / "none.db"), SQL, "q", *MODEL)
    assert list(tmp_path.iterdir()) == []


LINES = '{"title": "Comets", "body": "ice and dust"}\n\n{"title": "Sourdough", "body": "flour"}\n'


def test_lines_of_json_are_ranked() -> None:
    found = rows("-", "sourdough flour", stdin=LINES)
    assert [row["title"] for row in found] == ["Sourdough", "Comets"]
    assert list(found[0]) == ["rank", "score", "title", "body"]


def test_a_json_array_gives_the_same() -> None:
    array = "[" + ",\n ".join(LINES.split("\n\n")) + "]"
    assert rows("-", "sourdough flour", stdin=array) == rows("-", "sourdough flour", stdin=LINES)


def test_rank_and_score_of_another_search_are_kept_apart() -> None:
    similar = '{"id": "a", "score": 0.81, "content": "bread", "metadata": {"tags": ["x"]}}\n'
    [row] = rows("-", "bread", "-c", "content", stdin=similar)
    assert (row["row.score"], row["metadata"]) == (0.81, {"tags": ["x"]})
    shown = run("-", "bread", "-c", "content", "--csv", *MODEL, stdin=similar).stdout.splitlines()
    assert shown[0] == "rank,score,id,row.score,content,metadata"
    assert shown[1].endswith('"{""tags"": [""x""]}"')


def test_rows_may_have_different_keys() -> None:
    found = rows("-", "flour", stdin='{"a": "ice"}\n{"b": "flour", "a": null}\n')
    assert [row["b"] for row in found] == ["flour", None]


def test_what_another_command_printed_can_be_ranked(blog: str) -> None:
    first = run(blog, SQL, "comet", "--nl", *MODEL).stdout
    again = rows("-", "copy the database", "-k", "1", stdin=first)
    assert (again[0]["rank"], again[0]["row.rank"] > 1, again[0]["id"]) == (1, True, 3)


def test_empty_stdin_is_no_rows() -> None:
    assert run("-", "comet", *MODEL, stdin="").stdout == "[]\n"


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        ('{"a": "x"}\nplain text\n', "line 2 of stdin is not JSON"),
        ('["a", {"b": 1}]', "item 1 of stdin is not a JSON object"),
        ('{"a": "x"}\n3\n', "line 2 of stdin is not a JSON object"),
        ('[{"a": 1}', "stdin is not JSON"),
        (b'\xff\xfe{"a": "x"}', "line 1 of stdin is not JSON"),
    ],
)
def test_other_input_is_refused(stdin: str | bytes, message: str) -> None:
    assert message in error("-", "q", *MODEL, stdin=stdin)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_can_not_hold_are_refused(number: str) -> None:
    assert error("-", "q", *MODEL, stdin=f'{{"a": "x", "b": {number}}}') == (
        f"line 1 of stdin is not JSON: {number} is not a number that JSON can hold; print rows with --nl"
    )


def test_numbers_stay_as_they_are() -> None:
    [row] = rows("-", "x", stdin='{"a": "x", "b": [1.5, -2e3, 12345678901234567890]}')
    assert row["b"] == [1.5, -2000.0, 12345678901234567890]


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"a": ' * 100_000])
def test_json_that_is_nested_too_deeply_is_refused(nested: str) -> None:
    assert "it is nested too deeply" in error("-", "q", *MODEL, stdin=nested)


def test_halves_of_surrogate_pairs_become_question_marks() -> None:
    [row] = rows("-", "x", stdin='{"a": "x \\ud800", "b": {"c\\uDFFF": ["\\ud83d\\ude00"]}}')
    assert (row["a"], row["b"]) == ("x ?", {"c?": ["\U0001f600"]})


def test_the_two_forms_are_not_mixed(blog: str) -> None:
    assert "there is no SQL: colbert rerank - QUERY" in error("-", SQL, "q", stdin="", exit_code=2)
    assert "For rows from stdin: colbert rerank - QUERY" in error(blog, SQL, exit_code=2)
