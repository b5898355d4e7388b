"""What it costs to keep an index in step with a table of any number of rows.

    python -m tests.benchmarks.living DATABASE TABLE COLUMN [--rows 100000] [--words 45] [--model minilm]

The rows are runs of consecutive words of that column, drawn at random. The index is kept open, as a server does; a
cold ``colbert sync`` adds what ``cold.py`` measures. Encoding is taken from the report of each sync, everything else is
ours. Prints Markdown.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from colbert_sqlite.encoders import Encoder, load
from colbert_sqlite.index import Index
from colbert_sqlite.passages import looks_like_html, strip_html
from colbert_sqlite.progress import SyncResult
from colbert_sqlite.settings import ModelOptions

UPDATES = 30
DELETED = 1_000
CHANGED_SHARE = 100  # one row in so many is another after a reload


def word_runs(path: str, table: str, column: str, n_words: int) -> Iterator[str]:
    """Yield runs of consecutive words, without end."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as conn:
        quoted = ['"' + name.replace('"', '""') + '"' for name in (column, table)]
        texts = [text or "" for (text,) in conn.execute(f"SELECT {quoted[0]} FROM {quoted[1]}")]
    words = " ".join(strip_html(text) if looks_like_html(text) else text for text in texts).split()
    chance = random.Random(0)
    while True:
        start = chance.randrange(len(words) - n_words)
        yield " ".join(words[start : start + n_words])


def timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def synced(index: Index, *, full: bool = False) -> tuple[float, float, SyncResult]:
    """Seconds in all, seconds of encoding, and what was done."""
    started = time.perf_counter()
    counts = index.sync(full=full)
    seconds = time.perf_counter() - started
    assert index.build_report is not None
    encode = index.build_report.stages.get("encode")
    return seconds, 0.0 if encode is None else encode.seconds, counts


class Living:
    """One table, its index, and rows of a table: what was measured."""

    def __init__(self, path: Path, texts: Iterator[str], encoder: Encoder, n_rows: int) -> None:
        self.texts = texts
        self.encoder = encoder
        self.n_rows = n_rows
        self.conn = sqlite3.connect(path, isolation_level=None)
        self.conn.execute("PRAGMA journal_mode = WAL")
        self.lines: list[tuple[str, str]] = []
        self.index = self.build()

    def say(self, what: str, figure: str) -> None:
        self.lines.append((what, figure))
        print(f"| {what} | {figure} |", flush=True)

    def load(self, rows: list[tuple[int, str]]) -> None:
        self.conn.execute("BEGIN")
        self.conn.execute("DROP TABLE IF EXISTS docs")
        self.conn.execute("CREATE TABLE docs (id INTEGER PRIMARY KEY, body TEXT)")
        self.conn.executemany("INSERT INTO docs VALUES (?, ?)", rows)
        self.conn.execute("COMMIT")

    def build(self) -> Index:
        self.load([(i, next(self.texts)) for i in range(self.n_rows)])
        started = time.perf_counter()
        index = Index.create(self.conn, "docs", ["body"], model=self.encoder)
        facts = index.info()
        print("| what | measured |\n| --- | ---: |")
        self.say("rows, tokens", f"{facts.rows:,}, {facts.tokens:,}")
        self.say("built in", f"{time.perf_counter() - started:.0f} s")
        self.say("index", f"{facts.bytes / 1e6:.0f} MB, {facts.n_centroids:,} centroids")
        return index

    def nothing_to_do(self) -> None:
        self.say("sync with nothing to do", f"{1000 * min(synced(self.index)[0] for _ in range(5)):.1f} ms")
        seconds, _, counts = synced(self.index, full=True)
        self.say(f"sync that compares {counts.compared:,} rows", f"{seconds:.1f} s")

    def one_row(self) -> None:
        rest, updates = [], []
        for i in range(UPDATES):
            key = i * self.n_rows // UPDATES
            started, text = time.perf_counter(), next(self.texts)
            self.conn.execute("UPDATE docs SET body = ? WHERE id = ?", (text, key))
            updates.append(time.perf_counter() - started)
            seconds, encoding, counts = synced(self.index)
            assert counts == SyncResult(updated=1)
            rest.append(seconds - encoding)
            assert key in {hit.pk for hit in self.index.search(" ".join(text.split()[:12]))}
        median, slowest = statistics.median(rest[1:]), max(rest[1:])
        self.say("UPDATE of one row", f"{1000 * statistics.median(updates):.2f} ms")
        self.say("sync of one row, beyond encoding: first", f"{1000 * rest[0]:.0f} ms")
        self.say(
            "sync of one row, beyond encoding: median, slowest of the others",
            f"{1000 * median:.1f}, {1000 * slowest:.1f} ms",
        )

    def delete(self) -> None:
        keys = random.Random(1).sample(range(self.n_rows), DELETED)
        n_before = self.index.counts().rows
        places = ", ".join(map(str, keys))
        self.say(
            f"DELETE of {DELETED:,} rows",
            f"{timed(lambda: self.conn.execute(f'DELETE FROM docs WHERE id IN ({places})')):.3f} s",
        )
        seconds, _, counts = synced(self.index)
        assert counts.deleted == n_before - self.index.counts().rows == DELETED
        self.say("sync after that", f"{seconds:.2f} s")
        self.conn.executemany("INSERT INTO docs VALUES (?, ?)", [(key, next(self.texts)) for key in keys])
        seconds, encoding, counts = synced(self.index)
        assert counts.added == DELETED
        self.say(f"sync of {DELETED:,} rows inserted, encoding", f"{seconds:.1f} s, {encoding:.1f} s")

    def reload(self) -> None:
        rows = self.conn.execute("SELECT id, body FROM docs").fetchall()
        rows = [(key, next(self.texts) if key % CHANGED_SHARE == 0 else body) for key, body in rows]
        self.load(rows)
        seconds, encoding, counts = synced(self.index)
        changed = len(rows) // CHANGED_SHARE
        assert counts == SyncResult(updated=changed, compared=len(rows)), counts
        self.say(
            f"sync after the table was dropped and loaded again with {changed:,} rows changed: encoded",
            f"{counts.updated:,} rows",
        )
        self.say("the same: seconds in all, encoding", f"{seconds:.1f} s, {encoding:.1f} s")

    def clean_up(self) -> None:
        facts = self.index.info()
        self.say("drift, space to reclaim", f"{facts.drift:+.1%}, {facts.bytes_reclaimable / 1e6:.1f} MB")
        self.say("optimize", f"{timed(self.index.optimize):.1f} s")
        self.say("verify", f"{timed(self.index.verify):.1f} s")
        assert self.index.verify() == []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database")
    parser.add_argument("table")
    parser.add_argument("column")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=45, help="words in a row")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--work", type=Path, help="folder for the database")
    options = parser.parse_args()
    texts = word_runs(options.database, options.table, options.column, options.words)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        encoder = load(options.model, ModelOptions(), many=True)
        living = Living(Path(folder) / "living.db", texts, encoder, options.rows)
        living.nothing_to_do()
        living.one_row()
        living.delete()
        living.reload()
        living.clean_up()


if __name__ == "__main__":
    main()
