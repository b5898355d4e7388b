"""Hits as search prints them: columns, titles, passages."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.helpers import POSTS, error, execute, run


def test_a_hit_has_rank_score_key_title_and_passage(indexed: str) -> None:
    [hit, *others] = json.loads(run("search", indexed, "posts", "glue for a patch").stdout)
    assert list(hit) == ["rank", "score", "pk", "title", "passage"]
    assert (hit["rank"], hit["pk"], hit["title"], hit["passage"]) == (1, 2, POSTS[1][1], POSTS[1][2])
    assert [other["rank"] for other in others] == list(range(2, len(others) + 2))


def test_columns_to_output_can_be_chosen(indexed: str) -> None:
    words = ("search", indexed, "posts", "glue for a patch", "-k", "1", "-c", "created", "-c", "picture")
    [hit] = json.loads(run(*words).stdout)
    del hit["score"]
    assert hit == {
        "rank": 1,
        "pk": 2,
        "created": "2020-06-02",
        "picture": {"$base64": True, "encoded": "AP8="},
        "passage": POSTS[1][2],
    }


def test_a_column_that_is_not_there_is_an_error(indexed: str) -> None:
    line = error("search", indexed, "posts", "glue", "-c", "color")
    assert line == "Error: no column 'color' in table 'posts'; it has id, title, body, created, picture"


def test_a_column_that_is_not_there_is_an_error_when_nothing_matches_too(indexed: str) -> None:
    line = error("search", indexed, "posts", "glue", "-c", "color", "--where", "id > 100")
    assert line == "Error: no column 'color' in table 'posts'; it has id, title, body, created, picture"


def test_columns_are_written_as_in_the_table_and_keep_the_order_of_the_options(indexed: str) -> None:
    [hit] = json.loads(run("search", indexed, "posts", "glue", "-k", "1", "-c", "CREATED", "-c", "Title").stdout)
    assert list(hit) == ["rank", "score", "pk", "created", "title", "passage"]


def test_a_source_column_called_score_does_not_hide_ours(tmp_path: Path) -> None:
    path = str(tmp_path / "matches.db")
    execute(path, "create table matches as select 1 as id, 'three goals in the rain' as report, '3:1' as score")
    execute(path, "create table games (id integer primary key, report text, score text)")
    execute(path, "insert into games select * from matches")
    run("index", path, "games", "report", "--model", "hashing", "--silent")
    [hit] = json.loads(run("search", path, "games", "goals", "-c", "score").stdout)
    assert list(hit) == ["rank", "score", "pk", "row.score", "passage"]
    assert hit["row.score"] == "3:1"


def test_nothing_matches(indexed: str) -> None:
    result = run("search", indexed, "posts", "glue", "--where", "id > 100")
    assert (result.stdout, result.stderr) == ("[]\n", "Nothing matches.\n")


def test_passages_says_where_in_the_row_the_passage_is(indexed: str) -> None:
    [hit] = json.loads(run("search", indexed, "posts", "glue", "-k", "1", "--passages").stdout)
    passage = {key: hit[key] for key in ("passage", "ordinal", "start", "end")}
    assert passage == {"passage": POSTS[1][2], "ordinal": 0, "start": 0, "end": len(POSTS[1][2])}
