"""Writers that are killed, stopped or overtaken: the database stays sound, the old index in use, nothing is lost.

``COLBERT_KILLS=300 pytest tests/test_interruption.py`` kills three hundred of them instead of twelve.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.errors import BuildInterrupted
from colbert_sqlite.index import Index
from colbert_sqlite.indexes import drop, list_indexes
from colbert_sqlite.progress import Progress
from tests.marks import slow

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("COLBERT_KILLS", "12"))
KILLED_BUILDS = 3
N_ROWS = 300

# Where to kill a build, (stage, rows done), from and to; "encode" counts the rows of the sample first, some 70.
MOMENTS = [(("encode", 0), ("encode", 60)), (("train", 0), ("train", 1)), (("encode", 80), ("encode", N_ROWS - 1))]
MOMENTS += [(("write", 0), ("write", 1))]


BUILD = """
import sys
from colbert_sqlite import build, rows
from colbert_sqlite.index import Index
rows.CHUNK_BYTES, build._SAMPLE_TOKENS = 3000, 4000
say = lambda now: print(now.stage, now.done, flush=True)
Index.create(sys.argv[1], "t", ["body"], model="hashing-32", nbits=int(sys.argv[2]), replace=True, progress=say).close()
print("end", flush=True)
"""


@pytest.fixture(autouse=True)
def many_small_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colbert_sqlite.rows.CHUNK_BYTES", 3000)
    monkeypatch.setattr("colbert_sqlite.build._SAMPLE_TOKENS", 4000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "t.db"
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    words = random.Random(0)
    bodies = (f"Topic{i}. " + " ".join(f"word{words.randrange(2000)}" for _ in range(60)) for i in range(N_ROWS))
    conn.executemany("INSERT INTO t VALUES (?, ?)", enumerate(bodies))
    conn.commit()
    conn.close()
    return path


def run_build(path: Path, nbits: int, *, kill_at: tuple[str, int] | None = None, delay: float = 0) -> bool:
    """Build the index in another process, killed *delay* seconds after it says *kill_at*; return whether it ended."""
    with subprocess.Popen(
        [sys.executable, "-c", BUILD, str(path), str(nbits)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            stage, _, done = line.strip().partition(" ")
            if kill_at is not None and stage == kill_at[0] and int(done) >= kill_at[1]:
                time.sleep(delay)
                process.kill()
                break
        finished = line == "end\n" or "end\n" in process.stdout
    assert kill_at is not None or process.returncode == 0
    return finished


def answers(path: Path) -> list[list[tuple[Any, float]]]:
    with Index.open(path, "t") as index:
        return [[(hit.pk, hit.score) for hit in index.search(f"topic{i}", k=3)] for i in (0, 7, 234)]


@pytest.mark.slow
@pytest.mark.parametrize(("journal", "first"), [("delete", 0), ("wal", 1)])
def test_a_killed_build_leaves_the_old_index_and_is_continued(path: Path, journal: str, first: int) -> None:
    conn = sqlite3.connect(path)
    conn.execute(f"PRAGMA journal_mode = {journal}")
    conn.close()
    run_build(path, 4)
    new = answers(path)
    run_build(path, 2)
    old = answers(path)
    assert old != new
    chance = random.Random(journal)
    unfinished = 0
    for i in range(first, first + KILLED_BUILDS):
        (stage, earliest), (_, latest) = MOMENTS[i % len(MOMENTS)]
        if i % len(MOMENTS) == 0:
            # Other settings begin anew: the next kill can meet the sample again.
            run_build(path, 2)
        kill_at = stage, chance.randint(earliest, latest)
        unfinished += not run_build(path, 4, kill_at=kill_at, delay=chance.uniform(0, 0.02))
        conn = sqlite3.connect(path)
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        conn.close()
        with Index.open(path, "t") as index:
            assert index.verify() == []
            nbits = index.settings.nbits
        assert answers(path) == (old if nbits == 2 else new)
    run_build(path, 4)
    assert answers(path) == new
    assert [entry.state for entry in list_indexes(path)] == ["ready"]
    assert list(path.parent.glob("*-colbert-*")) == []
    assert unfinished > KILLED_BUILDS // 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has multiplied matrices")
def test_nothing_is_lost_or_half_visible_whatever_is_killed() -> None:
    crashes = f"-W ignore::DeprecationWarning -m tests.crashes --json --kills {KILLS}"
    # One process forks another: without threads.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, *crashes.split()]
    said = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    outcomes = [json.loads(line) for line in said.splitlines()]
    for outcome in outcomes:
        assert (outcome["lost"], outcome["half_visible"], outcome["left_behind"]) == ([], [], [])
    assert sum(outcome["kills"] for outcome in outcomes) == KILLS
    assert sum(outcome["before_the_end"] for outcome in outcomes) > KILLS // 2


class Stop(Exception):
    pass


def stop_at(stage: str, done: int) -> Any:
    def progress(now: Progress) -> None:
        if now.stage == stage and now.done >= done:
            raise Stop

    return progress


def test_a_second_run_goes_on_where_the_first_stopped(path: Path, encoder: Encoder) -> None:
    with pytest.raises(Stop):
        Index.create(path, "t", ["body"], model=encoder, progress=stop_at("encode", 200))
    (entry,) = list_indexes(path)
    assert (entry.state, entry.rows >= 200) == ("building", True)
    conn = sqlite3.connect(path)
    conn.execute("DELETE FROM t WHERE id < 10")
    conn.execute("UPDATE t SET body = 'A walrus.' WHERE id = 20")
    conn.execute("INSERT INTO t VALUES (-5, 'A capybara.')")
    conn.commit()
    seen: list[Progress] = []
    with Index.create(path, "t", ["body"], model=encoder, progress=seen.append) as index:
        assert next(p.done for p in seen if p.stage == "encode") >= entry.rows - 10
        assert index.verify() == []
        assert index.counts().rows == N_ROWS - 9
        assert index.search("walrus", k=1)[0].pk == 20
        assert index.search("capybara", k=1)[0].pk == -5


@pytest.mark.parametrize("moment", [("encode", 30), *slow(("train", 0), ("train", 1), ("write", 0))])
def test_a_build_that_went_on_leaves_nothing_beside_the_database(
    path: Path, encoder: Encoder, moment: tuple[str, int]
) -> None:
    with pytest.raises(Stop):
        Index.create(path, "t", ["body"], model=encoder, progress=stop_at(*moment))
    Index.create(path, "t", ["body"], model=encoder).close()
    assert [file.name for file in path.parent.iterdir()] == ["t.db"]


def test_other_settings_begin_anew(path: Path, encoder: Encoder) -> None:
    with pytest.raises(Stop):
        Index.create(path, "t", ["body"], model=encoder, progress=stop_at("write", 0))
    with Index.create(path, "t", ["body"], model=encoder, nbits=1) as index:
        assert index.settings.nbits == 1
        assert index.verify() == []


def test_the_second_of_two_builders_waits(path: Path, encoder: Encoder) -> None:
    waiting = threading.Event()
    seen: list[str] = []

    def build_too() -> None:
        def progress(now: Progress) -> None:
            seen.append(now.stage)
            waiting.set()

        Index.create(path, "t", ["body"], model=encoder, nbits=2, replace=True, progress=progress).close()

    second = threading.Thread(target=build_too)

    def begin_the_second(now: Progress) -> None:
        if now == Progress("write", 0, 1):
            second.start()
            assert waiting.wait(30)

    with Index.create(path, "t", ["body"], model=encoder, progress=begin_the_second) as index:
        assert index.settings.nbits == 4
    second.join()
    assert [*dict.fromkeys(seen)][:2] == ["wait", "encode"]
    with Index.open(path, "t") as index:
        assert (index.settings.nbits, index.verify()) == (2, [])
    assert [file.name for file in path.parent.iterdir()] == ["t.db"]


def test_a_build_within_a_build_is_refused(path: Path, encoder: Encoder) -> None:
    def build_too(now: Progress) -> None:
        Index.create(path, "t", ["body"], model=encoder)

    with pytest.raises(ValueError, match="index 't' is being written by this thread: let that call return first"):
        Index.create(path, "t", ["body"], model=encoder, progress=build_too)
    Index.create(path, "t", ["body"], model=encoder).close()


@pytest.mark.parametrize("moment", [("write", 0), *slow(("encode", 200), ("train", 0), ("write", 1))])
def test_a_build_whose_index_is_dropped_stops(path: Path, encoder: Encoder, moment: tuple[str, int]) -> None:
    def drop_it(now: Progress) -> None:
        if now[:2] == moment or (now.stage, moment[0]) == ("encode", "encode") and now.done >= moment[1]:
            drop(path, "t")

    with pytest.raises(BuildInterrupted, match="another process took over the build of index 't', or dropped it"):
        Index.create(path, "t", ["body"], model=encoder, progress=drop_it)
    assert list_indexes(path) == []
    assert [file.name for file in path.parent.iterdir()] == ["t.db"]


def test_an_interrupted_first_build_can_be_dropped(path: Path, encoder: Encoder) -> None:
    with pytest.raises(Stop):
        Index.create(path, "t", ["body"], model=encoder, progress=stop_at("write", 0))
    drop(path, "t")
    conn = sqlite3.connect(path)
    assert conn.execute("SELECT name FROM sqlite_master WHERE name LIKE '%colbert%'").fetchall() == []
