"""The engine on given embeddings: build time, size, latency and recall, without a model.

    python -m tests.benchmarks.engine FOLDER [--nbits 4 2] [--k 10 100] [--queries 200] [--keep FILE]

FOLDER holds emb.f16.npy (tokens, dim), doclens.npy, queries.npy (queries, tokens, dim) and gt_ids.npy (queries, 100),
the exhaustive ranking. The passages become rows of a table, and go through ``Index.create`` and ``Index.search`` like
any other; only the encoder is a look-up. Set OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 for one thread. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from colbert_sqlite.encoders import Token
from colbert_sqlite.index import Index
from colbert_sqlite.progress import Progress


class LookUpEncoder:
    """An encoder whose texts are numbers of passages and queries."""

    name = backend = "precomputed"
    fingerprint = "precomputed"
    query_length = document_length = 512
    n_special_tokens = 0

    def __init__(self, folder: Path) -> None:
        self._embeddings = np.load(folder / "emb.f16.npy", mmap_mode="r")
        self._offsets = np.concatenate([[0], np.cumsum(np.load(folder / "doclens.npy").astype(np.int64))])
        self._queries = np.load(folder / "queries.npy")
        self.dim = int(self._embeddings.shape[1])
        self.tokenizer = Tokenizer(WordLevel({"x": 0}, unk_token="x"))

    def encode_queries(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        return [self._queries[int(text)].astype(np.float32) for text in texts]

    def encode_passages(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        return [
            np.asarray(self._embeddings[self._offsets[i] : self._offsets[i + 1]], np.float32) for i in map(int, texts)
        ]

    def query_tokens(self, text: str) -> list[Token]:
        raise NotImplementedError("embeddings from a file have no words")

    passage_tokens = query_tokens


def make_database(path: Path, n_passages: int) -> int:
    """Create a table of passage numbers and return the size of its file."""
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE passages (id INTEGER PRIMARY KEY, body TEXT)")
    db.executemany("INSERT INTO passages VALUES (?, ?)", ((i, str(i)) for i in range(n_passages)))
    db.commit()
    db.close()
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nbits", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="keep the database under this name")
    arguments = parser.parse_args()
    encoder = LookUpEncoder(arguments.folder)
    truth = np.load(arguments.folder / "gt_ids.npy")[: arguments.queries]
    n_passages = len(np.load(arguments.folder / "doclens.npy"))
    print(f"{n_passages:,} passages, threads: {os.environ.get('OMP_NUM_THREADS', 'all')}\n")
    print("| nbits | build s | train s | bytes a token (info) | (file growth) | k | p50 ms | p95 ms | recall@k |")
    print("| ---: " * 9 + "|")
    with tempfile.TemporaryDirectory() as temporary:
        for nbits in arguments.nbits:
            path = Path(temporary) / f"{nbits}.db"
            before = make_database(path, n_passages)
            marks: dict[tuple[str, bool], float] = {}

            def mark(progress: Progress, marks: dict[tuple[str, bool], float] = marks) -> None:
                marks.setdefault((progress.stage, progress.done == progress.total), time.perf_counter())

            began = time.perf_counter()
            index = Index.create(path, "passages", ["body"], model=encoder, nbits=nbits, progress=mark)
            seconds = time.perf_counter() - began
            info = index.info()
            growth = (path.stat().st_size - before) / info.tokens
            for k in arguments.k:
                index.search("0", k=k)
                times, found = [], []
                for query in range(len(truth)):
                    start = time.perf_counter()
                    found.append({hit.pk for hit in index.search(str(query), k=k)})
                    times.append(1000 * (time.perf_counter() - start))
                shares = [len(hits & set(ids)) / k for hits, ids in zip(found, truth[:, :k].tolist(), strict=True)]
                recall = np.mean(shares)
                p50, p95 = np.percentile(times, [50, 95])
                train = marks["train", True] - marks["train", False]
                print(
                    f"| {nbits} | {seconds:.1f} | {train:.1f} | {info.bytes_per_token:.1f} | {growth:.1f} |"
                    f" {k} | {p50:.1f} | {p95:.1f} | {recall:.3f} |",
                    flush=True,
                )
            index.close()
            if arguments.keep:
                path.replace(arguments.keep)


if __name__ == "__main__":
    main()
