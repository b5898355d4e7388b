"""The formats of rows: JSON, newline-delimited JSON, CSV, TSV and tables."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.cli.helpers import POSTS, execute, run


def test_newline_delimited_json_has_the_same_rows(indexed: str) -> None:
    words = ("search", indexed, "posts", "glue for a patch")
    assert [json.loads(line) for line in run(*words, "--nl").stdout.splitlines()] == json.loads(run(*words).stdout)


@pytest.mark.parametrize(("option", "delimiter"), [("--csv", ","), ("--tsv", "\t")])
def test_csv_and_tsv_have_the_same_rows(indexed: str, option: str, delimiter: str) -> None:
    words = ("search", indexed, "posts", "glue for a patch")
    rows = list(csv.DictReader(io.StringIO(run(*words, option).stdout), delimiter=delimiter))
    assert rows == [{key: str(value) for key, value in hit.items()} for hit in json.loads(run(*words).stdout)]


def test_a_table_fits_the_terminal(indexed: str) -> None:
    lines = run("search", indexed, "posts", "glue for a patch", "-t", columns=60).stdout.splitlines()
    assert lines[0].split() == ["score", "pk", "title", "passage"]
    assert lines[2].split()[1:4] == ["2", "Patching", "a"]
    assert max(map(len, lines)) <= 60


def test_passages_are_whole_in_a_table_with_their_option(indexed: str) -> None:
    table = run("search", indexed, "posts", "glue", "-k", "1", "-t", "--passages", columns=60).stdout
    words = [word for line in table.splitlines()[2:] for word in line.split()]
    assert [word for word in words if word in POSTS[1][2].split()] == POSTS[1][2].split()


def test_a_table_may_have_another_look(indexed: str) -> None:
    assert run("search", indexed, "posts", "glue", "--fmt", "github").stdout.startswith("| ")


def test_of_two_formats_the_last_wins(indexed: str) -> None:
    words = ("search", indexed, "posts", "glue")
    assert run(*words, "--csv", "--nl").stdout == run(*words, "--nl").stdout
    assert run(*words, "--nl", "-t", "--csv").stdout == run(*words, "--csv").stdout


@pytest.mark.parametrize("option", ["--nl", "--csv", "--tsv"])
def test_a_table_format_goes_with_a_table_only(indexed: str, option: str) -> None:
    words = ("search", indexed, "posts", "glue", "--fmt", "github")
    assert (
        f"Error: --fmt is the format of a table: leave out --fmt or {option}.\n"
        in run(*words, option, exit_code=2).stderr
    )
    assert run(*words, "-t").stdout == run(*words).stdout


def test_keys_that_look_like_numbers_stay_what_they_are(tmp_path: Path) -> None:
    path = str(tmp_path / "parts.db")
    execute(path, "create table parts (code text primary key, about text)")
    execute(path, "insert into parts values ('007', 'a small spring'), ('1e5', 'a big spring')")
    run("index", path, "parts", "about", "--model", "hashing", "--silent")
    lines = run("search", path, "parts", "small spring", "-t").stdout.splitlines()
    assert [line.split()[1] for line in lines[2:]] == ["007", "1e5"]
