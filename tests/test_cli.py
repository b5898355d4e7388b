"""The commands, run on real files with the hashing model."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from sqlite_utils_colbert import register_commands
from sqlite_utils_colbert.cli import colbert

from colbert_sqlite.encoders.hashing import HashingEncoder

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.fixture
def blog(tmp_path: Path) -> str:
    """A database with four posts and no index."""
    path = tmp_path / "blog.db"
    db = sqlite3.connect(path)
    db.execute("create table posts (id integer primary key, title text, body text, created text, picture blob)")
    db.executemany("insert into posts values (?, ?, ?, ?, ?)", POSTS)
    db.commit()
    db.close()
    return str(path)


@pytest.fixture
def indexed(blog: str) -> str:
    """The same with an index of the bodies, titles as headings."""
    run("index", blog, "posts", "body", "--heading", "title", "--model", "hashing", "--silent")
    return blog


def run(*words: str, exit_code: int = 0, columns: int = 100) -> Result:
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(colbert, words)
    assert result.exit_code == exit_code, result.output
    return result


def error(*words: str) -> str:
    """The one line on stderr of a command that fails."""
    result = run(*words, exit_code=1)
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    return line


def execute(path: str, sql: str) -> None:
    db = sqlite3.connect(path, timeout=PATIENCE)
    db.execute(sql)
    db.commit()
    db.close()


def test_sqlite_utils_gets_the_same_group() -> None:
    cli = click.Group()
    register_commands(cli)
    assert cli.commands == {"colbert": colbert}


@pytest.mark.parametrize("name", sorted(colbert.commands))
def test_every_command_explains_itself_by_example(name: str) -> None:
    assert f"sqlite-utils colbert {name}" in run(name, "--help").stdout


def test_index_says_what_it_did_and_what_to_do_next(blog: str) -> None:
    result = run("index", blog, "posts", "title", "body", "--model", "hashing")
    assert result.stdout == ""
    [summary, hint] = result.stderr.splitlines()[-2:]
    assert summary.startswith("Index posts: 4 rows, 4 passages, ")
    assert hint == f"Search it: colbert search {blog} posts 'your question' -t"


def test_index_reports_rows_without_text(blog: str) -> None:
    summary = run("index", blog, "posts", "body", "--model", "hashing").stderr.splitlines()[-2]
    assert summary.startswith("Index posts: 4 rows (1 without text), 3 passages, ")


def test_silent_is_silent(blog: str) -> None:
    assert run("index", blog, "posts", "body", "--model", "hashing", "--silent").output == ""


@pytest.mark.parametrize("command", ["index", "rebuild"])
def test_verbose_shows_time_and_memory_of_each_stage(blog: str, command: str) -> None:
    words = ("index", blog, "posts", "body", "--model", "hashing")
    quiet = run(*words, "--replace")
    result = run(*words, "--replace", "--verbose") if command == "index" else run("rebuild", blog, "posts", "--verbose")
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    begin = lines.index(next(line for line in lines if line.startswith("stage ")))
    assert lines[begin].split() == ["stage", "seconds", "share", "memory", "peak"]
    stages = ["load", "read", "encode", "train", "compress", "write", "invert", "other"]
    assert [line.split()[0] for line in lines[begin + 2 : begin + 10]] == stages
    assert lines[begin + 10].split()[:2] + lines[begin + 10].split()[3:4] == ["in", "all", "100%"]
    assert re.fullmatch(r"\d+ tokens encoded by hashes of words, [\d,]+ a second in all", lines[begin + 11])
    assert lines[begin + 12].startswith("Index posts: 4 rows")
    assert "stage" not in quiet.stderr


def test_silent_leaves_what_verbose_asks_for(blog: str) -> None:
    result = run("index", blog, "posts", "body", "--model", "hashing", "--silent", "--verbose")
    assert result.stdout == ""
    assert result.stderr.startswith("stage ")


def test_pool_factor_halves_the_tokens(blog: str) -> None:
    pytest.importorskip("scipy", reason="pip install 'colbert-sqlite[pooling]'")
    doclens = [len(e) for e in HashingEncoder().encode_passages([body for _, _, body, *_ in POSTS if body])]
    for factor, tokens in ((1, sum(doclens)), (2, sum(1 + (n - 1) // 2 for n in doclens))):
        run("index", blog, "posts", "body", "--model", "hashing", "--pool-factor", str(factor), "--replace", "--silent")
        facts = json.loads(run("info", blog, "posts", "--json").stdout)
        assert (facts["pool_factor"], facts["tokens"]) == (factor, tokens)


def test_a_hit_has_rank_score_key_title_and_passage(indexed: str) -> None:
    [hit, *others] = json.loads(run("search", indexed, "posts", "glue for a patch").stdout)
    assert list(hit) == ["rank", "score", "pk", "title", "passage"]
    assert (hit["rank"], hit["pk"], hit["title"], hit["passage"]) == (1, 2, POSTS[1][1], POSTS[1][2])
    assert [other["rank"] for other in others] == list(range(2, len(others) + 2))


def test_columns_to_output_can_be_named(indexed: str) -> None:
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


def test_columns_are_spelled_as_in_the_table_and_come_in_the_order_asked_for(indexed: str) -> None:
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


def test_where_filters_with_parameters(indexed: str) -> None:
    condition = "created >= :since and body > ''"
    words = ("search", indexed, "posts", "glue", "--where", condition, "-p", "since", "2021")
    assert [hit["pk"] for hit in json.loads(run(*words).stdout)] == [3]


def test_nothing_matches(indexed: str) -> None:
    result = run("search", indexed, "posts", "glue", "--where", "id > 100")
    assert (result.stdout, result.stderr) == ("[]\n", "Nothing matches.\n")


def test_passages_tells_where_the_passage_stands(indexed: str) -> None:
    [hit] = json.loads(run("search", indexed, "posts", "glue", "-k", "1", "--passages").stdout)
    place = {key: hit[key] for key in ("passage", "ordinal", "start", "end")}
    assert place == {"passage": POSTS[1][2], "ordinal": 0, "start": 0, "end": len(POSTS[1][2])}


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


def test_passages_are_whole_in_a_table_when_asked_for(indexed: str) -> None:
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


def test_search_never_writes(indexed: str) -> None:
    before = Path(indexed).read_bytes()
    run("search", indexed, "posts", "glue")
    run("info", indexed, "posts")
    run("list", indexed)
    assert Path(indexed).read_bytes() == before


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


def test_drop_leaves_the_table_alone(indexed: str) -> None:
    run("drop", indexed, "posts")
    db = sqlite3.connect(indexed)
    assert db.execute("select * from posts order by id").fetchall() == POSTS
    assert (
        db.execute("select name from sqlite_master where name like '\\_colbert\\_posts%' escape '\\'").fetchall() == []
    )
    db.close()


def test_drop_of_a_missing_index_can_be_ignored(blog: str) -> None:
    assert "posts" in error("drop", blog, "posts")
    assert run("drop", blog, "posts", "--ignore").output == ""


def test_rebuild_takes_in_new_rows(indexed: str) -> None:
    execute(indexed, "insert into posts (id, title, body) values (5, 'Moonrise', 'The moon rose over the estuary.')")
    run("rebuild", indexed, "posts", "--silent")
    assert json.loads(run("search", indexed, "posts", "moon over the estuary", "-k", "1").stdout)[0]["pk"] == 5


def test_an_index_is_replaced_only_when_asked(indexed: str) -> None:
    words = ("index", indexed, "posts", "title", "--model", "hashing", "--silent")
    assert "--replace" in error(*words)
    run(*words, "--replace")
    assert json.loads(run("info", indexed, "posts", "--json").stdout)["columns"] == ["title"]


def test_models_lists_the_names_an_index_can_be_made_with() -> None:
    rows = {row["alias"]: row for row in json.loads(run("models", "--json").stdout)}
    assert {"answerai-colbert-small", "colbertv2", "hashing", "minilm"} <= set(rows)
    assert "minilm" in run("models").stdout


def test_a_missing_database_is_an_error_and_is_not_created(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.db")
    assert error("index", missing, "posts", "body") == f"Error: no database file {missing}"
    assert error("search", missing, "posts", "glue") == f"Error: no database file {missing}"
    assert error("list", missing) == f"Error: no database file {missing}"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("only some notes, and no database at all\n" * 100)
    for words in (("index", str(path), "posts", "body"), ("search", str(path), "posts", "glue"), ("list", str(path))):
        assert str(path) in error(*words)
        assert "database" in error(*words)


@pytest.mark.parametrize(
    "words",
    [
        ("nothing", "body"),
        ("posts", "nothing"),
        ("posts", "body", "--heading", "nothing"),
        ("posts", "body", "--where", "nothing = 1"),
        ("posts", "body", "--model", "no/such/folder"),
        ("posts", "body", "--max-tokens", "3"),
        ("posts", "body", "--pool-factor", "0"),
    ],
    ids=" ".join,
)
def test_a_wrong_index_command_leaves_the_file_as_it_was(blog: str, words: tuple[str, ...]) -> None:
    before = Path(blog).read_bytes()
    assert error("index", blog, *words, *([] if "--model" in words else ["--model", "hashing"])).startswith("Error: ")
    assert Path(blog).read_bytes() == before


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (
            RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA."),
            "Error: CUDA error: out of memory",
        ),
        (MemoryError(), "Error: MemoryError"),
    ],
    ids=["torch", "Python"],
)
def test_a_device_that_fails_is_one_line(
    indexed: str, problem: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: HashingEncoder, texts: Sequence[str]) -> Any:
        raise problem

    monkeypatch.setattr(HashingEncoder, "encode_queries", fail)
    assert error("search", indexed, "posts", "glue") == line


def test_a_query_of_no_text_at_all_is_a_usage_error(indexed: str) -> None:
    assert "not valid UTF-8" in run("search", indexed, "posts", "gl\udc80ue", exit_code=2).stderr


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


# A process that was started in the background ignores SIGINT, and so would its children.
COMMANDS_THAT_WAIT_TO_BE_INTERRUPTED = """
import signal, time
from colbert_sqlite import indexing
from sqlite_utils_colbert import cli, maintaining, progress

class Display(progress.ProgressDisplay):
    def __call__(self, now):
        super().__call__(now)
        if now.done >= 100:
            print("now", flush=True)
            time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)
indexing.CHUNK_BYTES = 5000
maintaining.ProgressDisplay = Display
cli.colbert()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to another process")
def test_an_interrupted_build_says_how_to_go_on_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "long.db")
    db = sqlite3.connect(path)
    db.execute("create table notes (id integer primary key, body text)")
    notes = [(f"note {n} " + " ".join(f"wind{n * m % 997}" for m in range(30)),) for n in range(500)]
    db.executemany("insert into notes (body) values (?)", notes)
    db.commit()
    db.close()
    words = ["index", path, "notes", "body", "--model", "hashing"]
    build = subprocess.Popen(
        [sys.executable, "-c", COMMANDS_THAT_WAIT_TO_BE_INTERRUPTED, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")])},
    )
    assert build.stdout is not None
    assert build.stdout.readline() == "now\n"
    build.send_signal(signal.SIGINT)
    _, said = build.communicate()
    assert build.returncode == 130
    [done] = re.findall(r"^Interrupted: (\d+) of 500 rows are done. Run the same command again to go on.$", said, re.M)
    assert 100 <= int(done) < 500

    encoded: list[str] = []
    encode = HashingEncoder.encode_passages

    def encode_and_remember(self: HashingEncoder, texts: Sequence[str]) -> Any:
        encoded.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(HashingEncoder, "encode_passages", encode_and_remember)
    run(*words, "--silent")
    facts = json.loads(run("info", path, "notes", "--json").stdout)
    assert (facts["rows"], facts["passages"]) == (500, 500)
    assert 0 < len(encoded) <= 500 - int(done)
    run("verify", path, "notes")
