"""Queries, checked and encoded, and what a model must not give.

In: texts of a caller, embeddings of a model. Out: embeddings that can be used. Leaves to others: the models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.errors import ModelError
from colbert_sqlite.settings import MAX_QUERY_CHARACTERS


def check_queries(queries: Sequence[str]) -> None:
    """Make sure that every query is a text that can be encoded.

    :raises ValueError: if one is not
    """
    if isinstance(queries, (str, bytes)):
        raise ValueError(f"queries is a list of texts: [{queries!r}]")
    for query in queries:
        _check_query(query)


def encode_queries(encoder: Encoder, queries: Sequence[str]) -> list[NDArray[np.float32]]:
    """Return embeddings of queries, float32 [n_tokens, dim] of each.

    :raises ValueError: if the model leaves nothing of one
    :raises ModelError: if they are no numbers
    """
    embeddings = encoder.encode_queries(queries)
    for query, embedding in zip(queries, embeddings, strict=True):
        if len(embedding) == 0:
            raise ValueError(f"model {encoder.name!r} leaves nothing of the query {query!r}: use other words")
    refuse_no_numbers(encoder, embeddings)
    return embeddings


def refuse_no_numbers(encoder: Encoder, embeddings: Sequence[NDArray[np.float32]]) -> None:
    """Make sure that what a model gave is finite.

    :raises ModelError: if it is not
    """
    if not all(np.isfinite(embedding).all() for embedding in embeddings):
        raise ModelError(
            f"model {encoder.name!r} gives embeddings that are no numbers: its files are damaged, or it needs dtype "
            "float32"
        )


def _check_query(query: object) -> None:
    if not isinstance(query, str):
        raise ValueError(f"a query is one text, not {query!r}")
    if len(query) > MAX_QUERY_CHARACTERS:
        raise ValueError(f"the query has {len(query):,} characters: at most {MAX_QUERY_CHARACTERS:,} are taken")
    if not query.strip():
        raise ValueError("the query is empty")
    try:
        query.encode()
    except UnicodeEncodeError:
        raise ValueError("the query has characters that are no Unicode text: surrogates") from None
