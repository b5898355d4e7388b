"""Late interaction in plain numpy: the definition that every faster path must agree with.

In: embeddings of a query and of documents. Out: scores, and which document token each query token met. Leaves to
others: making embeddings, compressing them, and choosing which documents are worth scoring.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import ShapeError


def maxsim(query: NDArray[np.float32], document: NDArray[np.float32]) -> float:
    """Return the score of a document: each query token's best similarity in it, summed.

    :param query: float32 [n_query_tokens, dim], L2-normalized rows
    :param document: float32 [n_tokens, dim], L2-normalized rows
    :return: cosines summed, higher is better; ``-inf`` for a document without tokens
    :raises ShapeError: if the two do not have the same ``dim``

    ColBERT §3.3. A negative best similarity counts as it is.
    """
    return float(maxsim_scores(query, document, np.array([0, len(document)]))[0])


def maxsim_scores(
    query: NDArray[np.float32], embeddings: NDArray[np.float32], offsets: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the score of each of several documents, as :func:`maxsim` defines it.

    :param query: float32 [n_query_tokens, dim]
    :param embeddings: float32 [n_tokens, dim], all documents one after another
    :param offsets: int64 [n_documents + 1], document i owns ``embeddings[offsets[i]:offsets[i + 1]]``
    :return: float32 [n_documents]; ``-inf`` for a document without tokens
    :raises ShapeError: if the arrays do not fit together
    """
    similarities = _similarities(query, embeddings)
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(embeddings) or np.any(np.diff(offsets) < 0):
        raise ShapeError(f"offsets must rise from 0 to the {len(embeddings)} embeddings")
    scores = np.full(len(offsets) - 1, -np.inf, np.float32)
    filled = np.diff(offsets) > 0
    if filled.any():
        # Documents without tokens own no rows, so the starts of the others cut the rows exactly.
        scores[filled] = np.maximum.reduceat(similarities, offsets[:-1][filled], axis=0).sum(axis=1)
    return scores


def normalized(score: float, n_query_tokens: int) -> float:
    """Return the score per query token, from 0 to 1: one threshold fits queries of any length.

    1 says that every query token stands in the document with the very same embedding. What is a good match depends on
    the model. Negative scores, and ``-inf`` of a document without tokens, give 0.

    :param n_query_tokens: embeddings of the query, at least one
    """
    return min(max(score / n_query_tokens, 0.0), 1.0)


def alignments(
    query: NDArray[np.float32], document: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the best document token of each query token, and how similar the two are.

    :param query: float32 [n_query_tokens, dim]
    :param document: float32 [n_tokens, dim], at least one token
    :return: int64 [n_query_tokens] positions in the document, the earlier one on ties, and float32
        [n_query_tokens] similarities, whose sum is the score
    :raises ShapeError: if the two do not have the same ``dim``, or the document has no tokens
    """
    similarities = _similarities(query, document)
    if len(document) == 0:
        raise ShapeError("a document without tokens has nothing to align with")
    best = similarities.argmax(axis=0)
    return best, similarities[best, np.arange(len(best))]


def _similarities(query: NDArray[np.float32], embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    if query.ndim != 2 or embeddings.ndim != 2 or query.shape[1] != embeddings.shape[1]:
        raise ShapeError(f"a query of shape {query.shape} does not fit embeddings of shape {embeddings.shape}")
    return np.asarray(embeddings, np.float32) @ np.asarray(query, np.float32).T
