"""One encoder and one codec, used by eight threads at once, give what they give to one thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder, Token, export_model, load_encoder
from colbert_sqlite.encoders.cache import cached_splitter, with_query_cache
from colbert_sqlite.engine import plaid
from colbert_sqlite.engine.codec import ResidualCodec
from colbert_sqlite.engine.postings import ArrayPostings
from colbert_sqlite.passages import Extracted, PassageText
from colbert_sqlite.settings import SearchSettings

N_THREADS = 8
WORDS = "bread comet ice dust dough kitchen tail sun database backup night copy month compost soil heap café".split()
TEXTS = [" ".join(WORDS[(i * j + j) % len(WORDS)] for j in range(3, 20)) for i in range(60)]
QUERIES = [f"{WORDS[i % len(WORDS)]} {WORDS[(7 * i + 1) % len(WORDS)]}" for i in range(8)]
LONG = Extracted("A heading", ". ".join(TEXTS[:30]))
# Narrow, so that all four stages run.
SETTINGS = SearchSettings(nprobe=4, ndocs=32)


class Answer(NamedTuple):
    """Everything that one thread makes of one query."""

    query: NDArray[np.float32]
    tokens: list[Token]
    passages: list[PassageText]
    codes: NDArray[np.uint32]
    residuals: NDArray[np.uint8]
    reconstructed: NDArray[np.float32]
    ids: NDArray[np.int64]
    scores: NDArray[np.float32]


@pytest.fixture(params=["hashing", "export"])
def new_encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Encoder]:
    """Makes an encoder that nobody has used: the hashing one, or one of an exported checkpoint."""
    if request.param == "hashing":
        return lambda: load_encoder("hashing-32")
    for package in ("onnxruntime", "onnx", "sentence_transformers"):
        pytest.importorskip(package)
    shared: Path = request.getfixturevalue("shared")
    export_model(str(shared / "reference" / "parity" / "stanford_bert"), tmp_path / "exported")
    return lambda: load_encoder(str(tmp_path / "exported"))


def test_eight_threads_get_what_one_gets(new_encoder: Callable[[], Encoder]) -> None:
    first = new_encoder()
    passages = first.encode_passages(TEXTS)
    offsets = np.cumsum([0, *map(len, passages)], dtype=np.int64)
    embeddings = np.concatenate(passages)
    trained = ResidualCodec.train(embeddings, nbits=4, n_centroids=48)
    postings = ArrayPostings(np.arange(len(passages)), *_compressed(trained, embeddings, offsets))

    def answer(encoder: Encoder, codec: ResidualCodec, query: str) -> Answer:
        [embedded] = encoder.encode_queries([query])
        [one] = encoder.encode_passages([query])
        codes, residuals = codec.compress(one)
        return Answer(
            embedded,
            encoder.query_tokens(query),
            cached_splitter(encoder).split(LONG),
            codes,
            residuals,
            codec.decompress(codes, residuals),
            *plaid.search(embedded, codec, postings, SETTINGS),
        )

    expected = [answer(first, trained, query) for query in QUERIES]
    # Objects that nobody has used: what they make when it is first needed, eight threads need at once.
    encoder, codec, barrier = with_query_cache(new_encoder()), replace(trained), Barrier(N_THREADS)

    def all_answers(shift: int) -> list[Answer]:
        barrier.wait(60)
        order = np.roll(np.arange(len(QUERIES)), shift)
        answers = {i: answer(encoder, codec, QUERIES[i]) for i in order.tolist()}
        return [answers[i] for i in range(len(QUERIES))]

    with ThreadPoolExecutor(N_THREADS) as pool:
        for answers in pool.map(all_answers, range(N_THREADS)):
            for mine, theirs in zip(answers, expected, strict=True):
                assert (mine.tokens, mine.passages) == (theirs.tokens, theirs.passages)
                np.testing.assert_allclose(mine.query, theirs.query, atol=1e-6)
                np.testing.assert_array_equal(mine.codes, theirs.codes)
                np.testing.assert_array_equal(mine.residuals, theirs.residuals)
                np.testing.assert_array_equal(mine.reconstructed, theirs.reconstructed)
                np.testing.assert_array_equal(mine.ids, theirs.ids)
                np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-5)


def _compressed(
    codec: ResidualCodec, embeddings: NDArray[np.float32], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.uint8]]:
    codes, residuals = codec.compress(embeddings)
    return codes, offsets, residuals
