from __future__ import annotations

import numpy as np
import pytest

from colbert_sqlite.engine.maxsim import alignments, maxsim, maxsim_scores
from colbert_sqlite.errors import ShapeError
from tests import reference

QUERY = np.array([[1, 0], [0, 1]], np.float32)
DOCUMENT = np.array([[0.6, 0.8], [1, 0], [-1, 0]], np.float32)


def test_score_is_the_sum_of_each_query_tokens_best_similarity() -> None:
    assert maxsim(QUERY, DOCUMENT) == pytest.approx(1.8)


def test_negative_best_similarity_counts_as_it_is() -> None:
    assert maxsim(QUERY, -DOCUMENT[:1]) == pytest.approx(-1.4)


def test_document_without_tokens_scores_minus_infinity() -> None:
    assert maxsim(QUERY, DOCUMENT[:0]) == -np.inf


def test_each_document_gets_its_own_score() -> None:
    scores = maxsim_scores(QUERY, DOCUMENT, np.array([0, 0, 2, 2, 3, 3]))
    np.testing.assert_allclose(scores, [-np.inf, 1.8, -np.inf, -1, -np.inf], rtol=1e-6)
    assert scores.dtype == np.float32


def test_scores_agree_with_the_slow_twin() -> None:
    rng = np.random.default_rng(1)
    query, embeddings = rng.standard_normal((7, 5), np.float32), rng.standard_normal((60, 5), np.float32)
    offsets = np.array([0, 1, 1, 30, 60])
    slow = [reference.maxsim(query, embeddings[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    np.testing.assert_allclose(maxsim_scores(query, embeddings, offsets), slow, rtol=1e-5)


def test_no_documents_give_no_scores() -> None:
    assert maxsim_scores(QUERY, DOCUMENT[:0], np.array([0])).tolist() == []


def test_alignment_names_the_best_document_token() -> None:
    positions, similarities = alignments(QUERY, DOCUMENT)
    assert positions.tolist() == [1, 0]
    np.testing.assert_allclose(similarities, [1, 0.8], rtol=1e-6)


def test_alignment_takes_the_earlier_of_equal_tokens() -> None:
    assert alignments(QUERY, DOCUMENT[[1, 1]])[0].tolist() == [0, 0]


def test_alignment_needs_a_document_token() -> None:
    with pytest.raises(ShapeError, match="without tokens"):
        alignments(QUERY, DOCUMENT[:0])


def test_dimensions_must_agree() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 2\).*\(3, 3\)"):
        maxsim(QUERY, np.zeros((3, 3), np.float32))


@pytest.mark.parametrize("offsets", [[], [0, 2], [1, 3], [0, 3, 2, 3]])
def test_offsets_must_cover_the_embeddings(offsets: list[int]) -> None:
    with pytest.raises(ShapeError, match="offsets"):
        maxsim_scores(QUERY, DOCUMENT, np.array(offsets, np.int64))
