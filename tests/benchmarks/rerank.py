"""How long reranking takes, in a process that goes on and from the command line, by backend.

    python -m tests.benchmarks.rerank DATABASE SQL [--documents 10 30 100] [--rounds 7] [--processes 3]

SQL is a SELECT of one column of text. "warm" is ``rerank`` after a first call, "cold" the command ``colbert-sqlite
rerank`` from its start to its end, the model's export already in the cache folder. Every round runs all contestants one
after the other over other documents, so that a busy moment of the machine hits them alike; the table has medians, and
the fastest in brackets. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from colbert_sqlite import rerank
from colbert_sqlite.encoders import cached_encoder
from colbert_sqlite.passages import RawValue, extract
from colbert_sqlite.settings import Backend, ModelOptions
from colbert_sqlite.storage.connection import connected

QUERY = "how do I keep a copy of my data that I can restore?"
BACKENDS: tuple[Backend, ...] = ("torch", "onnx")
COMMAND = [sys.executable, "-c", "from sqlite_utils_colbert.cli import colbert; colbert()"]


def documents(database: str, sql: str) -> list[str]:
    with connected(database) as conn:
        return [text for (text,) in conn.execute(sql) if text]


def words(texts: Sequence[str]) -> float:
    """Mean number of words, markup stripped."""
    values = (extract([RawValue("text", text.encode())], None, html="auto", max_tokens=256) for text in texts)
    return statistics.mean(len(extracted.text.split()) for extracted in values)


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def from_command_line(texts: Sequence[str], backend: str) -> None:
    rows = "\n".join(json.dumps({"text": text}) for text in texts)
    run = [*COMMAND, "rerank", "-", QUERY, "--backend", backend]
    subprocess.run(run, input=rows, text=True, capture_output=True, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database")
    parser.add_argument("sql")
    parser.add_argument("--documents", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, default=3)
    arguments = parser.parse_args()
    texts = documents(arguments.database, arguments.sql)
    cached_encoder()  # leaves the export
    for backend in BACKENDS:
        rerank(QUERY, texts[:1], backend=backend)
    print("| documents | " + " | ".join(f"warm, {b}, s | cold, {b}, s" for b in BACKENDS) + " |")
    print("| ---: |" + " ---: |" * 2 * len(BACKENDS))
    for n in arguments.documents:
        warm: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
        cold: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
        for number in range(arguments.rounds):
            first = number * n % max(len(texts) - n, 1)
            for backend in BACKENDS:
                some = texts[first : first + n]
                warm[backend].append(seconds(partial(rerank, QUERY, some, backend=backend)))
                if number < arguments.processes:
                    cold[backend].append(seconds(partial(from_command_line, some, backend)))
        cells = [f"{statistics.median(t):.2f} ({min(t):.2f})" for b in BACKENDS for t in (warm[b], cold[b])]
        print(f"| {n} | {' | '.join(cells)} |", flush=True)
    backends = ", ".join(cached_encoder(options=ModelOptions(backend=b), many=True).backend for b in BACKENDS)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"\n{words(texts):.0f} words a document. {backends}. {os.cpu_count()} processors{load}.")


if __name__ == "__main__":
    main()
