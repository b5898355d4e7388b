"""Rows like a row, by their stored embeddings: no model is loaded.

In: keys of rows, a view of one index. Out: for each row, the rows most like it, ranked. Leaves to others: ranking rows
by embeddings (``search.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.engine.salience import salient_centroids
from colbert_sqlite.progress import Progress, ProgressCallback
from colbert_sqlite.query import Query
from colbert_sqlite.search import QUERIES_AT_ONCE, Allowed, RankedRow, passes, rank
from colbert_sqlite.settings import MAX_K, Filter, SearchSettings
from colbert_sqlite.storage.similar_table import SimilarKeys
from colbert_sqlite.storage.source import Key
from colbert_sqlite.view import View

# Tokens that stand for a row, one of each salient centroid. 64 are enough: of the five rows nearest to each section of
# three manuals, 0.52 were from its page, and more tokens found no more. Mean vectors found 0.45.
MAX_TOKENS = 64


def similar_settings(
    k: int, *, nprobe: int | None = None, ndocs: int | None = None, threshold: float | None = None
) -> SearchSettings:
    """Return the settings for the *k* most similar rows.

    Their defaults are narrower than those of a search, whose queries have fewer tokens.

    :raises ValueError: if a value is out of range
    """
    settings = SearchSettings.for_k(k, nprobe=nprobe, ndocs=ndocs, threshold=threshold)
    return replace(
        settings,
        nprobe=settings.nprobe if nprobe is not None else 8,
        ndocs=settings.ndocs if ndocs is not None else max(512, 64 * settings.k),
    )


def similar(
    view: View, keys: Sequence[Key], settings: SearchSettings, allowed: Allowed
) -> Iterator[tuple[Query, list[RankedRow]]]:
    """Yield for each row the tokens that stand for it, and at most ``settings.k`` rows like it, best first.

    ``score`` is the mean similarity of those tokens in the other row.

    :raises SourceError: if a row is not in the index, or has no text in it
    """
    # The row itself ranks first.
    one_more = replace(settings, k=min(settings.k + 1, MAX_K))
    n_passages = view.postings.count()
    for first in range(0, len(keys), QUERIES_AT_ONCE):
        own_passages = [view.passages_of(key) for key in keys[first : first + QUERIES_AT_ONCE]]
        queries = [Query("", _salient_tokens(view, passage_ids, n_passages)) for passage_ids in own_passages]
        ranked = rank(view, queries, one_more, allowed)
        for passage_ids, query, rows in zip(own_passages, queries, ranked, strict=True):
            others = [row for row in rows if row.passage_id not in passage_ids][: settings.k]
            scored = [row._replace(score=row.maxsim / len(query.embeddings)) for row in others]
            yield query, [row for row in scored if passes(row, query, settings)]


def similar_to_each(
    view: View, settings: SearchSettings, filter: Filter, progress: ProgressCallback
) -> list[SimilarKeys]:
    """Return the rows most like each row that a filter allows, by their keys of now."""
    allowed = view.passage_ids(filter)
    current = ((key, view.source.key_now(view.conn, key)) for key in view.store.passages.keys(allowed))
    key_now = {key: now for key, now in current if now is not None}
    keys = [*key_now]
    similar_rows: list[SimilarKeys] = []
    progress(Progress("similar", 0, len(keys)))
    for n, (_, rows) in enumerate(similar(view, keys, settings, allowed)):
        similar_rows += (
            SimilarKeys(key_now[keys[n]], rank, key_now[row.key], row.score) for rank, row in enumerate(rows, start=1)
        )
        progress(Progress("similar", n + 1, len(keys)))
    return similar_rows


def _salient_tokens(view: View, passage_ids: NDArray[np.int64], n_passages: int) -> NDArray[np.float32]:
    """Return the embeddings that stand for a row: float32 [n, dim].

    Weights by salience were no better: 0.50 of the nearest rows were from the same page, not 0.52.
    """
    codes, embeddings = view.embeddings(passage_ids)
    distinct, groups = np.unique(codes, return_inverse=True)
    lengths = view.postings.list_lengths(distinct)
    salient = salient_centroids(np.bincount(groups), lengths, n_passages, MAX_TOKENS)
    # The tokens of one centroid in this row become one token: their normalized sum.
    sums = np.zeros((len(distinct), view.codec.residual.dim), np.float32)
    np.add.at(sums, groups, embeddings)
    norms = np.linalg.norm(sums[salient], axis=1, keepdims=True)
    unit: NDArray[np.float32] = sums[salient] / np.maximum(norms, np.float32(1e-12))
    return unit
