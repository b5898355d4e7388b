"""Several searchers at once on one index: throughput and latency against one searcher alone.

    python -m tests.benchmarks.searchers FOLDER [--searchers 1 2 4 8] [--blas-threads 1 2] [--k 10] [--seconds 5]

FOLDER is described in ``engine.py``; its passages are indexed first, unless ``--index FILE`` names a database that
``engine.py --keep FILE`` left. Searchers are threads of one process, or processes, each with a connection of its own.
Every line is a fresh set of them. CPU ms is processor time per search: where it grows with the number of searchers,
threads fight over cores. Prints Markdown.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from colbert_sqlite.index import Index
from tests.benchmarks.engine import LookUpEncoder, make_database

# Every library that could multiply matrices reads one of these once, when it is loaded.
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
WARM_UP = 5
# Seconds until a searcher that failed is given up.
PATIENCE = 120


class Task(NamedTuple):
    """What each searcher does: ask queries of an index, one after another, for so many seconds."""

    database: Path
    folder: Path
    n_queries: int
    k: int
    seconds: float


def search_in_threads(task: Task, n_threads: int, start: Barrier, results: Queue[Any]) -> None:
    """Search in so many threads of this process from *start* on; put processor seconds and all latencies."""
    encoder = LookUpEncoder(task.folder)
    latencies: list[list[float]] = [[] for _ in range(n_threads)]
    cpu: list[float] = []

    def search(thread: int) -> None:
        with Index.open(task.database, "passages", model=encoder) as index:
            for query in range(WARM_UP):
                index.search(str(query), k=task.k)
            query = thread * task.n_queries // n_threads
            start.wait(PATIENCE)
            if thread == 0:
                cpu.append(time.process_time())
            end = time.perf_counter() + task.seconds
            while (began := time.perf_counter()) < end:
                index.search(str(query % task.n_queries), k=task.k)
                latencies[thread].append(time.perf_counter() - began)
                query += 1

    threads = [threading.Thread(target=search, args=(thread,)) for thread in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((time.process_time() - cpu[0], [seconds for each in latencies for seconds in each]))


def measure(task: Task, n_processes: int, n_threads: int) -> tuple[float, float, float, float]:
    """Searches per second of all searchers, p50 and p95 in ms, and processor ms per search."""
    spawning = multiprocessing.get_context("spawn")
    start, results = spawning.Barrier(n_processes * n_threads), spawning.Queue()
    arguments = (task, n_threads, start, results)
    processes = [spawning.Process(target=search_in_threads, args=arguments) for _ in range(n_processes)]
    for process in processes:
        process.start()
    cpu, latencies = 0.0, []
    for _ in processes:
        seconds, found = results.get(timeout=PATIENCE)
        cpu += seconds
        latencies += found
    for process in processes:
        process.join()
    p50, p95 = np.percentile(latencies, [50, 95])
    return len(latencies) / task.seconds, 1000 * p50, 1000 * p95, 1000 * cpu / len(latencies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--index", type=Path, help="database with an index of these passages")
    parser.add_argument("--nbits", type=int, default=4)
    parser.add_argument("--searchers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--blas-threads", nargs="+", default=["all"], help="of a matrix product: all, or numbers")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = arguments.index or Path(temporary) / "searchers.db"
        if not arguments.index:
            make_database(path, len(np.load(arguments.folder / "doclens.npy")))
            encoder = LookUpEncoder(arguments.folder)
            Index.create(path, "passages", ["body"], model=encoder, nbits=arguments.nbits).close()
        n_queries = len(np.load(arguments.folder / "queries.npy", mmap_mode="r"))
        task = Task(path, arguments.folder, n_queries, arguments.k, arguments.seconds)
        print(f"{os.cpu_count()} cores, k = {task.k}, {task.seconds:g} s a line\n")
        print("| BLAS threads | searchers | searches/s | of one | p50 ms | p95 ms | CPU ms |")
        print("| ---: | --- |" + " ---: |" * 5)
        for blas_threads in arguments.blas_threads:
            for variable in THREAD_VARIABLES:
                if blas_threads != "all":
                    os.environ[variable] = blas_threads
            alone = 0.0
            for n in arguments.searchers:
                for n_processes, n_threads in ((1, n), (n, 1)) if n > 1 else ((1, 1),):
                    rate, p50, p95, cpu = measure(task, n_processes, n_threads)
                    alone = alone or rate
                    kind = "1" if n == 1 else f"{n} threads" if n_processes == 1 else f"{n} processes"
                    cells = [blas_threads, kind, f"{rate:.0f}", f"{rate / alone:.2f}"]
                    cells += [f"{milliseconds:.1f}" for milliseconds in (p50, p95, cpu)]
                    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
