"""Codec and search against what colbert-ai 0.2.22 and fast-plaid 1.4.6 computed, stored in tests/data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_sqlite.engine import plaid
from colbert_sqlite.engine.codec import ResidualCodec, quantile_buckets
from colbert_sqlite.engine.maxsim import maxsim_scores
from colbert_sqlite.engine.postings import ArrayPostings
from colbert_sqlite.settings import SearchSettings
from tests import reference
from tests.parity_cases import DATA
from tests.reference import Array

CODECS = ["nbits1_dim16", "nbits2_dim16", "nbits2_dim128", "nbits4_dim32", "nbits8_dim64"]


def load_codec(case: Mapping[str, Array], nbits: int) -> ResidualCodec:
    average = float(np.mean(case["avg_residual"]))
    return ResidualCodec(nbits, case["centroids"], case["bucket_cutoffs"], case["bucket_weights"], average)


def our_packing(residuals: Array, nbits: int, dim: int) -> Array:
    return reference.pack(reference.stanford_unpack(residuals, nbits, dim), nbits)


@pytest.fixture(params=CODECS)
def codec_case(request: pytest.FixtureRequest) -> Mapping[str, Array]:
    return np.load(DATA / "codecs" / f"{request.param}.npz")


def test_codes_and_buckets_equal_stanfords(codec_case: Mapping[str, Array]) -> None:
    nbits = int(codec_case["nbits"])
    codec = load_codec(codec_case, nbits)
    # The reference rounds embeddings to float16 before it compresses them.
    codes, residuals = codec.compress(codec_case["embeddings"].astype(np.float16))
    assert codes.tolist() == codec_case["codes"].tolist()
    assert residuals.tolist() == our_packing(codec_case["residuals"], nbits, codec.dim).tolist()


def test_decompressed_embeddings_equal_stanfords(codec_case: Mapping[str, Array]) -> None:
    nbits = int(codec_case["nbits"])
    codec = load_codec(codec_case, nbits)
    decompressed = codec.decompress(codec_case["codes"], our_packing(codec_case["residuals"], nbits, codec.dim))
    np.testing.assert_allclose(decompressed, codec_case["decompressed"], atol=1e-6)


def test_quantile_buckets_equal_stanfords(codec_case: Mapping[str, Array]) -> None:
    heldout, centroids = codec_case["heldout"].astype(np.float32), codec_case["centroids"].astype(np.float32)
    residuals = heldout - centroids[reference.nearest(heldout, centroids)]
    cutoffs, weights = quantile_buckets(residuals, int(codec_case["nbits"]))
    np.testing.assert_allclose(cutoffs, codec_case["bucket_cutoffs"], atol=1e-6)
    np.testing.assert_allclose(weights, codec_case["bucket_weights"], atol=1e-6)
    np.testing.assert_allclose(np.abs(residuals).mean(), codec_case["avg_residual"], atol=1e-6)


class Index:
    """An index of the reference implementations, behind our postings."""

    def __init__(self, path: Path, nbits: int) -> None:
        self.arrays = dict(np.load(path))
        self.codec = load_codec(self.arrays, nbits)
        self.codes = self.arrays["codes"].astype(np.uint16)
        self.residuals = our_packing(self.arrays["residuals"], nbits, self.codec.dim)
        self.offsets = np.concatenate([[0], np.cumsum(self.arrays["doclens"])])
        self.ids = np.arange(len(self.arrays["doclens"]))
        self.postings = ArrayPostings(self.ids, self.codes, self.offsets, self.residuals)
        self.embeddings = self.codec.decompress(self.codes, self.residuals)

    def floored(self, query: Array, ids: Array) -> Array:
        """MaxSim where no query token's best counts less than 0, as the reference scores on a CPU."""
        passages = [self.embeddings[self.offsets[i] : self.offsets[i + 1]] for i in ids]
        return np.array([reference.maxsim(query, passage, floor=0) for passage in passages])


@pytest.fixture(scope="module")
def stanford() -> Index:
    return Index(DATA / "plaid" / "index.npz", 2)


@pytest.fixture(scope="module")
def stanford_searches() -> dict[str, Any]:
    searches = json.loads((DATA / "plaid" / "search.json").read_text())["searches"]
    return {search["label"]: search for search in searches}


PLAIN = ["defaults k=10", "defaults k=100", "defaults k=1000", "small ndocs", "hard pruning", "everything pruned"]
WIDE = SearchSettings(nprobe=8, ndocs=4096)
# We score centroids by whole numbers: what that changes of a cosine, and of a sum over 32 query tokens.
ROUNDING = 0.01
ROUNDING_OF_SUM = 0.05


def test_index_decompresses_as_stanfords(stanford: Index) -> None:
    np.testing.assert_allclose(stanford.embeddings, stanford.arrays["decompressed"], atol=1e-6)


def test_inverted_lists_equal_stanfords(stanford: Index) -> None:
    bounds = np.concatenate([[0], np.cumsum(stanford.arrays["ivf_lengths"])])
    for centroid in range(stanford.codec.n_centroids):
        expected = stanford.arrays["ivf"][bounds[centroid] : bounds[centroid + 1]]
        assert stanford.postings.inverted_lists(np.array([centroid]))[0].tolist() == expected.tolist()


@pytest.mark.parametrize("label", PLAIN)
def test_candidates_equal_stanfords(stanford: Index, stanford_searches: dict[str, Any], label: str) -> None:
    search = stanford_searches[label]
    nprobe = search["effective"]["ncells"]
    for query, expected in zip(stanford.arrays["Q"], search["results"], strict=True):
        exact = stanford.codec.vectors @ query.T
        ours = plaid.ProbedQuery(query, stanford.codec).probe(nprobe)
        theirs = reference.top_rows(exact, nprobe)
        for token, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            assert exact[mine, token].min() > exact[other, token].min() - ROUNDING
        listed, _ = stanford.postings.inverted_lists(np.unique(theirs))
        assert np.unique(listed).tolist() == expected["candidates"]


def assert_same_ranking(stanford: Index, query: Array, found: Array, scores: Array, expected: dict[str, Any]) -> None:
    """Our set, scored with the reference's floor, ranks as theirs; ours differ from it only by that floor."""
    floored = stanford.floored(query, found)
    best = np.lexsort((found, -floored))[: len(expected["pids"])]
    np.testing.assert_allclose(floored[best], expected["scores"], atol=1e-5)
    assert found[best].tolist() == expected["pids"]
    unfloored = maxsim_scores(query, stanford.embeddings, stanford.offsets)[found]
    np.testing.assert_allclose(scores, unfloored, atol=1e-5)
    no_maximum_is_negative = np.isclose(unfloored, floored, atol=1e-5)
    assert no_maximum_is_negative.any()


def test_centroid_interaction_chooses_stanfords_passages(stanford: Index, stanford_searches: dict[str, Any]) -> None:
    n_compared = 0
    for search in map(stanford_searches.__getitem__, PLAIN):
        n = search["effective"]["ndocs"] // 4
        for query, expected in zip(stanford.arrays["Q"], search["results"], strict=True):
            candidates = np.array(expected.get("candidates", []))
            # With more than ndocs candidates Stanford prunes some by stage 2, which here goes by lists, not codes.
            if not n < len(candidates) <= search["effective"]["ndocs"]:
                continue
            n_compared += 1
            prepared = plaid.ProbedQuery(query, stanford.codec)
            prepared.probe(1)
            scores = plaid.interact(prepared, stanford.codes, stanford.offsets, candidates)
            cut = np.sort(scores)[-n]
            assert {*candidates[scores > cut + ROUNDING_OF_SUM].tolist()} <= {*expected["reranked"]}
            assert {*expected["reranked"]} <= {*candidates[scores > cut - ROUNDING_OF_SUM].tolist()}
    assert n_compared > 0


@pytest.mark.parametrize("label", PLAIN)
def test_reranked_passages_rank_as_stanfords(stanford: Index, stanford_searches: dict[str, Any], label: str) -> None:
    search = stanford_searches[label]
    for query, expected in zip(stanford.arrays["Q"], search["results"], strict=True):
        reranked = np.array(expected["reranked"], np.int64)
        found, scores = plaid.search(query, stanford.codec, stanford.postings, WIDE, allowed=reranked)
        assert_same_ranking(stanford, query, found, scores, expected)


def test_passages_named_are_scored_as_stanford_scores_them(stanford: Index, stanford_searches: dict[str, Any]) -> None:
    search = stanford_searches["pid subset"]
    named = np.array(search["pids"])
    for query, expected in zip(stanford.arrays["Q"], search["results"], strict=True):
        found, scores = plaid.search(query, stanford.codec, stanford.postings, WIDE, allowed=named)
        assert np.sort(found).tolist() == named.tolist()
        assert_same_ranking(stanford, query, found, scores, expected)


def test_passages_that_stanfords_filter_lets_through_score_alike(
    stanford: Index, stanford_searches: dict[str, Any]
) -> None:
    search = stanford_searches["filter even pids"]
    for query, expected in zip(stanford.arrays["Q"], search["results"], strict=True):
        even = np.sort(expected["pids"])
        found, scores = plaid.search(query, stanford.codec, stanford.postings, WIDE, allowed=even)
        assert_same_ranking(stanford, query, found, scores, expected)


@pytest.fixture(scope="module", params=[2, 4])
def fastplaid(request: pytest.FixtureRequest) -> Index:
    return Index(DATA / "fastplaid" / f"index_nbits{request.param}.npz", request.param)


def test_reconstruction_equals_fastplaids(fastplaid: Index) -> None:
    expected = fastplaid.arrays["reconstructed_first3"]
    np.testing.assert_allclose(fastplaid.embeddings[: len(expected)], expected, atol=1e-3)


def test_scores_equal_fastplaids(fastplaid: Index) -> None:
    text = (DATA / "fastplaid" / "search.json").read_text()
    case = next(c for c in json.loads(text)["cases"] if c["nbits"] == fastplaid.codec.nbits)
    results = next(s for s in case["searches"] if s["label"] == "defaults")["results"]
    everything = SearchSettings(nprobe=8, ndocs=4096)
    for query, expected in zip(fastplaid.arrays["queries"], results, strict=True):
        found, scores = plaid.search(query, fastplaid.codec, fastplaid.postings, everything)
        of_id = dict(zip(found.tolist(), scores.tolist(), strict=True))
        np.testing.assert_allclose([of_id[pid] for pid, _ in expected], [score for _, score in expected], atol=2e-3)
        np.testing.assert_allclose(scores[: len(expected)], [score for _, score in expected], atol=2e-3)


def test_decompressed_embeddings_define_the_scores(fastplaid: Index) -> None:
    query = fastplaid.arrays["queries"][0]
    ids, scores = plaid.search(
        query,
        fastplaid.codec,
        fastplaid.postings,
        SearchSettings(nprobe=1, ndocs=4),
        exhaustive=True,
    )
    np.testing.assert_allclose(scores, maxsim_scores(query, fastplaid.embeddings, fastplaid.offsets)[ids], rtol=1e-5)
