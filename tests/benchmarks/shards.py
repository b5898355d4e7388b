"""What it costs to keep a collection in several files: one index against shards built apart and searched together.

    python -m tests.benchmarks.shards [--data ../shared/data] [--model minilm] [--shards 4] [COLLECTION …]

Documents are dealt out like cards, and in blocks, as files by date would have them. Every shard trains its own codec.
Recall is against exhaustive MaxSim over embeddings that were never compressed; "same top 10" is the share of the one
index's hits that the shards find too. Passages and queries are encoded once for all, and times are without it. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sqlite_utils
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder, load_encoder
from colbert_sqlite.index import Index
from colbert_sqlite.multi import search_all
from colbert_sqlite.results import Hit
from tests.benchmarks.quality import (
    RememberingEncoder,
    Run,
    exhaustive,
    make_database,
    ndcg,
    overlap,
    read_corpus,
    read_judged_queries,
)

K = 10


class Remembering(RememberingEncoder):
    """An encoder that encodes each query once, too."""

    def __init__(self, encoder: Encoder, queries: Sequence[str]) -> None:
        super().__init__(encoder)
        self._queries = dict(zip(queries, encoder.encode_queries(queries), strict=True))

    def encode_queries(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        return [self._queries[text] for text in texts]


def build(path: Path, corpus: list[dict[str, str]], model: Any) -> Index:
    make_database(path, corpus)
    db = sqlite_utils.Database(path)
    db.table("documents").enable_fts(["title", "text"], tokenize="porter")
    db.close()
    return Index.create(path, "documents", ["text"], heading="title", model=model)


def ask(queries: dict[str, str], search: Callable[[str], list[Hit]]) -> tuple[Run, float]:
    """Return the hits of every query, and the median milliseconds of one."""
    run, seconds = {}, []
    for query_id, query in queries.items():
        started = time.perf_counter()
        # By rank: in mode hybrid scores may be equal.
        run[query_id] = [(hit.pk, -float(hit.rank)) for hit in search(query)]
        seconds.append(time.perf_counter() - started)
    return run, statistics.median(seconds) * 1000


def measure(folder: Path, model: str, n_shards: int) -> Iterator[str]:
    corpus = read_corpus(folder)
    queries, qrels = read_judged_queries(folder)
    encoder = Remembering(load_encoder(model), list(queries.values()))
    block = -(-len(corpus) // n_shards)
    splits = {
        "one index": [corpus],
        f"{n_shards} shards, dealt": [corpus[shard::n_shards] for shard in range(n_shards)],
        f"{n_shards} shards, blocks": [corpus[first : first + block] for first in range(0, len(corpus), block)],
    }
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as opened:
        truth: Run = {}
        whole: Run = {}
        for name, parts in splits.items():
            paths = [Path(temporary) / f"{name}-{number}.db" for number in range(len(parts))]
            indexes = [
                opened.enter_context(build(path, part, encoder)) for path, part in zip(paths, parts, strict=True)
            ]
            run, ms = ask(queries, partial(search_all, indexes, k=K))
            hybrid, _ = ask(queries, partial(search_all, indexes, k=K, mode="hybrid"))
            truth = truth or exhaustive(paths[0], encoder, queries)
            whole = whole or run
            cells = [f"{ndcg(qrels, run):.3f}", f"{overlap(run, truth, K):.3f}", f"{overlap(run, whole, K):.3f}"]
            cells += [f"{ndcg(qrels, hybrid):.3f}", f"{ms:.0f}"]
            yield "| " + " | ".join([folder.name, f"{len(corpus):,}", name, *cells]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="*", default=["cranfield"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--shards", type=int, default=4)
    arguments = parser.parse_args()
    print("| collection | documents | | nDCG@10 | recall@10 | same top 10 | nDCG@10 hybrid | ms a query |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for collection in arguments.collections:
        for row in measure(arguments.data / collection, arguments.model, arguments.shards):
            print(row, flush=True)


if __name__ == "__main__":
    main()
