"""Disks that fill up, databases that are locked or can't be written: a clear error, nothing lost or half written."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.errors import SourceError
from colbert_sqlite.index import Index
from colbert_sqlite.indexes import list_indexes
from colbert_sqlite.progress import Progress
from colbert_sqlite.storage import connection
from tests import crashes
from tests.crashes import JOURNALS, OPERATIONS, judge, left_beside
from tests.helpers import connection_of
from tests.marks import slow

SMALL_PORTIONS = (
    ("rows.CHUNK_BYTES", 1500),
    ("sync.CHUNK_BYTES", 1500),
    ("build._SAMPLE_TOKENS", 1500),
    ("storage.residuals._COMPACTED_AT_ONCE", 15),
)
# How often each operation meets each fault.
ROUNDS = 2


@pytest.fixture(autouse=True)
def many_small_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL_PORTIONS:
        monkeypatch.setattr(f"colbert_sqlite.{name}", value)


@contextmanager
def few_pages(conn: sqlite3.Connection, path: Path, n_bytes: int) -> Iterator[None]:
    """A database that may grow by so much and no more."""
    (page_size,) = conn.execute("PRAGMA page_size").fetchone()
    (n_pages,) = conn.execute("PRAGMA page_count").fetchone()
    conn.execute(f"PRAGMA max_page_count = {n_pages + n_bytes // page_size}")
    yield
    conn.execute("PRAGMA max_page_count = 1073741823")


@contextmanager
def small_files(conn: sqlite3.Connection, path: Path, n_bytes: int) -> Iterator[None]:
    """A process that may write no file longer than the longest there is by so much, journals included."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    longest = max(file.stat().st_size for file in path.parent.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest + n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def query_only_after(conn: sqlite3.Connection, n: int) -> Callable[[Progress], None]:
    """Have a connection refuse to write from the n-th report of progress on."""
    seen: list[Progress] = []

    def progress(now: Progress) -> None:
        seen.append(now)
        if len(seen) == n:
            conn.execute("PRAGMA query_only = ON")

    return progress


def nothing(_: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Databases as they are before an operation, each made once."""
    made: dict[tuple[Any, str], Path] = {}

    def state(operation: str, journal: str) -> Path:
        what = OPERATIONS[operation].prepare, journal
        if what not in made:
            made[what] = tmp_path_factory.mktemp("state") / "t.db"
            what[0](made[what], journal)
        return made[what]

    return state


def run_again_and_judge(path: Path, operation: str) -> None:
    with closing(crashes.connect(path)) as conn:
        OPERATIONS[operation].run(conn, nothing)
        crashes.opened(conn).sync()
    assert judge(path, in_step=True, may_be_damaged=False) == []
    # SQLite leaves its journal where there was nothing more to write.
    assert [file for file in left_beside(path) if file != "t.db-journal"] == []


@pytest.mark.parametrize("journal", JOURNALS)
@pytest.mark.parametrize("limited", [few_pages, *slow(small_files)])
@pytest.mark.parametrize("operation", ["sync", *slow("build", "rebuild", "optimize", "repair")])
def test_a_full_disk_costs_nothing_but_the_run(
    tmp_path: Path, states: Callable[[str, str], Path], operation: str, limited: Any, journal: str
) -> None:
    chance = random.Random(f"{operation} {limited.__name__} {journal}")
    for i in range(ROUNDS):
        path = tmp_path / str(i) / "t.db"
        path.parent.mkdir()
        shutil.copyfile(states(operation, journal), path)
        with closing(crashes.connect(path)) as conn:
            with limited(conn, path, 0 if i == 0 else chance.randrange(60_000)):
                try:
                    OPERATIONS[operation].run(conn, nothing)
                except sqlite3.OperationalError as error:
                    assert str(error) in ("database or disk is full", "disk I/O error")
        assert judge(path, in_step=False, may_be_damaged=operation == "repair") == []
        run_again_and_judge(path, operation)


@pytest.mark.parametrize("journal", JOURNALS)
@pytest.mark.parametrize("limited", [few_pages, *slow(small_files)])
def test_an_index_on_a_full_disk_can_be_dropped(
    tmp_path: Path, states: Callable[[str, str], Path], limited: Any, journal: str
) -> None:
    path = tmp_path / "t.db"
    shutil.copyfile(states("drop", journal), path)
    with closing(crashes.connect(path)) as conn:
        # A rollback journal keeps the pages that change; a WAL, what becomes of them.
        with limited(conn, path, 0 if limited is few_pages else 60_000):
            OPERATIONS["drop"].run(conn, nothing)
        assert crashes.ours(conn) == []
    assert [file for file in left_beside(path) if file != "t.db-journal"] == []


@pytest.mark.parametrize("operation", ["sync", *slow("build", "compare", "rebuild", "repair")])
def test_a_connection_that_may_not_write_any_more_has_written_nothing_by_half(
    tmp_path: Path, states: Callable[[str, str], Path], operation: str
) -> None:
    for n in (1, 3, 5):
        path = tmp_path / str(n) / "t.db"
        path.parent.mkdir()
        shutil.copyfile(states(operation, "delete"), path)
        with closing(crashes.connect(path)) as conn:
            with pytest.raises(sqlite3.OperationalError, match="attempt to write a readonly database"):
                OPERATIONS[operation].run(conn, query_only_after(conn, n))
        assert judge(path, in_step=False, may_be_damaged=operation == "repair") == []
        run_again_and_judge(path, operation)


@pytest.mark.parametrize("journal", [JOURNALS[0], *slow(*JOURNALS[1:])])
def test_a_locked_database_costs_nothing_but_the_run(
    tmp_path: Path, states: Callable[[str, str], Path], journal: str
) -> None:
    path = tmp_path / "t.db"
    shutil.copyfile(states("sync", journal), path)
    with closing(crashes.connect(path)) as other, closing(crashes.connect(path)) as conn:
        conn.execute("PRAGMA busy_timeout = 20")

        def lock(now: Progress) -> None:
            if now.stage == "encode" and now.done and not other.in_transaction:
                other.execute("BEGIN IMMEDIATE")

        with pytest.raises(sqlite3.OperationalError, match="database is locked"):
            OPERATIONS["sync"].run(conn, lock)
        other.execute("ROLLBACK")
        done = list_indexes(conn)[0].rows
    assert judge(path, in_step=False, may_be_damaged=False) == []
    run_again_and_judge(path, "sync")
    with closing(crashes.connect(path)) as conn:
        assert done != list_indexes(conn)[0].rows


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    plugin = pytest.importorskip("sqlite_utils_colbert.cli")
    monkeypatch.setitem(connection.connect.__kwdefaults__ or {}, "busy_seconds", 0.02)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(plugin.colbert, arguments)
        return result.exit_code, result.output

    return run


def test_the_command_says_in_a_sentence_that_the_database_is_locked(
    small_index: Index, db_path: Path, cli: Callable[..., tuple[int, str]]
) -> None:
    with closing(crashes.connect(db_path)) as other:
        other.execute("UPDATE posts SET body = 'Feed the starter.' WHERE id = 1")
        other.execute("BEGIN IMMEDIATE")
        code, output = cli("sync", str(db_path), "--silent")
        assert (code, output) == (
            1,
            f"Error: {db_path}: another program has been writing to it for too long; try again when it is done\n",
        )
        other.execute("ROLLBACK")
    assert cli("sync", str(db_path), "--silent") == (0, "")
    assert small_index.search("starter", k=1)[0].pk == 1


@pytest.mark.parametrize("how", ["mode=ro", "immutable=1", "mode=ro&immutable=1"])
def test_a_database_opened_for_reading_is_searched_and_not_synced(
    small_index: Index, db_path: Path, how: str, cli: Callable[..., tuple[int, str]]
) -> None:
    connection_of(small_index).execute("UPDATE posts SET title = 'Sourdough', body = 'Feed the starter.' WHERE id = 1")
    small_index.close()
    uri = f"{db_path.as_uri()}?{how}"
    with Index.open(uri, "posts") as index:
        assert index.search("comet", k=1)[0].pk == 2
        assert index.verify() == []
        assert index.info().pending_changes == 1
        with pytest.raises(sqlite3.OperationalError, match="attempt to write a readonly database"):
            index.sync()
    assert cli("search", uri, "posts", "comet", "-k", "1")[0] == 0
    assert cli("sync", uri, "--silent") == (
        1,
        f"Error: {uri}: it is read-only, and this command has something to write\n",
    )
    assert [file.name for file in db_path.parent.iterdir()] == [db_path.name]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_wal_database_in_a_folder_that_cannot_be_written_is_searched(small_index: Index, db_path: Path) -> None:
    connection_of(small_index).execute("PRAGMA journal_mode = WAL")
    small_index.close()
    db_path.parent.chmod(0o555)
    try:
        with pytest.raises(SourceError, match=r"in WAL mode .* add \?immutable=1 to file:"):
            Index.open(db_path, "posts")
        with Index.open(f"{db_path.as_uri()}?immutable=1", "posts") as index:
            assert index.search("comet", k=1)[0].pk == 2
    finally:
        db_path.parent.chmod(0o755)


def test_threads_that_fail_to_write_let_others_write(db_path: Path, encoder: Encoder) -> None:
    with closing(crashes.connect(db_path)) as conn:
        conn.execute("PRAGMA query_only = ON")
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            Index.create(conn, "posts", ["body"], model=encoder)
    built = threading.Thread(target=lambda: Index.create(db_path, "posts", ["body"], model=encoder).close())
    built.start()
    built.join()
    assert [entry.state for entry in list_indexes(db_path)] == ["ready"]
