"""Spherical k-means in two levels, and the nearest centroid of each embedding.

In: a sample of token embeddings, any number of centroids. Out: centroids of unit length; for any embedding the number
of its nearest centroid. Leaves to others: how many centroids there should be, and what is done with the difference.

Comparing every token with every centroid is what makes k-means slow: 1.2 million tokens and 16,384 centroids are five
teraflops a round. So tokens are first split into coarse cells, about the square root of the number of centroids, and
k-means runs inside each cell. Looking up the nearest centroid takes the same shortcut through the nearest few cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.engine import kernels
from colbert_sqlite.engine.products import Products, inverse_norms, whole_numbers

N_ROUNDS = 8
SAMPLES_PER_CENTROID = 128
SAMPLES_PER_CELL = 256

# Up to so many centroids every one is compared; beyond, two levels are faster and miss the nearest of 1 token in 100.
MAX_EXACT = 4096
N_PROBED_CELLS = 8

# Similarities held at once, in values: small enough to be still in cache when the best are picked.
BLOCK_VALUES = 1 << 20
TOKENS_AT_ONCE = 1 << 16
VISITORS_AT_ONCE = 256


def train(
    embeddings: NDArray[np.floating], rows: NDArray[np.int64], n_centroids: int, seed: int
) -> NDArray[np.float32]:
    """Return centroids of some of the embeddings, neighbors mostly side by side.

    :param embeddings: float16 or float32 [n, dim]; rows are read as they are needed, so a memory map will do
    :param rows: int64 [n_rows] of the embeddings to learn from, at least one; at most 128 a centroid are used
    :param n_centroids: how many; fewer rows than that give one centroid each
    :return: float32 [min(n_centroids, n_rows), dim], unit length; the same for the same arguments
    """
    rng = np.random.default_rng(seed)
    n_centroids = min(n_centroids, len(rows))
    rows = _sample(rows, SAMPLES_PER_CENTROID * n_centroids, rng)
    if n_centroids <= MAX_EXACT // 4:
        return _lloyd(_float32(embeddings, rows), n_centroids, rng)
    n_cells = _n_cells(n_centroids)
    cells = _lloyd(_float32(embeddings, _sample(rows, SAMPLES_PER_CELL * n_cells, rng)), n_cells, rng)
    cell_of = np.concatenate([nearest(_float32(embeddings, rows[block]), cells)[0] for block in _blocks(len(rows))])
    members = _members(cell_of, n_cells)
    shares = _shares(np.array([len(m) for m in members]), n_centroids)
    return np.concatenate(
        [_lloyd(_float32(embeddings, rows[m]), share, rng) for m, share in zip(members, shares, strict=True) if share]
    )


def nearest(
    embeddings: NDArray[np.float32], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Return the nearest centroid of each embedding by inner product, and that product.

    Compares with every centroid. The smaller id wins ties.

    :return: uint32 [n] and float32 [n]
    """
    ids, scales = np.arange(len(centroids)), np.ones(len(centroids), np.float32)
    ids_of_best = np.zeros(len(embeddings), np.uint32)
    best = np.full(len(embeddings), -np.inf, np.float32)
    transposed = np.ascontiguousarray(centroids.T)
    step = max(64, BLOCK_VALUES // max(1, len(centroids)))
    for first in range(0, len(embeddings), step):
        rows = np.arange(first, min(first + step, len(embeddings)))
        products = embeddings[rows[0] : rows[-1] + 1] @ transposed
        kernels.improve_nearest(products, scales, rows, ids, ids_of_best, best)
    return ids_of_best, best


def cells_of(centroids: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the coarse cell of each centroid, uint16 [n]. Where centroids are many, cells are searched first."""
    if len(centroids) <= MAX_EXACT:
        return np.zeros(len(centroids), np.uint16)
    centers = _lloyd(centroids, _n_cells(len(centroids)), np.random.default_rng(0))
    return nearest(centroids, centers)[0].astype(np.uint16)


class NearestCentroid:
    """Finds the nearest of many centroids.

    Up to 4,096 centroids are compared exactly. More are searched through the 8 nearest coarse cells and in whole
    numbers: 1 token in 50 then gets another centroid that is nearly as near.

    :param centroids: float32 [n, dim], or int8 directions of centroids of unit length
    :param cells: uint16 [n], as :func:`cells_of` gives them
    """

    def __init__(self, centroids: kernels.AnyArray, cells: NDArray[np.uint16]) -> None:
        self._centroids = centroids
        self._cells = cells

    @cached_property
    def _directions(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """The centroids in whole numbers, and the factors that make these as long as the centroids."""
        if self._centroids.dtype == np.int8:
            return self._centroids, inverse_norms(self._centroids, np.ones(len(self._centroids), np.float32))
        directions, _ = whole_numbers(self._centroids)
        return directions, inverse_norms(directions, np.linalg.norm(self._centroids, axis=1))

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        if self._centroids.dtype != np.int8:
            return self._centroids
        directions, scales = self._directions
        vectors: NDArray[np.float32] = directions * scales[:, None]
        return vectors

    @cached_property
    def _centers(self) -> tuple[NDArray[np.float32], list[NDArray[np.int64]]]:
        """Directions of the coarse cells, and the centroid ids in each."""
        members = _members(self._cells, int(self._cells.max()) + 1)
        members = [ids for ids in members if len(ids)]
        return _unit(np.stack([self._vectors[ids].sum(axis=0) for ids in members])), members

    def of(self, embeddings: NDArray[np.float32]) -> NDArray[np.uint32]:
        """Return the centroid id of each embedding: uint32 [n] of float32 [n, dim]."""
        if len(self._centroids) <= MAX_EXACT:
            return nearest(embeddings, self._vectors)[0]
        return np.concatenate([self._through_cells(embeddings[block]) for block in _blocks(len(embeddings))])

    def _through_cells(self, embeddings: NDArray[np.float32]) -> NDArray[np.uint32]:
        centers, members = self._centers
        n_probed = min(N_PROBED_CELLS, len(centers))
        probed = kernels.top_rows(centers @ embeddings.T, n_probed)
        visits = _members(probed.ravel(), len(centers))
        nearest_ids = np.zeros(len(embeddings), np.uint32)
        best = np.full(len(embeddings), -np.inf, np.float32)
        directions, scales = self._directions
        # One embedding's own scale changes nothing about which centroid is nearest to it.
        values, _ = whole_numbers(embeddings)
        for ids, visit in zip(members, visits, strict=True):
            visitors, of_ids = visit // n_probed, scales[ids]
            products = Products(directions[ids], VISITORS_AT_ONCE)
            for first in range(0, len(visitors), VISITORS_AT_ONCE):
                rows = visitors[first : first + VISITORS_AT_ONCE]
                kernels.improve_nearest(products.of(values[rows]), of_ids, rows, ids, nearest_ids, best)
        return nearest_ids


def _lloyd(points: NDArray[np.float32], n_clusters: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return cluster centers of unit length, by Lloyd's rounds from random points.

    :return: float32 [min(n_clusters, n_points), dim]
    """
    n_clusters = min(n_clusters, len(points))
    centers = _unit(points[np.sort(rng.choice(len(points), n_clusters, replace=False))])
    for _ in range(N_ROUNDS):
        clusters, similarities = nearest(points, centers)
        sums = np.zeros_like(centers)
        counts = np.zeros(n_clusters, np.int64)
        kernels.add_to_clusters(points, clusters, sums, counts)
        empty = np.flatnonzero(counts == 0)
        # An empty cluster starts again at one of the points that its center describes worst.
        sums[empty] = points[np.argsort(similarities, kind="stable")[: len(empty)]]
        centers = _unit(sums)
    return centers


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
    unit: NDArray[np.float32] = vectors / np.maximum(norms, np.float32(1e-12))
    return unit


def _n_cells(n_centroids: int) -> int:
    return int(2 ** round(np.log2(n_centroids) / 2))


def _sample(rows: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rows if len(rows) <= n else np.sort(rng.choice(rows, n, replace=False))


def _float32(embeddings: NDArray[np.floating], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return embeddings[rows].astype(np.float32)


def _blocks(n: int) -> Iterator[slice]:
    return (slice(first, first + TOKENS_AT_ONCE) for first in range(0, max(n, 1), TOKENS_AT_ONCE))


def _members(groups: NDArray[np.integer], n_groups: int) -> list[NDArray[np.int64]]:
    """Return the positions in each group, rising."""
    groups = groups.astype(np.uint16)  # sorted by radix
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.searchsorted(groups[order], np.arange(1, n_groups)))


def _shares(sizes: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Split ``total`` in proportion to the sizes: at least 1 for each that is not empty, at most its size."""
    shares: NDArray[np.int64] = np.minimum(sizes, np.maximum(sizes > 0, sizes * total // max(1, sizes.sum())))
    while (missing := total - shares.sum()) != 0:
        # Hand out, or take back, one each where a centroid serves most, or fewest, rows.
        load = np.where((shares < sizes) if missing > 0 else (shares > 1), sizes / np.maximum(shares, 1), np.nan)
        order = np.argsort(-load if missing > 0 else load, kind="stable")[: abs(int(missing))]
        shares[order[~np.isnan(load[order])]] += np.sign(missing)
    return shares
