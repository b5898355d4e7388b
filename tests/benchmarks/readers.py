"""Readers beside a writer: is every hit right, and how long do searches and syncs take?

    python -m tests.benchmarks.readers [--seconds 60] [--readers 8] [--threads] [--rows 2000] [--journal wal delete]

Each reader is a process, or with ``--threads`` a thread, with a connection and an :class:`Index` of its own. It
searches as fast as it can, first alone and then beside a writer process that inserts, updates and deletes rows, syncs
after each transaction, and rebuilds the index now and then. Every search runs in a read transaction, in which its hits
are compared with the table. Some rows the writer never touches: asked for, each comes first, with one and the same
score for as long as the index is not rebuilt. Prints Markdown, and what was wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import random
import sqlite3
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import numpy as np

from colbert_sqlite.index import Index

MODEL = "hashing-32"
# Rows that the writer leaves alone: the first ones.
UNTOUCHED = 20
# Seconds until a process that does not answer is given up.
PATIENCE = 120
SHOWN = 5


@dataclasses.dataclass
class Log:
    """What one reader, or the writer, has seen."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    rebuilds: list[float] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    scores: dict[tuple[str, int], set[float]] = dataclasses.field(default_factory=dict)

    def add(self, other: Log) -> None:
        self.seconds += other.seconds
        self.rebuilds += other.rebuilds
        self.wrong += other.wrong
        for row, scores in other.scores.items():
            self.scores.setdefault(row, set()).update(scores)


@dataclasses.dataclass
class Measured:
    """Readers alone, readers beside the writer, the writer; and what was wrong, a sentence each."""

    alone: Log
    beside: Log
    writer: Log
    wrong: list[str]


def text_of(row: int, version: int) -> str:
    words = random.Random(f"{row} {version}")
    return f"Topic{row} is of{row}. " + " ".join(f"word{words.randrange(3000)}" for _ in range(words.randint(5, 60)))


def make(path: Path, journal: str, n_rows: int) -> None:
    """Make a table and its index."""
    with closing(sqlite3.connect(path)) as conn:
        conn.execute(f"PRAGMA journal_mode = {journal}")
        conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
        conn.executemany("INSERT INTO t VALUES (?, ?)", ((row, text_of(row, 0)) for row in range(n_rows)))
        conn.commit()
    Index.create(path, "t", ["body"], model=MODEL).close()


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=60)


def read(path: Path, seed: int, n_rows: int, start: Barrier, stop: Event) -> Log:
    """Search until told to stop."""
    log, chance = Log(), random.Random(seed)
    with closing(connect(path)) as conn:
        index = Index.open(conn, "t", model=MODEL)
        index.search("warm up")
        start.wait(PATIENCE)
        while not stop.is_set():
            row = chance.randrange(UNTOUCHED if chance.random() < 0.5 else n_rows)
            try:
                search_and_look(conn, index, row, log)
            except Exception as error:
                log.wrong.append(f"reader: {error!r}")
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
    return log


def search_and_look(conn: sqlite3.Connection, index: Index, row: int, log: Log) -> None:
    began = time.perf_counter()
    conn.execute("BEGIN")
    hits, again = index.search_many([f"topic{row} of{row}"] * 2, k=5)
    log.seconds.append((time.perf_counter() - began) / 2)
    (build,) = conn.execute("SELECT build_id FROM _colbert_indexes WHERE name = 't' AND state = 'ready'").fetchone()
    for hit in hits:
        body = conn.execute("SELECT body FROM t WHERE id = ?", (hit.pk,)).fetchone()
        if body is None or hit.row != {"id": hit.pk, "body": body[0]}:
            log.wrong.append(f"hit {hit.pk} came with {hit.row}, the table has {body}")
        elif hit.passage.text != body[0][hit.passage.start : hit.passage.end] or not hit.passage.text:
            log.wrong.append(f"hit {hit.pk} came with passage {hit.passage}")
    conn.execute("ROLLBACK")
    if hits != again:
        log.wrong.append(f"two answers to one query: {hits}, {again}")
    if row < UNTOUCHED:
        if not hits or hits[0].pk != row or hits[0].stale:
            log.wrong.append(f"row {row} did not come first: {hits[:1]}")
        else:
            log.scores.setdefault((build, row), set()).add(hits[0].score)


def write(path: Path, n_rows: int, every: float, start: Barrier, stop: Event) -> Log:
    """Change rows and sync until told to stop; rebuild every so many seconds."""
    log, chance, version = Log(), random.Random(0), 0
    with closing(connect(path)) as conn:
        index = Index.open(conn, "t", model=MODEL)
        index.load_encoder().encode_queries(["warm up"])
        start.wait(PATIENCE)
        rebuilt = -every
        while not stop.is_set():
            version += 1
            conn.execute("BEGIN IMMEDIATE")
            for _ in range(chance.randint(1, 20)):
                row = chance.randrange(UNTOUCHED, n_rows * 5 // 4)
                if chance.random() < 0.3:
                    conn.execute("DELETE FROM t WHERE id = ?", (row,))
                else:
                    conn.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (row, text_of(row, version)))
            conn.execute("COMMIT")
            began = time.perf_counter()
            try:
                index.sync()
                log.seconds.append(time.perf_counter() - began)
                if began - rebuilt > every:
                    began = time.perf_counter()
                    index.rebuild()
                    rebuilt = time.perf_counter()
                    log.rebuilds.append(rebuilt - began)
            except Exception as error:
                log.wrong.append(f"writer: {error!r}")
        if problems := index.verify():
            log.wrong += problems
    return log


def _put(queue: Any, kind: str, function: Any, *arguments: Any) -> None:
    try:
        queue.put((kind, function(*arguments)))
    except BaseException as error:
        queue.put((kind, Log(wrong=[f"{kind}: {error!r}"])))
        raise


def together(
    path: Path, n_rows: int, seconds: float, *, readers: int, threads: bool, writing: bool, rebuild_every: float
) -> dict[str, Log]:
    """Let readers, and a writer if there is to be one, work for some seconds; return what they have seen."""
    spawning = multiprocessing.get_context("spawn")
    queue: Any = spawning.Queue()
    start, stop = spawning.Barrier(readers + writing + 1), spawning.Event()
    workers: list[Any] = []
    for seed in range(readers):
        kind: Any = threading.Thread if threads else spawning.Process
        workers.append(kind(target=_put, args=(queue, "reader", read, path, seed, n_rows, start, stop)))
    if writing:
        arguments = (queue, "writer", write, path, n_rows, rebuild_every, start, stop)
        workers.append(spawning.Process(target=_put, args=arguments))
    for worker in workers:
        worker.start()
    start.wait(PATIENCE)
    time.sleep(seconds)
    stop.set()
    logs = {"reader": Log(), "writer": Log()}
    for _ in workers:
        kind_of, log = queue.get(timeout=PATIENCE)
        logs[kind_of].add(log)
    for worker in workers:
        worker.join()
    return logs


def measure(
    path: Path,
    journal: str,
    *,
    n_rows: int,
    seconds: float,
    readers: int,
    threads: bool = False,
    rebuild_every: float = 10,
) -> Measured:
    """Readers alone for a quarter of the time, then readers beside a writer."""
    make(path, journal, n_rows)
    common: dict[str, Any] = {"readers": readers, "threads": threads, "rebuild_every": rebuild_every}
    alone = together(path, n_rows, seconds / 4, writing=False, **common)["reader"]
    logs = together(path, n_rows, seconds, writing=True, **common)
    beside, writer = logs["reader"], logs["writer"]
    scores = {**alone.scores}
    for row, found in beside.scores.items():
        scores[row] = scores.get(row, set()) | found
    wrong = [*alone.wrong, *beside.wrong, *writer.wrong]
    wrong += [f"row {row} of build {build} scores {found}" for (build, row), found in scores.items() if len(found) > 1]
    return Measured(alone, beside, writer, wrong)


def quantiles(seconds: Sequence[float]) -> list[str]:
    if not seconds:
        return ["0", "", "", ""]
    p50, p95, most = 1000 * np.percentile(seconds, [50, 95, 100])
    return [f"{len(seconds):,}", f"{p50:.1f}", f"{p95:.1f}", f"{most:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="beside the writer, in each journal mode")
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--threads", action="store_true", help="readers are threads of one process")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rebuild-every", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--journal", nargs="+", choices=("wal", "delete"), default=["wal", "delete"])
    arguments = parser.parse_args()
    print("| journal | what | n | p50 ms | p95 ms | max ms |\n| --- | --- |" + " ---: |" * 4)
    wrong: list[str] = []
    for journal in arguments.journal:
        with tempfile.TemporaryDirectory() as temporary:
            measured = measure(
                Path(temporary) / "t.db",
                journal,
                n_rows=arguments.rows,
                seconds=arguments.seconds,
                readers=arguments.readers,
                threads=arguments.threads,
                rebuild_every=arguments.rebuild_every,
            )
        for what, seconds in (
            ("searches, readers alone", measured.alone.seconds),
            ("searches beside the writer", measured.beside.seconds),
            ("syncs", measured.writer.seconds),
            ("rebuilds", measured.writer.rebuilds),
        ):
            print("| " + " | ".join([journal, what, *quantiles(seconds)]) + " |", flush=True)
        wrong += [f"{journal}: {problem}" for problem in measured.wrong]
    print(f"\nwrong: {len(wrong)}")
    for problem in wrong[:SHOWN]:
        print(f"\n{problem}")


if __name__ == "__main__":
    main()
