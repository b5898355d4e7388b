"""A query and its embeddings, together from the encoder to the hit.

In: texts, an encoder. Out: encoded queries. Leaves to others: checking texts and embeddings (``encoders/checks.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.encoders.checks import check_finite, check_queries
from colbert_sqlite.engine.maxsim import normalized


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """An encoded query. ``embeddings`` is float32 [n_tokens, dim], each row of unit length."""

    text: str
    embeddings: NDArray[np.float32]

    def normalized(self, maxsim: float) -> float:
        """Return a MaxSim of this query scaled to 0 to 1, comparable between queries."""
        return normalized(maxsim, len(self.embeddings))


def encode_query(encoder: Encoder, text: str) -> Query:
    """Return one encoded query. Errors as in :func:`encode_queries`."""
    [query] = encode_queries(encoder, [text])
    return query


def encode_queries(encoder: Encoder, texts: Sequence[str]) -> list[Query]:
    """Return encoded queries, all from one batch.

    :raises ValueError: if one is not text, is empty or too long, or has no tokens for the model
    :raises ModelError: if the model returns embeddings that are not numbers
    """
    check_queries(texts)
    embeddings = encoder.encode_queries(texts)
    for text, embedding in zip(texts, embeddings, strict=True):
        if len(embedding) == 0:
            raise ValueError(f"model {encoder.name!r} has no tokens for the query {text!r}: use other words")
    check_finite(encoder, embeddings)
    return [Query(text, embedding) for text, embedding in zip(texts, embeddings, strict=True)]
