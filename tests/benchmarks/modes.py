"""What each mode of a search finds: nDCG@10 of FTS5 alone, ColBERT, FTS5 in ColBERT's order, and hybrid.

    python -m tests.benchmarks.modes [--data ../shared/data] [--kept FOLDER] [--model minilm] [COLLECTION …]

FTS5 has a porter tokenizer and finds rows with any word of the query, best bm25 first. All columns come from one
index, with default settings. Prints Markdown, a row per collection, and the median time of a query.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from colbert_sqlite.storage.fts import match_any
from tests.benchmarks.judged import Judged, open_judged

MODES: dict[str, dict[str, object]] = {
    "colbert": {},
    "fts": {"mode": "fts"},
    "hybrid": {"mode": "hybrid"},
    "hybrid, weighted": {"mode": "hybrid", "fusion": "weighted"},
}


def by_fts5_alone(judged: Judged, query: str) -> list[tuple[str, float]]:
    sql = (
        "SELECT documents.id, -rank FROM documents_fts JOIN documents ON documents.rowid = documents_fts.rowid"
        " WHERE documents_fts MATCH ? ORDER BY rank LIMIT 10"
    )
    return list(judged.database.conn.execute(sql, [match_any(query)]))


def measure(judged: Judged, search: Callable[[str], list[tuple[str, float]]]) -> tuple[float, float]:
    """Return nDCG@10 and the median milliseconds of a query."""
    run, seconds = {}, []
    for query_id, query in judged.queries.items():
        started = time.perf_counter()
        run[query_id] = search(query)
        seconds.append(time.perf_counter() - started)
    return judged.ndcg(run), statistics.median(seconds) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="*", default=["cranfield", "med", "cacm", "npl"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--kept", type=Path, default=Path("benchmark-databases"), help="where databases are kept")
    parser.add_argument("--model", default="minilm")
    arguments = parser.parse_args()
    columns = ["FTS5 alone", *MODES]
    print("| collection | " + " | ".join(columns) + " | " + " | ".join(f"{column}, ms" for column in columns) + " |")
    print("| --- |" + " ---: |" * (2 * len(columns)))
    for collection in arguments.collections:
        judged = open_judged(arguments.data / collection, arguments.kept, arguments.model)

        def found(query: str, options: dict[str, object], judged: Judged = judged) -> list[tuple[str, float]]:
            # The rank, not the score: in mode hybrid scores of equal rows may be equal.
            return [(hit.pk, -float(hit.rank)) for hit in judged.index.search(query, **options)]  # type: ignore[arg-type]

        figures = [measure(judged, partial(by_fts5_alone, judged))]
        figures += [measure(judged, partial(found, options=options)) for options in MODES.values()]
        cells = [f"{ndcg:.3f}" for ndcg, _ in figures] + [f"{ms:.0f}" for _, ms in figures]
        print(f"| {judged.name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
