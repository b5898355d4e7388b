"""The compiled loops, each with a slow twin in ``tests/reference.py``. The only ``import numba``.

In: plain arrays that the caller has checked; nothing is checked here, and a code or an offset out of range ends the
process. Out: plain arrays. Leaves to others: every check, matrix products (products.py, numpy), and threads (kernels
are serial and release the GIL).

Arrays are passed read-only where they are only read (see :func:`fixed`), so that each kernel is compiled once for an
array from a file and the same array made in memory.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Of whichever type: each kernel is compiled for those it meets.
AnyArray: TypeAlias = NDArray[Any]

# Sums may be reordered, which is what lets them be vectorized; NaN and infinity keep their meaning.
REORDER = {"reassoc", "contract"}

# Below every score in steps.
NOTHING = np.int16(-32768)


def fixed(array: AnyArray) -> AnyArray:
    """Return the same values in the form kernels are compiled for: contiguous, aligned, native and read-only."""
    view = np.require(array, array.dtype.newbyteorder("="), ["C", "A"]).view()
    view.flags.writeable = False
    return view


@njit(cache=True, nogil=True)
def _insert(scores: AnyArray, row: int, best: AnyArray, rows: NDArray[np.int64], entry: AnyArray) -> None:
    """Insert those of a row's scores that beat the last of their column's ``best``, which is its ``entry``."""
    last = best.shape[1] - 1
    for column in range(len(scores)):
        score = scores[column]
        if score > entry[column]:
            slot = last
            while slot > 0 and best[column, slot - 1] < score:
                best[column, slot] = best[column, slot - 1]
                rows[column, slot] = rows[column, slot - 1]
                slot -= 1
            best[column, slot] = score
            rows[column, slot] = row
            entry[column] = best[column, last]


@njit(cache=True, nogil=True)
def top_rows(scores: NDArray[np.float32], n_best: int) -> NDArray[np.int64]:
    """Return the rows of the ``n_best`` highest values of each column, best first, the lower row on ties.

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
        _insert(scores[row], row, best, rows, entry)
    return rows


@njit(cache=True, nogil=True)
def score_centroids(
    products: NDArray[np.int32],
    first: int,
    inverse_norms: NDArray[np.float32],
    token_scales: NDArray[np.float32],
    table: NDArray[np.int16],
    best: NDArray[np.int16],
    rows: NDArray[np.int64],
) -> None:
    """Write the scores of centroids ``first``, ``first + 1``, ... into ``table``; keep the best of each query token.

    ``products`` [n, n_query_tokens] are between whole numbers; times ``inverse_norms`` of the centroid and
    ``token_scales`` of the query token they are steps of ``table`` [n_centroids, n_query_tokens]. ``best`` and
    ``rows`` [n_query_tokens, n_best] hold the highest scores so far, best first, and their centroids, the lower id on
    ties; before the first call ``best`` is filled with the lowest int16.
    """
    n_rows, n_columns = products.shape
    n_best = best.shape[1]
    entry = best[:, n_best - 1].copy()
    for i in range(n_rows):
        row = first + i
        scale = inverse_norms[row]
        n_better = 0
        for column in range(n_columns):
            score = np.int16(np.rint(np.float32(products[i, column]) * scale * token_scales[column]))
            table[row, column] = score
            n_better += score > entry[column]
        if n_better == 0:
            continue
        _insert(table[row], row, best, rows, entry)


@njit(cache=True, nogil=True)
def sum_listed(
    listed: NDArray[np.int64], offsets: NDArray[np.int64], lists: NDArray[np.int64], gains: NDArray[np.int32], n: int
) -> NDArray[np.int64]:
    """Sum over query tokens the highest gain among the probed lists that name a passage: [n], -1 if no list does.

    ``listed`` are passages, numbered below ``n``, list after list; list i is ``listed[offsets[i]:offsets[i + 1]]``.
    Query token t probed ``lists[t]``, whose ``gains[t]`` fall and are at least 0.
    """
    sums = np.full(n, -1, np.int64)
    seen = np.full(n, -1, np.int32)
    for token in range(len(lists)):
        for rank in range(lists.shape[1]):
            gain = gains[token, rank]
            for position in range(offsets[lists[token, rank]], offsets[lists[token, rank] + 1]):
                passage = listed[position]
                if seen[passage] != token:
                    seen[passage] = token
                    sums[passage] = max(sums[passage], 0) + gain
    return sums


@njit(cache=True, nogil=True)
def sum_best(
    codes: AnyArray, starts: NDArray[np.int64], ends: NDArray[np.int64], table: NDArray[np.int16]
) -> NDArray[np.int64]:
    """Sum over query tokens the best score among each passage's codes, ``codes[starts[i]:ends[i]]``.

    A passage without codes sums to ``NOTHING * n_query_tokens``.
    """
    n_query_tokens = table.shape[1]
    sums = np.empty(len(starts), np.int64)
    best = np.empty(n_query_tokens, np.int16)
    for passage in range(len(sums)):
        best[:] = NOTHING
        for position in range(starts[passage], ends[passage]):
            code = codes[position]
            for token in range(n_query_tokens):
                score = table[code, token]
                best[token] = score if score > best[token] else best[token]
        total = np.int64(0)
        for token in range(n_query_tokens):
            total += best[token]
        sums[passage] = total
    return sums


@njit(cache=True, nogil=True)
def unpack_levels(
    residuals: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    levels_of_byte: AnyArray,
    out: AnyArray,
) -> None:
    """Fill ``out`` with the levels of rows ``starts[i]`` to ``ends[i]`` of ``residuals``, one passage after another.

    The first byte of a row is its scale, and is passed over. ``levels_of_byte`` [256] has all levels of a packed byte
    side by side in one word, and so has ``out`` [n_tokens, bytes of levels].
    """
    row = 0
    for passage in range(len(starts)):
        for source in range(starts[passage], ends[passage]):
            for position in range(out.shape[1]):
                out[row, position] = levels_of_byte[residuals[source, position + 1]]
            row += 1


@njit(cache=True, nogil=True, fastmath=REORDER | {"nnan"})
def sum_best_similarities(
    products: NDArray[np.int32],
    token_scales: NDArray[np.float32],
    residuals: NDArray[np.uint8],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    codes: AnyArray,
    first_codes: NDArray[np.int64],
    table: NDArray[np.int16],
    step: np.float32,
    scores: NDArray[np.float32],
) -> None:
    """Fill ``scores`` with MaxSim of each passage; ``-inf`` for one without tokens.

    The similarity of a token is that of its centroid, ``table`` times ``step``, plus that of its residual: ``products``
    [n_tokens, n_query_tokens] times ``token_scales`` times the scale in the first byte of its row. Passage i owns rows
    ``starts[i]`` to ``ends[i]`` of ``residuals``, and as many codes from ``first_codes[i]`` on.
    """
    n_query_tokens = products.shape[1]
    best = np.empty(n_query_tokens, np.float32)
    row = 0
    for passage in range(len(scores)):
        best[:] = -np.inf
        shift = first_codes[passage] - starts[passage]
        for source in range(starts[passage], ends[passage]):
            code = codes[source + shift]
            scale = np.float32(residuals[source, 0])
            for token in range(n_query_tokens):
                similarity = table[code, token] * step + products[row, token] * (token_scales[token] * scale)
                best[token] = similarity if similarity > best[token] else best[token]
            row += 1
        total = np.float32(0)
        for token in range(n_query_tokens):
            total += best[token]
        scores[passage] = total


@njit(cache=True, nogil=True)
def gather_ranges(values: AnyArray, starts: NDArray[np.int64], offsets: NDArray[np.int64], out: AnyArray) -> None:
    """Fill ``out[offsets[i]:offsets[i + 1]]`` with the values from ``starts[i]`` on."""
    for i in range(len(starts)):
        shift = starts[i] - offsets[i]
        for position in range(offsets[i], offsets[i + 1]):
            out[position] = values[position + shift]


@njit(cache=True, nogil=True, fastmath=REORDER)
def pack_residuals(
    embeddings: NDArray[np.float32],
    codes: NDArray[np.uint32],
    centroids: NDArray[np.float32],
    cutoffs: NDArray[np.float32],
    weights: NDArray[np.float32],
    nbits: int,
    scaled: bool,
    parallel_weight: np.float32,
    out: NDArray[np.uint8],
    scales: NDArray[np.float32],
) -> None:
    """Fill ``out`` with the packed bucket numbers of each embedding's residual, and ``scales`` with its scale.

    The weights of the buckets times the scale are the residual.

    If ``scaled``, a residual is divided by its root mean square before its buckets are looked up, and its scale
    minimizes the squared error, the part of it along the embedding counted ``1 + parallel_weight`` times; else its
    scale is 1. A bucket is the number of cutoffs strictly below: counting them all is faster than a binary search,
    because it vectorizes. The first value of a byte has its lowest bits; pad bits are 0.
    """
    n_tokens, dim = embeddings.shape
    n_values = 8 // nbits
    n_bytes = out.shape[1]
    buckets = np.zeros(n_bytes * n_values, np.uint8)
    residual = np.empty(dim, np.float32)
    normal = np.empty(dim, np.float32)
    for token in range(n_tokens):
        code = codes[token]
        squares = np.float32(0)
        for d in range(dim):
            value = embeddings[token, d] - centroids[code, d]
            residual[d] = value
            squares += value * value
        inverse = np.float32(1)
        if scaled:
            inverse = np.float32(1) / np.sqrt(squares / np.float32(dim)) if squares > 0 else np.float32(0)
        for d in range(dim):
            normal[d] = residual[d] * inverse
            buckets[d] = 0
        for cutoff in cutoffs:
            for d in range(dim):
                buckets[d] += np.uint8(cutoff < normal[d])
        for position in range(n_bytes):
            byte = 0
            for value in range(n_values):
                byte |= buckets[position * n_values + value] << (value * nbits)
            out[token, position] = byte
        scales[token] = 1
        if scaled:
            of_weights = np.float32(0)
            of_both = np.float32(0)
            along = np.float32(0)
            target = np.float32(0)
            for d in range(dim):
                weight = weights[buckets[d]]
                of_weights += weight * weight
                of_both += weight * residual[d]
                along += weight * embeddings[token, d]
                target += residual[d] * embeddings[token, d]
            below = parallel_weight * along * along + of_weights
            scales[token] = (parallel_weight * along * target + of_both) / below if below > 0 else np.float32(0)


@njit(cache=True, nogil=True, fastmath=REORDER | {"nnan"})
def improve_nearest(
    products: AnyArray,
    scales: NDArray[np.float32],
    rows: NDArray[np.int64],
    centroid_ids: NDArray[np.int64],
    nearest: NDArray[np.uint32],
    best: NDArray[np.float32],
) -> None:
    """Where a similarity beats the best so far of its embedding, keep it and its centroid instead.

    Similarities are ``products`` [n_rows, n_centroids] of embeddings ``rows`` and ``centroid_ids`` (rising), times
    ``scales`` of the centroids; ``nearest`` and ``best`` hold one value for each embedding. Ties go to the smaller
    centroid id.
    """
    n_columns = products.shape[1]
    for i in range(len(rows)):
        highest = np.float32(-np.inf)
        for column in range(n_columns):
            similarity = np.float32(products[i, column]) * scales[column]
            highest = similarity if similarity > highest else highest
        row = rows[i]
        if highest < best[row]:
            continue
        for column in range(n_columns):
            if np.float32(products[i, column]) * scales[column] == highest:
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
