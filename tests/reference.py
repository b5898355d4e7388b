"""Slow twins of the compiled kernels and of the search stages, written to be read."""

from __future__ import annotations

import numpy as np


def top_rows(scores, n_best):
    """Row numbers of the highest values of each column, the lower row on ties."""
    return np.stack([np.lexsort((np.arange(len(column)), -column))[:n_best] for column in scores.T])


def buckets(embeddings, codes, centroids, cutoffs):
    """Number of cutoffs strictly below each value of each residual."""
    return np.searchsorted(cutoffs, embeddings - centroids[codes], side="left")


def pack(bucket_numbers, nbits):
    """Bytes of 8 // nbits neighbouring values, the first in the lowest bits, padded with zeros."""
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


def unpack(packed, nbits, dim):
    """The bucket numbers that were packed."""
    shifts = range(0, 8, nbits)
    values = [[(int(byte) >> shift) & (2**nbits - 1) for byte in token for shift in shifts][:dim] for token in packed]
    return np.array(values, np.int64).reshape(len(packed), dim)


def stanford_unpack(packed, nbits, dim):
    """Bucket numbers out of the reference implementation's packing: a bit stream, each value's lowest bit first."""
    bits = np.unpackbits(packed, axis=1).reshape(len(packed), dim, nbits)
    return (bits.astype(np.int64) << np.arange(nbits)).sum(axis=2)


def decompress(codes, bucket_numbers, centroids, weights):
    """Centroid plus residual, normalised."""
    values = centroids[codes] + weights[bucket_numbers]
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def nearest(embeddings, centroids):
    """Centroid with the highest inner product, the smaller id on ties."""
    return np.array([np.argmax(centroids @ embedding) for embedding in embeddings], np.uint32)


def maxsim(query, document, floor=-np.inf):
    """Best similarity of each query token, each at least ``floor``, summed; -inf for a document without tokens."""
    if len(document) == 0:
        return -np.inf
    return sum(max(floor, *(float(np.dot(q, d)) for d in document)) for q in query)


def interact(codes, offsets, centroid_scores, threshold=-np.inf):
    """Approximate MaxSim of each passage over its centroids that reach the threshold for some query token."""
    scores = []
    for first, last in zip(offsets[:-1], offsets[1:], strict=True):
        rows = [centroid_scores[code] for code in codes[first:last] if centroid_scores[code].max() >= threshold]
        scores.append(np.max(rows, axis=0).astype(np.float64).sum() if rows else -np.inf)
    return np.array(scores)


def cut(passage_ids, scores, n):
    """The passages of the ``n`` highest scores, the larger id on ties, in order of id."""
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], -passage_ids[i]))[:n]
    return np.sort(passage_ids[best])


def stages(query, centroids, codes, offsets, nprobe, threshold, ndocs, allowed=None):
    """Candidates after stage 1, and passages that reach stage 4, of passages 0, 1, 2, ..."""
    centroid_scores = centroids @ query.T
    probed = set(top_rows(centroid_scores, min(nprobe, len(centroids))).ravel().tolist())
    passages = [codes[first:last] for first, last in zip(offsets[:-1], offsets[1:], strict=True)]
    candidates = np.array([i for i, p in enumerate(passages) if probed & set(p.tolist())], np.int64)
    if allowed is not None:
        candidates = candidates[np.isin(candidates, allowed)]
    kept = candidates
    if len(kept) > ndocs:
        kept = cut(kept, interact(codes, offsets, centroid_scores, threshold)[kept], ndocs)
    if len(kept) > ndocs // 4:
        kept = cut(kept, interact(codes, offsets, centroid_scores)[kept], ndocs // 4)
    return candidates, kept
