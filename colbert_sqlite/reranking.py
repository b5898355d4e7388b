"""Texts put in order by a query, without an index: those that a full-text search found, or another embedding.

In: a query and texts. Out: the same texts, best first, with their scores. Leaves to others: models (encoders/), scoring
(engine/maxsim.py), where the texts come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from colbert_sqlite.encoders import Encoder, cached_encoder
from colbert_sqlite.encoders.cache import cached_splitter
from colbert_sqlite.encoders.queries import check_finite, check_queries, encode_queries
from colbert_sqlite.engine.maxsim import maxsim_scores, normalized
from colbert_sqlite.passages import DEFAULT_MAX_TOKENS, RawValue, extract
from colbert_sqlite.settings import Backend, ModelOptions

# Encoded together: enough to fill batches of equal length, and at most 130 MB of embeddings.
PASSAGES_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Reranked:
    """One of the texts that were reranked.

    ``position`` is where it stood before, from 0. ``score`` is the MaxSim of its best passage, higher is better, and
    ``-inf`` for a text without words. ``normalized_score`` is that divided by the number of query tokens, from 0 to 1,
    for thresholds.
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
    """Return the *k* texts that answer *query* best, or all of them, best first; of equals the earlier one.

    A text longer than the model reads is cut into passages, as in an index, and its best passage counts. HTML is
    stripped. The model is loaded by the first call and kept: the next ones are faster.

    :param model: alias, folder or hub id of a ColBERT model, or an encoder; default: ``minilm``
    :param backend: ``torch``, ``onnx``, which loads faster, or ``auto``: what is loaded, else what encodes faster
    :raises ValueError: if the query is empty, *k* is not at least 1, or a text is none
    :raises ModelNotFound: if the model is not on this machine and can't be fetched
    :raises ModelError: if its files are damaged, unsafe or not a ColBERT model
    :raises MissingDependency: if a package that the model needs is not installed
    """
    options = ModelOptions(
        device=device, dtype=dtype, batch_size=batch_size, trust_remote_code=trust_remote_code, backend=backend
    )
    if k is not None and (type(k) is not int or k < 1):
        raise ValueError(f"k must be a whole number of at least 1, or None for all, not {k!r}")
    check_queries([query])
    if isinstance(texts, (str, bytes)):
        raise ValueError(f"texts is a list of texts: [{texts!r}]")
    texts = list(texts)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {position} is {text!r}, which is no str")
    if not texts:
        return []
    encoder = cached_encoder(model, options, many=True)
    scored = score_documents(encoder, query, [[text_value(text)] for text in texts])
    best = sorted(range(len(texts)), key=lambda position: (-scored[position][0], position))
    return [Reranked(position, scored[position][0], texts[position], scored[position][1]) for position in best[:k]]


def text_value(text: str) -> RawValue:
    """*text* as SQLite would hold it."""
    return RawValue("text", text.encode(errors="replace"))


def score_documents(encoder: Encoder, query: str, documents: Sequence[Sequence[RawValue]]) -> list[tuple[float, float]]:
    """Return the score and the normalized score of each document, which is one or more values, like columns of a row.

    A document without text has the score ``-inf``. Errors as in :func:`rerank`.
    """
    [embedded] = encode_queries(encoder, [query])
    scores = [-math.inf] * len(documents)
    passages = _passages(encoder, documents)
    while chunk := list(islice(passages, PASSAGES_AT_ONCE)):
        embeddings = encoder.encode_passages([text for _, text in chunk])
        check_finite(encoder, embeddings)
        offsets = np.cumsum([0, *map(len, embeddings)], dtype=np.int64)
        found = maxsim_scores(embedded, np.concatenate(embeddings), offsets)
        for (position, _), score in zip(chunk, found.tolist(), strict=True):
            scores[position] = max(scores[position], score)
    return [(score, normalized(score, len(embedded))) for score in scores]


def _passages(encoder: Encoder, documents: Sequence[Sequence[RawValue]]) -> Iterator[tuple[int, str]]:
    """Yield position and text of every passage of every document, as an index cuts them."""
    splitter = cached_splitter(encoder)
    for position, values in enumerate(documents):
        for passage in splitter.split(extract(values, None, html="auto", max_tokens=DEFAULT_MAX_TOKENS)):
            yield position, passage.text
