"""Token embeddings as a centroid number and a packed residual: ColBERTv2's compression.

In: embeddings, or codes and residuals read back. Out: the other of the two, and the few arrays a codec consists of.
Leaves to others: encoding text, storing anything, and searching.

A packed byte holds ``8 // nbits`` neighbouring values of a token, the first in its lowest bits, so that one look-up in
a table of 256 entries turns a byte into its weights. A last byte that is not full is padded with zero bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.engine import kernels, kmeans
from colbert_sqlite.errors import IndexCorrupt, ShapeError
from colbert_sqlite.settings import NBITS

HELDOUT_SHARE = 20
HELDOUT_MOST = 50_000
HELDOUT_LEAST = 20
TOKENS_AT_ONCE = 1 << 16

# Enough for the error to be within 1 % of its limit at 1 to 4 bits.
BUCKET_ROUNDS = 100


@dataclass(frozen=True, slots=True, eq=False)
class ResidualCodec:
    """A trained codec: centroids, and the buckets that residuals are rounded to.

    :param nbits: bits per value of a residual: 1, 2, 4 or 8
    :param centroids: float32 [n_centroids, dim]
    :param bucket_cutoffs: float32 [2**nbits - 1], rising: a value's bucket is the number of cutoffs strictly below it
    :param bucket_weights: float32 [2**nbits]: the value that a bucket stands for
    :param avg_residual: mean absolute residual of held-out tokens, the baseline against which drift is measured
    :raises ValueError: if nbits is none of those
    :raises ShapeError: if the arrays do not fit together

    ColBERTv2 §3.3.
    """

    nbits: int
    centroids: NDArray[np.float32]
    bucket_cutoffs: NDArray[np.float32]
    bucket_weights: NDArray[np.float32]
    avg_residual: float
    weights_of_byte: NDArray[np.float32] = field(init=False, repr=False)
    _nearest: kmeans.NearestCentroid = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.nbits not in NBITS:
            raise ValueError(f"nbits must be 1, 2, 4 or 8, not {self.nbits}")
        for name in ("centroids", "bucket_cutoffs", "bucket_weights"):
            object.__setattr__(self, name, kernels.fixed(np.asarray(getattr(self, name), np.float32)))
        if self.centroids.ndim != 2 or 0 in self.centroids.shape:
            raise ShapeError(f"centroids must be [n_centroids, dim], not {self.centroids.shape}")
        if self.bucket_cutoffs.shape != (2**self.nbits - 1,) or self.bucket_weights.shape != (2**self.nbits,):
            raise ShapeError(
                f"{self.nbits} bits need {2**self.nbits - 1} cutoffs and {2**self.nbits} weights, "
                f"not {self.bucket_cutoffs.shape} and {self.bucket_weights.shape}"
            )
        shifts = np.arange(0, 8, self.nbits)
        buckets = (np.arange(256)[:, None] >> shifts) & (2**self.nbits - 1)
        object.__setattr__(self, "weights_of_byte", kernels.fixed(self.bucket_weights[buckets]))
        object.__setattr__(self, "_nearest", kmeans.NearestCentroid(self.centroids))

    @property
    def dim(self) -> int:
        return int(self.centroids.shape[1])

    @property
    def n_centroids(self) -> int:
        return len(self.centroids)

    @property
    def bytes_per_token(self) -> int:
        return -(-self.dim * self.nbits // 8)

    @property
    def values_per_byte(self) -> tuple[int, ...]:
        """As many zeros as a packed byte has values; see :func:`kernels.decompress_passages`."""
        return (0,) * (8 // self.nbits)

    @classmethod
    def train(cls, embeddings: NDArray[np.floating], *, nbits: int, n_centroids: int, seed: int = 42) -> ResidualCodec:
        """A codec learnt from a sample of token embeddings; the same for the same arguments.

        :param embeddings: float16 or float32 [n, dim], at least one row. A twentieth, at most 50,000, is held out of
            k-means to learn the buckets; a sample too small for that serves for both
        :param n_centroids: how many to look for; there are never more than distinct directions in the sample
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
        n_heldout = min(len(rows) // HELDOUT_SHARE, HELDOUT_MOST)
        if n_heldout >= HELDOUT_LEAST:
            shuffled = np.random.default_rng(seed).permutation(len(rows))
            heldout, rows = np.sort(shuffled[:n_heldout]), np.sort(shuffled[n_heldout:])
        # Snapped to what is stored, before anything is measured against them: storing them then loses nothing.
        directions = to_directions(kmeans.train(embeddings, rows, n_centroids, seed))
        _, first = np.unique(directions, axis=0, return_index=True)
        centroids = from_directions(directions[np.sort(first)])
        sample = embeddings[heldout].astype(np.float32)
        codes = kmeans.NearestCentroid(centroids).of(sample)
        residuals = sample - centroids[codes]
        return cls(nbits, centroids, *least_squares_buckets(residuals, nbits), float(np.abs(residuals).mean()))

    def compress(self, embeddings: NDArray[np.floating]) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Codes uint32 [n] and packed residuals uint8 [n, bytes_per_token] of embeddings, float16 or float32 [n, dim].

        The code is the nearest centroid by inner product, the smaller id on ties.

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
            kernels.pack_residuals(
                values, codes[block], self.centroids, self.bucket_cutoffs, self.nbits, residuals[block]
            )
        return codes, residuals

    def decompress(self, codes: NDArray[np.integer], residuals: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embeddings, L2-normalised: float32 [n, dim] from codes [n] and residuals uint8 [n, bytes_per_token].

        :raises IndexCorrupt: if a code has no centroid, or the residuals do not have the shape they should
        """
        if len(codes) and not 0 <= codes.min() <= codes.max() < self.n_centroids:
            raise IndexCorrupt(f"a code names a centroid beyond the {self.n_centroids} of this codec")
        if residuals.dtype != np.uint8 or residuals.shape != (len(codes), self.bytes_per_token):
            raise IndexCorrupt(
                f"residuals of {len(codes)} tokens must be uint8 {(len(codes), self.bytes_per_token)}, "
                f"not {residuals.dtype} {residuals.shape}"
            )
        values = self.scratch(len(codes))
        inverse_norms = np.empty(len(codes), np.float32)
        kernels.decompress_passages(
            kernels.fixed(codes),
            np.array([0, len(codes)], np.int64),
            kernels.fixed(residuals),
            np.zeros(1, np.int64),
            self.centroids,
            self.weights_of_byte,
            self.values_per_byte,
            values,
            inverse_norms,
        )
        return values[:, : self.dim] * inverse_norms[:, None]

    def scratch(self, n_tokens: int) -> NDArray[np.float32]:
        """Room to decompress so many tokens, with a column for each packed value, pad values included."""
        return np.empty((n_tokens, self.bytes_per_token * len(self.values_per_byte)), np.float32)


def n_centroids_for(n_tokens: int) -> int:
    """How many centroids an index of so many tokens should have: PLAID's power of two nearest below 16 * sqrt(tokens).

    Never more than a quarter of the tokens, so that a small index still learns what residuals look like.

    :raises ValueError: if there are no tokens
    """
    if n_tokens < 1:
        raise ValueError(f"an index needs at least 1 token, not {n_tokens}")
    return int(min(2 ** int(np.log2(16 * np.sqrt(n_tokens))), max(1, n_tokens // 4)))


def quantile_buckets(residuals: NDArray[np.float32], nbits: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bucket cutoffs and weights such that every bucket holds equally many values, as the reference makes them.

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
    """Bucket cutoffs and weights that round the values with the least squared error (Lloyd and Max's rounds).

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
    """What is stored of centroids: int8 [n, dim], each row scaled so that its largest value is 127, and rounded."""
    largest = np.abs(centroids).max(axis=1, keepdims=True).astype(np.float64)
    return np.rint(centroids / np.where(largest > 0, largest, 1) * 127).astype(np.int8)


def from_directions(directions: NDArray[np.int8]) -> NDArray[np.float32]:
    """Unit-length centroids float32 [n, dim] of stored directions; a row of zeros stays zero."""
    rows = directions.astype(np.float64)
    norms = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    unit: NDArray[np.float32] = (rows / np.maximum(norms, 1)).astype(np.float32)
    return unit
