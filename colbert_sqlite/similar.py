"""Rows like a row, from what is stored of both: no model is loaded.

In: keys of rows, a view of one index. Out: for each row, others ranked by how alike they are. Leaves to others: finding
the rows that have given tokens (``search.py``).
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

# Centroids of a row that stand for it. More found no more rows of the same page: of the five rows nearest to each
# section of three manuals 0.52 were of its page (0.45 by mean vectors).
MAX_TOKENS = 64


def similar_settings(
    k: int, *, nprobe: int | None = None, ndocs: int | None = None, threshold: float | None = None
) -> SearchSettings:
    """Return the defaults for the *k* most similar rows: narrower than those of a search, which has fewer tokens.

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
    """Yield for each of these rows the tokens that stand for it, and at most ``settings.k`` others like it, best first.

    ``score`` is the mean of the similarities that those tokens have in the other row.

    :raises SourceError: if a row is not in the index, or has no text in it
    """
    # The row itself is the first of those like it.
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
    """Return the rows most like each row that a filter lets through, by the keys that they have now."""
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
    """Embeddings float32 [n, dim] that stand for a row when others like it are sought.

    Weights by how much each tells were no better: 0.50 instead of 0.52 of the nearest rows were of the same page.
    """
    codes, embeddings = view.embeddings(passage_ids)
    distinct, groups = np.unique(codes, return_inverse=True)
    lengths = view.postings.list_lengths(distinct)
    chosen = salient_centroids(np.bincount(groups), lengths, n_passages, MAX_TOKENS)
    # The tokens of one centroid in this row are one: what they have in common.
    sums = np.zeros((len(distinct), view.codec.residual.dim), np.float32)
    np.add.at(sums, groups, embeddings)
    norms = np.linalg.norm(sums[chosen], axis=1, keepdims=True)
    unit: NDArray[np.float32] = sums[chosen] / np.maximum(norms, np.float32(1e-12))
    return unit
