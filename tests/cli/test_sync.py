"""The commands that keep indexes in step, and whole, run on real files with the hashing model."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from colbert_sqlite.encoders.hashing import HashingEncoder
from colbert_sqlite.index import Index
from tests.cli.helpers import PATIENCE, error, execute, run
from tests.damage import make_older
from tests.test_concurrency import holder

ROOT = Path(__file__).resolve().parents[2]
NOTHING = {"added": 0, "updated": 0, "deleted": 0, "compared": 0}
NO_TABLE = (
    "Error: index 'notes' can't read its table: no table 'notes' in this database; it has posts; drop or replace the "
    "index"
)
# Of words that the codec was trained on: a small index has few others before it is said that a rebuild pays.
NEW_NOTE = "INSERT INTO notes VALUES (9, 'cherry of the notes')"
# A process that was started in the background ignores SIGINT, and so would its children.
COMMAND = """
import signal
from sqlite_utils_colbert.cli import colbert
signal.signal(signal.SIGINT, signal.default_int_handler)
colbert()
"""


@pytest.fixture
def db(tmp_path: Path) -> str:
    """A database with two tables of three rows, and an index of each."""
    path = tmp_path / "blog.db"
    with closing(sqlite3.connect(path)) as conn:
        for table in ("notes", "posts"):
            conn.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, body TEXT)")
            rows = [(i, f"{word} of the {table}") for i, word in enumerate(("apple", "banana", "cherry"), 1)]
            conn.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)
        conn.commit()
    for table in ("notes", "posts"):
        run("index", str(path), table, "body", "--model", "hashing-32", "--silent")
    return str(path)


class Gone(HashingEncoder):
    """A model that can't be loaded any more under the name it had."""

    def __init__(self) -> None:
        super().__init__(32)
        self.name = "no/such-model"


def said(*words: str, exit_code: int = 0) -> list[str]:
    """The lines on stderr, times left out, of a command that has nothing to say on stdout."""
    result = run(*words, exit_code=exit_code)
    assert result.stdout == ""
    return [line.rpartition(", ")[0] if line.endswith(" s") else line for line in result.stderr.splitlines()]


def problems(path: str, index: str) -> list[str]:
    with Index.open(path, index) as opened:
        return opened.verify()


def hits(path: str, index: str, query: str) -> list[Any]:
    with Index.open(path, index) as opened:
        return [hit.pk for hit in opened.search(query) if not hit.stale]


def dump(path: str) -> str:
    with closing(sqlite3.connect(path)) as conn:
        return "\n".join(conn.iterdump())


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")])},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_all_indexes_are_synced_where_none_is_named(db: str) -> None:
    execute(db, NEW_NOTE)
    execute(db, "DELETE FROM posts WHERE id = 1")
    assert said("sync", db) == [
        "Encoding 1 row",
        "Index notes: 1 added, 0 updated, 0 deleted",
        "Index posts: 0 added, 0 updated, 1 deleted",
    ]
    assert (9 in hits(db, "notes", "cherry"), problems(db, "notes"), problems(db, "posts")) == (True, [], [])
    assert said("sync", db, "--silent") == []


def test_several_indexes_are_synced_and_others_are_not(db: str) -> None:
    run("index", db, "notes", "body", "--name", "more", "--model", "hashing-32", "--silent")
    execute(db, NEW_NOTE)
    done = json.loads(run("sync", db, "posts", "more", "--json", "--silent").stdout)
    assert done == [{"name": "posts", **NOTHING}, {"name": "more", **NOTHING, "added": 1}]
    assert json.loads(run("info", db, "notes", "--json").stdout)["pending_changes"] == 1


def test_full_compares_every_row(db: str) -> None:
    assert said("sync", db, "posts", "--full") == [
        "Comparing 3 rows",
        "Index posts: 0 added, 0 updated, 0 deleted, 3 rows compared",
    ]
    [facts] = json.loads(run("sync", db, "posts", "--full", "--json", "--silent").stdout)
    assert facts == {"name": "posts", **NOTHING, "compared": 3}


@pytest.mark.parametrize("words", [[], ["posts", "notes"]])
def test_an_index_that_can_not_be_synced_keeps_no_other_from_it(db: str, words: list[str]) -> None:
    execute(db, "DROP TABLE notes")
    execute(db, "DELETE FROM posts WHERE id = 1")
    lines = said("sync", db, *words, exit_code=1)
    assert [line for line in lines if line.startswith("Error: ")] == [NO_TABLE]
    assert "Index posts: 0 added, 0 updated, 1 deleted" in lines
    assert problems(db, "posts") == []
    result = run("sync", db, "--json", "--silent", exit_code=1)
    assert json.loads(result.stdout) == [{"name": "posts", **NOTHING}]
    assert result.stderr == f"{NO_TABLE}\n"


def test_an_index_that_is_not_there_is_one_line(db: str) -> None:
    assert error("sync", db, "nothing") == "Error: no index 'nothing' in this database; it has notes, posts"


def test_a_database_without_indexes_has_nothing_to_sync(db: str) -> None:
    for index in ("notes", "posts"):
        run("drop", db, index)
    for command in ("sync", "upgrade"):
        assert said(command, db) == [f"{db} has no index."]
        assert said(command, db, "--silent") == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sync", "--watch", "--json"], "--json is for one sync: leave out --json or --watch."),
        (["sync", "--model", "hashing"], "--model goes with one INDEX."),
        (["sync", "notes", "posts", "--model", "hashing"], "--model goes with one INDEX."),
        (["upgrade", "--model", "hashing"], "--model goes with one INDEX."),
    ],
)
def test_options_that_do_not_go_together(db: str, words: list[str], line: str) -> None:
    command, *others = words
    assert run(command, db, *others, exit_code=2).stderr.splitlines()[-1] == f"Error: {line}"


def test_a_sync_that_only_deletes_needs_no_model(db: str) -> None:
    Index.create(db, "notes", ["body"], name="gone", model=Gone()).close()
    execute(db, "DELETE FROM notes WHERE id = 2")
    lines = said("sync", db, "gone", "--verbose")
    assert lines[-1] == "Index gone: 0 added, 0 updated, 1 deleted"
    assert "write" in {line.split()[0] for line in lines}
    assert said("sync", db, "gone", "-v") == ["Index gone: 0 added, 0 updated, 0 deleted"]
    execute(db, NEW_NOTE)
    [line] = [line for line in said("sync", db, "gone", "-v", exit_code=1) if line.startswith("Error: ")]
    assert "no/such-model" in line


def test_verbose_says_what_was_encoded_with_what(db: str) -> None:
    execute(db, NEW_NOTE)
    lines = said("sync", db, "notes", "-v")
    assert [line for line in lines if "tokens encoded by hashes of words" in line] != []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to another process")
def test_watch_follows_the_tables_until_it_is_interrupted(db: str) -> None:
    with started("sync", db, "--watch", "--interval", "0.05") as process:
        assert process.stderr is not None
        first = [process.stderr.readline() for _ in range(3)]
        assert [line.partition(":")[0] for line in first[:2]] == ["Index notes", "Index posts"]
        assert first[2] == f"Watching {db}. Ctrl-C ends it.\n"
        execute(db, NEW_NOTE)
        # Its line comes when the sync is over: until then the table is still in use.
        assert process.stderr.readline().startswith("Index notes: 1 added, ")
        assert 9 in hits(db, "notes", "cherry")
        execute(db, "DROP TABLE notes")
        assert process.stderr.readline() == f"{NO_TABLE}\n"
        execute(db, "DELETE FROM posts WHERE id = 1")
        wait_until(lambda: problems(db, "posts") == [] and 1 not in hits(db, "posts", "apple"))
        execute(db, "CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT)")
        execute(db, "INSERT INTO notes VALUES (5, 'A curlew calls.')")
        wait_until(lambda: problems(db, "notes") == [] and hits(db, "notes", "curlew") == [5])
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert (out, err.splitlines()[-1], process.returncode) == ("", "Stopped watching.", 0)
        assert "Error" not in err
    assert json.loads(run("info", db, "notes", "--json").stdout)["pending_changes"] == 0


def test_sync_says_that_it_waits_for_another_process(db: str) -> None:
    execute(db, "DELETE FROM posts WHERE id = 1")
    with holder(Path(db)) as other, started("sync", db, "posts") as process:
        assert process.stderr is not None
        waiting = "Another process is writing this index: waiting until it is done\n"
        assert process.stderr.readline() == waiting
        other.communicate("")
        out, err = process.communicate(timeout=PATIENCE)
        assert (out, err.splitlines()[-1].partition(",")[0], process.returncode) == ("", "Index posts: 0 added", 0)
    assert problems(db, "posts") == []


def test_pending_changes_are_those_that_triggers_have_noted(db: str) -> None:
    def pending() -> tuple[Any, str]:
        [shown] = [line for line in run("info", db, "notes").stdout.splitlines() if line.startswith("pending changes")]
        facts = json.loads(run("info", db, "notes", "--json").stdout)
        return facts["pending_changes"], shown.removeprefix("pending changes").strip()

    unknown = "unknown: the next sync compares every row"
    assert pending() == (0, "0")
    execute(db, NEW_NOTE)
    assert pending() == (1, "1")
    execute(db, "DROP TRIGGER _colbert_notes_update")
    assert pending() == (None, unknown)
    run("sync", db, "notes", "--silent")
    assert pending() == (0, "0")
    run("index", db, "notes", "body", "--no-triggers", "--replace", "--model", "hashing-32", "--silent")
    assert pending() == (None, unknown)


def test_repair_encodes_what_is_damaged(db: str) -> None:
    assert said("repair", db, "posts") == ["Comparing 3 rows", "Index posts: 0 rows encoded, 0 removed"]
    damage = "UPDATE _colbert_posts_codes SET codes = x'00' WHERE passage_id = 2"
    execute(db, damage)
    assert run("verify", db, "posts", exit_code=1).stdout != ""
    assert said("repair", db, "posts")[-1] == "Index posts: 1 rows encoded, 0 removed"
    assert (problems(db, "posts"), sorted(hits(db, "posts", "banana"))) == ([], [1, 2, 3])
    execute(db, damage.replace("= 2", "= 3"))
    assert said("repair", db, "posts", "--silent") == []
    assert problems(db, "posts") == []


def test_repair_prints_what_it_can_not_mend(db: str) -> None:
    execute(db, "CREATE TABLE parts (code TEXT PRIMARY KEY, about TEXT)")
    run("index", db, "parts", "about", "--model", "hashing-32", "--silent")
    execute(db, "INSERT INTO parts VALUES (NULL, 'a spring')")
    result = run("repair", db, "parts", "--silent", exit_code=1)
    assert result.output == "rows whose key is NULL, which can't be indexed: 1\n"
    execute(db, "DROP TABLE _colbert_posts_ivf")
    assert error("repair", db, "posts") == "Error: tables are missing (ivf): rebuild the index"
    run("rebuild", db, "posts", "--silent")
    assert problems(db, "posts") == []


@pytest.mark.parametrize("silent", [[], ["--silent"]])
def test_optimize_says_how_much_is_free_and_how_to_have_it(db: str, silent: list[str]) -> None:
    execute(db, "DELETE FROM posts WHERE id = 1")
    run("sync", db, "posts", "--silent")
    before = json.loads(run("info", db, "posts", "--json").stdout)["bytes_reclaimable"]
    assert before > 0
    hint = f"{before} bytes made free. To shrink the file: sqlite-utils vacuum {db}"
    assert said("optimize", db, "posts", *silent) == ([] if silent else [hint])
    assert json.loads(run("info", db, "posts", "--json").stdout)["bytes_reclaimable"] == 0
    assert problems(db, "posts") == []


@pytest.fixture
def old(db_path: Path) -> str:
    """A database with an index of an older format, posts, and one of this release's, titles."""
    for name, column in (("posts", "body"), ("titles", "title")):
        run("index", str(db_path), "posts", column, "--name", name, "--model", "hashing-32", "--silent")
    with closing(sqlite3.connect(db_path)) as conn:
        make_older(conn, "posts")
    return str(db_path)


def test_all_indexes_are_upgraded_where_none_is_named(old: str) -> None:
    assert error("sync", old, "posts").startswith("Error: index 'posts' has schema version ")
    assert said("upgrade", old)[-2:] == ["Index posts had format 0: built anew", "Index titles: nothing to do"]
    assert (problems(old, "posts"), problems(old, "titles")) == ([], [])
    assert said("upgrade", old) == ["Index posts: nothing to do", "Index titles: nothing to do"]
    assert said("upgrade", old, "--silent") == []


def test_one_index_is_upgraded(old: str) -> None:
    before = dump(old)
    assert said("upgrade", old, "titles") == ["Index titles: nothing to do"]
    assert dump(old) == before
    assert said("upgrade", old, "posts", "--model", "hashing-32")[-1] == "Index posts had format 0: built anew"
    assert problems(old, "posts") == []


@pytest.mark.parametrize("changed", [True, False])
def test_an_upgrade_with_another_model_is_refused_and_changes_nothing(old: str, changed: bool) -> None:
    if changed:
        execute(old, "INSERT INTO posts (id, body) VALUES (0, 'The heron waits.')")
    before = dump(old)
    line = error("upgrade", old, "posts", "--model", "hashing-64")
    assert line.startswith("Error: index 'posts' was built with 'hashing-32'") and "'hashing-64'" in line
    assert dump(old) == before
