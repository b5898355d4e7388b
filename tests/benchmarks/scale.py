"""How everything grows with the number of passages: building, size, memory, latency and recall.

    python -m tests.benchmarks.scale FOLDER [--passages 10000 100000 1000000] [--nbits 4] [--json FILE] [--work FOLDER]

FOLDER is described in ``engine.py``. Its passages are bootstrapped to any number: each is one of the real ones, drawn
at random and cut so that passages have 70 tokens on average, with noise on every token, of another strength in each
passage, so that tokens have a cosine of 0.85 to 0.95 to the real ones. They depend on their number alone and are made
when the build asks for them, so nothing of them is ever in memory or on disk but the index. The queries are the real
ones; what they should find comes from scoring every token of every passage, uncompressed.

Building, the first search and all others each have a fresh process. Memory is anonymous memory above that after the
imports: not the pages of the file that the system caches. A first search is measured twice, with and without having
loaded the compiled kernels by searching another small index. Prints Markdown, and appends JSON lines to a file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.index import Index
from colbert_sqlite.progress import memory
from tests.benchmarks.engine import LookUpEncoder, make_database

Record = dict[str, Any]

MEAN_TOKENS = 70
COSINES = (0.85, 0.95)
KS = (10, 100)
SMALL = 500  # passages of the index that loads the kernels
NOISE_ROWS = 1 << 15
BLOCK = 256  # passages scored at once when everything is
SAMPLING_SECONDS = 0.005
WATCHED = 20  # queries at each k while memory is watched


class BootstrappedEncoder(LookUpEncoder):
    """Gives passage i of any number of them, made of a real one and of noise."""

    def __init__(self, folder: Path, n_passages: int) -> None:
        super().__init__(folder)
        doclens = np.diff(self._offsets)
        longest = next(n for n in range(1, 10_000) if np.minimum(doclens, n).mean() >= MEAN_TOKENS)
        rng = np.random.default_rng(0)
        self._noise = rng.standard_normal((NOISE_ROWS + longest, self.dim), np.float32) / np.float32(self.dim**0.5)
        # A generator of their own for each, so that passage i is the same among any number of passages.
        drawn, moved, spread = (np.random.default_rng([0, i]) for i in range(3))
        self._real = drawn.integers(0, len(doclens), n_passages, np.int32)
        self._shift = moved.integers(0, NOISE_ROWS, n_passages, np.int32)
        cosines = spread.uniform(*COSINES, n_passages)
        # Unit vectors at right angles, one of this length: their sum has the cosine to the other.
        self._strength = np.sqrt(1 / cosines**2 - 1).astype(np.float32)
        self._doclens = np.minimum(doclens, longest)

    def encode_passages(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        return [self._passage(int(text)) for text in texts]

    def _passage(self, i: int) -> NDArray[np.float32]:
        # A passage at a time stays in the cache.
        real, shift = self._real[i], self._shift[i]
        first, doclen = self._offsets[real], self._doclens[real]
        tokens = self._noise[shift : shift + doclen] * self._strength[i]
        tokens += self._embeddings[first : first + doclen]
        tokens /= np.sqrt(np.einsum("td,td->t", tokens, tokens))[:, None]
        return tokens


class PeakMemory:
    """Watches the anonymous memory of this process; ``mb`` is the most it rose above what it was on entering."""

    def __enter__(self) -> PeakMemory:
        self._before = self._most = memory().anonymous
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLING_SECONDS):
            self._most = max(self._most or 0, memory().anonymous or 0)

    @property
    def mb(self) -> float | None:
        return None if self._before is None else round(((self._most or 0) - self._before) / 1e6, 1)


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, called in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def build(path: Path, folder: Path, n_passages: int, nbits: int) -> Record:
    before = make_database(path, n_passages)
    encoder = BootstrappedEncoder(folder, n_passages)
    began = time.perf_counter()
    with PeakMemory() as peak, Index.create(path, "passages", ["body"], model=encoder, nbits=nbits) as index:
        seconds = time.perf_counter() - began
    with Index.open(path, "passages") as index_again:
        info = index_again.info()
    growth = path.stat().st_size - before
    report = index.build_report
    assert report is not None
    return {
        "tokens": info.tokens,
        "centroids": info.n_centroids,
        "build_s": round(seconds, 2),
        "stages_s": {name: round(stage.seconds, 2) for name, stage in report.stages.items()},
        "build_mb": peak.mb,
        "file_mb": round(growth / 1e6, 1),
        "bytes_per_token": round(growth / info.tokens, 1),
        "bytes_by_part": info.bytes_by_part,
    }


def first_search(path: Path, folder: Path, small: Path | None) -> float:
    """Milliseconds to open an index and to search it for the first time in this process."""
    encoder = LookUpEncoder(folder)
    if small is not None:
        with Index.open(small, "passages", model=encoder) as index:
            index.search("0", k=10)
    began = time.perf_counter()
    with Index.open(path, "passages", model=encoder) as index:
        index.search("1", k=10)
        return 1000 * (time.perf_counter() - began)


def search(path: Path, folder: Path, n_queries: int, truth: NDArray[np.int64]) -> list[Record]:
    """Latency, memory and recall at each k."""
    encoder = LookUpEncoder(folder)
    records = []
    # Watching takes time too, so memory has searches of its own.
    with PeakMemory() as peak, Index.open(path, "passages", model=encoder) as index:
        for k in KS:
            for query in range(min(n_queries, WATCHED)):
                index.search(str(query), k=k)
    with Index.open(path, "passages", model=encoder) as index:
        for k in KS:
            index.search("0", k=k)
            times, found = [], []
            for query in range(n_queries):
                began = time.perf_counter()
                hits = index.search(str(query), k=k)
                times.append(1000 * (time.perf_counter() - began))
                found.append({hit.pk for hit in hits})
            shares = [len(hits & set(ids[:k])) / k for hits, ids in zip(found, truth.tolist(), strict=False)]
            p50, p95 = np.percentile(times, [50, 95])
            recall = round(float(np.mean(shares)), 4)
            latency = {"p50_ms": round(p50, 2), "p95_ms": round(p95, 2)}
            records.append({"k": k, **latency, "recall": recall, "search_mb": peak.mb})
    return records


def exhaustive(folder: Path, n_passages: int, n_queries: int) -> NDArray[np.int64]:
    """Passages with the highest MaxSim over uncompressed embeddings, best first: int64 [n_queries, max(KS)]."""
    encoder = BootstrappedEncoder(folder, n_passages)
    queries = encoder.encode_queries([str(query) for query in range(n_queries)])
    columns = np.ascontiguousarray(np.concatenate(queries).T)
    starts = np.cumsum([0, *map(len, queries[:-1])])
    best = np.full((n_queries, max(KS)), -np.inf, np.float32)
    ids = np.full((n_queries, max(KS)), -1)
    for first in range(0, n_passages, BLOCK):
        block = np.arange(first, min(first + BLOCK, n_passages))
        passages = encoder.encode_passages([str(i) for i in block])
        offsets = np.cumsum([0, *map(len, passages[:-1])])
        similarities = np.maximum.reduceat(np.concatenate(passages) @ columns, offsets)
        scores = np.concatenate([best, np.add.reduceat(similarities, starts, axis=1).T], axis=1)
        both = np.concatenate([ids, np.broadcast_to(block, (n_queries, len(block)))], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : max(KS)]
        best, ids = np.take_along_axis(scores, order, axis=1), np.take_along_axis(both, order, axis=1)
    return ids


def measure(folder: Path, work: Path, n_passages: int, nbits: int, n_queries: int, truth: NDArray[np.int64]) -> Record:
    path, small = work / "scale.db", work / "small.db"
    try:
        record = alone(build, path, folder, n_passages, nbits)
        alone(build, small, folder, SMALL, nbits)
        # In this order: the first search of all compiles what the cache does not have yet.
        record["first_ms"] = round(alone(first_search, path, folder, small), 1)
        record["cold_ms"] = round(alone(first_search, path, folder, None), 1)
        record["searches"] = alone(search, path, folder, n_queries, truth)
    finally:
        for file in work.glob("s*.db*"):
            file.unlink()
    return record


def tables(records: Sequence[Record]) -> str:
    stages = [*dict.fromkeys(stage for record in records for stage in record["stages_s"])]
    made = ["passages", "nbits", "tokens", "centroids", "build s", *stages, "build MB", "file MB", "bytes a token"]
    lines = ["| " + " | ".join(made) + " |", "|" + " ---: |" * len(made)]
    for r in records:
        cells = [f"{r['passages']:,}", r["nbits"], f"{r['tokens']:,}", f"{r['centroids']:,}", f"{r['build_s']:.1f}"]
        cells += [f"{r['stages_s'].get(stage, 0):.1f}" for stage in stages]
        cells += [r["build_mb"] or "-", r["file_mb"], r["bytes_per_token"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    asked = [
        "passages",
        "nbits",
        "k",
        "p50 ms",
        "p95 ms",
        "recall@k",
        "search MB",
        "first ms, kernels loaded",
        "first ms in all",
    ]
    lines += ["", "| " + " | ".join(asked) + " |", "|" + " ---: |" * len(asked)]
    for r in records:
        for s in r["searches"]:
            cells = [f"{r['passages']:,}", r["nbits"], s["k"], f"{s['p50_ms']:.1f}", f"{s['p95_ms']:.1f}"]
            cells += [f"{s['recall']:.3f}", s["search_mb"] or "-", r["first_ms"], r["cold_ms"]]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passages", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--nbits", type=int, nargs="+", default=[4])
    parser.add_argument("--queries", type=int, default=200, help="for latency")
    parser.add_argument("--exhaustive", type=int, default=20, help="queries to score everything for, for recall")
    parser.add_argument("--json", type=Path, help="append a line of JSON per index to this file")
    parser.add_argument("--work", type=Path, help="folder for the databases; 70 M tokens at 4 bits take about 10 GB")
    arguments = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    records: list[Record] = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        for n_passages in arguments.passages:
            print(f"{n_passages:,} passages: scoring everything", file=sys.stderr)
            truth = alone(exhaustive, arguments.folder, n_passages, arguments.exhaustive)
            for nbits in arguments.nbits:
                print(f"{n_passages:,} passages: index at {nbits} bits", file=sys.stderr)
                about = {"passages": n_passages, "nbits": nbits, "threads": threads, "cores": os.cpu_count()}
                found = measure(arguments.folder, Path(work), n_passages, nbits, arguments.queries, truth)
                records.append({**about, **found})
                if arguments.json:
                    with arguments.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(records[-1]) + "\n")
    print(tables(records))


if __name__ == "__main__":
    main()
