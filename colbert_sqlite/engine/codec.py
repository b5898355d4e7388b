"""Token embeddings as a centroid number and a packed residual: ColBERTv2's compression.

In: embeddings, or codes and residuals read back. Out: the other of the two, and the few arrays a codec consists of.
Leaves to others: encoding text, storing anything, searching.

A packed byte holds ``8 // nbits`` neighboring values of a token, the first in its lowest bits, so that one look-up in
a table of 256 entries turns a byte into its weights. A last byte that is not full is padded with zero bits.

Two things are added to ColBERTv2. Tokens lie at very different distances from their centroids, so a residual is
divided by its own size before it is rounded, and one byte more, before the others, says what to multiply it by. Such
a scale makes the error lie across the embedding rather than along it, for a query token finds its match where the two
point the same way (the anisotropic loss of Guo et al. 2020, arXiv 1908.10396). An embedding is then the
plain sum of centroid and residual: it needs no normalizing, and a query's product with the centroid is at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.engine import kernels, kmeans
from colbert_sqlite.engine.products import inverse_norms, whole_numbers
from colbert_sqlite.errors import ShapeError, damaged
from colbert_sqlite.settings import NBITS

HELDOUT_SHARE = 20
MAX_HELDOUT = 50_000
MIN_HELDOUT = 20
TOKENS_AT_ONCE = 1 << 16

# Centroids take one byte for so many of residuals.
CENTROIDS_SHARE = 20
# So many leave room for a quarter more in codes of two bytes, and four bytes are only worth it for twice as many.
TWO_BYTE_CENTROIDS = 52_428
MAX_CENTROIDS = 1 << 17

# Enough for the error to be within 1 % of its limit at 1 to 4 bits.
BUCKET_ROUNDS = 100

# Cosine T of a query token and its match for which scales are chosen: the loss of Guo et al. weighs the error along the
# embedding (dim - 1) * T**2 / (1 - T**2) times as much as that across it. At 4 bits 0.45 to 0.9 rank alike.
MATCH_COSINE = 2 / 3
# Scales are steps of a byte, which reaches this much beyond the largest of the held-out tokens.
SCALE_MARGIN = 1.1
MAX_BYTE = 255
MAX_LEVEL = 127


@dataclass(frozen=True, eq=False)
class ResidualCodec:
    """A trained codec: centroids, and the buckets that residuals are rounded to. Threads may share one.

    :param nbits: bits per value of a residual: 1, 2, 4 or 8
    :param centroids: float32 [n_centroids, dim], or as they are stored: int8 directions of centroids of unit length
    :param bucket_cutoffs: float32 [2**nbits - 1], rising: a value's bucket is the number of cutoffs strictly below it
    :param bucket_weights: float32 [2**nbits]: the value that a bucket stands for
    :param avg_residual: mean absolute residual of held-out tokens, the baseline against which drift is measured
    :param scale_step: what a residual's first byte counts. None: residuals have no such byte, and embeddings are
        normalized after centroid and residual are added, as in ColBERTv2 and the libraries that follow it
    :param cells: uint16 [n_centroids]: the coarse cell of each; None: they are made when they are needed
    :raises ValueError: if *nbits* is another number
    :raises ShapeError: if the arrays do not fit together

    ColBERTv2 §3.3.
    """

    nbits: int
    centroids: kernels.AnyArray
    bucket_cutoffs: NDArray[np.float32]
    bucket_weights: NDArray[np.float32]
    avg_residual: float
    scale_step: float | None = None
    cells: NDArray[np.uint16] | None = None

    def __post_init__(self) -> None:
        if self.nbits not in NBITS:
            raise ValueError(f"nbits must be 1, 2, 4 or 8, not {self.nbits}")
        for name in ("bucket_cutoffs", "bucket_weights"):
            object.__setattr__(self, name, kernels.fixed(np.asarray(getattr(self, name), np.float32)))
        if self.centroids.ndim != 2 or 0 in self.centroids.shape:
            raise ShapeError(f"centroids must be [n_centroids, dim], not {self.centroids.shape}")
        if self.bucket_cutoffs.shape != (2**self.nbits - 1,) or self.bucket_weights.shape != (2**self.nbits,):
            raise ShapeError(
                f"{self.nbits} bits need {2**self.nbits - 1} cutoffs and {2**self.nbits} weights, "
                f"not {self.bucket_cutoffs.shape} and {self.bucket_weights.shape}"
            )
        if self.cells is not None and self.cells.shape != (self.n_centroids,):
            raise ShapeError(f"{self.n_centroids} centroids need as many cells, not {self.cells.shape}")

    @property
    def dim(self) -> int:
        return int(self.centroids.shape[1])

    @property
    def n_centroids(self) -> int:
        return len(self.centroids)

    @property
    def bytes_per_token(self) -> int:
        return bytes_per_token(self.dim, self.nbits, scaled=self.scale_step is not None)

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """The centroids as float32 [n_centroids, dim], to compress embeddings with. Searches do not need them."""
        vectors = from_directions(self.centroids) if self.centroids.dtype == np.int8 else self.centroids
        return kernels.fixed(np.asarray(vectors, np.float32))

    @cached_property
    def directions(self) -> NDArray[np.int8]:
        """The centroids as whole numbers, int8 [n_centroids, dim], to compare queries with."""
        return kernels.fixed(self.centroids if self.centroids.dtype == np.int8 else to_directions(self.vectors))

    @cached_property
    def inverse_norms(self) -> NDArray[np.float32]:
        """Factors that make each of :attr:`directions` as long as its centroid: float32 [n_centroids]."""
        return kernels.fixed(inverse_norms(self.directions, self._lengths))

    @property
    def longest(self) -> float:
        """The length of the longest centroid."""
        return float(self._lengths.max())

    @cached_property
    def _lengths(self) -> NDArray[np.float32]:
        if self.centroids.dtype == np.int8:
            return np.ones(self.n_centroids, np.float32)
        lengths: NDArray[np.float32] = np.linalg.norm(self.vectors, axis=1)
        return lengths

    @cached_property
    def weights_of_byte(self) -> NDArray[np.float32]:
        """The values that a packed byte stands for: float32 [256, 8 // nbits]."""
        weights: NDArray[np.float32] = self.bucket_weights[
            (np.arange(256)[:, None] >> np.arange(0, 8, self.nbits)) & (2**self.nbits - 1)
        ]
        return weights

    @cached_property
    def levels_of_byte(self) -> kernels.AnyArray:
        """The same in whole steps of :attr:`level_step`: int8 values side by side in one unsigned word, [256]."""
        levels = np.rint(self.weights_of_byte / self.level_step).astype(np.int8)
        return kernels.fixed(levels).view(f"u{8 // self.nbits}").reshape(256)

    @property
    def level_step(self) -> float:
        """What a level counts: the largest weight is level 127."""
        return _level_step(self.bucket_weights)

    @cached_property
    def _nearest(self) -> kmeans.NearestCentroid:
        return kmeans.NearestCentroid(
            self.centroids, kmeans.cells_of(self.vectors) if self.cells is None else self.cells
        )

    def _vectors_of(self, codes: NDArray[np.uint32]) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """Return centroids and the row of each code in them: all, or those of few codes while there are no vectors."""
        if self.centroids.dtype != np.int8 or "vectors" in vars(self) or 4 * len(codes) > self.n_centroids:
            return self.vectors, codes
        used, rows = np.unique(codes, return_inverse=True)
        return from_directions(self.centroids[used]), rows.astype(np.uint32)

    @classmethod
    def train(cls, embeddings: NDArray[np.floating], *, nbits: int, n_centroids: int, seed: int = 42) -> ResidualCodec:
        """Learn a codec from a sample of token embeddings; the same for the same arguments.

        :param embeddings: float16 or float32 [n, dim], at least one row. A twentieth, at most 50,000, is held out of
            k-means to learn the buckets; a sample too small for that serves for both
        :param n_centroids: how many to learn; there are never more than distinct directions in the sample
        :raises ValueError: if nbits or n_centroids is out of range
        :raises ShapeError: if the embeddings are not a matrix with at least one row and column
        """
        if nbits not in NBITS:
            raise ValueError(f"nbits must be 1, 2, 4 or 8, not {nbits}")
        if n_centroids < 1:
            raise ValueError(f"n_centroids must be at least 1, not {n_centroids}")
        if embeddings.ndim != 2 or 0 in embeddings.shape:
            raise ShapeError(f"a codec is trained on embeddings [n, dim], not {embeddings.shape}")
        rows = np.arange(len(embeddings))
        heldout = rows
        n_heldout = min(len(rows) // HELDOUT_SHARE, MAX_HELDOUT)
        if n_heldout >= MIN_HELDOUT:
            shuffled = np.random.default_rng(seed).permutation(len(rows))
            heldout, rows = np.sort(shuffled[:n_heldout]), np.sort(shuffled[n_heldout:])
        # Snapped to what is stored, before anything is measured against them: storing them then loses nothing.
        directions = to_directions(kmeans.train(embeddings, rows, n_centroids, seed))
        _, first = np.unique(directions, axis=0, return_index=True)
        directions = directions[np.sort(first)]
        centroids = from_directions(directions)
        cells = kmeans.cells_of(centroids)
        sample = embeddings[heldout].astype(np.float32)
        codes = kmeans.NearestCentroid(directions, cells).of(sample)
        residuals = sample - centroids[codes]
        sizes = np.sqrt(np.square(residuals).mean(axis=1, keepdims=True))
        normal = (residuals / np.where(sizes > 0, sizes, 1)).astype(np.float32)
        cutoffs, weights = least_squares_buckets(normal, nbits)
        codec = cls(nbits, directions, cutoffs, _in_levels(weights), float(np.abs(residuals).mean()), 1.0, cells)
        largest = float(codec._pack(sample, codes)[1].max())
        return replace(codec, scale_step=SCALE_MARGIN * largest / MAX_BYTE or 1.0)

    def compress(self, embeddings: NDArray[np.floating]) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Compress embeddings into codes and packed residuals.

        The code is the nearest centroid by inner product, the smaller id on ties.

        :param embeddings: float16 or float32 [n, dim]
        :return: uint32 [n] and uint8 [n, bytes_per_token]

        :raises ShapeError: if the embeddings do not have this codec's ``dim``
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ShapeError(f"embeddings of shape {embeddings.shape} do not fit a codec of dim {self.dim}")
        codes = np.empty(len(embeddings), np.uint32)
        residuals = np.empty((len(embeddings), self.bytes_per_token), np.uint8)
        for first in range(0, len(embeddings), TOKENS_AT_ONCE):
            block = slice(first, first + TOKENS_AT_ONCE)
            values = np.ascontiguousarray(embeddings[block], np.float32)
            codes[block] = self._nearest.of(values)
            packed, scales = self._pack(values, codes[block])
            if self.scale_step is not None:
                residuals[block, 0] = np.rint(scales / self.scale_step).clip(0, MAX_BYTE)
            residuals[block, self.bytes_per_token - packed.shape[1] :] = packed
        return codes, residuals

    def _pack(
        self, embeddings: NDArray[np.float32], codes: NDArray[np.uint32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return packed bucket numbers of the residuals, and their scales."""
        vectors, rows = self._vectors_of(codes)
        packed = np.empty((len(embeddings), bytes_per_token(self.dim, self.nbits, scaled=False)), np.uint8)
        scales = np.empty(len(embeddings), np.float32)
        parallel_weight = (self.dim - 1) * MATCH_COSINE**2 / (1 - MATCH_COSINE**2) - 1
        kernels.pack_residuals(
            embeddings,
            rows,
            vectors,
            self.bucket_cutoffs,
            self.bucket_weights,
            self.nbits,
            self.scale_step is not None,
            np.float32(max(0.0, parallel_weight)),
            packed,
            scales,
        )
        return packed, scales

    def vectors_of(self, codes: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Return the centroid of each code, float32 [n, dim]."""
        vectors, rows = self._vectors_of(codes)
        return vectors[rows]

    def mean_residuals(self, embeddings: NDArray[np.floating], codes: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Return how far each embedding is from its centroid: the mean absolute value of its residual, float32 [n].

        :param codes: uint32 [n], the nearest centroid of each, as :meth:`compress` gives it
        """
        means = np.empty(len(embeddings), np.float32)
        for first in range(0, len(embeddings), TOKENS_AT_ONCE):
            block = slice(first, first + TOKENS_AT_ONCE)
            vectors, rows = self._vectors_of(codes[block])
            means[block] = np.abs(embeddings[block] - vectors[rows]).mean(axis=1)
        return means

    def decompress(self, codes: NDArray[np.integer], residuals: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return L2-normalized embeddings, float32 [n, dim], of codes and residuals.

        :param codes: integers [n]
        :param residuals: uint8 [n, bytes_per_token]

        :raises IndexCorrupt: if a code has no centroid, or the residuals do not have the shape they should
        """
        embeddings = self.reconstruct(codes, residuals)
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        unit: NDArray[np.float32] = embeddings / np.maximum(norms, np.float32(1e-12))
        return unit

    def reconstruct(self, codes: NDArray[np.integer], residuals: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the sums of centroid and residual: what searches score, unless ``scale_step`` is None.

        They are not normalized. Arguments and errors as in :meth:`decompress`.
        """
        if len(codes) and not 0 <= codes.min() <= codes.max() < self.n_centroids:
            raise damaged("codes", f"one is not a centroid of the {self.n_centroids} in the codec")
        if residuals.dtype != np.uint8 or residuals.shape != (len(codes), self.bytes_per_token):
            expected = f"uint8 {(len(codes), self.bytes_per_token)}"
            raise damaged("residuals", f"they are {residuals.dtype} {residuals.shape}, not {expected}")
        embeddings = np.empty((len(codes), self.dim), np.float32)
        for first in range(0, len(codes), TOKENS_AT_ONCE):
            block = slice(first, first + TOKENS_AT_ONCE)
            packed = residuals[block]
            if self.scale_step is None:
                values = self.weights_of_byte[packed].reshape(len(packed), -1)[:, : self.dim]
            else:
                values = self.weights_of_byte[packed[:, 1:]].reshape(len(packed), -1)[:, : self.dim]
                values *= packed[:, :1] * np.float32(self.scale_step)
            embeddings[block] = self.vectors[codes[block]] + values
        return embeddings


def _level_step(weights: NDArray[np.float32]) -> float:
    return float(np.abs(weights).max()) / MAX_LEVEL or 1.0


def _in_levels(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round weights to whole levels, so that whole numbers score what is stored without loss."""
    step = _level_step(weights)
    snapped: NDArray[np.float32] = (np.rint(weights / step) * step).astype(np.float32)
    return snapped


def bytes_per_token(dim: int, nbits: int, *, scaled: bool = True) -> int:
    """Return the bytes of one packed residual, that of its scale included."""
    return scaled + -(-dim * nbits // 8)


def n_centroids_for(n_tokens: int, dim: int, nbits: int) -> int:
    """Return how many centroids an index should have: 12 to 32 times the square root of its tokens.

    The more, the better the passages that they choose (tests/benchmarks/centroids.py): as many as take a twentieth of
    the space of the residuals. PLAID has 8 to 16 times the square root, a power of two. Never more than a quarter of
    the tokens, so that what residuals look like can still be learned, nor than 131,072: each query scores them all, and
    a sample of a million tokens teaches no more.

    :raises ValueError: if there are no tokens
    """
    if n_tokens < 1:
        raise ValueError(f"an index needs at least 1 token, not {n_tokens}")
    affordable = n_tokens * bytes_per_token(dim, nbits) / (CENTROIDS_SHARE * dim)
    n_centroids = int(np.clip(affordable, 12 * np.sqrt(n_tokens), 32 * np.sqrt(n_tokens)))
    if TWO_BYTE_CENTROIDS < n_centroids < 2 * TWO_BYTE_CENTROIDS:
        n_centroids = TWO_BYTE_CENTROIDS
    return min(n_centroids, max(1, n_tokens // 4), MAX_CENTROIDS)


def quantile_buckets(residuals: NDArray[np.float32], nbits: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return bucket cutoffs and weights such that every bucket holds equally many values, as the reference does.

    :param residuals: float32 [n, dim] of held-out tokens; all values count alike, whatever their dimension
    :return: float32 [2**nbits - 1] quantiles between the buckets, float32 [2**nbits] quantiles in their middles

    ColBERTv2 §3.3.
    """
    n_buckets = 2**nbits
    # Cutoffs and weights take turns: quantiles at 1, 2, ... of 2 * n_buckets equal steps.
    quantiles = np.quantile(residuals, np.arange(1, 2 * n_buckets) / (2 * n_buckets)).astype(np.float32)
    return quantiles[1::2], quantiles[::2]


def least_squares_buckets(
    residuals: NDArray[np.float32], nbits: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return bucket cutoffs and weights that round values with the least squared error (Lloyd and Max).

    Same arguments and results as :func:`quantile_buckets`, which they begin with. Quantiles spend their buckets
    where values are dense and cut the tails off; on real embeddings at 4 bits they leave about four times the error.
    """
    values = np.sort(residuals, axis=None)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    weights = quantile_buckets(residuals, nbits)[1].astype(np.float64)
    for _ in range(BUCKET_ROUNDS):
        ends = np.searchsorted(values, (weights[1:] + weights[:-1]) / 2)
        edges = np.concatenate([[0], ends, [len(values)]])
        counts = np.diff(edges)
        weights = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), weights)
    return ((weights[1:] + weights[:-1]) / 2).astype(np.float32), weights.astype(np.float32)


def to_directions(centroids: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return what is stored of centroids: int8 [n, dim], each row scaled to a largest value of 127, and rounded."""
    return whole_numbers(centroids)[0]


def from_directions(directions: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return the centroids of stored directions: float32 [n, dim] of unit length; a row of zeros stays zero."""
    rows = directions.astype(np.float64)
    norms = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    unit: NDArray[np.float32] = (rows / np.maximum(norms, 1)).astype(np.float32)
    return unit
