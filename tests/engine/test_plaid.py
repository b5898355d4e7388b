from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_sqlite.engine import plaid
from colbert_sqlite.engine.codec import ResidualCodec
from colbert_sqlite.engine.postings import ArrayPostings
from colbert_sqlite.errors import IndexCorrupt, ShapeError
from colbert_sqlite.index import Index
from colbert_sqlite.settings import SearchSettings
from tests import reference
from tests.reference import Array

ROOT = Path(__file__).parents[2]

WIDE = SearchSettings(nprobe=1000, ndocs=4000)
NARROW = SearchSettings(nprobe=2, ndocs=40)
# A query's values are whole steps of 1/127 of its largest: what that does to a sum of six similarities.
ROUNDING = 0.02


class World:
    """150 random passages, some empty, of ids 1000, 1003, 1006, ..."""

    def __init__(self, nbits: int = 4, dim: int = 16) -> None:
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

    def prepared(self, query: Array | None = None, nprobe: int = 1) -> tuple[plaid.ProbedQuery, Array]:
        prepared = plaid.ProbedQuery(self.query if query is None else query, self.codec)
        return prepared, prepared.probe(nprobe)

    def scored(self) -> Array:
        """Scores of all passages by our own kernels, whose order is what a search must keep."""
        return plaid.rescore(self.prepared()[0], self.codes, self.offsets, self.residuals, self.offsets[:-1])

    def search(self, width: SearchSettings, **options: Any) -> tuple[Array, Array]:
        return plaid.search(self.query, self.codec, self.postings, width, **options)

    def exact(self) -> Array:
        """Slow MaxSim of every passage over its reconstructed embeddings."""
        embeddings = self.codec.reconstruct(self.codes, self.residuals)
        bounds = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        return np.array([reference.maxsim(self.query, embeddings[a:b]) for a, b in bounds])


def unit(vectors: Array) -> Array:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def ranked(ids: Array, scores: Array) -> Array:
    return ids[np.lexsort((ids, -scores))]


# The four stages


def test_centroid_scores_are_inner_products(world: World) -> None:
    query, _ = world.prepared()
    assert query.centroid_scores.dtype == np.int16
    products = world.codec.vectors @ world.query.T
    np.testing.assert_allclose(query.centroid_scores * query.score_step, products, atol=0.01)


def test_probe_gives_the_best_centroids_of_each_query_token(world: World) -> None:
    for nprobe in (1, 3):
        query, probed = world.prepared(nprobe=nprobe)
        assert probed.tolist() == reference.top_rows(query.centroid_scores, nprobe).tolist()


def test_probe_of_more_centroids_than_there_are_gives_all(world: World) -> None:
    query, probed = world.prepared(nprobe=1000)
    assert probed.shape == (6, world.codec.n_centroids)
    assert np.sort(probed, axis=1).tolist() == [list(range(world.codec.n_centroids))] * 6


@pytest.mark.parametrize("length", [1e-6, 0, 40])
def test_a_query_may_have_any_length(world: World, length: float) -> None:
    query, _ = world.prepared(world.query * np.float32(length))
    np.testing.assert_allclose(
        query.centroid_scores * query.score_step, world.codec.vectors @ query.embeddings.T, atol=0.01 * length
    )


@pytest.mark.parametrize("dim", [1, 128, 1024, 4096])
@pytest.mark.parametrize("length", [0.1, 1, 3])
def test_the_highest_score_fits_its_steps(dim: int, length: float) -> None:
    """Every value of this query is rounded up, which makes it longer by more the more there are."""
    query = np.full((1, dim), 0.502 / 127, np.float32)
    query[0, 0] = 1
    centroids = np.array([query[0] / np.linalg.norm(query), -query[0]]) * np.float32(length)
    codec = ResidualCodec(
        1, centroids.astype(np.float32), np.zeros(1, np.float32), np.array([-0.1, 0.1], np.float32), 0.1
    )
    prepared = plaid.ProbedQuery(query, codec)
    prepared.probe(1)
    scores = prepared.centroid_scores[:, 0] * prepared.score_step
    np.testing.assert_allclose(scores, centroids @ query[0], rtol=0.3)


@pytest.mark.parametrize("nprobe", [1, 2, 9])
def test_lists_alone_say_what_passages_score_at_most(world: World, nprobe: int) -> None:
    query, probed = world.prepared(nprobe=nprobe)
    found, scores = plaid.score_lists(query, probed, *world.postings.inverted_lists(np.unique(probed)))
    expected = reference.list_scores(probed, world.codes, world.offsets, query.centroid_scores.astype(np.int64))
    assert dict(zip(found.tolist(), scores.tolist(), strict=True)) == {
        world.ids[i]: score for i, score in expected.items()
    }
    last = query.centroid_scores[probed[:, -1], np.arange(6)].astype(np.int64).sum()
    by_centroids = plaid.interact(query, world.codes, world.offsets)[(found - 1000) // 3] / query.score_step
    assert np.all(by_centroids <= scores + last + 0.5)


def test_passage_ids_may_lie_far_apart(world: World) -> None:
    query, probed = world.prepared(nprobe=3)
    listed, offsets = world.postings.inverted_lists(np.unique(probed))
    near, scores = plaid.score_lists(query, probed, listed, offsets)
    far, same = plaid.score_lists(query, probed, listed * 10**9, offsets)
    assert (far // 10**9).tolist() == near.tolist() and same.tolist() == scores.tolist()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("n_query_tokens", [1, 6, 32])
def test_interaction_is_maxsim_over_centroids(world: World, dtype: type[np.number[Any]], n_query_tokens: int) -> None:
    embeddings = unit(np.random.default_rng(4).standard_normal((n_query_tokens, 16)))
    query, _ = world.prepared(embeddings)
    codes = world.codes.astype(dtype)
    slow = reference.interact(codes, world.offsets, query.centroid_scores) * query.score_step
    np.testing.assert_allclose(plaid.interact(query, codes, world.offsets), slow, rtol=1e-5)
    some = np.array([7, 0, 149, 3])
    np.testing.assert_allclose(plaid.interact(query, codes, world.offsets, some), slow[some], rtol=1e-5)


@pytest.mark.parametrize(("nbits", "dim"), [(1, 16), (2, 48), (4, 5), (8, 96), (2, 3), (1, 1)])
def test_rescoring_is_maxsim_over_centroid_plus_residual(nbits: int, dim: int) -> None:
    world = World(nbits, dim)
    np.testing.assert_allclose(world.scored(), world.exact(), atol=ROUNDING)


@settings(max_examples=60)
@given(st.data())
def test_any_passages_and_query_score_as_the_slow_twin_does(data: st.DataObject) -> None:
    seed, dim = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(seed)
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    embeddings = unit(rng.standard_normal((max(1, offsets[-1]), dim)))
    codec = ResidualCodec.train(
        embeddings, nbits=data.draw(st.sampled_from([1, 2, 4, 8])), n_centroids=data.draw(st.integers(1, 20))
    )
    codes, residuals = codec.compress(embeddings)
    codes, residuals = codes[: offsets[-1]], residuals[: offsets[-1]]
    embeddings = unit(rng.standard_normal((data.draw(st.integers(1, 40)), dim)))
    query = plaid.ProbedQuery(embeddings, codec)
    query.probe(1)
    reconstructed = codec.reconstruct(codes, residuals)
    exact = [reference.maxsim(embeddings, reconstructed[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    scores = plaid.rescore(query, codes, offsets, residuals, offsets[:-1])
    np.testing.assert_allclose(scores, exact, atol=0.01 * len(embeddings))


def test_rescoring_reads_each_passage_where_its_rows_start(world: World) -> None:
    order = np.arange(150)[::-1]
    codes, offsets = world.postings.codes(world.ids[order])
    query, _ = world.prepared()
    scores = plaid.rescore(query, codes, offsets, world.residuals, world.offsets[order])
    np.testing.assert_allclose(scores, world.scored()[order], rtol=1e-5)
    some = plaid.rescore(query, codes, offsets, world.residuals, world.offsets[order], np.array([149, 2]))
    np.testing.assert_allclose(some, world.scored()[[0, 147]], rtol=1e-5)


def test_a_passage_longer_than_a_block_is_scored_whole(world: World) -> None:
    n = 3 * plaid.ROWS_AT_ONCE + 1
    codes, residuals = np.resize(world.codes, n), np.resize(world.residuals, (n, world.residuals.shape[1]))
    query, _ = world.prepared()
    long = plaid.rescore(query, codes, np.array([0, 2, n]), residuals, np.array([0, 2]))
    whole = plaid.rescore(query, world.codes, np.array([0, len(world.codes)]), world.residuals, np.array([0]))
    assert long[1] == pytest.approx(whole[0], rel=1e-5)


# The search


def test_exhaustive_search_ranks_every_passage_that_has_tokens(world: World) -> None:
    ids, scores = world.search(NARROW, exhaustive=True)
    exact = world.scored()
    filled = np.isfinite(exact)
    assert ids.tolist() == ranked(world.ids[filled], exact[filled]).tolist()
    np.testing.assert_allclose(scores, np.sort(exact[filled])[::-1], rtol=1e-5)
    np.testing.assert_allclose(exact, world.exact(), atol=ROUNDING)
    assert (ids.dtype, scores.dtype) == (np.int64, np.float32)


def test_search_that_probes_everything_equals_exhaustive_search(world: World) -> None:
    for probed, exhaustive in zip(world.search(WIDE), world.search(WIDE, exhaustive=True), strict=True):
        assert probed.tolist() == exhaustive.tolist()


@pytest.mark.parametrize("nprobe", [1, 2, 5])
@pytest.mark.parametrize("ndocs", [8, 40, 100, 400])
def test_search_agrees_with_the_slow_stages(world: World, nprobe: int, ndocs: int) -> None:
    ids, scores = world.search(SearchSettings(nprobe=nprobe, ndocs=ndocs))
    query, probed = world.prepared(nprobe=nprobe)
    kept = reference.stages(probed, query.centroid_scores.astype(np.int64), world.codes, world.offsets, ndocs)
    exact = world.scored()[kept]
    assert ids.tolist() == ranked(world.ids[kept], exact).tolist()
    np.testing.assert_allclose(scores, np.sort(exact)[::-1], rtol=1e-5)


def test_allowed_passages_cut_the_candidates_before_ndocs_does(world: World) -> None:
    allowed = np.arange(0, 150, 2)
    ids, _ = world.search(NARROW, allowed=world.ids[allowed])
    query, probed = world.prepared(nprobe=2)
    kept = reference.stages(probed, query.centroid_scores.astype(np.int64), world.codes, world.offsets, 40, allowed)
    assert ids.tolist() == ranked(world.ids[kept], world.scored()[kept]).tolist()


@pytest.mark.parametrize("options", [{}, {"exhaustive": True}, {"allowed": 1000 + 3 * np.arange(0, 150, 2)}])
@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_many_queries_find_what_each_finds_alone(world: World, width: SearchSettings, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(8)
    queries = [unit(rng.standard_normal((n, 16))) for n in (1, 6, 3, 32)]
    together = plaid.search_many(queries, world.codec, world.postings, width, **options)
    for query, (ids, scores) in zip(queries, together, strict=True):
        alone_ids, alone_scores = plaid.search(query, world.codec, world.postings, width, **options)
        assert ids.tolist() == alone_ids.tolist()
        np.testing.assert_allclose(scores, alone_scores, rtol=1e-6)


def test_no_queries_find_nothing(world: World) -> None:
    assert plaid.search_many([], world.codec, world.postings, WIDE) == []


def test_few_allowed_passages_are_all_scored(world: World) -> None:
    allowed = world.ids[[3, 50, 51]]
    ids, scores = world.search(NARROW, allowed=allowed)
    exact = world.scored()[[3, 50, 51]]
    assert ids.tolist() == ranked(allowed, exact).tolist()
    np.testing.assert_allclose(scores, np.sort(exact)[::-1], rtol=1e-5)


def test_allowed_passage_without_tokens_scores_minus_infinity(world: World) -> None:
    ids, scores = world.search(NARROW, allowed=world.ids[[0, 1]])
    assert ids[1] == world.ids[0] and scores[1] == -np.inf


@pytest.mark.parametrize("options", [{}, {"exhaustive": True}])
def test_nothing_allowed_finds_nothing(world: World, options: dict[str, Any]) -> None:
    ids, scores = world.search(NARROW, allowed=np.empty(0, np.int64), **options)
    assert ids.tolist() == scores.tolist() == []


def test_exhaustive_search_of_allowed_passages_scores_just_those(world: World) -> None:
    allowed = world.ids[5:100]
    ids, _ = world.search(NARROW, allowed=allowed, exhaustive=True)
    assert sorted(ids.tolist()) == allowed.tolist()


def test_a_small_index_is_scored_whole(world: World) -> None:
    offsets = world.offsets[:9]
    small = ArrayPostings(world.ids[:8], world.codes[: offsets[-1]], offsets, world.residuals)
    ids, _ = plaid.search(world.query, world.codec, small, NARROW)
    assert sorted(ids.tolist()) == small.all_passage_ids().tolist()


def test_an_empty_index_finds_nothing(world: World) -> None:
    empty = ArrayPostings(np.empty(0, np.int64), np.empty(0, np.uint16), np.zeros(1, np.int64), world.residuals[:0])
    ids, scores = plaid.search(world.query, world.codec, empty, NARROW)
    assert ids.tolist() == scores.tolist() == []


def test_equal_scores_rank_by_smaller_id(world: World) -> None:
    first, last = world.offsets[1:3]
    codes, residuals = np.tile(world.codes[first:last], 5), np.tile(world.residuals[first:last], (5, 1))
    postings = ArrayPostings(np.array([2, 4, 5, 8, 9]), codes, np.arange(6) * (last - first), residuals)
    assert plaid.search(world.query, world.codec, postings, WIDE)[0].tolist() == [2, 4, 5, 8, 9]


def test_block_sizes_do_not_change_the_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [world.search(NARROW), world.search(NARROW, exhaustive=True)]
    for name in ("RESIDUALS_AT_ONCE", "ROWS_AT_ONCE"):
        monkeypatch.setattr(plaid, name, 7)
    for (ids, scores), options in zip(expected, ({}, {"exhaustive": True}), strict=True):
        again_ids, again_scores = world.search(NARROW, **options)
        assert ids.tolist() == again_ids.tolist()
        np.testing.assert_allclose(scores, again_scores, rtol=1e-6)


def test_search_does_not_change_what_it_reads(world: World) -> None:
    for array in (world.codes, world.offsets, world.residuals, world.ids, world.query):
        array.flags.writeable = False
    world.search(NARROW)


# Postings over arrays


def test_inverted_lists_name_each_passage_once(world: World) -> None:
    listed, offsets = world.postings.inverted_lists(np.array([3, 7]))
    for centroid, first, last in zip((3, 7), offsets[:-1], offsets[1:], strict=True):
        slow = [i for i, a, b in zip(world.ids, world.offsets[:-1], world.offsets[1:], strict=True)
                if centroid in world.codes[a:b]]  # fmt: skip
        assert listed[first:last].tolist() == slow


def test_no_centroids_and_unused_centroids_have_empty_lists(world: World) -> None:
    assert [part.tolist() for part in world.postings.inverted_lists(np.array([], np.int64))] == [[], [0]]
    assert [part.tolist() for part in world.postings.inverted_lists(np.array([60_000]))] == [[], [0, 0]]


def test_codes_come_in_the_order_asked_for(world: World) -> None:
    codes, offsets = world.postings.codes(world.ids[[9, 0, 4]])
    parts = [world.codes[world.offsets[i] : world.offsets[i + 1]] for i in (9, 0, 4)]
    assert codes.tolist() == np.concatenate(parts).tolist()
    assert offsets.tolist() == np.cumsum([0] + [len(p) for p in parts]).tolist()


# What does not fit is refused before a kernel sees it


@pytest.mark.parametrize(
    "query", [np.zeros(16, np.float32), np.zeros((3, 15), np.float32), np.zeros((0, 16), np.float32)]
)
def test_query_must_fit_the_codec(world: World, query: Array) -> None:
    with pytest.raises(ShapeError, match="16 dimensions"):
        plaid.search(query, world.codec, world.postings, NARROW)


@pytest.mark.parametrize(
    ("codes", "offsets"),
    [([0, 200], [0, 2]), ([0, -1], [0, 2]), ([0, 1], [0, 1]), ([0, 1], [1, 2]), ([0, 1], [0, 2, 1, 2]), ([0], [])],
)
def test_codes_and_offsets_from_a_damaged_index_are_refused(world: World, codes: Array, offsets: Array) -> None:
    codes, offsets = np.array(codes), np.array(offsets, np.int64)
    query, _ = world.prepared()
    with pytest.raises(IndexCorrupt):
        plaid.interact(query, codes, offsets)
    with pytest.raises(IndexCorrupt):
        plaid.rescore(query, codes, offsets, world.residuals, np.zeros(len(offsets), np.int64))


@pytest.mark.parametrize("offsets", [[0], [0, 1, 0, 3], [1, 2, 3], [0, 1, 99]])
def test_inverted_lists_that_contradict_themselves_are_refused(world: World, offsets: Array) -> None:
    class Damaged(ArrayPostings):
        def inverted_lists(self, centroid_ids: Array) -> tuple[Array, Array]:
            return np.array([1000, 1003, 1006]), np.resize(np.array(offsets), len(centroid_ids) + 1)[: len(offsets)]

    damaged = Damaged(world.ids, world.codes, world.offsets, world.residuals)
    with pytest.raises(IndexCorrupt, match="inverted lists"):
        plaid.search(world.query, world.codec, damaged, NARROW)


@pytest.mark.parametrize("starts", [[-1, 1], [0, 9], [0], [0, 0, 0], [0, 2**63 - 1]])
def test_residual_rows_outside_what_was_read_are_refused(world: World, starts: Array) -> None:
    with pytest.raises(IndexCorrupt, match="lie outside"):
        plaid.rescore(
            world.prepared()[0],
            np.array([1, 2, 3], np.uint16),
            np.array([0, 1, 3]),
            world.residuals[:10],
            np.array(starts),
        )


@pytest.mark.parametrize("residuals", [np.zeros((3, 9), np.int8), np.zeros((3, 8), np.uint8), np.zeros(24, np.uint8)])
def test_residuals_of_another_codec_are_refused(world: World, residuals: Array) -> None:
    with pytest.raises(IndexCorrupt, match=r"residuals .* damaged: .*, not uint8 \(n, 9\)"):
        plaid.rescore(world.prepared()[0], np.zeros(3, np.uint16), np.array([0, 3]), residuals, np.zeros(1, np.int64))


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_after_loading_the_kernels_a_search_of_a_database_compiles_none(tmp_path: Path, nbits: int) -> None:
    """In a process of its own, where no other test has called them."""
    with sqlite3.connect(tmp_path / "t.db") as db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
        db.executemany("INSERT INTO t (body) VALUES (?)", [(f"a{i} b{i + 1}",) for i in range(40)])
    Index.create(db, "t", ["body"], model="hashing", nbits=nbits)
    db.close()
    script = """
import sys
from colbert_sqlite import Index
from colbert_sqlite.engine import kernels, plaid

plaid.load_kernels(int(sys.argv[2]))
compiled = {name: f.signatures for name, f in vars(kernels).items() if hasattr(f, "signatures")}
assert len(compiled["sum_best"]) == 2, "codes may have two types"
Index.open(sys.argv[1], "t").search("a1 b2", k=2, nprobe=2, ndocs=16)
assert {name: getattr(kernels, name).signatures for name in compiled} == compiled
"""
    subprocess.run([sys.executable, "-c", script, tmp_path / "t.db", str(nbits)], check=True, cwd=ROOT)
