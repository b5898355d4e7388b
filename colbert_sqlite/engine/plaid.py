"""PLAID: from a query's embeddings to passages and their scores, in four stages.

In: queries, a codec, and postings (postings.py) that read inverted lists, codes and residuals by passage id. Out: for
each query the passage ids that were scored exactly, best first, and those scores. Leaves to others: encoding queries,
where the postings come from, and joining passages back to rows.

1. :meth:`ProbedQuery.probe`: all centroids are scored; each query token probes the best. PLAID §4.1.
2. :func:`score_lists`: the inverted lists of those say which passages to look at, and what each scores at most. The
   best ``ndocs`` go on. PLAID prunes on codes here, and has to read those of every candidate for it; that a query token
   which no list answers scores like the last centroid it probed is what XTR and WARP assume.
3. :func:`interact`: their codes are read, and centroids stand in for embeddings. A quarter goes on. PLAID §4.2.
4. :func:`rescore`: their residuals are read, and every token scores by its own. PLAID §4.4.

All of it is whole numbers until the last sum: int8 products, int16 scores of centroids. What was read from a file is
checked here before a kernel sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.engine import kernels
from colbert_sqlite.engine.codec import ResidualCodec
from colbert_sqlite.engine.maxsim import maxsim_scores
from colbert_sqlite.engine.postings import ArrayPostings, Codes, Postings
from colbert_sqlite.engine.products import Products, whole_numbers
from colbert_sqlite.errors import ShapeError, damaged
from colbert_sqlite.settings import SearchSettings

# Passages whose residuals are in memory at once: about five megabytes. One search uses one thread: scoring these while
# the next are read made it no faster, because reading takes the GIL for every row, and several searches run at once.
RESIDUALS_AT_ONCE = 512

# Rows multiplied at once: 2,048 tokens or centroids of 128 dimensions, and their products with 32 query tokens, are
# half a megabyte and stay in the second level cache.
ROWS_AT_ONCE = 2_048

# A similarity of 1 is this many steps of an int16, whatever the length of the query's vectors.
STEPS_OF_ONE = 32_000

# Passage ids are counted in an array with a slot for each id from the lowest to the highest, if it has at most so many
# slots for each listed id, beyond those that are always free to use.
SLOTS_PER_ID = 64
FREE_SLOTS = 1 << 16


class ProbedQuery:
    """One query in whole numbers, ready for products with the centroids and residuals of one codec.

    :param embeddings: float32 [n_query_tokens, dim], at least one token
    :raises ShapeError: if they do not fit the codec
    """

    def __init__(self, embeddings: NDArray[np.float32], codec: ResidualCodec) -> None:
        if embeddings.ndim != 2 or len(embeddings) == 0 or embeddings.shape[1] != codec.dim:
            raise ShapeError(f"a query of shape {embeddings.shape} does not fit an index of {codec.dim} dimensions")
        self.embeddings = np.ascontiguousarray(embeddings, np.float32)
        self.codec = codec
        self._values, self._steps = whole_numbers(self.embeddings)
        longest = float(np.linalg.norm(self._values * self._steps[:, None], axis=1).max()) * codec.longest
        self.score_step = np.float32((longest or 1.0) / STEPS_OF_ONE)
        self.centroid_scores = np.empty((0, len(embeddings)), np.int16)

    def probe(self, nprobe: int) -> NDArray[np.int64]:
        """Stage 1: score all centroids, and return the ``nprobe`` best of each query token, the smaller id on ties.

        :return: int64 centroid ids [n_query_tokens, nprobe], best first; all of them if there are no more

        ``centroid_scores`` then has int16 [n_centroids, n_query_tokens], in steps of ``score_step``.
        """
        codec, n_tokens = self.codec, len(self.embeddings)
        products = Products(self._values, ROWS_AT_ONCE)
        self.centroid_scores = np.empty((codec.n_centroids, n_tokens), np.int16)
        shape = n_tokens, min(nprobe, codec.n_centroids)
        best, rows = np.full(shape, kernels.NOTHING, np.int16), np.zeros(shape, np.int64)
        scales = self._steps / self.score_step
        for first in range(0, codec.n_centroids, ROWS_AT_ONCE):
            of_block = products.of(codec.directions[first : first + ROWS_AT_ONCE])
            kernels.score_centroids(of_block, first, codec.inverse_norms, scales, self.centroid_scores, best, rows)
        return rows

    def residual_products(self, n_rows: int) -> tuple[Products, NDArray[np.float32]]:
        """Return products with unpacked levels, and what each counts at a scale of 1: float32 [n_query_tokens]."""
        n_values = 8 // self.codec.nbits
        padded = np.pad(self._values, ((0, 0), (0, -self.codec.dim % n_values)))
        assert self.codec.scale_step is not None
        return Products(padded, n_rows), self._steps * np.float32(self.codec.level_step * self.codec.scale_step)


def search(
    embeddings: NDArray[np.float32],
    codec: ResidualCodec,
    postings: Postings,
    settings: SearchSettings,
    allowed: NDArray[np.int64] | None = None,
    exhaustive: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return ids and scores of the passages that reached stage 4, best first.

    The smaller passage id wins ties.

    :param embeddings: float32 [n_query_tokens, dim] of the query, at least one token
    :param allowed: int64, rising: only these passages may be found. They cut the candidates before ``ndocs`` does
    :param exhaustive: score every passage, or every allowed one, instead of the most promising
    :return: int64 and float32 [n], at most ``ndocs // 4`` unless exhaustive. So few passages, in the index or allowed,
        are all scored without probing
    :raises ShapeError: if the query does not fit the codec
    :raises IndexCorrupt: if the postings do not fit the codec, or themselves

    PLAID §4.
    """
    return search_many([embeddings], codec, postings, settings, allowed, exhaustive)[0]


def search_many(
    queries: Sequence[NDArray[np.float32]],
    codec: ResidualCodec,
    postings: Postings,
    settings: SearchSettings,
    allowed: NDArray[np.int64] | None = None,
    exhaustive: bool = False,
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Search for several queries, as :func:`search` does for one, and read once what more than one needs."""
    prepared = [ProbedQuery(embeddings, codec) for embeddings in queries]
    probed = [query.probe(settings.nprobe) for query in prepared]
    n_exact = settings.ndocs // 4
    read_codes: Callable[[NDArray[np.int64]], tuple[Codes, NDArray[np.int64]]] = postings.codes
    if allowed is not None and (exhaustive or len(allowed) <= n_exact):
        chosen = [allowed] * len(queries)
    elif exhaustive or postings.has_at_most(n_exact):
        chosen = [_only(postings.all_passage_ids(), allowed)] * len(queries)
    else:
        chosen = _candidates(prepared, probed, postings, settings.ndocs, allowed)
        if any(len(ids) > n_exact for ids in chosen):
            chosen, read_codes = _most_promising(prepared, chosen, postings, n_exact)
    scores = _rescored(prepared, chosen, postings, read_codes)
    return [_ranked(ids, of_query) for ids, of_query in zip(chosen, scores, strict=True)]


def load_kernels(nbits: int) -> None:
    """Load the kernels of a search from their cache, by searching two made-up passages.

    The first search of a process does it otherwise, and takes 0.1 to 0.2 seconds longer: call it on a thread of its own
    while the model is loaded.
    """
    n_buckets = 2**nbits
    codec = ResidualCodec(
        nbits, np.ones((2, 8), np.int8), np.zeros(n_buckets - 1, np.float32), np.ones(n_buckets, np.float32), 0.0, 1.0
    )
    residuals = np.zeros((2, codec.bytes_per_token), np.uint8)
    for codes in (np.zeros(2, np.uint16), np.zeros(2, np.uint32)):
        postings = ArrayPostings(np.arange(2), codes, np.arange(3), residuals)
        search(np.ones((1, 8), np.float32), codec, postings, SearchSettings(nprobe=1, ndocs=4))


def score_lists(
    query: ProbedQuery, probed: NDArray[np.int64], listed: NDArray[np.int64], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stage 2: return the passages in any probed list, rising, and what each scores at most by its centroids.

    :param probed: int64 [n_query_tokens, nprobe] as :meth:`ProbedQuery.probe` gives them
    :param listed: int64, ids of passages, list after list, one list for each centroid of ``np.unique(probed)``
    :param offsets: int64 [n_lists + 1] into them
    :return: int64 ids and int64 scores, in steps of ``score_step`` above that of a passage which answers each query
        token as well as the last centroid it probed: what is assumed of a token none of whose lists name the passage

    XTR, Lee et al. 2023, §3.3; WARP, Scheerer et al. 2025.
    """
    if len(listed) == 0:
        return listed, listed
    lists = np.searchsorted(np.unique(probed), probed)
    of_probed = query.centroid_scores[probed, np.arange(len(probed))[:, None]].astype(np.int32)
    gains = of_probed - of_probed[:, -1:]
    lowest, span = int(listed.min()), int(np.ptp(listed)) + 1
    if span <= SLOTS_PER_ID * len(listed) + FREE_SLOTS:
        ids, numbers = None, listed - lowest
    else:
        ids, numbers = np.unique(listed, return_inverse=True)
        span = len(ids)
    sums = kernels.sum_listed(numbers, offsets, lists, gains, span)
    listed_once = np.flatnonzero(sums >= 0)
    return listed_once + lowest if ids is None else ids[listed_once], sums[listed_once]


def interact(
    query: ProbedQuery, codes: Codes, offsets: NDArray[np.int64], positions: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Stage 3: return approximate MaxSim of each passage; its centroids stand in for its embeddings.

    :param codes: unsigned [n_tokens], centroid of each passage token, one passage after another
    :param offsets: int64 [n_passages + 1], passage i owns ``codes[offsets[i]:offsets[i + 1]]``
    :param positions: int64 [n]: only these passages, in this order; default: all
    :return: float32 [n], within a step of ``score_step`` for each query token; a passage without tokens scores ``-inf``
    :raises IndexCorrupt: if codes or offsets contradict each other or the centroids

    PLAID §4.2, equations 3 and 4.
    """
    _check_codes(codes, offsets, len(query.centroid_scores))
    positions = np.arange(len(offsets) - 1) if positions is None else positions
    sums = kernels.sum_best(kernels.fixed(codes), offsets[positions], offsets[positions + 1], query.centroid_scores)
    scores = (sums * query.score_step).astype(np.float32)
    scores[offsets[positions] == offsets[positions + 1]] = -np.inf
    return scores


def rescore(
    query: ProbedQuery,
    codes: Codes,
    offsets: NDArray[np.int64],
    residuals: NDArray[np.uint8],
    starts: NDArray[np.int64],
    positions: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Stage 4: return MaxSim of each passage over the sums of centroid and residual.

    :param codes: unsigned [n_tokens], one passage after another
    :param offsets: int64 [n_passages + 1], passage i owns ``codes[offsets[i]:offsets[i + 1]]``
    :param residuals: uint8 [n_rows, bytes_per_token]
    :param starts: int64 [n_passages], the first of passage i's rows in ``residuals``
    :param positions: int64 [n]: only these passages, in this order; default: all
    :return: float32 [n]; a passage without tokens scores ``-inf``
    :raises IndexCorrupt: if the arrays contradict each other or the codec

    PLAID §4.4. q·e = q·c + q·r: stage 1 gave the first, so that only residuals are unpacked and multiplied.
    """
    codec = query.codec
    _check_codes(codes, offsets, codec.n_centroids)
    lengths = np.diff(offsets)
    if residuals.dtype != np.uint8 or residuals.ndim != 2 or residuals.shape[1] != codec.bytes_per_token:
        expected = f"uint8 (n, {codec.bytes_per_token})"
        raise damaged("residuals", f"they are {residuals.dtype} {residuals.shape}, not {expected}")
    if len(starts) != len(lengths) or np.any(starts < 0) or np.any(starts > len(residuals) - lengths):
        raise damaged("residuals", f"those of a passage lie outside the {len(residuals)} rows that were read")
    positions = np.arange(len(lengths)) if positions is None else positions
    starts, lengths, first_codes = starts[positions], lengths[positions], offsets[positions]
    if codec.scale_step is None:
        return _rescore_normalized(query, codes, first_codes, residuals, starts, lengths)
    ends = starts + lengths
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    codes, residuals = kernels.fixed(codes), kernels.fixed(residuals)
    n_rows = max(ROWS_AT_ONCE, int(lengths.max(initial=0)))
    products, token_steps = query.residual_products(n_rows)
    words = np.empty((n_rows, codec.bytes_per_token - 1), codec.levels_of_byte.dtype)
    scores = np.empty(len(positions), np.float32)
    first = 0
    while first < len(positions):
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + ROWS_AT_ONCE, side="right")) - 1)
        these = slice(first, last)
        kernels.unpack_levels(residuals, starts[these], ends[these], codec.levels_of_byte, words)
        kernels.sum_best_similarities(
            products.of(words.view(np.int8)[: bounds[last] - bounds[first]]),
            token_steps,
            residuals,
            starts[these],
            ends[these],
            codes,
            first_codes[these],
            query.centroid_scores,
            query.score_step,
            scores[these],
        )
        first = last
    return scores


def _rescore_normalized(
    query: ProbedQuery,
    codes: Codes,
    first_codes: NDArray[np.int64],
    residuals: NDArray[np.uint8],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Stage 4 for codecs without scales, whose embeddings are normalized: not made for speed."""
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
    embeddings = query.codec.decompress(
        codes[np.repeat(first_codes, lengths) + within], residuals[np.repeat(starts, lengths) + within]
    )
    return maxsim_scores(query.embeddings, embeddings, bounds)


def _candidates(
    queries: Sequence[ProbedQuery],
    probed: Sequence[NDArray[np.int64]],
    postings: Postings,
    ndocs: int,
    allowed: NDArray[np.int64] | None,
) -> list[NDArray[np.int64]]:
    """Stage 2 for each query: return at most ``ndocs`` passage ids, rising."""
    centroids = _union([np.unique(p) for p in probed])
    listed, offsets = postings.inverted_lists(centroids)
    if (
        len(offsets) != len(centroids) + 1
        or offsets[0] != 0
        or offsets[-1] != len(listed)
        or np.any(np.diff(offsets) < 0)
    ):
        raise damaged("inverted lists", f"their offsets do not rise from 0 to the {len(listed)} ids that were read")
    candidates = []
    for query, of_query in zip(queries, probed, strict=True):
        mine = np.searchsorted(centroids, np.unique(of_query))
        if len(mine) == len(centroids):
            ids, scores = score_lists(query, of_query, listed, offsets)
        else:
            parts = [listed[offsets[i] : offsets[i + 1]] for i in mine]
            ids, scores = score_lists(query, of_query, np.concatenate(parts), np.cumsum([0, *map(len, parts)]))
        if allowed is not None:
            ids, kept, _ = np.intersect1d(ids, allowed, assume_unique=True, return_indices=True)
            scores = scores[kept]
        candidates.append(ids[_highest(scores, ndocs)])
    return candidates


def _most_promising(
    queries: Sequence[ProbedQuery], candidates: Sequence[NDArray[np.int64]], postings: Postings, n: int
) -> tuple[list[NDArray[np.int64]], Callable[[NDArray[np.int64]], tuple[Codes, NDArray[np.int64]]]]:
    """Stage 3 for each query: return the best ``n`` of its candidates, rising, and a reader of codes read here."""
    every = _union(candidates)
    codes, offsets = postings.codes(every)
    best = []
    for query, ids in zip(queries, candidates, strict=True):
        scores = interact(query, codes, offsets, np.searchsorted(every, ids))
        best.append(ids[_highest(scores, n)])

    def codes_of(passage_ids: NDArray[np.int64]) -> tuple[Codes, NDArray[np.int64]]:
        positions = np.searchsorted(every, passage_ids)
        bounds = np.zeros(len(positions) + 1, np.int64)
        np.cumsum(offsets[positions + 1] - offsets[positions], out=bounds[1:])
        out = np.empty(bounds[-1], codes.dtype)
        kernels.gather_ranges(kernels.fixed(codes), offsets[positions], bounds, out)
        return out, bounds

    return best, codes_of


def _rescored(
    queries: Sequence[ProbedQuery],
    chosen: Sequence[NDArray[np.int64]],
    postings: Postings,
    read_codes: Callable[[NDArray[np.int64]], tuple[Codes, NDArray[np.int64]]],
) -> list[NDArray[np.float32]]:
    """Stage 4 for each query: return the scores of the passages chosen for it."""
    passage_ids = _union(chosen)
    scores = [np.empty(len(ids), np.float32) for ids in chosen]
    for first in range(0, len(passage_ids), RESIDUALS_AT_ONCE):
        block = passage_ids[first : first + RESIDUALS_AT_ONCE]
        codes, offsets = read_codes(block)
        residuals, starts = postings.residuals(block, np.diff(offsets))
        for query, ids, of_query in zip(queries, chosen, scores, strict=True):
            begin, end = np.searchsorted(ids, (block[0], block[-1] + 1))
            positions = np.searchsorted(block, ids[begin:end])
            of_query[begin:end] = rescore(query, codes, offsets, residuals, starts, positions)
    return scores


def _union(ids: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return every id once, rising. Each list has its ids once and rising already."""
    if all(one is ids[0] for one in ids[1:]):
        return ids[0] if len(ids) else np.empty(0, np.int64)
    return np.unique(np.concatenate(ids))


def _ranked(
    passage_ids: NDArray[np.int64], scores: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    order = np.lexsort((passage_ids, -scores))
    return passage_ids[order], scores[order]


def _only(passage_ids: NDArray[np.int64], allowed: NDArray[np.int64] | None) -> NDArray[np.int64]:
    return passage_ids if allowed is None else np.intersect1d(passage_ids, allowed, assume_unique=True)


def _highest(scores: NDArray[np.int64] | NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Return the positions of the ``n`` highest scores, rising; of equal ones the later, as the reference cuts."""
    if len(scores) <= n:
        return np.arange(len(scores))
    cut = np.partition(scores, len(scores) - n)[len(scores) - n]
    chosen = scores > cut
    equal = np.flatnonzero(scores == cut)
    chosen[equal[len(equal) - (n - np.count_nonzero(chosen)) :]] = True
    return np.flatnonzero(chosen)


def _check_codes(codes: kernels.AnyArray, offsets: NDArray[np.int64], n_centroids: int) -> None:
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(codes) or np.any(offsets[1:] < offsets[:-1]):
        raise damaged("codes", f"their offsets do not rise from 0 to the {len(codes)} codes that were read")
    if len(codes) and not 0 <= codes.min() <= codes.max() < n_centroids:
        raise damaged("codes", f"one is not a centroid of the {n_centroids} in the codec")
