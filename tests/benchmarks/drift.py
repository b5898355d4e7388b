"""What an index loses when rows come that its codec has not seen, and what a rebuild wins back.

    python -m tests.benchmarks.drift FOLDER [--nbits 4] [--queries 200] [--first 0.9 0.5 0.2]

FOLDER is described in ``engine.py``. An index is built of the first share of the passages, the others are inserted and
synced; a share of 1 is what a rebuild gives. "random" draws the first passages from all; "topical" takes those on one
side of the direction in which the mean embeddings of passages differ most, so that what comes later is about something
else. Each is done with and without new centroids for outliers. Prints Markdown.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite import growth
from colbert_sqlite.index import Index
from tests.benchmarks.engine import LookUpEncoder

K = 10
NEVER = 1 << 60


def orders(encoder: LookUpEncoder, n_passages: int) -> dict[str, NDArray[np.int64]]:
    """The passages in the order in which they come."""
    means = np.stack([encoder.encode_passages([str(i)])[0].mean(axis=0) for i in range(n_passages)])
    directions = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)[2]
    return {
        "random": np.random.default_rng(0).permutation(n_passages),
        "topical": np.argsort(means @ directions[0], kind="stable"),
    }


def recall(index: Index, truth: NDArray[np.int64]) -> float:
    found = index.search_many([str(i) for i in range(len(truth))], k=K)
    pairs = zip(found, truth, strict=True)
    return float(np.mean([len({hit.pk for hit in hits} & set(best[:K].tolist())) / K for hits, best in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nbits", type=int, default=4)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--first", type=float, nargs="+", default=[1.0, 0.9, 0.5, 0.2])
    arguments = parser.parse_args()
    encoder = LookUpEncoder(arguments.folder)
    truth = np.load(arguments.folder / "gt_ids.npy")[: arguments.queries]
    n_passages = len(np.load(arguments.folder / "doclens.npy"))
    print("| later rows | built of | new centroids | centroids | drift | rebuild pays | recall@10 |")
    print("| --- | ---: | --- | ---: | ---: | --- | ---: |")
    usual = growth.OUTLIERS_AT_ONCE
    with tempfile.TemporaryDirectory() as folder:
        for name, order in orders(encoder, n_passages).items():
            for share in arguments.first:
                for grows in (False, True):
                    growth.OUTLIERS_AT_ONCE = usual if grows else NEVER
                    conn = sqlite3.connect(Path(folder) / f"{name}-{share}-{grows}.db", isolation_level=None)
                    conn.execute("CREATE TABLE passages (id INTEGER PRIMARY KEY, body TEXT)")
                    n_first = int(share * n_passages)
                    for rows in (order[:n_first], order[n_first:]):
                        conn.execute("BEGIN")
                        conn.executemany("INSERT INTO passages VALUES (?, ?)", ((i, str(i)) for i in rows.tolist()))
                        conn.execute("COMMIT")
                        if len(rows) and rows[0] == order[0]:
                            index = Index.create(conn, "passages", ["body"], model=encoder, nbits=arguments.nbits)
                    index.sync()
                    facts = index.info()
                    drift = "-" if facts.drift is None else f"{facts.drift:+.1%}"
                    print(
                        f"| {name} | {share:.0%} | {'yes' if grows else 'no'} |"
                        f" {facts.n_centroids:,} (+{facts.n_centroids_added:,}) | {drift} |"
                        f" {'yes' if facts.why_rebuild else 'no'} | {recall(index, truth):.3f} |",
                        flush=True,
                    )
                    conn.close()


if __name__ == "__main__":
    main()
