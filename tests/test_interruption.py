"""Builds that are killed, stopped or overtaken: the database stays sound, the old index in use, nothing is lost.

``COLBERT_KILLS=50 pytest tests/test_interruption.py`` kills fifty builds instead of six.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.errors import BuildInterrupted
from colbert_sqlite.index import Index, list_indexes
from colbert_sqlite.indexing import Progress

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("COLBERT_KILLS", "6"))
N_ROWS = 400

BUILD = """
import sys
from colbert_sqlite import indexing
from colbert_sqlite.index import Index
indexing._CHUNK_BYTES, indexing._SAMPLE_TOKENS = 3000, 4000
print("begin", flush=True)
Index.create(sys.argv[1], "t", ["body"], model="hashing-32", nbits=int(sys.argv[2]), replace=True)
print("end", flush=True)
"""


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


def start(path: Path, nbits: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(path), str(nbits)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    return process


def answers(path: Path) -> list[list[tuple[Any, float]]]:
    with Index.open(path, "t") as index:
        return [[(hit.pk, hit.score) for hit in index.search(f"topic{i}", k=3)] for i in (0, 7, 333)]


def build_whole(path: Path, nbits: int) -> float:
    began = time.monotonic()
    process = start(path, nbits)
    assert process.wait() == 0
    assert process.stdout is not None
    process.stdout.close()
    return time.monotonic() - began


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_killed_build_leaves_the_old_index_and_is_continued(path: Path, journal: str) -> None:
    conn = sqlite3.connect(path)
    conn.execute(f"PRAGMA journal_mode = {journal}")
    conn.close()
    build_whole(path, 2)
    old = answers(path)
    seconds = build_whole(path, 4)
    new = answers(path)
    build_whole(path, 2)
    assert answers(path) == old != new
    moments = random.Random(journal)
    unfinished = 0
    for _ in range(KILLS // 2):
        process = start(path, 4)
        time.sleep(moments.uniform(0, seconds))
        process.kill()
        process.wait()
        assert process.stdout is not None
        finished = "end\n" in process.stdout
        process.stdout.close()
        conn = sqlite3.connect(path)
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        conn.close()
        with Index.open(path, "t") as index:
            assert index.verify() == []
            nbits = index.settings.nbits
        assert answers(path) == (old if nbits == 2 else new)
        unfinished += not finished
    build_whole(path, 4)
    assert answers(path) == new
    assert [entry["state"] for entry in list_indexes(path)] == ["ready"]
    assert unfinished > 0


class Stop(Exception):
    pass


def stop_at(stage: str, done: int) -> Any:
    def progress(now: Progress) -> None:
        if now.stage == stage and now.done >= done:
            raise Stop

    return progress


def test_a_second_run_goes_on_where_the_first_stopped(
    path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_sqlite.indexing._CHUNK_BYTES", 3000)
    monkeypatch.setattr("colbert_sqlite.indexing._SAMPLE_TOKENS", 4000)
    with pytest.raises(Stop):
        Index.create(path, "t", ["body"], model=encoder, progress=stop_at("encode", 300))
    (entry,) = list_indexes(path)
    assert (entry["state"], entry["rows"] >= 300) == ("building", True)
    conn = sqlite3.connect(path)
    conn.execute("DELETE FROM t WHERE id < 10")
    conn.execute("UPDATE t SET body = 'A walrus.' WHERE id = 20")
    conn.execute("INSERT INTO t VALUES (-5, 'A capybara.')")
    conn.commit()
    seen: list[Progress] = []
    with Index.create(path, "t", ["body"], model=encoder, progress=seen.append) as index:
        assert min(p.done for p in seen if p.stage == "encode") >= entry["rows"] - 10
        assert index.verify() == []
        assert index.counts["rows"] == N_ROWS - 9
        assert index.search("walrus", k=1)[0].pk == 20
        assert index.search("capybara", k=1)[0].pk == -5


def test_other_settings_begin_anew(path: Path, encoder: Encoder) -> None:
    with pytest.raises(Stop):
        Index.create(path, "t", ["body"], model=encoder, progress=stop_at("write", 0))
    with Index.create(path, "t", ["body"], model=encoder, nbits=1) as index:
        assert index.settings.nbits == 1
        assert index.verify() == []


def test_the_second_of_two_builders_wins(path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colbert_sqlite.indexing._CHUNK_BYTES", 3000)

    def overtake(now: Progress) -> None:
        if now.stage == "write":
            Index.create(path, "t", ["body"], model=encoder).close()

    with pytest.raises(BuildInterrupted, match="another process is building index 't' now; this one stops"):
        Index.create(path, "t", ["body"], model=encoder, progress=overtake)
    with Index.open(path, "t") as index:
        assert index.verify() == []


def test_an_interrupted_first_build_can_be_dropped(path: Path, encoder: Encoder) -> None:
    from colbert_sqlite.index import drop

    with pytest.raises(Stop):
        Index.create(path, "t", ["body"], model=encoder, progress=stop_at("write", 0))
    drop(path, "t")
    conn = sqlite3.connect(path)
    assert conn.execute("SELECT name FROM sqlite_master WHERE name LIKE '%colbert%'").fetchall() == []
