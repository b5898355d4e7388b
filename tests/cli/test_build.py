"""index, rebuild and drop, run on real files with the hashing model."""

from __future__ import annotations

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

import pytest

from colbert_sqlite.encoders.hashing import HashingEncoder
from tests.cli.helpers import POSTS, error, execute, run

ROOT = Path(__file__).resolve().parents[2]


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


def test_an_index_is_replaced_only_with_the_option(indexed: str) -> None:
    words = ("index", indexed, "posts", "title", "--model", "hashing", "--silent")
    assert "--replace" in error(*words)
    run(*words, "--replace")
    assert json.loads(run("info", indexed, "posts", "--json").stdout)["columns"] == ["title"]


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


# A process that was started in the background ignores SIGINT, and so would its children.
COMMANDS_THAT_WAIT_TO_BE_INTERRUPTED = """
import signal, time
from colbert_sqlite import rows
from sqlite_utils_colbert import build, cli, progress

class Display(progress.ProgressDisplay):
    def __call__(self, now):
        super().__call__(now)
        if now.done >= 100:
            print("now", flush=True)
            time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)
rows.CHUNK_BYTES = 5000
build.ProgressDisplay = Display
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
