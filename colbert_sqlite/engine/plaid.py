"""PLAID: the four stages from a query's embeddings to passages and their scores.

In: a query, a codec, and a :class:`Postings` that reads inverted lists, codes and residuals by passage id. Out: the
passage ids that were scored exactly, best first, and those scores. Leaves to others: encoding the query, where the
postings come from, and joining passages back to rows.

Each stage is one function: :func:`probe_centroids`, :func:`prune_and_interact`, :func:`interact`, :func:`rescore`.
What was read from a file is checked here before a kernel sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.engine import kernels
from colbert_sqlite.engine.codec import ResidualCodec
from colbert_sqlite.errors import IndexCorrupt, ShapeError
from colbert_sqlite.settings import SearchSettings

# Passages whose codes, or residuals, are in memory at once: a few megabytes of either.
CODES_AT_ONCE = 16_384
RESIDUALS_AT_ONCE = 1_024

# Tokens decompressed at once. 1,024 float32 embeddings of 128 dimensions are half a megabyte: they stay in the second
# level cache while they are multiplied (measured from 256 to 4,096: the fastest, by little).
TOKENS_AT_ONCE = 1_024


class Postings(Protocol):
    """What a search reads of an index, by passage id."""

    def has_at_most(self, n: int) -> bool:
        """Whether no more than *n* passages have tokens, at a cost that does not grow with the index."""

    def all_passage_ids(self) -> NDArray[np.int64]:
        """Ids of the passages that have tokens, rising."""

    def inverted_lists(self, centroid_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids of passages with a token in any of these centroids: rising, each once. PLAID §4.1."""

    def codes(self, passage_ids: NDArray[np.int64]) -> tuple[NDArray[np.uint16 | np.uint32], NDArray[np.int64]]:
        """Codes of these passages, one after another in the order given, and int64 offsets [n + 1] into them."""

    def residuals(self, passage_ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Packed residuals uint8 [n_rows, bytes_per_token] and int64 starts [n]: passage i owns as many rows from
        ``starts[i]`` on as it has codes. Rows may hold other tokens in between.
        """


@dataclass(frozen=True, slots=True)
class ArrayPostings:
    """Postings over arrays in memory. Passage i of the arrays has id ``passage_ids[i]``.

    :param passage_ids: int64 [n_passages], rising
    :param token_codes: unsigned [n_tokens]
    :param offsets: int64 [n_passages + 1]
    :param token_residuals: uint8 [n_tokens, bytes_per_token]
    """

    passage_ids: NDArray[np.int64]
    token_codes: NDArray[Any]
    offsets: NDArray[np.int64]
    token_residuals: NDArray[np.uint8]
    _list_offsets: NDArray[np.int64] = field(init=False, repr=False)
    _lists: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        passages = np.repeat(np.arange(len(self.passage_ids)), np.diff(self.offsets))
        n = max(1, len(self.passage_ids))
        centroids, lists = np.divmod(np.unique(self.token_codes.astype(np.int64) * n + passages), n)
        object.__setattr__(self, "_lists", lists)
        object.__setattr__(
            self, "_list_offsets", np.searchsorted(centroids, np.arange(int(self.token_codes.max(initial=0)) + 2))
        )

    def has_at_most(self, n: int) -> bool:
        return int(np.count_nonzero(np.diff(self.offsets))) <= n

    def all_passage_ids(self) -> NDArray[np.int64]:
        return self.passage_ids[np.diff(self.offsets) > 0]

    def inverted_lists(self, centroid_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        listed = np.zeros(len(self.passage_ids), bool)
        for centroid in centroid_ids[centroid_ids < len(self._list_offsets) - 1]:
            listed[self._lists[self._list_offsets[centroid] : self._list_offsets[centroid + 1]]] = True
        return self.passage_ids[listed]

    def codes(self, passage_ids: NDArray[np.int64]) -> tuple[NDArray[np.uint16 | np.uint32], NDArray[np.int64]]:
        return _take(self.token_codes, self.offsets, np.searchsorted(self.passage_ids, passage_ids))

    def residuals(self, passage_ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return self.token_residuals, self.offsets[np.searchsorted(self.passage_ids, passage_ids)]


def search(
    query: NDArray[np.float32],
    codec: ResidualCodec,
    postings: Postings,
    settings: SearchSettings,
    allowed: NDArray[np.int64] | None = None,
    exhaustive: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Passage ids and scores of every passage that reached stage 4, best first, ties by smaller passage id.

    :param query: float32 [n_query_tokens, dim], at least one token
    :param allowed: int64, rising: only these passages may be found. They cut the candidates before ``ndocs`` does
    :param exhaustive: score every passage, or every allowed one, instead of the most promising
    :return: int64 and float32 [n], at most ``ndocs // 4`` unless exhaustive. So few passages, in the index or allowed,
        are all scored without probing
    :raises ShapeError: if the query does not fit the codec
    :raises IndexCorrupt: if the postings do not fit the codec, or themselves

    PLAID §4.
    """
    query = _checked_query(query, codec)
    n_exact = settings.ndocs // 4
    if allowed is not None and (exhaustive or len(allowed) <= n_exact):
        blocks = _read(postings, allowed)
    elif exhaustive or postings.has_at_most(n_exact):
        blocks = _read(postings, _only(postings.all_passage_ids(), allowed))
    else:
        blocks = _most_promising(query, codec, postings, settings, allowed)
    passage_ids, scores = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for ids, codes, offsets in blocks:
        residuals, starts = postings.residuals(ids)
        passage_ids.append(ids)
        scores.append(rescore(query, codec, codes, offsets, residuals, starts))
    found, score = np.concatenate(passage_ids), np.concatenate(scores)
    order = np.lexsort((found, -score))
    return found[order], score[order]


def probe_centroids(centroid_scores: NDArray[np.float32], nprobe: int) -> NDArray[np.int64]:
    """Stage 1: the ``nprobe`` best centroids of each query token, the smaller id on ties.

    :param centroid_scores: float32 [n_centroids, n_query_tokens], cosine, higher is better
    :return: int64 centroid ids, rising, each once; all of them if there are no more than ``nprobe``

    PLAID §4.1.
    """
    return np.unique(kernels.top_rows(kernels.fixed(centroid_scores), min(nprobe, len(centroid_scores))))


def prune_and_interact(
    codes: NDArray[np.uint16 | np.uint32],
    offsets: NDArray[np.int64],
    centroid_scores: NDArray[np.float32],
    centroid_score_threshold: float,
) -> NDArray[np.float32]:
    """Stage 2: approximate MaxSim as in :func:`interact`, without centroids that suit no query token.

    :param centroid_score_threshold: a centroid that scores below this for every query token is left out
    :return: float32 [n_passages]; a passage with no centroid left, or without tokens, scores ``-inf``
    :raises IndexCorrupt: if codes or offsets contradict each other or the centroids

    PLAID §4.3, equation 5.
    """
    _check_codes(codes, offsets, len(centroid_scores))
    # Scores become whole steps of 1/32,766 of the largest: finer than anything an approximate score can tell apart.
    largest = max(centroid_scores.max(), -centroid_scores.min())
    steps_per_unit = np.float32(32_766 / largest if largest > 0 else 1)
    table = kernels.quantise_scores(
        kernels.fixed(centroid_scores), steps_per_unit, np.float32(centroid_score_threshold)
    )
    sums = kernels.sum_best(kernels.fixed(codes), kernels.fixed(offsets), table)
    scores = (sums / steps_per_unit).astype(np.float32)
    scores[sums == int(kernels.PRUNED) * centroid_scores.shape[1]] = -np.inf
    return scores


def interact(
    codes: NDArray[np.uint16 | np.uint32], offsets: NDArray[np.int64], centroid_scores: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Stage 3: approximate MaxSim of each passage, its centroids standing in for its embeddings.

    :param codes: unsigned [n_tokens], centroid of each passage token, one passage after another
    :param offsets: int64 [n_passages + 1], passage i owns ``codes[offsets[i]:offsets[i + 1]]``
    :param centroid_scores: float32 [n_centroids, n_query_tokens], cosine, higher is better
    :return: float32 [n_passages], within 1/32,766 of the largest centroid score for each query token; a passage
        without tokens scores ``-inf``
    :raises IndexCorrupt: if codes or offsets contradict each other or the centroids

    PLAID §4.2, equations 3 and 4.
    """
    return prune_and_interact(codes, offsets, centroid_scores, -np.inf)


def rescore(
    query: NDArray[np.float32],
    codec: ResidualCodec,
    codes: NDArray[np.uint16 | np.uint32],
    offsets: NDArray[np.int64],
    residuals: NDArray[np.uint8],
    starts: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Stage 4: MaxSim of each passage over its decompressed, L2-normalised embeddings.

    :param query: float32 [n_query_tokens, dim]
    :param codes: unsigned [n_tokens], one passage after another
    :param offsets: int64 [n_passages + 1], passage i owns ``codes[offsets[i]:offsets[i + 1]]``
    :param residuals: uint8 [n_rows, bytes_per_token]
    :param starts: int64 [n_passages], the first of passage i's rows in ``residuals``
    :return: float32 [n_passages]; a passage without tokens scores ``-inf``
    :raises ShapeError: if the query does not fit the codec
    :raises IndexCorrupt: if the arrays contradict each other or the codec

    PLAID §4.4.
    """
    query = _checked_query(query, codec)
    _check_codes(codes, offsets, codec.n_centroids)
    lengths = np.diff(offsets)
    if residuals.dtype != np.uint8 or residuals.ndim != 2 or residuals.shape[1] != codec.bytes_per_token:
        raise IndexCorrupt(
            f"residuals are {residuals.dtype} {residuals.shape}, not {codec.bytes_per_token} bytes a token"
        )
    if len(starts) != len(lengths) or np.any(starts < 0) or np.any(starts > len(residuals) - lengths):
        raise IndexCorrupt(f"a passage's residuals lie outside the {len(residuals)} rows that were read")
    codes, offsets, residuals, starts = map(kernels.fixed, (codes, offsets, residuals, starts))
    # Multiplying by a contiguous [dim, n_query_tokens] is up to a third faster than by a transposed view.
    transposed = np.ascontiguousarray(query.T)
    room = max(TOKENS_AT_ONCE, int(lengths.max(initial=0)))
    values, inverse_norms = codec.scratch(room), np.empty(room, np.float32)
    similarities = np.empty((room, len(query)), np.float32)
    scores = np.empty(len(lengths), np.float32)
    first = 0
    while first < len(lengths):
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + TOKENS_AT_ONCE, side="right")) - 1)
        n_tokens = int(offsets[last] - offsets[first])
        kernels.decompress_passages(
            codes,
            offsets[first : last + 1],
            residuals,
            starts[first:last],
            codec.centroids,
            codec.weights_of_byte,
            codec.values_per_byte,
            values,
            inverse_norms,
        )
        np.matmul(values[:n_tokens, : codec.dim], transposed, out=similarities[:n_tokens])
        kernels.sum_best_similarities(similarities, inverse_norms, offsets[first : last + 1], scores[first:last])
        first = last
    return scores


def _read(
    postings: Postings, passage_ids: NDArray[np.int64], n_at_once: int = RESIDUALS_AT_ONCE
) -> Iterator[tuple[NDArray[np.int64], NDArray[Any], NDArray[np.int64]]]:
    """Passage ids with their codes and offsets, so many passages at a time."""
    for first in range(0, len(passage_ids), n_at_once):
        ids = passage_ids[first : first + n_at_once]
        yield ids, *postings.codes(ids)


def _most_promising(
    query: NDArray[np.float32],
    codec: ResidualCodec,
    postings: Postings,
    settings: SearchSettings,
    allowed: NDArray[np.int64] | None,
) -> Iterator[tuple[NDArray[np.int64], NDArray[Any], NDArray[np.int64]]]:
    """Stages 1 to 3: the ``ndocs // 4`` best passages by approximate score, in blocks as :func:`_read` gives them."""
    centroid_scores = codec.centroids @ np.ascontiguousarray(query.T)
    candidates = _only(postings.inverted_lists(probe_centroids(centroid_scores, settings.nprobe)), allowed)
    if len(candidates) <= settings.ndocs // 4:
        yield from _read(postings, candidates)
        return
    # The best of each block go on to meet the next, so that memory does not grow with the number of candidates.
    ids, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    codes, offsets = np.empty(0, np.uint16), np.zeros(1, np.int64)
    for block_ids, block_codes, block_offsets in _read(postings, candidates, CODES_AT_ONCE):
        ids = np.concatenate([ids, block_ids])
        codes = np.concatenate([codes, block_codes]) if len(codes) else block_codes
        offsets = np.concatenate([offsets[:-1], block_offsets + offsets[-1]])
        if len(candidates) > settings.ndocs:
            approximate = prune_and_interact(
                block_codes, block_offsets, centroid_scores, settings.centroid_score_threshold
            )
            scores = np.concatenate([scores, approximate])
            best = _highest(scores, settings.ndocs)
            ids, scores = ids[best], scores[best]
            codes, offsets = _take(codes, offsets, best)
    best = _highest(interact(codes, offsets, centroid_scores), settings.ndocs // 4)
    codes, offsets = _take(codes, offsets, best)
    ids = ids[best]
    for first in range(0, len(ids), RESIDUALS_AT_ONCE):
        last = min(first + RESIDUALS_AT_ONCE, len(ids))
        yield ids[first:last], codes[offsets[first] : offsets[last]], offsets[first : last + 1] - offsets[first]


def _only(passage_ids: NDArray[np.int64], allowed: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return passage_ids if allowed is None else np.intersect1d(passage_ids, allowed, assume_unique=True)


def _highest(scores: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Positions of the ``n`` highest scores, rising; of equal ones the later, as the reference implementation cuts."""
    if len(scores) <= n:
        return np.arange(len(scores))
    cut = np.partition(scores, len(scores) - n)[len(scores) - n]
    chosen = scores > cut
    equal = np.flatnonzero(scores == cut)
    chosen[equal[len(equal) - (n - np.count_nonzero(chosen)) :]] = True
    return np.flatnonzero(chosen)


def _take(
    values: NDArray[Any], offsets: NDArray[np.int64], positions: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Values and offsets of only these passages, in the order given."""
    taken = np.zeros(len(positions) + 1, np.int64)
    np.cumsum(offsets[positions + 1] - offsets[positions], out=taken[1:])
    out = np.empty(taken[-1], values.dtype)
    kernels.gather_ranges(kernels.fixed(values), offsets[positions], taken, out)
    return out, taken


def _checked_query(query: NDArray[np.float32], codec: ResidualCodec) -> NDArray[np.float32]:
    if query.ndim != 2 or len(query) == 0 or query.shape[1] != codec.dim:
        raise ShapeError(f"a query of shape {query.shape} does not fit an index of {codec.dim} dimensions")
    return np.ascontiguousarray(query, np.float32)


def _check_codes(codes: NDArray[Any], offsets: NDArray[np.int64], n_centroids: int) -> None:
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(codes) or np.any(offsets[1:] < offsets[:-1]):
        raise IndexCorrupt(f"offsets do not rise from 0 to the {len(codes)} codes that were read")
    if len(codes) and not 0 <= codes.min() <= codes.max() < n_centroids:
        raise IndexCorrupt(f"a code names a centroid beyond the {n_centroids} of this index")
