"""Slow twins of the compiled kernels and of the search stages, written to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[Any]


def top_rows(scores: Array, n_best: int) -> Array:
    """Row numbers of the highest values of each column, the lower row on ties."""
    return np.stack([np.lexsort((np.arange(len(column)), -column))[:n_best] for column in scores.T])


def pack(bucket_numbers: Array, nbits: int) -> Array:
    """Bytes of 8 // nbits neighboring values, the first in the lowest bits, padded with zeros."""
    n_values = 8 // nbits
    packed = []
    for token in bucket_numbers:
        token = list(token) + [0] * (-len(token) % n_values)
        packed.append(
            [
                sum(int(b) << (nbits * i) for i, b in enumerate(token[start : start + n_values]))
                for start in range(0, len(token), n_values)
            ]
        )
    return np.array(packed, np.uint8).reshape(len(bucket_numbers), -1)


def unpack(packed: Array, nbits: int, dim: int) -> Array:
    """The bucket numbers that were packed."""
    shifts = range(0, 8, nbits)
    values = [[(int(byte) >> shift) & (2**nbits - 1) for byte in token for shift in shifts][:dim] for token in packed]
    return np.array(values, np.int64).reshape(len(packed), dim)


def stanford_unpack(packed: Array, nbits: int, dim: int) -> Array:
    """Bucket numbers out of the reference implementation's packing: a bit stream, each value's lowest bit first."""
    bits = np.unpackbits(packed, axis=1).reshape(len(packed), dim, nbits)
    return (bits.astype(np.int64) << np.arange(nbits)).sum(axis=2)


def reconstruct(
    codes: Array, bucket_numbers: ArrayLike, centroids: Array, weights: ArrayLike, scales: ArrayLike
) -> Array:
    """Centroid plus scaled residual."""
    return centroids[codes] + np.asarray(weights)[np.asarray(bucket_numbers)] * np.asarray(scales)[:, None]


def best_scale(embedding: Array, centroid: Array, residual: Array, parallel_weight: float) -> float:
    """The multiple of a rounded residual with the least error, that along the embedding counted more, by trying."""
    tried = np.linspace(0, 4, 40_001)[:, None]
    errors = centroid + tried * residual - embedding
    losses = (errors**2).sum(axis=1) + parallel_weight * (errors @ embedding) ** 2
    return float(tried[np.argmin(losses), 0])


def normalized(values: Array) -> Array:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def nearest(embeddings: Array, centroids: Array) -> Array:
    """Centroid with the highest inner product, the smaller id on ties."""
    return np.array([np.argmax(centroids @ embedding) for embedding in embeddings], np.uint32)


def maxsim(query: Array, document: Array, floor: float = -np.inf) -> float:
    """Best similarity of each query token, each at least ``floor``, summed; -inf for a document without tokens."""
    if len(document) == 0:
        return -np.inf
    return sum(max(floor, *(float(np.dot(q, d)) for d in document)) for q in query)


def interact(codes: Array, offsets: Array, centroid_scores: Array) -> Array:
    """Approximate MaxSim of each passage over its centroids."""
    return np.array(
        [
            np.max(centroid_scores[codes[first:last]], axis=0).astype(np.float64).sum() if last > first else -np.inf
            for first, last in zip(offsets[:-1], offsets[1:], strict=True)
        ]
    )


def sum_listed(lists: Sequence[Array], probed: Array, gains: Array, n_passages: int) -> list[int]:
    """For each passage, the best gain of each query token among its lists that name it, summed; -1 if none does."""
    sums = []
    for passage in range(n_passages):
        named = [[int(gains[t, i]) for i, c in enumerate(row) if passage in lists[c]] for t, row in enumerate(probed)]
        sums.append(sum(max(row, default=0) for row in named) if any(named) else -1)
    return sums


def best_similarities(
    products: Array,
    token_scales: Array,
    residuals: Array,
    starts: Array,
    ends: Array,
    codes: Array,
    first_codes: Array,
    table: Array,
    step: float,
) -> Array:
    """MaxSim of each passage: of its centroids' scores plus the scaled products of its residuals."""
    scores, first = [], 0
    for start, end, code in zip(starts, ends, first_codes, strict=True):
        n = end - start
        of_residuals = products[first : first + n] * token_scales * residuals[start:end, :1]
        similarities = table[codes[code : code + n]] * step + of_residuals
        scores.append(similarities.max(axis=0).sum() if n else -np.inf)
        first += n
    return np.array(scores)


def list_scores(probed: Array, codes: Array, offsets: Array, centroid_scores: Array) -> dict[int, Any]:
    """For each passage in a list of a probed centroid: best probed score of each query token, the last if none."""
    found = {}
    for passage, (first, last) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        mine = set(codes[first:last].tolist())
        if mine & set(probed.ravel().tolist()):
            found[passage] = sum(
                max((centroid_scores[c, t] for c in row if c in mine), default=centroid_scores[row[-1], t])
                - centroid_scores[row[-1], t]
                for t, row in enumerate(probed.tolist())
            )
    return found


def cut(passage_ids: Array, scores: Array, n: int) -> Array:
    """The passages of the ``n`` highest scores, the larger id on ties, in order of id."""
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], -passage_ids[i]))[:n]
    return np.sort(passage_ids[best])


def stages(
    probed: Array, centroid_scores: Array, codes: Array, offsets: Array, ndocs: int, allowed: Array | None = None
) -> Array:
    """Passages that reach stage 4, of passages 0, 1, 2, ..., given whole-number scores of the centroids."""
    listed = list_scores(probed, codes, offsets, centroid_scores)
    kept = np.array([i for i in listed if allowed is None or i in set(allowed.tolist())], np.int64)
    if len(kept) > ndocs:
        kept = cut(kept, np.array([listed[i] for i in kept.tolist()]), ndocs)
    if len(kept) > ndocs // 4:
        kept = cut(kept, interact(codes, offsets, centroid_scores)[kept], ndocs // 4)
    return kept


def ward_clusters(rows: Array, n_clusters: int) -> list[list[int]]:
    """Clusters of rows, as lists of positions: the two nearest merge, by Ward's linkage of cosine distances.

    The distance of a merger follows from those of its parts (Lance and Williams).
    """
    clusters = [[i] for i in range(len(rows))]
    distances = {(i, j): max(0.0, 1 - float(rows[i] @ rows[j])) for i in range(len(rows)) for j in range(i)}
    alive = list(range(len(rows)))
    while len(alive) > n_clusters:
        a, b = min(((i, j) for i in alive for j in alive if j < i), key=distances.__getitem__)
        new = len(clusters)
        clusters.append(clusters[a] + clusters[b])
        alive = [i for i in alive if i not in (a, b)]
        for i in alive:
            s, t, n = len(clusters[a]), len(clusters[b]), len(clusters[i])
            to_a, to_b = (distances[max(i, x), min(i, x)] for x in (a, b))
            squared = ((s + n) * to_a**2 + (t + n) * to_b**2 - n * distances[a, b] ** 2) / (s + t + n)
            distances[new, i] = max(0.0, squared) ** 0.5
        alive.append(new)
    return [clusters[i] for i in alive]
