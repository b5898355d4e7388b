"""info, list and verify."""

from __future__ import annotations

import json
from typing import Any

from tests.cli.helpers import execute, run


def test_info_is_a_table_for_people_and_json_for_machines(indexed: str) -> None:
    facts = json.loads(run("info", indexed, "posts", "--json").stdout)
    assert (facts["name"], facts["table"], facts["model"], facts["nbits"]) == ("posts", "posts", "hashing", 4)
    table = run("info", indexed, "posts").stdout
    assert ["model", "hashing"] in [line.split() for line in table.splitlines()]


def test_info_shows_the_parameters_of_the_condition(blog: str) -> None:
    words = ("--where", "created > :since", "-p", "since", "2020", "--model", "hashing", "--silent")
    run("index", blog, "posts", "body", *words)
    lines = [line.split() for line in run("info", blog, "posts").stdout.splitlines()]
    where = lines.index(["where", "created", ">", ":since"])
    assert lines[where + 1 : where + 3] == [["params"], ["since", "2020"]]


def test_info_of_an_index_without_condition_has_neither(indexed: str) -> None:
    names = {line.split()[0] for line in run("info", indexed, "posts").stdout.splitlines()}
    assert names & {"where", "params"} == set()


def test_list_names_every_index(indexed: str) -> None:
    run("index", indexed, "posts", "title", "--name", "titles", "--nbits", "2", "--model", "hashing", "--silent")
    rows: list[dict[str, Any]] = json.loads(run("list", indexed, "--json").stdout)
    assert [(row["name"], row["columns"], row["nbits"]) for row in rows] == [
        ("posts", ["body"], 4),
        ("titles", ["title"], 2),
    ]
    assert [line.split()[0] for line in run("list", indexed).stdout.splitlines()[2:]] == ["posts", "titles"]


def test_an_index_of_another_version_is_listed(indexed: str) -> None:
    run("index", indexed, "posts", "title", "--name", "titles", "--model", "hashing", "--silent")
    execute(indexed, "update _colbert_indexes set schema_version = 999 where name = 'titles'")
    rows = json.loads(run("list", indexed, "--json").stdout)
    assert [(row["name"], row["state"]) for row in rows] == [("posts", "ready"), ("titles", "unreadable")]
    result = run("list", indexed)
    assert [line.split()[0] for line in result.stdout.splitlines()[2:]] == ["posts", "titles"]
    assert result.stdout.splitlines()[3].split() == ["titles", "unreadable"]
    assert result.stderr == f"{rows[1]['problem']}\n"


def test_a_database_without_indexes_says_so(blog: str) -> None:
    result = run("list", blog)
    assert (result.stdout, result.stderr) == ("", f"{blog} has no index.\n")
    assert run("list", blog, "--json").stdout == "[]\n"


def test_verify_finds_a_sound_index_sound(indexed: str) -> None:
    result = run("verify", indexed, "posts")
    assert (result.stdout, result.stderr) == ("", "posts is sound.\n")


def test_verify_prints_problems_and_fails(indexed: str) -> None:
    execute(indexed, 'delete from "_colbert_posts_codes" where passage_id = 2')
    assert run("verify", indexed, "posts", exit_code=1).stdout.splitlines() != []
