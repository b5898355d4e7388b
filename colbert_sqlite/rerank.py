"""Rank any texts by a query, without an index.

In: a query and texts, such as the hits of a full-text search. Out: the same texts, best first, with their scores.
Leaves to others: models (``encoders/``), MaxSim (``engine/maxsim.py``), the search for the texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from colbert_sqlite.encoders import Encoder, cached_encoder
from colbert_sqlite.encoders.cache import cached_splitter
from colbert_sqlite.encoders.checks import check_finite, check_queries
from colbert_sqlite.engine.maxsim import maxsim_scores
from colbert_sqlite.passages import DEFAULT_MAX_TOKENS, RawValue, extract
from colbert_sqlite.query import Query, encode_query
from colbert_sqlite.settings import Backend, ModelOptions
from colbert_sqlite.values import whole_number

# Encoded together: enough to fill batches of equal length, and at most 130 MB of embeddings.
PASSAGES_AT_ONCE = 1024
# torch takes seconds longer to load than onnxruntime, and encodes faster: it pays from about this size on.
MIN_BYTES_FOR_TORCH = 150_000


@dataclass(frozen=True, slots=True)
class Reranked:
    """One reranked text.

    ``position`` is its position in the input, from 0. ``score`` is the MaxSim of its best passage, higher is better,
    and ``-inf`` for a text without words. ``normalized_score`` is the score divided by the number of query tokens, from
    0 to 1, for thresholds.
    """

    position: int
    score: float
    text: str
    normalized_score: float


def rerank(
    query: str,
    texts: Iterable[str],
    k: int | None = None,
    *,
    model: str | Encoder | None = None,
    device: str | None = None,
    dtype: str = "auto",
    batch_size: int | None = None,
    trust_remote_code: bool = False,
    backend: Backend = "auto",
) -> list[Reranked]:
    """Return the *k* texts that answer *query* best, or all, best first; ties keep their order.

    A text longer than the model reads is cut into passages, as in an index, and its best passage counts. HTML is
    stripped. The first call loads the model and keeps it; later calls are faster.

    :param model: alias, folder or hub id of a ColBERT model, or an encoder; default: ``minilm``
    :param backend: ``torch``; ``onnx``, which loads faster; ``auto``: the one already loaded, else the one that encodes
        faster. This and the arguments from *device* on are fields of :class:`ModelOptions`
    :raises ValueError: if the query is empty, *k* is not at least 1, or a text is not a str
    :raises ModelNotFound: if the model is not on this machine and can't be fetched
    :raises ModelError: if its files are damaged, unsafe or not a ColBERT model
    :raises MissingDependency: if a package that the model needs is not installed
    """
    options = ModelOptions(
        device=device, dtype=dtype, batch_size=batch_size, trust_remote_code=trust_remote_code, backend=backend
    )
    k = None if k is None else whole_number("k", k, 1)
    check_queries([query])
    if isinstance(texts, (str, bytes)):
        raise ValueError(f"texts must be a list of texts, such as [{texts!r}]")
    texts = list(texts)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {position} must be a str, not {text!r}")
    if not texts:
        return []
    encoder = cached_encoder(model, options, many=True)
    encoded = encode_query(encoder, query)
    scores = score_documents(encoder, encoded, [[raw_value(text)] for text in texts])
    best = sorted(range(len(texts)), key=lambda position: (-scores[position], position))
    return [Reranked(at, scores[at], texts[at], encoded.normalized(scores[at])) for at in best[:k]]


def raw_value(value: str | bytes | None) -> RawValue:
    """Return *value* as SQLite stores it."""
    if isinstance(value, str):
        return RawValue("text", value.encode(errors="replace"))
    return RawValue("null" if value is None else "blob", value)


def score_documents(encoder: Encoder, query: Query, documents: Sequence[Sequence[RawValue]]) -> list[float]:
    """Return the MaxSim of each document; ``-inf`` for one without text.

    :param documents: one or more values each, like the columns of a row
    :raises ModelError: if the model returns embeddings that are not numbers
    """
    scores = [-math.inf] * len(documents)
    passages = _passages(encoder, documents)
    while chunk := list(islice(passages, PASSAGES_AT_ONCE)):
        embeddings = encoder.encode_passages([text for _, text in chunk])
        check_finite(encoder, embeddings)
        offsets = np.cumsum([0, *map(len, embeddings)], dtype=np.int64)
        of_chunk = maxsim_scores(query.embeddings, np.concatenate(embeddings), offsets)
        for (position, _), score in zip(chunk, of_chunk.tolist(), strict=True):
            scores[position] = max(scores[position], score)
    return scores


def rerank_rows(
    query: str, documents: Sequence[Sequence[str | bytes | None]], model: str | None, options: ModelOptions
) -> tuple[list[float], Encoder]:
    """Return the score of each document, ``-inf`` for one without text, and the encoder.

    :param documents: the values of each row
    :raises ValueError: if the query is empty. Other errors as in :func:`load_encoder`
    """
    check_queries([query])
    values = [list(map(raw_value, document)) for document in documents]
    n_bytes = sum(len(value.raw or b"") for document in values for value in document)
    encoder = cached_encoder(model, options, many=n_bytes > MIN_BYTES_FOR_TORCH)
    return score_documents(encoder, encode_query(encoder, query), values), encoder


def _passages(encoder: Encoder, documents: Sequence[Sequence[RawValue]]) -> Iterator[tuple[int, str]]:
    """Yield position and text of every passage of every document, as an index cuts them."""
    splitter = cached_splitter(encoder)
    for position, values in enumerate(documents):
        for passage in splitter.split(extract(values, None, html="auto", max_tokens=DEFAULT_MAX_TOKENS)):
            yield position, passage.text
