"""Tokens per second of encoding on the processor: our backends beside sentence-transformers at its defaults.

    python -m tests.benchmarks.encode DATABASE TABLE COLUMN [--passages 300] [--rounds 5] [--threads 1 2] [--int8]

The network is all-MiniLM-L6-v2 with our projection for all, the text one column cut into passages of 40 to 250 tokens,
in the order of the rows. Every round runs all contestants one after the other, so that a busy moment of the machine
hits them alike; the table has medians. "cosine" is the mean over tokens to torch in float32, "query" the milliseconds
for one short query. Each number of threads is a process of its own. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from colbert_sqlite.passages import looks_like_html, strip_html
from colbert_sqlite.storage.schema import quote_identifier

QUERY = "how do I back up postgres?"
QUERIES = 20
LONGEST = 256


def passages(database: str, table: str, column: str, count: int) -> list[str]:
    """The first *count* pieces of a column, between 150 and 1,100 characters long."""
    uri = Path(database).resolve().as_uri() + "?mode=ro&immutable=1"
    name, value = map(quote_identifier, (table, column))
    with sqlite3.connect(uri, uri=True) as db:
        rows = db.execute(f"select {value} from {name} where {value} is not null")
        text = "\n\n".join(strip_html(value) if looks_like_html(value) else value for (value,) in rows)
    db.close()
    lengths = np.random.default_rng(0).integers(150, 1100, size=count)
    ends = np.cumsum(lengths).tolist()
    return [text[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]


def compare(texts: list[str], rounds: int, int8: bool) -> None:
    """Print a row per contestant."""
    import torch

    from colbert_sqlite.encoders import export_model, load_encoder
    from colbert_sqlite.encoders.tokens import tokenize

    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_model("minilm", folder / "float32")
        ours: dict[str, Any] = {
            "torch float32": load_encoder("minilm", device="cpu", dtype="float32", backend="torch"),
            "torch bfloat16": load_encoder("minilm", device="cpu", dtype="bfloat16", backend="torch"),
            "onnxruntime float32": load_encoder(str(folder / "float32")),
        }
        if int8:
            export_model("minilm", folder / "int8", int8=True)
            ours["onnxruntime int8"] = load_encoder(str(folder / "int8"))
    first = ours["torch float32"]
    peer = load_encoder("minilm", device="cpu", dtype="float32", backend="torch").network  # type: ignore[attr-defined]
    peer.max_seq_length = LONGEST
    n_tokens = sum(len(tokens.ids) for tokens in tokenize(first.tokenizer, texts, first.passages))

    documents: dict[str, Callable[[], Any]] = {
        "sentence-transformers, its defaults": lambda: peer.encode_document(texts),
        **{name: partial(encoder.encode_passages, texts) for name, encoder in ours.items()},
    }
    queries: dict[str, Callable[[], Any]] = {
        "sentence-transformers, its defaults": lambda: peer.encode_query([QUERY]),
        **{name: partial(encoder.encode_queries, [QUERY]) for name, encoder in ours.items()},
    }
    wanted = np.concatenate(first.encode_passages(texts))
    cosines = {
        name: (wanted * np.concatenate(encoder.encode_passages(texts))).sum(axis=1).mean()
        for name, encoder in ours.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in documents}
    milliseconds: dict[str, list[float]] = {name: [] for name in documents}
    for _ in range(rounds):
        for name in documents:
            started = time.perf_counter()
            documents[name]()
            seconds[name].append(time.perf_counter() - started)
            for _ in range(QUERIES):
                started = time.perf_counter()
                queries[name]()
                milliseconds[name].append(1000 * (time.perf_counter() - started))
    base = statistics.median(seconds["sentence-transformers, its defaults"])
    for name, times in seconds.items():
        median = statistics.median(times)
        cosine = f"{cosines[name]:.5f}" if name in cosines else "-"
        query = statistics.median(milliseconds[name])
        print(
            f"| {threads} | {name} | {n_tokens / median:,.0f} | {base / median:.2f} | {cosine} | {query:.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database")
    parser.add_argument("table")
    parser.add_argument("column")
    parser.add_argument("--passages", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        texts = passages(arguments.database, arguments.table, arguments.column, arguments.passages)
        compare(texts, arguments.rounds, arguments.int8)
        return
    print("| threads | | tokens/s | times | cosine | query, ms |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |", flush=True)
    for threads in map(str, arguments.threads):
        environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-m", __spec__.name, *sys.argv[1:], "--here"], env=environment, check=True)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"\nMedian of {arguments.rounds} interleaved rounds{load}, {os.cpu_count()} processors.")


if __name__ == "__main__":
    main()
