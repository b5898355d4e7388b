"""Several processes and threads on one index: readers beside a writer, and one writer at a time."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from colbert_sqlite.errors import IndexBusy, IndexNotFound, SourceError
from colbert_sqlite.index import Index
from colbert_sqlite.indexes import drop, list_indexes
from colbert_sqlite.progress import Progress, SyncResult
from colbert_sqlite.storage.lock import writing
from colbert_sqlite.storage.scratch import scratch_path
from tests.benchmarks.readers import measure
from tests.conftest import ROOT
from tests.helpers import connection_of

# Holds the lock of an index, says so, and lets go of it when its input ends.
HOLD = """
import sqlite3, sys
from colbert_sqlite.storage.lock import writing
with writing(sqlite3.connect(sys.argv[1]), "posts"):
    print("held", flush=True)
    sys.stdin.read()
"""

# Takes and releases the lock again and again; the file that each makes inside must not be there yet.
CONTEND = """
import os, sqlite3, sys, threading
from colbert_sqlite.storage import lock
lock._RETRY_SECONDS = 0.0005
database, inside, times, n_threads = sys.argv[1], sys.argv[1] + "-inside", int(sys.argv[2]), int(sys.argv[3])
alone = []
def contend():
    conn = sqlite3.connect(database, check_same_thread=False)
    for _ in range(times):
        with lock.writing(conn, "posts"):
            try:
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            alone.append(True)
            os.unlink(inside)
    conn.close()
threads = [threading.Thread(target=contend) for _ in range(n_threads)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(alone))
"""

SYNC = """
import json, sys
from colbert_sqlite.index import Index
seen = []
with Index.open(sys.argv[1], "posts") as index:
    counts = index.sync(progress=lambda now: seen.append(now.stage))
print(json.dumps([seen[:1], counts.to_dict()]))
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    with start(HOLD, path) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process


def beside(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if file != path)


@pytest.mark.slow
@pytest.mark.parametrize(("journal", "threads"), [("wal", False), ("delete", False), ("wal", True)])
def test_every_hit_is_right_beside_a_writer(tmp_path: Path, journal: str, threads: bool) -> None:
    measured = measure(tmp_path / "t.db", journal, n_rows=150, seconds=3, readers=3, threads=threads, rebuild_every=1)
    assert measured.wrong == []
    writer = measured.writer
    assert min(map(len, (measured.alone.seconds, measured.beside.seconds, writer.seconds, writer.rebuilds))) > 0


def test_never_two_writers_at_once(small_index: Index, db_path: Path) -> None:
    processes = [start(CONTEND, db_path, 150, 2) for _ in range(4)]
    alone = [int(process.communicate()[0]) for process in processes]
    assert alone == [300] * 4
    assert beside(db_path) == []


def test_the_second_of_two_syncs_waits(small_index: Index, db_path: Path) -> None:
    connection_of(small_index).execute("INSERT INTO posts VALUES (9, 'Yeast', 'Feed the starter.')")
    with holder(db_path) as first, start(SYNC, db_path) as second:
        waiting = threading.Event()
        mine: list[SyncResult] = []

        def sync_too() -> None:
            with Index.open(db_path, "posts") as index:
                mine.append(index.sync(progress=lambda now: waiting.set() if now.stage == "wait" else None))

        third = threading.Thread(target=sync_too)
        third.start()
        assert waiting.wait(30)
        # The process that waits too may not have come so far: it may find nobody to wait for.
        first.communicate("")
        third.join()
        assert second.stdout is not None
        _, theirs = json.loads(second.stdout.read())
    assert sorted([mine[0].added, theirs["added"]]) == [0, 1]
    assert (small_index.verify(), beside(db_path)) == ([], [])


@pytest.mark.parametrize("method", ["sync", "repair", "optimize", "rebuild"])
def test_a_transaction_does_not_wait_for_another_writer(small_index: Index, db_path: Path, method: str) -> None:
    conn = sqlite3.connect(db_path)
    index = Index.open(conn, "posts")
    conn.execute("INSERT INTO posts VALUES (9, 'Yeast', 'Feed the starter.')")
    seen: list[Progress] = []
    with holder(db_path) as other:
        with pytest.raises(IndexBusy) as caught:
            getattr(index, method)(progress=seen.append)
        assert str(caught.value) == (
            "another process is writing index 'posts': end the transaction of this connection, then try again"
        )
        assert (conn.in_transaction, seen) == (True, [])
        other.communicate("")
    getattr(index, method)()
    assert conn.in_transaction
    conn.commit()
    small_index.sync()
    assert (small_index.counts().rows, small_index.verify(), beside(db_path)) == (6, [], [])


@pytest.mark.parametrize("behind", ["a database", "an empty file", "nothing", "a folder"])
def test_a_link_in_the_place_of_the_lock_is_refused_and_not_followed(
    small_index: Index, db_path: Path, tmp_path_factory: pytest.TempPathFactory, behind: str
) -> None:
    target = tmp_path_factory.mktemp("elsewhere") / "target"
    if behind == "a database":
        other = sqlite3.connect(target)
        other.execute("CREATE TABLE precious (x)")
        other.close()
    elif behind == "an empty file":
        target.touch()
    elif behind == "a folder":
        target.mkdir()
    before = target.read_bytes() if target.is_file() else None
    lock = lock_of(small_index)
    try:
        lock.symlink_to(target)
    except OSError:
        pytest.skip("links can't be made here")
    connection_of(small_index).execute("DELETE FROM posts WHERE id = 1")
    assert_refused(small_index, lock)
    assert (target.read_bytes() if target.is_file() else None) == before
    assert [file.name for file in target.parent.iterdir()] == ([] if behind == "nothing" else [target.name])
    assert lock.is_symlink()


@pytest.mark.parametrize("content", [b"something of somebody's", b"SQLite format 3\0" + bytes(4080)])
def test_a_file_in_the_place_of_the_lock_is_refused_and_left_alone(small_index: Index, content: bytes) -> None:
    lock = lock_of(small_index)
    lock.write_bytes(content)
    connection_of(small_index).execute("DELETE FROM posts WHERE id = 1")
    assert_refused(small_index, lock)
    assert lock.read_bytes() == content


def lock_of(index: Index) -> Path:
    path = scratch_path(connection_of(index), index.name)
    assert path is not None
    return Path(f"{path}-lock")


def assert_refused(index: Index, lock: Path) -> None:
    """Nobody writes the index, everybody may read it, and it can be dropped, with the file left where it is."""
    for refused in (index.sync, index.repair, index.optimize, index.rebuild):
        with pytest.raises(SourceError) as caught:
            refused()
        assert str(caught.value) == f"{lock} has the name of a lock file and is not one: remove it"
    assert len(index.search("dough")) == 3
    index.drop()
    assert [file.name for file in lock.parent.iterdir() if file.name.endswith("-lock")] == [lock.name]


def test_a_killed_writer_keeps_nobody_waiting(small_index: Index, db_path: Path) -> None:
    seen: list[Any] = []
    with holder(db_path) as first:
        first.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        first.wait()
    assert [name.endswith("-lock") for name in beside(db_path)] == [True]
    small_index.sync(progress=seen.append)
    assert (seen, beside(db_path)) == ([], [])


def test_what_a_killed_writer_left_goes_with_the_index(small_index: Index, db_path: Path) -> None:
    with holder(db_path) as first:
        first.kill()
    drop(db_path, "posts")
    assert beside(db_path) == []


def test_an_index_that_was_dropped_while_a_rebuild_waited_stays_dropped(small_index: Index, db_path: Path) -> None:
    with holder(db_path) as first:

        def drop_it(now: Progress) -> None:
            if now.stage == "wait":
                drop(db_path, "posts")
                first.communicate("")

        with pytest.raises(IndexNotFound):
            small_index.rebuild(progress=drop_it)
    assert list_indexes(db_path) == []


def test_indexes_of_one_database_do_not_wait_for_each_other(small_index: Index, db_path: Path) -> None:
    waited: list[bool] = []
    with holder(db_path) as process:
        with writing(connection_of(small_index), "another", lambda _: waited.append(True)):
            pass
        process.communicate("")
    assert waited == []


def test_an_index_is_written_in_memory_without_waiting() -> None:
    conn = sqlite3.connect(":memory:")
    with writing(conn, "posts"), writing(conn, "posts"):
        pass
