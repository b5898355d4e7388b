"""Kills whatever writes an index at random moments, and looks at what is left: nothing lost, nothing half visible.

    python -m tests.crashes [--kills 300] [--seed 0] [--operation sync ...] [--journal wal ...] [--json]

A process of its own does each operation, in many small transactions, and is killed with SIGKILL: either by its parent
after a random delay, or by itself in the middle of a statement, after a random number of SQLite's steps. While it
works, rows of the table change through another connection. A text says of which row and which version it is, so that
the score of a row says which text was indexed. Every round is judged twice: as the kill left the file, and after the
next run. Prints Markdown. Needs ``os.fork``.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from colbert_sqlite import build as building
from colbert_sqlite import growth, rows
from colbert_sqlite import sync as syncing
from colbert_sqlite.codec import load_codec
from colbert_sqlite.encoders import load_encoder
from colbert_sqlite.engine.maxsim import maxsim
from colbert_sqlite.errors import IndexCorrupt, IndexNotFound, SchemaVersionError
from colbert_sqlite.index import Index
from colbert_sqlite.indexes import drop, list_indexes
from colbert_sqlite.progress import Progress
from colbert_sqlite.storage import ivf, residuals
from colbert_sqlite.storage.store import Store
from colbert_sqlite.upgrade import upgrade
from tests.damage import make_older

N_ROWS = 120
VERSIONS = 4
NEW_WORDS = VERSIONS - 1
JOURNALS = ("delete", "wal")
# Steps of SQLite's machine between two looks whether it is time to die.
STEPS = 50
# How often a row changes through another connection when an operation says where it is.
CHANGES = 0.3
ENCODER = load_encoder("hashing-32")
# What verify may say of a table that was reloaded and not synced yet.
OUT_OF_STEP = (
    "the triggers on the table",
    "rows not indexed",
    "indexed rows that the table lacks",
    "rows that were changed",
)


def many_small_transactions() -> None:
    """Have everything done in small portions, and the codec grow early."""
    rows.CHUNK_BYTES = syncing.CHUNK_BYTES = 1500  # type: ignore[attr-defined]
    building._SAMPLE_TOKENS = 1500
    ivf._PAIRS_IN_MEMORY = 1000
    syncing._COMPARED_BYTES = 3000
    growth.OUTLIERS_AT_ONCE = 100
    growth._OUTLIERS_PER_CENTROID = 8
    growth._MIN_SERVED = 4
    residuals._COMPACTED_AT_ONCE = 15


def text_of(row: int, version: int) -> str:
    words = random.Random(1000 * version + row)
    # The last version speaks of something else, so that the codec has reason to grow.
    vocabulary = [f"novelty{i}" for i in range(8)] if version == NEW_WORDS else [f"word{i}" for i in range(400)]
    common = " ".join(words.choice(vocabulary) for _ in range(25))
    return f"Topic{row} version{version} of{row}{'abcd'[version]}. {common}"


def query_of(row: int) -> str:
    """A query that every version of a row scores differently."""
    return f"topic{row} " + " ".join(f"of{row}{'abcd'[version]}" for v in range(VERSIONS) for version in range(v + 1))


def change(conn: sqlite3.Connection, chance: random.Random, version: int) -> None:
    """Insert, update or delete one row."""
    row = chance.randrange(N_ROWS * 3 // 2)
    if chance.random() < 0.25:
        conn.execute("DELETE FROM t WHERE id = ?", (row,))
    else:
        conn.execute(
            "INSERT INTO t VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
            (row, text_of(row, version)),
        )


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=10)


# What a file is before each operation.


def new_table(path: Path, journal: str) -> None:
    with closing(connect(path)) as conn:
        conn.execute(f"PRAGMA journal_mode = {journal}")
        conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
        conn.executemany("INSERT INTO t VALUES (?, ?)", [(row, text_of(row, 0)) for row in range(N_ROWS)])


def indexed(path: Path, journal: str) -> None:
    new_table(path, journal)
    Index.create(path, "t", ["body"], model=ENCODER).close()


def queued(path: Path, journal: str, version: int = 1) -> None:
    indexed(path, journal)
    with closing(connect(path)) as conn:
        for i in range(60):
            change(conn, random.Random(i), version)


def queued_new_words(path: Path, journal: str) -> None:
    queued(path, journal, NEW_WORDS)


def reloaded(path: Path, journal: str) -> None:
    indexed(path, journal)
    with closing(connect(path)) as conn:
        conn.execute("CREATE TABLE copy AS SELECT * FROM t")
        conn.execute("DROP TABLE t")
        conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
        conn.execute("INSERT INTO t SELECT * FROM copy")
        conn.execute("DROP TABLE copy")
        for i in range(60):
            change(conn, random.Random(i), 1)


def damaged(path: Path, journal: str) -> None:
    queued(path, journal)
    with closing(connect(path)) as conn:
        conn.execute('UPDATE "_colbert_t_residuals" SET residuals = zeroblob(9) WHERE block % 3 = 1')
        conn.execute('UPDATE "_colbert_t_codes" SET checksum = 7 WHERE passage_id % 11 = 5')
        conn.execute('DELETE FROM "_colbert_t_ivf" WHERE segment % 5 = 2')


def full_of_gaps(path: Path, journal: str) -> None:
    indexed(path, journal)
    with closing(connect(path)) as conn:
        conn.execute("DELETE FROM t WHERE id % 4 != 1")
        with Index.open(conn, "t", model=ENCODER) as index:
            index.sync()
        for i in range(5):
            change(conn, random.Random(i), 1)


def of_format_0(path: Path, journal: str) -> None:
    indexed(path, journal)
    with closing(connect(path)) as conn:
        make_older(conn, "t")


@dataclasses.dataclass(frozen=True)
class Operation:
    """What is done to a file in which state. ``run`` is called again after a kill."""

    prepare: Callable[[Path, str], None]
    run: Callable[[sqlite3.Connection, Callable[[Progress], None]], Any]


def opened(conn: sqlite3.Connection) -> Index:
    return Index.open(conn, "t", model=ENCODER)


def build(conn: sqlite3.Connection, progress: Callable[[Progress], None]) -> None:
    if any(entry.state == "ready" for entry in list_indexes(conn)):
        opened(conn).sync(progress=progress)
    else:
        Index.create(conn, "t", ["body"], model=ENCODER, progress=progress)


def drop_if_there(conn: sqlite3.Connection, progress: Callable[[Progress], None]) -> None:
    try:
        drop(conn, "t")
    except IndexNotFound:
        pass


OPERATIONS = {
    "build": Operation(new_table, build),
    "sync": Operation(queued, lambda conn, progress: opened(conn).sync(progress=progress)),
    "grow": Operation(queued_new_words, lambda conn, progress: opened(conn).sync(progress=progress)),
    "compare": Operation(reloaded, lambda conn, progress: opened(conn).sync(full=True, progress=progress)),
    "rebuild": Operation(queued, lambda conn, progress: opened(conn).rebuild(progress=progress)),
    "repair": Operation(damaged, lambda conn, progress: opened(conn).repair(progress=progress)),
    "optimize": Operation(full_of_gaps, lambda conn, progress: opened(conn).optimize(progress=progress)),
    "upgrade": Operation(of_format_0, lambda conn, progress: upgrade(conn, "t", progress=progress, model=ENCODER)),
    "drop": Operation(queued, drop_if_there),
}


# The process that is killed.


def work(path: Path, operation: str, seed: int, steps: int | None) -> int:
    """Do the operation, and die after so many looks at SQLite's steps; return how many there were."""
    chance = random.Random(seed)
    conn, other = connect(path), connect(path)
    n_looks = 0

    def look() -> int:
        nonlocal n_looks
        n_looks += 1
        if n_looks == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def progress(_: Progress) -> None:
        if operation != "drop" and chance.random() < CHANGES:
            change(other, chance, 2)

    conn.set_progress_handler(look, STEPS)
    OPERATIONS[operation].run(conn, progress)
    other.close()
    conn.close()
    return n_looks


def in_another_process(
    path: Path, operation: str, seed: int, *, steps: int | None = None, delay: float | None = None
) -> tuple[int | None, float]:
    """Return what :func:`work` returned, None if it was killed first, and how long it took."""
    readable, writable = os.pipe()
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(readable)
            os.write(writable, b"%d" % work(path, operation, seed, steps))
            status = 0
        finally:
            os._exit(status)
    os.close(writable)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    with open(readable, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and status:
        raise RuntimeError(f"{operation} failed by itself")
    return int(said) if said else None, time.perf_counter() - began


# What is left.


def expected_scores(conn: sqlite3.Connection, texts: dict[int, list[str]]) -> Iterator[tuple[int, list[float]]]:
    """Yield for each row what its query scores with the codec as it is now, for each of some texts."""
    codec = load_codec(Store.open(conn, "t")).residual
    for row, candidates in texts.items():
        query = ENCODER.encode_queries([query_of(row)])[0]
        embedded = (e.astype(np.float16) for e in ENCODER.encode_passages(candidates))
        yield row, [maxsim(query, codec.reconstruct(*codec.compress(e))) for e in embedded]


def table(conn: sqlite3.Connection) -> dict[int, str]:
    return dict(conn.execute("SELECT id, body FROM t"))


def judge(path: Path, *, in_step: bool, may_be_damaged: bool) -> list[str]:
    """Return what is wrong with the file: of its pages, of the index in use, of what searches say.

    :param in_step: whether every row has to be indexed with the text it has now
    :param may_be_damaged: whether the index was damaged on purpose and not repaired yet
    """
    wrong = []
    with closing(connect(path)) as conn:
        if (said := conn.execute("PRAGMA integrity_check").fetchone()) != ("ok",):
            return [f"integrity_check: {said}"]
        try:
            index = opened(conn)
        except IndexNotFound:
            return ["no index"] if in_step else []
        problems = index.verify()
        if in_step or not may_be_damaged:
            wrong += [p for p in problems if in_step or not p.startswith(OUT_OF_STEP)]
        grown = index.info().n_centroids_added
        rows = table(conn)
        texts = {row: [text_of(row, version) for version in range(VERSIONS)] for row in rows}
        for row, expected in expected_scores(conn, texts):
            try:
                hits = index.search(query_of(row), k=1, pks=[row])
                first = index.search(f"topic{row} version0 of{row}a", k=1)
            except IndexCorrupt:
                if not may_be_damaged:
                    wrong.append(f"row {row}: damaged")
                continue
            if not hits:
                wrong += [f"row {row}: not found"] if in_step else []
                continue
            actual = [text_of(row, version) for version in range(VERSIONS)].index(rows[row])
            possible = [score for version, score in enumerate(expected) if (version == actual) != hits[0].stale]
            # Tokens that were coded before the codec grew keep their codes unless they were outliers.
            if min(abs(hits[0].score - score) for score in possible) > (0.3 if grown else 0.02):
                wrong.append(f"row {row}: scores {hits[0].score}, not one of {possible}")
            if hits[0].row != {"id": row, "body": rows[row]}:
                wrong.append(f"row {row}: came with {hits[0].row}")
            if not hits[0].stale and hits[0].passage.text != rows[row]:
                wrong.append(f"row {row}: came with passage {hits[0].passage.text!r}")
            if in_step and hits[0].stale:
                wrong.append(f"row {row}: stale")
            if not may_be_damaged and first[0].pk != row and "version0" in rows[row] and not hits[0].stale:
                wrong.append(f"row {row}: its query finds {first[0].pk}")
    return wrong


def left_beside(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir() if file != path)


def ours(conn: sqlite3.Connection) -> list[str]:
    return [name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE name LIKE '%colbert%'")]


@dataclasses.dataclass
class Outcome:
    """What became of the rounds of one operation in one journal mode."""

    operation: str
    journal: str
    kills: int = 0
    before_the_end: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)
    half_visible: list[str] = dataclasses.field(default_factory=list)
    left_behind: list[str] = dataclasses.field(default_factory=list)


def one_round(outcome: Outcome, path: Path, seed: int, n_looks: int, seconds: float) -> None:
    operation = outcome.operation
    chance = random.Random(f"{operation} {outcome.journal} {seed}")
    outcome.kills += 1
    by_steps = chance.random() < 0.5
    moment: dict[str, Any] = (
        {"steps": chance.randint(1, n_looks)} if by_steps else {"delay": chance.uniform(0, seconds)}
    )
    finished, _ = in_another_process(path, operation, seed, **moment)
    outcome.before_the_end += finished is None

    def note(wrong: list[str], where: list[str], what: str) -> None:
        where += [f"{operation} {outcome.journal} seed {seed} {moment} {what}: {problem}" for problem in wrong]

    allowed = (path.name + "-journal", path.name + "-wal", path.name + "-shm")
    strange = [f for f in left_beside(path) if f not in allowed and not f.startswith(path.name + "-colbert-")]
    note(strange, outcome.left_behind, "after the kill")
    if operation == "drop":
        judge_drop(outcome, path, note)
    else:
        if operation == "upgrade":
            judge_upgrade(path, note, outcome.half_visible)
        else:
            may_be_damaged = operation == "repair"
            note(judge(path, in_step=False, may_be_damaged=may_be_damaged), outcome.half_visible, "after the kill")
        with closing(connect(path)) as conn:
            if operation in ("rebuild", "optimize"):
                opened(conn).sync()
        if operation in ("rebuild", "optimize"):
            note(judge(path, in_step=True, may_be_damaged=False), outcome.lost, "after the next sync")
        in_another_process(path, operation, seed + 1)
        with closing(connect(path)) as conn:
            opened(conn).sync()
        note(judge(path, in_step=True, may_be_damaged=False), outcome.lost, "after the next run")
    # SQLite leaves its journal where the next run had nothing to write.
    note([f for f in left_beside(path) if f != path.name + "-journal"], outcome.left_behind, "after the next run")


def judge_upgrade(path: Path, note: Callable[[list[str], list[str], str], None], half_visible: list[str]) -> None:
    """An index is of the old format, whole as it was, or upgraded."""
    with closing(connect(path)) as conn:
        try:
            opened(conn)
        except SchemaVersionError:
            return
    note(judge(path, in_step=False, may_be_damaged=False), half_visible, "after the kill")


def judge_drop(outcome: Outcome, path: Path, note: Callable[[list[str], list[str], str], None]) -> None:
    with closing(connect(path)) as conn:
        before = table(conn)
        there = bool(list_indexes(conn))
        if not there and ours(conn):
            note(ours(conn), outcome.half_visible, "after the kill")
    if there:
        note(judge(path, in_step=False, may_be_damaged=False), outcome.half_visible, "after the kill")
    in_another_process(path, "drop", 0)
    with closing(connect(path)) as conn:
        note(ours(conn), outcome.lost, "after the next run")
        if table(conn) != before:
            note(["the table changed"], outcome.lost, "after the next run")


def rounds(operation: str, journal: str, n: int, seed: int) -> Outcome:
    """Kill one operation *n* times, each time on a fresh copy of the same file."""
    outcome = Outcome(operation, journal)
    with tempfile.TemporaryDirectory() as temporary:
        template = Path(temporary) / "template" / "t.db"
        template.parent.mkdir()
        OPERATIONS[operation].prepare(template, journal)
        path = Path(temporary) / "work" / "t.db"
        n_looks, seconds = 1, 0.01
        for i in range(n + 1):
            shutil.rmtree(path.parent, ignore_errors=True)
            path.parent.mkdir()
            shutil.copyfile(template, path)
            if i == 0:
                looks, seconds = in_another_process(path, operation, seed)
                n_looks = max(1, looks or 1)
            else:
                one_round(outcome, path, seed + i, n_looks, seconds)
    return outcome


def shares(kills: int, operations: list[str], journals: list[str]) -> dict[tuple[str, str], int]:
    """Return how often to kill which operation in which journal mode, turn by turn."""
    pairs = [(operation, journal) for operation in operations for journal in journals]
    # So that few kills still meet both journal modes, and every operation.
    order = [pairs[(len(journals) * i + i // len(operations) + i) % len(pairs)] for i in range(len(pairs))]
    order = list(dict.fromkeys(order)) + [pair for pair in pairs if pair not in order]
    return collections.Counter(order[i % len(order)] for i in range(kills))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=48, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operation", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--journal", nargs="+", choices=JOURNALS, default=list(JOURNALS))
    parser.add_argument("--json", action="store_true", help="one object per line, with what was found")
    arguments = parser.parse_args()
    many_small_transactions()
    if not arguments.json:
        print("| operation | journal | kills | before the end | lost | half visible | left behind |")
        print("| --- | --- |" + " ---: |" * 5)
    for (operation, journal), n in shares(arguments.kills, arguments.operation, arguments.journal).items():
        outcome = rounds(operation, journal, n, arguments.seed)
        if arguments.json:
            print(json.dumps(dataclasses.asdict(outcome)), flush=True)
            continue
        found = (outcome.lost, outcome.half_visible, outcome.left_behind)
        cells = [operation, journal, outcome.kills, outcome.before_the_end, *map(len, found)]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        for problem in [*outcome.lost, *outcome.half_visible, *outcome.left_behind][:5]:
            print(f"\n{problem}\n", flush=True)


if __name__ == "__main__":
    main()
