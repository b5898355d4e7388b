"""Jobs of the Datasette plugin: what they do, in which order, and how they end."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from datasette_colbert.manage.auto_sync import ROUNDS_TO_RETRY, AutoSync
from datasette_colbert.manage.jobs import MAX_ENDED_JOBS, Job, Jobs
from datasette_colbert.manage.work import Create, Drop, Rebuild, Sync, continue_build

from colbert_sqlite.errors import IndexNotFound
from colbert_sqlite.index import Index
from colbert_sqlite.indexes import list_indexes
from colbert_sqlite.progress import Progress, ProgressCallback
from colbert_sqlite.settings import IndexSettings

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 60
N_ROWS = 300


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    jobs = Jobs()
    yield jobs
    assert jobs.close(SECONDS)


@pytest.fixture
def long_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a table that takes many chunks to index."""
    monkeypatch.setattr("colbert_sqlite.rows.CHUNK_BYTES", 3000)
    monkeypatch.setattr("colbert_sqlite.build._SAMPLE_TOKENS", 4000)
    words = random.Random(0)
    bodies = [" ".join(f"word{words.randrange(2000)}" for _ in range(60)) for _ in range(N_ROWS)]
    with closing(sqlite3.connect(tmp_path / "long.db")) as conn:
        conn.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, body TEXT)")
        conn.executemany("INSERT INTO posts (body) VALUES (?)", [(body,) for body in bodies])
        conn.commit()
    return tmp_path / "long.db"


def of(path: Path, index: str = "posts") -> dict[str, Any]:
    return {"database": path.stem, "path": str(path), "index": index, "table": "posts"}


def creation(path: Path, index: str = "posts", **settings: Any) -> Create:
    values = {"table": "posts", "columns": ("body",), "model": "hashing", **settings}
    return Create(**of(path, index), settings=IndexSettings(**values))


def ended(jobs: Jobs, job: Job) -> Job:
    """The job once all jobs are over."""
    assert jobs.wait(SECONDS)
    over = jobs.get(job.id)
    assert over is not None and over.is_over
    return over


def unfinished_build(path: Path, index: str = "posts") -> Create:
    with closing(sqlite3.connect(path)) as conn:
        return continue_build(conn, path.stem, str(path), index)


class Gate:
    """Holds a piece of work at a moment of its progress until it is opened."""

    def __init__(self, stage: str, n_done: int = 0) -> None:
        self.stage, self.n_done = stage, n_done
        self.reached, self.opened = threading.Event(), threading.Event()

    def before(self, progress: ProgressCallback) -> ProgressCallback:
        def held(now: Progress) -> None:
            if now.stage == self.stage and now.done >= self.n_done:
                self.reached.set()
                assert self.opened.wait(SECONDS)
            progress(now)

        return held


@dataclass(frozen=True, kw_only=True)
class HeldCreate(Create):
    gate: Gate

    def run(self, progress: ProgressCallback) -> dict[str, int]:
        return Create.run(self, self.gate.before(progress))


def held(path: Path, gate: Gate, index: str = "posts") -> HeldCreate:
    return HeldCreate(**of(path, index), settings=creation(path).settings, gate=gate)


@dataclass(frozen=True, kw_only=True)
class Broken:
    """Work of an index that ends with an error."""

    kind: ClassVar[str] = "sync"
    index: str
    error: Exception = dataclasses.field(default_factory=lambda: ValueError("no"))
    database: str = "blog"
    table: str = "posts"

    def run(self, progress: ProgressCallback) -> dict[str, int]:
        raise self.error


def test_an_index_is_created_synced_rebuilt_and_dropped(db_path: Path, jobs: Jobs) -> None:
    created = ended(jobs, jobs.submit(creation(db_path, heading="title"), actor_id="root"))
    assert (created.state, created.actor_id) == ("done", "root")
    assert created.result == {"rows": 5, "rows_without_text": 0, "passages": 5, "tokens": 61}
    assert (created.stage, created.done, created.total) == ("write", 1, 1)
    with closing(sqlite3.connect(db_path)) as conn:
        conn.execute("INSERT INTO posts VALUES (6, 'Rain', 'It rains')")
        conn.commit()
    synced = ended(jobs, jobs.submit(Sync(**of(db_path))))
    assert (synced.state, synced.result) == ("done", {"added": 1, "updated": 0, "deleted": 0, "compared": 0})
    rebuilt = ended(jobs, jobs.submit(Rebuild(**of(db_path))))
    assert (rebuilt.state, rebuilt.result["rows"]) == ("done", 6)
    with Index.open(db_path, "posts") as index:
        assert [hit.pk for hit in index.search("it rains", k=1)] == [6]
    dropped = ended(jobs, jobs.submit(Drop(**of(db_path))))
    assert (dropped.state, dropped.result, list_indexes(db_path)) == ("done", {}, [])
    assert [job.work.kind for job in jobs.all()] == ["drop", "rebuild", "sync", "create"]


def test_a_job_as_plain_values(db_path: Path, jobs: Jobs) -> None:
    job = ended(jobs, jobs.submit(creation(db_path)))
    values = job.to_dict()
    times = [str(values.pop(name)) for name in ("submitted", "started", "finished")]
    assert times == sorted(times) and all(time.endswith("+00:00") for time in times)
    assert values == {
        "id": job.id,
        "kind": "create",
        "database": "blog",
        "index": "posts",
        "table": "posts",
        "is_automatic": False,
        "state": "done",
        "cancelling": False,
        "stage": "write",
        "done": 1,
        "total": 1,
        "error": "",
        "result": job.result,
        "seconds_left": None,
    }


def test_jobs_run_one_at_a_time_and_in_order(db_path: Path, jobs: Jobs) -> None:
    gate = Gate("encode")
    first = jobs.submit(held(db_path, gate, "first"))
    second, third = (jobs.submit(creation(db_path, name)) for name in ("second", "third"))
    assert gate.reached.wait(SECONDS)
    assert [job.state for job in jobs.all()] == ["waiting", "waiting", "running"]
    gate.opened.set()
    assert [ended(jobs, job).state for job in (first, second, third)] == ["done"] * 3
    starts = [job.started for job in reversed(jobs.all())]
    assert starts == sorted(starts, key=str) and len(list_indexes(db_path)) == 3


def test_an_index_has_one_job_at_a_time(db_path: Path, jobs: Jobs) -> None:
    gate = Gate("encode")
    job = jobs.submit(held(db_path, gate))
    assert [jobs.submit(work).id for work in (creation(db_path, "POSTS"), Drop(**of(db_path)))] == [job.id] * 2
    gate.opened.set()
    assert jobs.submit(creation(db_path, "other")).id != job.id
    assert ended(jobs, job).state == "done"
    assert jobs.submit(Sync(**of(db_path))).id != job.id


def test_a_job_that_waits_is_cancelled_at_once(db_path: Path, jobs: Jobs) -> None:
    gate = Gate("encode")
    first, second = jobs.submit(held(db_path, gate, "first")), jobs.submit(creation(db_path, "second"))
    cancelled = jobs.cancel(second.id)
    assert cancelled is not None and (cancelled.state, cancelled.started) == ("cancelled", None)
    gate.opened.set()
    assert ended(jobs, first).state == "done"
    assert [index.name for index in list_indexes(db_path)] == ["first"]


def test_a_cancelled_build_goes_on_where_it_stopped(long_table: Path, jobs: Jobs) -> None:
    gate = Gate("encode", 120)
    job = jobs.submit(held(long_table, gate))
    assert gate.reached.wait(SECONDS)
    running = jobs.cancel(job.id)
    assert running is not None and (running.state, running.cancelling) == ("running", True)
    gate.opened.set()
    job = ended(jobs, job)
    assert (job.state, job.cancelling, job.error) == ("cancelled", False, "")
    [build] = list_indexes(long_table)
    assert build.state == "building" and 100 < build.rows < N_ROWS
    with closing(sqlite3.connect(long_table)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    work = unfinished_build(long_table, "POSTS")
    assert (work.settings.columns, work.settings.model, work.replace) == (("body",), "hashing", False)
    gate = Gate("encode")
    again = jobs.submit(HeldCreate(**{f.name: getattr(work, f.name) for f in dataclasses.fields(work)}, gate=gate))
    assert gate.reached.wait(SECONDS)
    gate.opened.set()
    assert ended(jobs, again).result["rows"] == N_ROWS
    with Index.open(long_table, "posts") as index:
        assert index.verify() == []
    with pytest.raises(IndexNotFound, match="index 'posts' has no unfinished build"):
        unfinished_build(long_table)


def test_a_cancelled_rebuild_leaves_the_index_in_use_and_can_go_on(long_table: Path, jobs: Jobs) -> None:
    Index.create(long_table, "posts", ["body"], model="hashing").close()
    gate = Gate("encode", 120)
    job = jobs.submit(dataclasses.replace(held(long_table, gate), replace=True))
    assert gate.reached.wait(SECONDS)
    jobs.cancel(job.id)
    gate.opened.set()
    assert ended(jobs, job).state == "cancelled"
    assert [index.state for index in list_indexes(long_table)] == ["ready", "building"]
    with Index.open(long_table, "posts") as index:
        assert index.counts().rows == N_ROWS and index.search("word1")
        work = unfinished_build(long_table)
        assert work.replace and ended(jobs, jobs.submit(work)).state == "done"
        assert index.verify() == []


def test_a_job_that_fails_says_why_and_leaves_nothing(db_path: Path, jobs: Jobs) -> None:
    with closing(sqlite3.connect(db_path)) as conn:
        before = conn.execute("SELECT name FROM sqlite_master").fetchall()
        job = ended(jobs, jobs.submit(creation(db_path, columns=("bodi",))))
        assert (job.state, job.error) == (
            "failed",
            "no column 'bodi' in table 'posts'; it has id, title, body",
        )
        assert conn.execute("SELECT name FROM sqlite_master").fetchall() == before
    assert ended(jobs, jobs.submit(Sync(**of(db_path)))).error.startswith("no index 'posts' in this database")
    busy = ended(jobs, jobs.submit(Broken(index="busy", error=sqlite3.OperationalError("disk I/O error"))))
    assert (busy.state, busy.error) == ("failed", "disk I/O error")


def test_an_error_that_nobody_foresaw_is_in_the_log(jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
    job = ended(jobs, jobs.submit(Broken(index="posts", error=KeyError("secret"))))
    assert (job.state, job.error) == ("failed", "an unexpected error ended it: see the log of the server")
    assert caplog.messages == ["sync of index 'posts' in 'blog'"] and "KeyError: 'secret'" in caplog.text
    assert ended(jobs, jobs.submit(Broken(index="posts"))).error == "no"


def test_the_last_fifty_jobs_are_kept(jobs: Jobs) -> None:
    first = jobs.submit(Broken(index="first"))
    assert jobs.wait(SECONDS)
    others = [jobs.submit(Broken(index=str(number))) for number in range(MAX_ENDED_JOBS)]
    assert jobs.wait(SECONDS)
    assert [job.id for job in jobs.all()] == [job.id for job in reversed(others)]
    assert jobs.get(first.id) is None and jobs.cancel(first.id) is None


def test_closing_cancels_what_there_is_and_takes_no_more(long_table: Path) -> None:
    jobs, gate = Jobs(), Gate("encode", 120)
    first, second = jobs.submit(held(long_table, gate)), jobs.submit(creation(long_table, "second"))
    assert gate.reached.wait(SECONDS)
    assert not jobs.close(0)
    gate.opened.set()
    assert jobs.close(SECONDS)
    late = jobs.submit(creation(long_table, "third"))
    assert [ended(jobs, job).state for job in (first, second, late)] == ["cancelled"] * 3


SERVER = """
import signal, sys, time
from pathlib import Path
# Whatever a shell starts in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from colbert_sqlite import build, rows
from datasette_colbert.manage.jobs import Jobs
from datasette_colbert.manage.work import Create
from colbert_sqlite.settings import IndexSettings
rows.CHUNK_BYTES, build._SAMPLE_TOKENS = 3000, 4000
jobs = Jobs()
settings = IndexSettings(table="posts", columns=("body",), model="hashing")
job = jobs.submit(Create(database="long", path=sys.argv[1], index="posts", table="posts", settings=settings))
while jobs.get(job.id).done < 1:
    time.sleep(0.001)
try:
    print("serving", flush=True)
    # In short pieces: a signal just before a sleep begins does not end it.
    for _ in range(6000 if sys.argv[2] == "wait" else 0):
        time.sleep(0.01)
except KeyboardInterrupt:
    pass
"""


@pytest.mark.parametrize("how", ["return", "wait"])
def test_the_process_ends_in_the_middle_of_a_job(long_table: Path, how: str) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")])}
    command = [sys.executable, "-c", SERVER, str(long_table), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as server:
        assert server.stdout is not None and server.stdout.readline() == "serving\n"
        if how == "wait":
            server.send_signal(signal.SIGINT)
        assert server.communicate(timeout=SECONDS) == ("", "")
    assert server.returncode == 0
    with closing(sqlite3.connect(long_table)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.fixture
def followed(db_path: Path, jobs: Jobs) -> AutoSync:
    """What follows a database with an index with triggers, and one without."""
    for name, triggers in (("posts", True), ("blind", False)):
        Index.create(db_path, "posts", ["body"], name=name, model="hashing", triggers=triggers).close()
    return AutoSync(jobs, "blog", str(db_path), 0.01, model_of=lambda table: None)


def add_row(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("INSERT INTO posts (body) VALUES ('one more')")
        conn.commit()


def test_auto_sync_syncs_what_changed(followed: AutoSync, db_path: Path, jobs: Jobs) -> None:
    assert followed.look() == []
    add_row(db_path)
    [job] = followed.look()
    assert ended(jobs, job).result["added"] == 1
    assert (job.work.index, job.actor_id, followed.look()) == ("posts", None, [])


def test_of_jobs_that_nobody_asked_for_the_last_of_an_index_is_kept(
    followed: AutoSync, db_path: Path, jobs: Jobs
) -> None:
    requested = jobs.submit(Sync(**of(db_path)))
    assert jobs.wait(SECONDS)
    for _ in range(3):
        add_row(db_path)
        [job] = followed.look()
        assert jobs.wait(SECONDS)
    assert [one.id for one in jobs.all()] == [job.id, requested.id]


@pytest.mark.parametrize("model", [None, "hashing", "hashing-32"])
def test_a_configured_model_is_used_where_it_is_that_of_the_index(db_path: Path, jobs: Jobs, model: str | None) -> None:
    Index.create(db_path, "posts", ["body"], model="hashing").close()
    for kind in (Sync, Rebuild):
        add_row(db_path)
        assert ended(jobs, jobs.submit(kind(**of(db_path), model=model))).state == "done"
    with Index.open(db_path, "posts") as index:
        assert (index.counts().rows, index.info().pending_changes, index.verify()) == (7, 0, [])


def test_auto_sync_compares_all_rows_only_now_and_then(followed: AutoSync, db_path: Path, jobs: Jobs) -> None:
    add_row(db_path)
    looked = []
    for _ in range(2 * ROUNDS_TO_RETRY):
        looked.append([job.work.index for job in followed.look()])
        assert jobs.wait(SECONDS)
    rare = [["blind"] if number % ROUNDS_TO_RETRY == 0 else [] for number in range(2, 2 * ROUNDS_TO_RETRY + 1)]
    assert looked == [["posts"], *rare]


def test_auto_sync_tries_again_only_now_and_then(followed: AutoSync, db_path: Path, jobs: Jobs) -> None:
    add_row(db_path)
    assert followed.look() != [] and jobs.wait(SECONDS)
    add_row(db_path)
    assert ended(jobs, jobs.submit(Broken(index="posts"))).state == "failed"
    assert [len(followed.look()) for _ in range(ROUNDS_TO_RETRY - 2)] == [0] * (ROUNDS_TO_RETRY - 2)
    assert {job.work.index for job in followed.look()} == {"posts", "blind"}


def test_auto_sync_goes_on_by_itself_until_it_is_closed(followed: AutoSync, db_path: Path, jobs: Jobs) -> None:
    followed.start()
    add_row(db_path)
    waited = threading.Event()
    while (job := jobs.latest("blog", "posts")) is None or not job.is_over:
        waited.wait(0.01)
    followed.close()
    assert job.result["added"] == 1


def test_auto_sync_says_once_that_a_file_is_gone(tmp_path: Path, jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
    followed = AutoSync(jobs, "gone", str(tmp_path / "gone.db"), 0.01, model_of=lambda table: None)
    followed.start()
    while not caplog.messages:
        threading.Event().wait(0.1)
    threading.Event().wait(0.1)
    followed.close()
    [message] = caplog.messages
    assert message.startswith("Database 'gone' can't be looked at for changed rows: no database file")
