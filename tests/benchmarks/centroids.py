"""How many centroids, learned from how many tokens: what each choice costs and brings, over sizes of index.

    python -m tests.benchmarks.centroids FOLDER [--passages 100 1000 14000] [--factors 0.25 0.5 1 2 4] [--samples 8 32]

FOLDER is described in ``engine.py``; an index of n passages has its first n. A factor multiplies the number that
``n_centroids_for`` gives, samples are tokens per centroid that k-means may see. Codec and search are the engine's own
over arrays in memory, ndocs a share of the passages so that small sets are pruned as hard as large ones. "Residual" is
what is left of a token's square length, on average; "bytes" are those of centroids, codes, residuals and inverted lists
for each token. Recall is against exhaustive MaxSim over uncompressed embeddings. Prints Markdown.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.engine import plaid
from colbert_sqlite.engine.codec import ResidualCodec, n_centroids_for
from colbert_sqlite.engine.maxsim import maxsim_scores
from colbert_sqlite.engine.postings import ArrayPostings
from colbert_sqlite.settings import SearchSettings

# One passage in four has its codes read, and one in sixteen is scored exactly.
NDOCS_SHARE = 4
NPROBE = 16
K = 10
BYTES_OF_LISTED = 2


def row(
    embeddings: NDArray[Any],
    offsets: NDArray[np.int64],
    queries: NDArray[np.float32],
    truth: list[set[int]],
    n_centroids: int,
    samples: int,
    nbits: int,
) -> list[str]:
    """One line of the table, from the number of centroids on."""
    rng = np.random.default_rng(0)
    n = min(len(embeddings), samples * n_centroids)
    sample = embeddings[np.sort(rng.choice(len(embeddings), n, replace=False))]
    began = time.perf_counter()
    codec = ResidualCodec.train(sample, nbits=nbits, n_centroids=n_centroids)
    trained = time.perf_counter()
    codes, residuals = codec.compress(embeddings)
    compressed = time.perf_counter()
    left = 1 - np.einsum("td,td->t", codec.vectors[codes], embeddings.astype(np.float32)) ** 2
    postings = ArrayPostings(np.arange(len(offsets) - 1), codes.astype(np.uint32), offsets, residuals)
    listed, _ = postings.inverted_lists(np.arange(codec.n_centroids))
    stored = codec.n_centroids * codec.dim + BYTES_OF_LISTED * len(listed)
    per_token = codec.bytes_per_token + (2 if codec.n_centroids <= 1 << 16 else 4) + stored / len(embeddings)
    settings = SearchSettings(nprobe=NPROBE, ndocs=max(4, (len(offsets) - 1) // NDOCS_SHARE))
    times, shares = [], []
    for query, best in zip(queries, truth, strict=True):
        start = time.perf_counter()
        found, _ = plaid.search(query, codec, postings, settings)
        times.append(1000 * (time.perf_counter() - start))
        shares.append(len(best & set(found[:K].tolist())) / len(best))
    return [
        f"{codec.n_centroids:,}",
        str(samples),
        f"{trained - began:.1f}",
        f"{compressed - trained:.1f}",
        f"{left.mean():.3f}",
        f"{per_token:.1f}",
        f"{np.median(times):.1f}",
        f"{np.mean(shares):.3f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passages", type=int, nargs="+", default=[100, 1_000, 14_000])
    parser.add_argument("--factors", type=float, nargs="+", default=[0.25, 0.5, 1, 2, 4])
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--nbits", type=int, default=4)
    arguments = parser.parse_args()
    stored = np.load(arguments.folder / "emb.f16.npy", mmap_mode="r")
    doclens = np.load(arguments.folder / "doclens.npy").astype(np.int64)
    queries = np.load(arguments.folder / "queries.npy").astype(np.float32)
    queries = queries[:: max(1, len(queries) // arguments.queries)]
    columns = ["passages", "tokens", "centroids", "samples", "train s", "compress s", "residual", "bytes", "ms"]
    print("| " + " | ".join([*columns, f"recall@{K}"]) + " |")
    print("|" + " ---: |" * (len(columns) + 1))
    for n_passages in arguments.passages:
        offsets = np.concatenate([[0], np.cumsum(doclens[:n_passages])])
        embeddings = np.asarray(stored[: offsets[-1]])
        truth = [
            set(np.argsort(-maxsim_scores(query, embeddings.astype(np.float32), offsets), kind="stable")[:K].tolist())
            for query in queries
        ]
        for factor in arguments.factors:
            for samples in arguments.samples:
                n_centroids = max(
                    1, int(factor * n_centroids_for(len(embeddings), embeddings.shape[1], arguments.nbits))
                )
                cells = row(embeddings, offsets, queries, truth, n_centroids, samples, arguments.nbits)
                print("| " + " | ".join([f"{n_passages:,}", f"{len(embeddings):,}", *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
