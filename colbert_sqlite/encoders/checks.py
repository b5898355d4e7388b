"""Checks of what goes into a model and of what comes out.

In: queries of a caller, embeddings of a model. Out: nothing, or one sentence. Leaves to others: encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.errors import ModelError
from colbert_sqlite.settings import MAX_QUERY_CHARACTERS


def check_queries(queries: Iterable[str]) -> list[str]:
    """Return the queries, each a text that a model can encode.

    :raises ValueError: if one is not
    """
    if isinstance(queries, (str, bytes)):
        raise ValueError(f"queries must be a list of texts, such as [{queries!r}]")
    texts = list(queries)
    for text in texts:
        _check_query(text)
    return texts


def check_finite(encoder: Encoder, embeddings: Sequence[NDArray[np.float32]]) -> None:
    """Make sure that what a model gave is finite.

    :raises ModelError: if it is not
    """
    if not all(np.isfinite(embedding).all() for embedding in embeddings):
        raise ModelError(
            f"model {encoder.name!r} gives embeddings that are not numbers: its files are damaged, or it needs dtype "
            "float32"
        )


def _check_query(query: object) -> None:
    if not isinstance(query, str):
        raise ValueError(f"a query is one text, not {query!r}")
    if len(query) > MAX_QUERY_CHARACTERS:
        raise ValueError(f"the query has {len(query):,} characters, more than {MAX_QUERY_CHARACTERS:,}: shorten it")
    if not query.strip():
        raise ValueError("the query is empty")
    try:
        query.encode()
    except UnicodeEncodeError:
        raise ValueError("the query has characters that are not Unicode text: surrogates") from None
