"""The compiled loops, each with a slow twin in ``tests/reference.py``. The only ``import numba``.

In: plain arrays that the caller has checked; nothing is checked here, and a code or an offset out of range ends the
process. Out: plain arrays. Leaves to others: every check, every matrix product (numpy's BLAS is the fastest at hand),
and threads (kernels are serial and release the GIL).

Arrays are passed read-only where they are only read (see :func:`fixed`), so that each kernel is compiled once for an
array from a file and the same array made in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Sums may be reordered, which is what lets them be vectorised; NaN and infinity keep their meaning.
REORDER = {"reassoc", "contract"}

# Tokens unpacked before their centroids are added. Reading a token back at once would stall on its own narrow stores.
UNPACK_BLOCK = 32

# Marks a centroid that is left out, below every quantised score.
PRUNED = np.int16(-32768)


def fixed(array: NDArray[Any]) -> NDArray[Any]:
    """The same values, contiguous, aligned, native in byte order and read-only: the form kernels are compiled for."""
    view = np.require(array, array.dtype.newbyteorder("="), ["C", "A"]).view()
    view.flags.writeable = False
    return view


@njit(cache=True, nogil=True)
def top_rows(scores: NDArray[np.float32], n_best: int) -> NDArray[np.int64]:
    """Row numbers of the ``n_best`` highest values of each column, best first, the lower row on ties.

    ``scores`` is [n_rows, n_columns] with ``n_best <= n_rows``; the result is [n_columns, n_best].
    """
    n_rows, n_columns = scores.shape
    best = np.full((n_columns, n_best), -np.inf, np.float32)
    rows = np.zeros((n_columns, n_best), np.int64)
    entry = np.full(n_columns, -np.inf, np.float32)
    for row in range(n_rows):
        n_better = 0
        for column in range(n_columns):
            n_better += scores[row, column] > entry[column]
        if n_better == 0:
            continue
        for column in range(n_columns):
            score = scores[row, column]
            if score > entry[column]:
                place = n_best - 1
                while place > 0 and best[column, place - 1] < score:
                    best[column, place] = best[column, place - 1]
                    rows[column, place] = rows[column, place - 1]
                    place -= 1
                best[column, place] = score
                rows[column, place] = row
                entry[column] = best[column, n_best - 1]
    return rows


@njit(cache=True, nogil=True)
def quantise_scores(
    centroid_scores: NDArray[np.float32], steps_per_unit: np.float32, threshold: np.float32
) -> NDArray[np.int16]:
    """Centroid scores as whole steps; rows whose best score is below the threshold are ``PRUNED`` throughout.

    Half the memory of float32 and twice as many maxima per instruction: :func:`sum_best` takes half the time.
    """
    n_centroids, n_query_tokens = centroid_scores.shape
    table = np.empty((n_centroids, n_query_tokens), np.int16)
    for centroid in range(n_centroids):
        n_above = 0
        for token in range(n_query_tokens):
            score = centroid_scores[centroid, token]
            n_above += score >= threshold
            table[centroid, token] = np.int16(np.rint(score * steps_per_unit))
        if n_above == 0:
            table[centroid, :] = PRUNED
    return table


@njit(cache=True, nogil=True)
def sum_best(codes: NDArray[Any], offsets: NDArray[np.int64], table: NDArray[np.int16]) -> NDArray[np.int64]:
    """Sum over query tokens of the best quantised score among each passage's codes.

    A passage all of whose codes are ``PRUNED``, or that has none, sums to ``PRUNED * n_query_tokens``.
    """
    n_query_tokens = table.shape[1]
    sums = np.empty(len(offsets) - 1, np.int64)
    best = np.empty(n_query_tokens, np.int16)
    for passage in range(len(sums)):
        best[:] = PRUNED
        for position in range(offsets[passage], offsets[passage + 1]):
            code = codes[position]
            for token in range(n_query_tokens):
                score = table[code, token]
                best[token] = score if score > best[token] else best[token]
        total = np.int64(0)
        for token in range(n_query_tokens):
            total += best[token]
        sums[passage] = total
    return sums


@njit(cache=True, nogil=True, fastmath=REORDER)
def decompress_passages(
    codes: NDArray[Any],
    offsets: NDArray[np.int64],
    residuals: NDArray[np.uint8],
    starts: NDArray[np.int64],
    centroids: NDArray[np.float32],
    weights_of_byte: NDArray[np.float32],
    values_per_byte: tuple[int, ...],
    out: NDArray[np.float32],
    inverse_norms: NDArray[np.float32],
) -> None:
    """Fill ``out`` with centroid plus residual of each token, not yet normalised, and the inverse of their norms.

    ``weights_of_byte`` is [256, values per byte], what a packed byte stands for. ``out`` has a column for each packed
    value, pad values included; only the first ``dim`` columns are meaningful. ``offsets`` need not begin at 0: token
    ``offsets[0]`` lands in row 0.
    """
    dim = centroids.shape[1]
    n_bytes = residuals.shape[1]
    # Only the length of values_per_byte counts: the length of a tuple is known to the compiler, which then unrolls.
    n_values = len(values_per_byte)
    for passage in range(len(starts)):
        shift = starts[passage] - offsets[passage]
        for first in range(offsets[passage], offsets[passage + 1], UNPACK_BLOCK):
            last = min(first + UNPACK_BLOCK, offsets[passage + 1])
            for token in range(first, last):
                row = token - offsets[0]
                for position in range(n_bytes):
                    byte = residuals[token + shift, position]
                    for value in range(n_values):
                        out[row, position * n_values + value] = weights_of_byte[byte, value]
            for token in range(first, last):
                row = token - offsets[0]
                code = codes[token]
                squares = np.float32(0)
                for d in range(dim):
                    value = out[row, d] + centroids[code, d]
                    out[row, d] = value
                    squares += value * value
                inverse_norms[row] = np.float32(1) / max(np.sqrt(squares), np.float32(1e-12))


@njit(cache=True, nogil=True)
def sum_best_similarities(
    similarities: NDArray[np.float32],
    inverse_norms: NDArray[np.float32],
    offsets: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> None:
    """Fill ``scores`` with MaxSim of each passage; ``-inf`` for one without tokens.

    ``similarities`` is [n_tokens, n_query_tokens], before each row is multiplied with its inverse norm. ``offsets``
    need not begin at 0: token ``offsets[0]`` is row 0.
    """
    n_query_tokens = similarities.shape[1]
    best = np.empty(n_query_tokens, np.float32)
    for passage in range(len(scores)):
        best[:] = -np.inf
        for row in range(offsets[passage] - offsets[0], offsets[passage + 1] - offsets[0]):
            scale = inverse_norms[row]
            for token in range(n_query_tokens):
                similarity = similarities[row, token] * scale
                best[token] = similarity if similarity > best[token] else best[token]
        total = np.float32(0)
        for token in range(n_query_tokens):
            total += best[token]
        scores[passage] = total


@njit(cache=True, nogil=True)
def gather_ranges(
    values: NDArray[Any], starts: NDArray[np.int64], offsets: NDArray[np.int64], out: NDArray[Any]
) -> None:
    """Fill ``out[offsets[i]:offsets[i + 1]]`` with the values from ``starts[i]`` on."""
    for i in range(len(starts)):
        shift = starts[i] - offsets[i]
        for position in range(offsets[i], offsets[i + 1]):
            out[position] = values[position + shift]


@njit(cache=True, nogil=True)
def pack_residuals(
    embeddings: NDArray[np.float32],
    codes: NDArray[np.uint32],
    centroids: NDArray[np.float32],
    cutoffs: NDArray[np.float32],
    nbits: int,
    out: NDArray[np.uint8],
) -> None:
    """Fill ``out`` with the packed bucket numbers of each embedding's residual.

    A bucket is the number of cutoffs strictly below the residual: counting them all is faster than a binary search,
    because it vectorises. The first value of a byte has its lowest bits; pad bits are 0.
    """
    n_tokens, dim = embeddings.shape
    n_values = 8 // nbits
    buckets = np.zeros(out.shape[1] * n_values, np.uint8)
    residual = np.empty(dim, np.float32)
    for token in range(n_tokens):
        code = codes[token]
        for d in range(dim):
            residual[d] = embeddings[token, d] - centroids[code, d]
            buckets[d] = 0
        for cutoff in cutoffs:
            for d in range(dim):
                buckets[d] += np.uint8(cutoff < residual[d])
        for position in range(out.shape[1]):
            byte = 0
            for value in range(n_values):
                byte |= buckets[position * n_values + value] << (value * nbits)
            out[token, position] = byte


@njit(cache=True, nogil=True)
def improve_nearest(
    similarities: NDArray[np.float32],
    rows: NDArray[np.int64],
    centroid_ids: NDArray[np.int64],
    nearest: NDArray[np.uint32],
    best: NDArray[np.float32],
) -> None:
    """Where a similarity beats the best so far of its embedding, put its centroid and itself in their place.

    ``similarities`` is [n_rows, n_centroids] between embeddings ``rows`` and ``centroid_ids`` (rising); ``nearest``
    and ``best`` hold one value for each embedding. Ties go to the smaller centroid id.
    """
    n_columns = similarities.shape[1]
    for i in range(len(rows)):
        highest = np.float32(-np.inf)
        for column in range(n_columns):
            highest = max(highest, similarities[i, column])
        row = rows[i]
        if highest < best[row]:
            continue
        for column in range(n_columns):
            if similarities[i, column] == highest:
                if highest > best[row] or centroid_ids[column] < nearest[row]:
                    nearest[row] = centroid_ids[column]
                    best[row] = highest
                break


@njit(cache=True, nogil=True)
def add_to_clusters(
    embeddings: NDArray[np.float32],
    clusters: NDArray[np.uint32],
    sums: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> None:
    """Add each embedding to the sum of its cluster, and one to its count."""
    for row in range(len(embeddings)):
        cluster = clusters[row]
        counts[cluster] += 1
        for d in range(embeddings.shape[1]):
            sums[cluster, d] += embeddings[row, d]
