"""The encoder without a model."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from colbert_sqlite.encoders import Encoder, load_encoder


def maxsim(query: np.ndarray, passage: np.ndarray) -> float:
    return float((query @ passage.T).max(axis=1).sum())


def test_rows_are_float32_and_of_length_one(encoder: Encoder) -> None:
    (rows,) = encoder.encode_passages(["The quick brown fox"])
    assert (rows.shape, rows.dtype) == ((5, 128), np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_passages_lose_punctuation_and_queries_keep_it(encoder: Encoder) -> None:
    text = "Wait, what?!"
    assert [len(encoder.encode_passages([text])[0]), len(encoder.encode_queries([text])[0])] == [3, 6]


@pytest.mark.parametrize("text", ["", " \n", "!!! ... ???"])
def test_a_text_without_words_has_one_embedding(encoder: Encoder, text: str) -> None:
    assert encoder.encode_passages([text])[0].shape == (1, 128)


def test_shared_words_score_higher_than_shared_parts_and_those_higher_than_nothing(encoder: Encoder) -> None:
    (query,) = encoder.encode_queries(["restoring backups"])
    texts = ["restoring backups nightly", "restored backup nightly", "a comet of ice"]
    same, near, other = (maxsim(query, passage) for passage in encoder.encode_passages(texts))
    assert same > near > other


def test_case_and_accents_do_not_matter(encoder: Encoder) -> None:
    plain, accented = encoder.encode_passages(["cafe deja vu", "CAFÉ Déjà vu"])
    np.testing.assert_array_equal(plain, accented)


def test_long_texts_are_cut_at_the_document_length(encoder: Encoder) -> None:
    (rows,) = encoder.encode_passages(["word " * 1000])
    assert len(rows) == encoder.document_length


def test_the_tokenizer_counts_tokens_and_finds_their_characters(encoder: Encoder) -> None:
    encoding = encoder.tokenizer.encode("Café, noir", add_special_tokens=False)
    assert encoding.offsets == [(0, 4), (4, 5), (6, 10)]
    assert len(encoder.encode_queries(["Café, noir"])[0]) == len(encoding) + encoder.n_special_tokens


def test_the_dimension_is_part_of_name_and_fingerprint() -> None:
    small, default = load_encoder("hashing-48"), load_encoder("hashing-128")
    assert (small.name, small.dim, default.name, default.dim) == ("hashing-48", 48, "hashing", 128)
    assert small.encode_queries(["x"])[0].shape == (2, 48)
    assert small.fingerprint != default.fingerprint


def test_an_odd_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8 from 16 to 1024, not 50"):
        load_encoder("hashing-50")


def test_numbers_are_the_same_everywhere(encoder: Encoder) -> None:
    (rows,) = encoder.encode_passages(["ice"])
    np.testing.assert_allclose(rows[1, :4], [-0.028106, -0.114034, 0.145494, -0.019207], atol=1e-5)


def test_needs_no_torch() -> None:
    code = (
        "import sys; from colbert_sqlite.encoders import load_encoder; load_encoder('hashing').encode_queries(['x']);"
        "print([name for name in ('torch', 'transformers', 'sentence_transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
