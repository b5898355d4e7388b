"""One index, many threads: each has a connection of its own, and all share model and codec."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import sqlite_utils

from colbert_sqlite import ColbertError, Hit, Index, WrongThread, serving
from colbert_sqlite.encoders import Encoder
from colbert_sqlite.storage.codec import CodecTables, StoredCodec
from tests.conftest import POSTS

QUERIES = ["bread dough", "comet tail", "restore a copy of the database", "dark soil"]


def open_files(path: Path) -> int:
    """How many descriptors of this process are open on a file."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc")
    n = 0
    for link in folder.iterdir():
        # Another thread may close it meanwhile.
        with suppress(OSError):
            n += os.readlink(link) == str(path)
    return n


def in_thread(function: Callable[[], object]) -> BaseException | None:
    """What *function* raises in a thread of its own."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors[0] if errors else None


def test_threads_find_what_one_thread_finds(small_index: Index) -> None:
    expected = {query: small_index.search(query) for query in QUERIES}
    with ThreadPoolExecutor(8) as pool:
        for query, hits in pool.map(lambda query: (query, small_index.search(query)), QUERIES * 10):
            assert hits == expected[query]


def test_every_method_works_in_another_thread(small_index: Index) -> None:
    def use() -> None:
        small_index.search("bread", where="id > :n", params={"n": 1}, pks=[2, 3])
        small_index.similar(1)
        small_index.similar_all(2, into="related")
        small_index.explain("bread", 1)
        small_index.info()
        assert small_index.verify() == []
        small_index.sync(full=True)
        small_index.repair()
        small_index.optimize()
        small_index.rebuild()

    assert in_thread(use) is None
    assert small_index.search("comet", k=1)[0].pk == 2


def test_asyncio_executors_just_work(small_index: Index) -> None:
    async def search() -> list[list[int]]:
        found = await asyncio.gather(*(asyncio.to_thread(small_index.search, query, 1) for query in QUERIES * 4))
        return [[hit.pk for hit in hits] for hits in found]

    assert asyncio.run(search()) == [[1], [2], [3], [5]] * 4


def test_a_thread_sees_what_another_thread_synced(small_index: Index, db_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(small_index.search, "comet", 1).result()[0].pk == 2
        sqlite_utils.Database(db_path)["posts"].update(5, {"body": "A comet, a comet, a comet."})
        small_index.sync()
        assert pool.submit(small_index.search, "comet a", 1).result()[0].pk == 5


def test_a_connection_is_closed_with_its_thread(small_index: Index, db_path: Path) -> None:
    before = open_files(db_path)
    go_on, ready = threading.Event(), threading.Barrier(4)

    def use() -> None:
        small_index.search("bread")
        ready.wait(60)
        go_on.wait(60)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.wait(60)
    assert open_files(db_path) == before + 3
    go_on.set()
    for thread in threads:
        thread.join()
    gc.collect()
    assert open_files(db_path) == before


def test_close_closes_the_connections_of_all_threads(small_index: Index, db_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        barrier = threading.Barrier(3)

        def use() -> None:
            small_index.search("bread")
            barrier.wait(60)

        for future in [pool.submit(use) for _ in range(3)]:
            future.result()
        small_index.close()
        assert open_files(db_path) == 0
        with pytest.raises(ValueError, match="index 'posts' is closed: open it again"):
            small_index.search("bread")
        with pytest.raises(ValueError, match="index 'posts' is closed"):
            pool.submit(small_index.search, "bread").result()


def test_closing_waits_for_threads_that_search(small_index: Index) -> None:
    with small_index.read() as view:
        assert in_thread(small_index.close) is None
        assert view.store.entry.name == "posts"
        assert view.conn.execute("SELECT count(*) FROM posts").fetchone() == (len(POSTS),)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        view.conn.execute("SELECT 1")


def test_a_relative_path_leads_to_the_same_file_from_any_folder(
    db_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Index.create(db_path, "posts", ["body"], model=encoder).close()
    monkeypatch.chdir(db_path.parent)
    for address in (db_path.name, f"file:{db_path.name}?mode=ro"):
        with Index.open(address, "posts") as index:
            (tmp_path / "elsewhere").mkdir(exist_ok=True)
            monkeypatch.chdir(tmp_path / "elsewhere")
            assert in_thread(lambda: index.search("bread")) is None
        monkeypatch.chdir(db_path.parent)


@pytest.mark.parametrize("check_same_thread", [True, False])
def test_an_index_on_a_connection_belongs_to_the_thread_of_the_connection(
    db_path: Path, encoder: Encoder, check_same_thread: bool
) -> None:
    conn = sqlite3.connect(db_path, check_same_thread=check_same_thread)
    index = Index.create(conn, "posts", ["body"], model=encoder)
    for use in (lambda: index.search("bread"), index.info, index.sync, index.drop, lambda: index.similar(1)):
        error = in_thread(use)
        assert isinstance(error, WrongThread)
        assert str(error) == (
            "index 'posts' was opened on a connection that belongs to another thread: open the index by the path of "
            "its file, then any thread may use it"
        )
    assert index.search("bread", k=1)[0].pk == 1


def test_a_connection_of_another_thread_is_refused_when_an_index_is_opened(db_path: Path, encoder: Encoder) -> None:
    conn = sqlite3.connect(db_path)
    Index.create(conn, "posts", ["body"], model=encoder)
    db = sqlite_utils.Database(conn)
    for open_index in (
        lambda: Index.open(conn, "posts"),
        lambda: Index.create(db, "posts", ["body"], model=encoder, replace=True),
    ):
        error = in_thread(open_index)
        assert isinstance(error, WrongThread)
        assert "belongs to another thread" in str(error)


FORK = """
import os, sys
from colbert_sqlite import Index

path = sys.argv[1]
index = Index.open(path, "posts")
index.search("bread")
parent = os.getpid()
if child := os.fork():
    _, status = os.waitpid(child, 0)
    # SQLite drops every lock of a process once one of its descriptors is closed, in that process: not in its child.
    print(os.waitstatus_to_exitcode(status), [hit.pk for hit in index.search("comet", 1)], index.verify(), flush=True)
else:
    before = len([name for name in os.listdir("/proc/self/fd")])
    assert [hit.pk for hit in index.search("comet", 1)] == [2]
    index.close()
    assert len([name for name in os.listdir("/proc/self/fd")]) == before
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_opens_connections_of_its_own_and_closes_none_of_its_parent(
    db_path: Path, encoder: Encoder
) -> None:
    open_files(db_path)
    Index.create(db_path, "posts", ["body"], model=encoder).close()
    run = subprocess.run([sys.executable, "-c", FORK, db_path], capture_output=True, text=True)
    assert (run.stdout, run.returncode) == ("0 [2] []\n", 0), run.stderr


FORK_WHILE_LOADING = """
import os, signal, threading
from colbert_sqlite.locks import ThreadLock

lock, held, done = ThreadLock(), threading.Event(), threading.Event()

def hold():
    with lock:
        held.set()
        done.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
if child := os.fork():
    done.set()
    thread.join()
    with lock:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    signal.alarm(20)
    with lock, lock:
        os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_while_a_thread_loads_a_model_can_load_it_too() -> None:
    run = subprocess.run([sys.executable, "-c", FORK_WHILE_LOADING], capture_output=True, text=True)
    assert (run.stdout, run.returncode) == ("0\n", 0), run.stderr


def test_threads_that_come_together_read_the_centroids_of_a_pool_once(
    small_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []
    read = CodecTables.centroids

    def counted(tables: CodecTables, codec: StoredCodec) -> object:
        reads.append(codec)
        return read(tables, codec)

    monkeypatch.setattr(CodecTables, "centroids", counted)
    pool = serving.pool_of(small_index.database)
    together = threading.Barrier(6)

    def search(_: int) -> list[Hit]:
        together.wait()
        return pool.use("posts", lambda index: index.search("bread", 1))

    with ThreadPoolExecutor(6) as threads:
        assert {hits[0].pk for hits in threads.map(search, range(6))} == {1}
    serving.close_pools()
    assert len(reads) == 1


def test_what_is_closed_names_itself(small_index: Index) -> None:
    pool = serving.pool_of(small_index.database)
    serving.close_pools()
    with pytest.raises(ValueError, match="^the pool is closed: open it again$"):
        pool.use("posts", Index.info)


def test_a_call_that_fails_leaves_no_connection_open(db_path: Path, encoder: Encoder) -> None:
    failing: list[Callable[[], Index]] = [
        lambda: Index.create(db_path, "posts", ["nobody"], model=encoder),
        lambda: Index.create(db_path, "posts", ["body"], name=" ", model=encoder),
        lambda: Index.open(db_path, "nothing"),
    ]
    kept: list[Exception] = []
    for fail in failing:
        with pytest.raises((ColbertError, ValueError)) as caught:
            fail()
        kept.append(caught.value)
    assert len(kept) == 3
    assert open_files(db_path) == 0


SYNC_FOR_EVER = """
import sqlite3, sys
from colbert_sqlite import Index

path, bodies = sys.argv[1], {"a": "Topic{} in the morning, before tea.", "b": "Topic{} in the evening, after dinner."}
conn = sqlite3.connect(path, isolation_level=None, timeout=30)
with Index.open(path, "posts") as index:
    print("ready", flush=True)
    n = 0
    while not sys.stdin.closed:
        n += 1
        for pk in range(n % 3, 40, 3):
            conn.execute("UPDATE posts SET body = ? WHERE id = ?", (bodies["ab"[n % 2]].format(pk), pk))
        index.sync()
        print(n, flush=True)
"""


@pytest.mark.slow
def test_eight_threads_search_while_another_process_syncs(tmp_path: Path, encoder: Encoder) -> None:
    """2,000 searches: every hit is the row it should be, with the score of one of its two texts."""
    path, n_rows = tmp_path / "posts.db", 40
    conn = sqlite3.connect(path)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, body TEXT)")
    morning, evening = "Topic{} in the morning, before tea.", "Topic{} in the evening, after dinner."
    conn.executemany("INSERT INTO posts VALUES (?, ?)", [(pk, morning.format(pk)) for pk in range(n_rows)])
    conn.commit()
    with Index.create(path, "posts", ["body"], model=encoder) as index:
        scores: dict[int, set[float]] = {}
        for body in (evening, morning):
            conn.executemany("UPDATE posts SET body = ? WHERE id = ?", [(body.format(pk), pk) for pk in range(n_rows)])
            conn.commit()
            index.sync()
            for pk in range(n_rows):
                [hit] = index.search(f"topic{pk}", 1)
                assert hit.pk == pk
                scores.setdefault(pk, set()).add(hit.score)
        command = [sys.executable, "-c", SYNC_FOR_EVER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            try:

                def search(n: int) -> None:
                    pk = n % n_rows
                    [hit] = index.search(f"topic{pk}", 1)
                    assert hit.pk == pk
                    assert hit.score in scores[pk]

                with ThreadPoolExecutor(8) as pool:
                    list(pool.map(search, range(2000)))
            finally:
                writer.kill()
            n_syncs = len(writer.stdout.read().splitlines())
        assert n_syncs > 3
        index.sync()
        assert index.verify() == []
