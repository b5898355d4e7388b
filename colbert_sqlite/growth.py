"""How a codec ages: outliers, new centroids, drift, and why a rebuild pays.

In: the codec of an index and the tokens added since it was trained. Out: a codec with more centroids, or a reason to
train another. Leaves to others: encoding rows, and building an index anew (``build.py``).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.codec import Codec
from colbert_sqlite.engine import kmeans
from colbert_sqlite.engine.codec import ResidualCodec, to_directions
from colbert_sqlite.storage.blobs import CODES
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.ivf import Pairs
from colbert_sqlite.storage.store import Store

# Outliers are looked at when there are so many: half a megabyte at 128 dimensions.
OUTLIERS_AT_ONCE = 2048
# How many new centroids are looked for among them. One is kept if it serves half as many tokens as a trained centroid
# does, and halves their squared distance. One that serves few costs every query and helps nobody.
_OUTLIERS_PER_CENTROID = 32
_MIN_SERVED = 16
_MAX_ERROR = 0.5
# The codec may grow by a quarter. More says that the texts are others: train anew.
_MAX_GROWTH = 0.25

# With so many times the tokens it was trained for, a codec has too few centroids: on the benchmark set recall@10 is
# 0.82 in place of 0.87 then (tests/benchmarks/drift.py).
OUTGROWN = 2
# A rebuild pays if recent rows lie so much farther from the centroids, and there are so many of them.
_MIN_DRIFT = 0.2
_MIN_DRIFTED_SHARE = 0.05


def is_outgrown(codec: StoredCodec, n_tokens: int) -> bool:
    """Return whether an index has far more tokens than its codec was trained for."""
    return n_tokens >= OUTGROWN * max(1, codec.trained_tokens)


def drift(codec: StoredCodec) -> float | None:
    """Return how much farther from their centroids recent tokens are than the first ones; None without any."""
    if not codec.recent_tokens or not codec.avg_residual:
        return None
    return round(codec.recent_residual / codec.recent_tokens / codec.avg_residual - 1, 3)


def why_rebuild(codec: StoredCodec, n_tokens: int) -> str | None:
    """Return why a rebuild would pay; None if it would not."""
    farther = drift(codec)
    drifted = farther is not None and farther >= _MIN_DRIFT
    if n_tokens and drifted and codec.recent_tokens >= _MIN_DRIFTED_SHARE * n_tokens:
        return f"rows added lately fit the codec {farther:.0%} worse than the first ones"
    if is_outgrown(codec, n_tokens):
        return f"{n_tokens:,} tokens have outgrown a codec that was trained for {codec.trained_tokens:,}"
    return None


def grow(store: Store, codec: Codec) -> None:
    """Add the centroids that outliers have earned, and code these anew. Call inside ``atomic``."""
    stored, residual = codec
    assert residual.cells is not None, "what is stored has cells"
    passage_ids, positions, embeddings = store.outliers.take(stored)
    room = int((1 + _MAX_GROWTH) * stored.n_trained)
    room = min(room, 1 << 8 * CODES[stored.codes_dtype].itemsize) - stored.n_centroids
    added = _earned_centroids(residual, embeddings, room, store.entry.settings.seed)
    if not len(added):
        return
    cells = np.concatenate([residual.cells, residual.cells[residual.compress(added)[0]]])
    directions = np.concatenate([residual.directions, to_directions(added)])
    grown = dataclasses.replace(residual, centroids=directions, cells=cells)
    before = residual.mean_residuals(embeddings, residual.compress(embeddings)[0])
    codes, residuals = grown.compress(embeddings)
    better = codes >= stored.n_centroids
    less = float((before[better] - grown.mean_residuals(embeddings[better], codes[better])).sum())
    stored = store.codec.add_centroids(stored, directions, cells)
    _recode(store, stored, passage_ids[better], positions[better], codes[better], residuals[better])
    residual_left = max(0.0, stored.recent_residual - less)
    store.codec.update(dataclasses.replace(stored, recent_residual=residual_left))
    store.update_entry()


def _recode(
    store: Store,
    codec: StoredCodec,
    passage_ids: NDArray[np.int64],
    positions: NDArray[np.int64],
    codes: NDArray[np.uint32],
    residuals: NDArray[np.uint8],
) -> None:
    """Give some tokens other codes and residuals, in codes, residuals and inverted lists.

    :param passage_ids: int64 [n], rising; *positions* int64 [n] are those of the tokens in their passages
    :raises IndexCorrupt: if passages are missing or damaged
    """
    removed: list[Pairs] = []
    added: list[Pairs] = []
    for passage_id in np.unique(passage_ids):
        mine = slice(*np.searchsorted(passage_ids, [passage_id, passage_id + 1]))
        before = store.codes.read(codec, int(passage_id))
        start = _start_of(store, codec, int(passage_id), before, positions[mine])
        after = before.copy()
        after[positions[mine]] = codes[mine]
        store.codes.write(codec, int(passage_id), after)
        store.residuals.overwrite(codec, start + positions[mine], residuals[mine])
        removed.append(Pairs.of(int(passage_id), np.setdiff1d(before, after)))
        added.append(Pairs.of(int(passage_id), np.setdiff1d(after, before)))
    store.ivf.change(Pairs.joined(removed), Pairs.joined(added))


def _start_of(
    store: Store, codec: StoredCodec, passage_id: int, codes: NDArray[np.integer], positions: NDArray[np.int64]
) -> int:
    """Return where in the token stream a passage begins.

    :raises IndexCorrupt: if it is missing, or has not the tokens it should
    """
    n = len(codes)
    for start, doclen in store.passages.spans(np.array([passage_id])):
        if type(start) is int and 0 <= start <= codec.stream_tokens - n and positions.max() < n == doclen:
            return start
    raise store.codes.part.damaged(f"passage {passage_id} has {n} codes, which its doclen or residual_start contradict")


def _earned_centroids(
    codec: ResidualCodec, embeddings: NDArray[np.float16], room: int, seed: int
) -> NDArray[np.float32]:
    """Return the new centroids that serve enough outliers well enough, most useful first: float32 [n, dim].

    :param embeddings: float16 [n_outliers, dim]
    :param room: how many the codec can take
    """
    if room <= 0:
        return np.empty((0, codec.dim), np.float32)
    values = embeddings.astype(np.float32)
    centers = kmeans.train(values, np.arange(len(values)), len(values) // _OUTLIERS_PER_CENTROID, seed)
    nearest, similarities = kmeans.nearest(values, centers)
    # Of unit vectors, the squared distance is 2 - 2 cos.
    errors_before = np.square(values - codec.vectors_of(codec.compress(embeddings)[0])).sum(axis=1)
    n_served = np.bincount(nearest, minlength=len(centers))
    share = np.bincount(nearest, 2 - 2 * similarities, len(centers)) / np.maximum(
        np.bincount(nearest, errors_before, len(centers)), 1e-12
    )
    earned = np.flatnonzero((n_served >= _MIN_SERVED) & (share <= _MAX_ERROR))
    return centers[earned[np.argsort(-n_served[earned], kind="stable")][:room]]
