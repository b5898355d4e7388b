"""Tiny checkpoints, encoded here and by the libraries that defined them.

The checkpoints and numbers come from Stanford ColBERT 0.2.22, PyLate 1.6.0 and sentence-transformers 6.2.0. No text
differs, whatever it holds: emoji, CJK, unknown characters, literal [MASK] and [PAD], whitespace, nothing at all.
"""

from __future__ import annotations

import numpy as np
import pytest

from colbert_sqlite.encoders import load_encoder
from tests.parity_cases import CASES, CHECKPOINTS, texts_and_expected

pytest.importorskip("sentence_transformers")


@pytest.mark.parametrize("case", CASES)
def test_embeddings_equal_the_reference(case: str) -> None:
    folder = CHECKPOINTS / case
    texts, expected = texts_and_expected(case)
    query_lengths = expected.get("querylens", [expected["Q"].shape[1]] * len(texts["queries"]))

    encoder = load_encoder(str(folder), device="cpu", dtype="float32")
    queries = encoder.encode_queries(texts["queries"])
    passages = encoder.encode_passages(texts["docs"])

    assert [len(rows) for rows in queries] == list(query_lengths)
    assert [len(rows) for rows in passages] == list(expected["doclens"])
    dim = expected["D"].shape[1]
    np.testing.assert_allclose(np.concatenate(queries), expected["Q"].reshape(-1, dim), rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.concatenate(passages), expected["D"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_text_and_special_tokens_fill_the_document_length(case: str) -> None:
    folder = CHECKPOINTS / case
    encoder = load_encoder(str(folder), device="cpu", dtype="float32")
    with np.load(folder / "expected.npz") as npz:
        widths = (npz["q_ids"].shape[1], npz["d_ids"].shape[1]) if "q_ids" in npz else (24, 40)
    n_words = encoder.document_length - encoder.n_special_tokens
    long = "the " * 100
    end = encoder.tokenizer.encode(long, add_special_tokens=False).offsets[n_words - 1][1]
    cut, whole = encoder.encode_passages([long[:end], long])
    np.testing.assert_array_equal(cut, whole)
    assert (encoder.query_length, encoder.document_length) == widths
