"""Filtered search: recall@10 against filtered exhaustive search, from a ten-thousandth of the rows to all of them.

    python -m tests.benchmarks.filters [--data ../shared/data] [--kept FOLDER] [--model minilm] [COLLECTION …]

Rows are chosen at random, by a sub-select in ``where``. The truth is MaxSim over all embeddings that the filter leaves,
as they were before compression ("recall@10"), and as they are stored ("of what is stored"). Where fewer than ten rows
are left, recall is of those, and the number of hits is checked. Default settings. Prints Markdown.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders import load
from colbert_sqlite.engine import plaid
from colbert_sqlite.engine.maxsim import maxsim_scores
from colbert_sqlite.settings import ModelOptions, SearchSettings
from tests.benchmarks.judged import Judged, open_judged
from tests.benchmarks.quality import passages

SELECTIVITIES = (0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
WHERE = "id IN (SELECT document_id FROM places WHERE place < :n)"


def shuffle_rows(judged: Judged) -> dict[str, int]:
    """Give every row a place at random; return the places."""
    db = judged.database
    ids = [row[0] for row in db.conn.execute("SELECT id FROM documents ORDER BY id")]
    random.Random(42).shuffle(ids)
    places = {document_id: place for place, document_id in enumerate(ids)}
    rows = [{"document_id": document_id, "place": place} for document_id, place in places.items()]
    db.table("places").insert_all(rows, pk="document_id", replace=True)
    return places


def best_rows(keys: list[str], scores: NDArray[np.float32], k: int) -> set[str]:
    best: dict[str, float] = {}
    for position in np.argsort(-scores, kind="stable").tolist():
        if len(best) == k:
            break
        best.setdefault(keys[position], float(scores[position]))
    return set(best)


def measure(judged: Judged, model: str, n_queries: int) -> None:
    places = shuffle_rows(judged)
    path = Path(judged.index.database)
    keys, texts = map(list, zip(*passages(path), strict=True))
    encoder = load(model, ModelOptions(), many=True)
    embeddings = encoder.encode_passages(texts)
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in embeddings])])
    flat = np.concatenate(embeddings)
    queries = list(judged.queries.values())[:n_queries]
    encoded = judged.index.load_encoder().encode_queries(queries)
    uncompressed = [maxsim_scores(query, flat, offsets) for query in encoded]
    with judged.index.read() as view:
        found = [
            plaid.search(query, view.codec.residual, view.postings, SearchSettings.for_k(10), exhaustive=True)
            for query in encoded
        ]
        rows = view.store.passages.rows(found[0][0].tolist())
    stored = [([str(rows[i].key[0]) for i in ids.tolist()], scores) for ids, scores in found]
    for share in SELECTIVITIES:
        n = max(1, round(share * len(places)))
        allowed = np.array([places[key] < n for key in keys])
        recalls, recalls_of_stored, milliseconds = [], [], []
        for query, before, (stored_keys, after) in zip(queries, uncompressed, stored, strict=True):
            started = time.perf_counter()
            hits = judged.index.search(query, where=WHERE, params={"n": n})
            milliseconds.append(1000 * (time.perf_counter() - started))
            mine = {hit.pk for hit in hits}
            assert len(mine) == len(hits) == min(10, len({key for key in keys if places[key] < n}))
            truth = best_rows(keys, np.where(allowed, before, -np.inf), len(mine))
            allowed_stored = np.array([places[key] < n for key in stored_keys])
            truth_stored = best_rows(stored_keys, np.where(allowed_stored, after, -np.inf), len(mine))
            recalls.append(len(mine & truth) / max(1, len(mine)))
            recalls_of_stored.append(len(mine & truth_stored) / max(1, len(mine)))
        cells = [f"{share:.2%}", f"{n:,}", f"{np.mean(recalls):.3f}", f"{np.mean(recalls_of_stored):.3f}"]
        print(f"| {judged.name} | {' | '.join(cells)} | {statistics.median(milliseconds):.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="*", default=["cacm", "npl"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--kept", type=Path, default=Path("benchmark-databases"), help="where databases are kept")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--queries", type=int, default=100)
    arguments = parser.parse_args()
    print("| collection | selectivity | rows | recall@10 | of what is stored | p50 ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for collection in arguments.collections:
        judged = open_judged(arguments.data / collection, arguments.kept, arguments.model)
        measure(judged, arguments.model, arguments.queries)


if __name__ == "__main__":
    main()
