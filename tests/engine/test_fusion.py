"""Joining rankings: agrees with slow definitions, whatever the rankings."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_sqlite.engine.fusion import reciprocal_rank_fusion, weighted_sum

rankings = st.lists(st.lists(st.integers(0, 20), unique=True, max_size=12), min_size=1, max_size=4)
scored = st.lists(
    st.dictionaries(st.integers(0, 20), st.floats(-100, 100, allow_nan=False), max_size=12), min_size=1, max_size=3
)


@given(rankings)
def test_reciprocal_rank_fusion_is_the_sum_over_the_rankings_that_have_an_id(lists: list[list[int]]) -> None:
    expected = {
        found: sum(1 / (60 + ranking.index(found) + 1) for ranking in lists if found in ranking)
        for ranking in lists
        for found in ranking
    }
    assert reciprocal_rank_fusion(lists) == pytest.approx(expected)


@given(rankings)
def test_a_ranking_alone_keeps_its_order(lists: list[list[int]]) -> None:
    fused = reciprocal_rank_fusion(lists[:1])
    assert sorted(fused, key=lambda found: fused[found], reverse=True) == lists[0]


def test_weights_count_a_ranking_more_or_less() -> None:
    assert reciprocal_rank_fusion([["a"], ["b"]], [0.9, 0.1]) == pytest.approx({"a": 0.9 / 61, "b": 0.1 / 61})


@given(scored)
def test_a_weighted_sum_stretches_each_kind_of_score_between_0_and_1(kinds: list[dict[int, float]]) -> None:
    weights = [0.5**n for n in range(len(kinds))]
    fused = weighted_sum(kinds, weights)
    assert set(fused) == {found for scores in kinds for found in scores}
    for found, score in fused.items():
        expected = 0.0
        for scores, weight in zip(kinds, weights, strict=True):
            if found in scores:
                low, high = min(scores.values()), max(scores.values())
                expected += weight * ((scores[found] - low) / (high - low) if high > low else 1.0)
        assert math.isclose(score, expected, rel_tol=1e-9, abs_tol=1e-12)


def test_one_score_alone_is_the_best_of_its_kind() -> None:
    assert weighted_sum([{"a": -3.0}], [0.4]) == {"a": 0.4}
