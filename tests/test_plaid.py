from __future__ import annotations

import numpy as np
import pytest
import reference

from colbert_sqlite.engine import plaid
from colbert_sqlite.engine.codec import ResidualCodec
from colbert_sqlite.engine.plaid import ArrayPostings
from colbert_sqlite.errors import IndexCorrupt, ShapeError
from colbert_sqlite.settings import SearchSettings

WIDE = SearchSettings(nprobe=1000, ndocs=4000, centroid_score_threshold=0)
NARROW = SearchSettings(nprobe=2, ndocs=40, centroid_score_threshold=0.5)


class World:
    """150 random passages, some empty, of ids 1000, 1003, 1006, ..."""

    def __init__(self, nbits=4, dim=16):
        rng = np.random.default_rng(0)
        lengths = rng.integers(0, 30, 150)
        lengths[[0, 70, 149]] = 0
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.ids = 1000 + 3 * np.arange(150)
        self.embeddings = unit(rng.standard_normal((self.offsets[-1], dim)))
        self.query = unit(rng.standard_normal((6, dim)))
        self.codec = ResidualCodec.train(self.embeddings, nbits=nbits, n_centroids=200)
        codes, self.residuals = self.codec.compress(self.embeddings)
        self.codes = codes.astype(np.uint16)
        self.postings = ArrayPostings(self.ids, self.codes, self.offsets, self.residuals)

    def search(self, settings, **options):
        return plaid.search(self.query, self.codec, self.postings, settings, **options)

    def exact(self):
        """Slow MaxSim of every passage over its decompressed embeddings."""
        embeddings = self.codec.decompress(self.codes, self.residuals)
        bounds = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        return np.array([reference.maxsim(self.query, embeddings[a:b]) for a, b in bounds])


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def world():
    return World()


def ranked(ids, scores):
    return ids[np.lexsort((ids, -scores))]


# The four stages


def test_probe_gives_the_best_centroids_of_each_query_token_once():
    scores = np.array([[0.1, 0.9], [0.8, 0.8], [0.7, 0.7], [0.8, 0.1]], np.float32)
    assert plaid.probe_centroids(scores, 1).tolist() == [0, 1]
    assert plaid.probe_centroids(scores, 2).tolist() == [0, 1, 3]
    assert plaid.probe_centroids(scores, 99).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("n_query_tokens", [1, 6, 32])
def test_interaction_is_maxsim_over_centroids(world, dtype, n_query_tokens):
    query = unit(np.random.default_rng(4).standard_normal((n_query_tokens, 16)))
    scores = world.codec.centroids @ query.T
    codes = world.codes.astype(dtype)
    np.testing.assert_allclose(
        plaid.interact(codes, world.offsets, scores), reference.interact(codes, world.offsets, scores), atol=1e-3
    )


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 5])
def test_pruning_leaves_out_centroids_that_suit_no_query_token(world, threshold):
    scores = world.codec.centroids @ world.query.T
    approximate = plaid.prune_and_interact(world.codes, world.offsets, scores, threshold)
    np.testing.assert_allclose(
        approximate, reference.interact(world.codes, world.offsets, scores, threshold), atol=1e-3
    )


def test_interaction_with_all_scores_zero():
    scores = np.zeros((3, 2), np.float32)
    assert plaid.interact(np.array([0, 2], np.uint16), np.array([0, 1, 2, 2]), scores).tolist() == [0, 0, -np.inf]


@pytest.mark.parametrize(("nbits", "dim"), [(1, 16), (2, 48), (4, 5), (8, 96)])
def test_rescoring_is_maxsim_over_decompressed_embeddings(nbits, dim):
    world = World(nbits, dim)
    scores = plaid.rescore(world.query, world.codec, world.codes, world.offsets, world.residuals, world.offsets[:-1])
    np.testing.assert_allclose(scores, world.exact(), rtol=1e-5)


def test_rescoring_reads_each_passage_where_its_rows_start(world):
    order = np.arange(150)[::-1]
    codes, offsets = world.postings.codes(world.ids[order])
    scores = plaid.rescore(world.query, world.codec, codes, offsets, world.residuals, world.offsets[order])
    np.testing.assert_allclose(scores, world.exact()[order], rtol=1e-5)


def test_a_passage_longer_than_a_block_is_scored_whole(world):
    n = 3 * plaid.TOKENS_AT_ONCE + 1
    codes, residuals = np.resize(world.codes, n), np.resize(world.residuals, (n, world.residuals.shape[1]))
    long = plaid.rescore(world.query, world.codec, codes, np.array([0, 2, n]), residuals, np.array([0, 2]))
    everything = reference.maxsim(world.query, world.codec.decompress(world.codes, world.residuals))
    assert long[1] == pytest.approx(everything, rel=1e-5)


# The search


def test_exhaustive_search_ranks_every_passage_that_has_tokens(world):
    ids, scores = world.search(NARROW, exhaustive=True)
    exact = world.exact()
    filled = np.isfinite(exact)
    assert ids.tolist() == ranked(world.ids[filled], exact[filled]).tolist()
    np.testing.assert_allclose(scores, np.sort(exact[filled])[::-1], rtol=1e-5)
    assert (ids.dtype, scores.dtype) == (np.int64, np.float32)


def test_search_that_probes_everything_equals_exhaustive_search(world):
    for probed, exhaustive in zip(world.search(WIDE), world.search(WIDE, exhaustive=True), strict=True):
        assert probed.tolist() == exhaustive.tolist()


@pytest.mark.parametrize("nprobe", [1, 2, 5])
@pytest.mark.parametrize("ndocs", [8, 40, 100, 400])
@pytest.mark.parametrize("threshold", [0.2, 0.6, 5])
def test_search_agrees_with_the_slow_stages(world, nprobe, ndocs, threshold):
    settings = SearchSettings(nprobe=nprobe, ndocs=ndocs, centroid_score_threshold=threshold)
    ids, scores = world.search(settings)
    _, kept = reference.stages(world.query, world.codec.centroids, world.codes, world.offsets, nprobe, threshold, ndocs)
    exact = world.exact()[kept]
    assert ids.tolist() == ranked(world.ids[kept], exact).tolist()
    np.testing.assert_allclose(scores, np.sort(exact)[::-1], rtol=1e-5)


def test_allowed_passages_cut_the_candidates_before_ndocs_does(world):
    allowed = world.ids[::2]
    ids, _ = world.search(NARROW, allowed=allowed)
    _, kept = reference.stages(
        world.query, world.codec.centroids, world.codes, world.offsets, 2, 0.5, 40, allowed=np.arange(0, 150, 2)
    )
    assert ids.tolist() == ranked(world.ids[kept], world.exact()[kept]).tolist()


def test_few_allowed_passages_are_all_scored(world):
    allowed = world.ids[[3, 50, 51]]
    ids, scores = world.search(NARROW, allowed=allowed)
    exact = world.exact()[[3, 50, 51]]
    assert ids.tolist() == ranked(allowed, exact).tolist()
    np.testing.assert_allclose(scores, np.sort(exact)[::-1], rtol=1e-5)


def test_allowed_passage_without_tokens_scores_minus_infinity(world):
    ids, scores = world.search(NARROW, allowed=world.ids[[0, 1]])
    assert ids[1] == world.ids[0] and scores[1] == -np.inf


@pytest.mark.parametrize("options", [{}, {"exhaustive": True}])
def test_nothing_allowed_finds_nothing(world, options):
    ids, scores = world.search(NARROW, allowed=np.empty(0, np.int64), **options)
    assert ids.tolist() == scores.tolist() == []


def test_exhaustive_search_of_allowed_passages_scores_just_those(world):
    allowed = world.ids[5:100]
    ids, _ = world.search(NARROW, allowed=allowed, exhaustive=True)
    assert sorted(ids.tolist()) == allowed.tolist()


def test_a_small_index_is_scored_whole(world):
    offsets = world.offsets[:9]
    small = ArrayPostings(world.ids[:8], world.codes[: offsets[-1]], offsets, world.residuals)
    ids, _ = plaid.search(world.query, world.codec, small, NARROW)
    assert sorted(ids.tolist()) == small.all_passage_ids().tolist()


def test_an_empty_index_finds_nothing(world):
    empty = ArrayPostings(np.empty(0, np.int64), np.empty(0, np.uint16), np.zeros(1, np.int64), world.residuals[:0])
    ids, scores = plaid.search(world.query, world.codec, empty, NARROW)
    assert ids.tolist() == scores.tolist() == []


def test_equal_scores_rank_by_smaller_id(world):
    first, last = world.offsets[1:3]
    codes, residuals = np.tile(world.codes[first:last], 5), np.tile(world.residuals[first:last], (5, 1))
    postings = ArrayPostings(np.array([2, 4, 5, 8, 9]), codes, np.arange(6) * (last - first), residuals)
    assert plaid.search(world.query, world.codec, postings, WIDE)[0].tolist() == [2, 4, 5, 8, 9]


def test_block_sizes_do_not_change_the_answer(world, monkeypatch):
    expected = [world.search(NARROW), world.search(NARROW, exhaustive=True)]
    for name in ("CODES_AT_ONCE", "RESIDUALS_AT_ONCE", "TOKENS_AT_ONCE"):
        monkeypatch.setattr(plaid, name, 7)
    for (ids, scores), options in zip(expected, ({}, {"exhaustive": True}), strict=True):
        again_ids, again_scores = world.search(NARROW, **options)
        assert ids.tolist() == again_ids.tolist()
        np.testing.assert_allclose(scores, again_scores, rtol=1e-6)


def test_search_does_not_change_what_it_reads(world):
    for array in (world.codes, world.offsets, world.residuals, world.ids, world.query):
        array.flags.writeable = False
    world.search(NARROW)


# Postings over arrays


def test_inverted_lists_name_each_passage_once(world):
    listed = world.postings.inverted_lists(np.array([3, 7]))
    slow = [i for i, a, b in zip(world.ids, world.offsets[:-1], world.offsets[1:], strict=True)
            if {3, 7} & set(world.codes[a:b].tolist())]  # fmt: skip
    assert listed.tolist() == slow


def test_no_centroids_and_unused_centroids_have_empty_lists(world):
    assert world.postings.inverted_lists(np.array([], np.int64)).tolist() == []
    assert world.postings.inverted_lists(np.array([60_000])).tolist() == []


def test_codes_come_in_the_order_asked_for(world):
    codes, offsets = world.postings.codes(world.ids[[9, 0, 4]])
    parts = [world.codes[world.offsets[i] : world.offsets[i + 1]] for i in (9, 0, 4)]
    assert codes.tolist() == np.concatenate(parts).tolist()
    assert offsets.tolist() == np.cumsum([0] + [len(p) for p in parts]).tolist()


# What does not fit is refused before a kernel sees it


@pytest.mark.parametrize(
    "query", [np.zeros(16, np.float32), np.zeros((3, 15), np.float32), np.zeros((0, 16), np.float32)]
)
def test_query_must_fit_the_codec(world, query):
    with pytest.raises(ShapeError, match="16 dimensions"):
        plaid.search(query, world.codec, world.postings, NARROW)


@pytest.mark.parametrize(
    ("codes", "offsets"),
    [([0, 200], [0, 2]), ([0, -1], [0, 2]), ([0, 1], [0, 1]), ([0, 1], [1, 2]), ([0, 1], [0, 2, 1, 2]), ([0], [])],
)
def test_codes_and_offsets_from_a_damaged_index_are_refused(world, codes, offsets):
    codes, offsets = np.array(codes), np.array(offsets, np.int64)
    scores = world.codec.centroids @ world.query.T
    with pytest.raises(IndexCorrupt):
        plaid.interact(codes, offsets, scores)
    with pytest.raises(IndexCorrupt):
        plaid.prune_and_interact(codes, offsets, scores, 0.5)
    with pytest.raises(IndexCorrupt):
        plaid.rescore(world.query, world.codec, codes, offsets, world.residuals, np.zeros(len(offsets), np.int64))


@pytest.mark.parametrize("starts", [[-1, 1], [0, 9], [0], [0, 0, 0], [0, 2**63 - 1]])
def test_residual_rows_outside_what_was_read_are_refused(world, starts):
    with pytest.raises(IndexCorrupt, match="lie outside"):
        plaid.rescore(
            world.query,
            world.codec,
            np.array([1, 2, 3], np.uint16),
            np.array([0, 1, 3]),
            world.residuals[:10],
            np.array(starts),
        )


@pytest.mark.parametrize("residuals", [np.zeros((3, 9), np.uint8), np.zeros((3, 8), np.int8), np.zeros(24, np.uint8)])
def test_residuals_of_another_codec_are_refused(world, residuals):
    with pytest.raises(IndexCorrupt, match="8 bytes a token"):
        plaid.rescore(
            world.query, world.codec, np.zeros(3, np.uint16), np.array([0, 3]), residuals, np.zeros(1, np.int64)
        )
