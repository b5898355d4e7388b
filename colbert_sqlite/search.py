"""Search: from encoded queries to ranked rows, by ColBERT, by FTS5, or by both.

In: queries, a view of one index, the passages that a filter allows. Out: ranked rows, and their hits. Leaves to others:
encoding (``query.py``), the stages of a search (``engine/plaid.py``), rows like a row (``similar.py``).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.engine import plaid
from colbert_sqlite.engine.fusion import reciprocal_rank_fusion, weighted_sum
from colbert_sqlite.errors import SourceError, damaged
from colbert_sqlite.query import Query
from colbert_sqlite.results import Hit
from colbert_sqlite.settings import MAX_NDOCS, MAX_NPROBE, SearchSettings
from colbert_sqlite.storage.fts import FullText
from colbert_sqlite.storage.passages import PassageRow
from colbert_sqlite.storage.source import Key, pk_of
from colbert_sqlite.view import CurrentRow, PassageToExplain, View

Id = TypeVar("Id", bound=Hashable)
Allowed = NDArray[np.int64] | None
"""Ids of the passages to search: int64, rising; None for all."""

# The second attempt looks this much wider if the first returns too few rows; the third scores everything.
_WIDER = 4
# Queries of one batch share their reads, and hold at most this many centroid scores: 64 MB.
QUERIES_AT_ONCE = 16
_SCORES_IN_MEMORY = 1 << 25
# Rows of each ranking that hybrid joins, or k if that is more.
FUSED_ROWS = 100


class RankedRow(NamedTuple):
    """A row and its best passage. ``maxsim`` is that of the passage; rows are ranked by ``score``."""

    passage_id: int
    passage: PassageRow
    maxsim: float
    score: float

    @property
    def key(self) -> Key:
        return self.passage.key


def search(view: View, queries: Sequence[Query], settings: SearchSettings, allowed: Allowed) -> list[list[RankedRow]]:
    """Return at most ``settings.k`` rows for each query, best first: as many as match.

    :raises SourceError: if the mode needs an FTS5 table, and the source has none
    :raises ShapeError: if a query has another ``dim`` than the index, or no tokens
    :raises IndexCorrupt: if stored data contradicts itself
    """
    if settings.mode == "hybrid":
        rankings = rankings_of_both(view, queries, settings, allowed)
        return [[row for _, row in fuse(*both, query, settings)] for both, query in zip(rankings, queries, strict=True)]
    if settings.mode == "colbert":
        ranked = rank(view, queries, settings, allowed)
    else:
        ranked = [_rank_full_text(view, query, settings, allowed) for query in queries]
    return [[row for row in rows if passes(row, query, settings)] for rows, query in zip(ranked, queries, strict=True)]


def rank(view: View, queries: Sequence[Query], settings: SearchSettings, allowed: Allowed) -> list[list[RankedRow]]:
    """Return the ``settings.k`` rows of the highest MaxSim for each query. Errors as in :func:`search`."""
    codec, postings = view.codec.residual, view.postings
    wider = replace(
        settings,
        nprobe=min(_WIDER * settings.nprobe, MAX_NPROBE),
        ndocs=min(_WIDER * max(settings.ndocs, _WIDER * settings.k), MAX_NDOCS),
    )
    longest = max(len(query.embeddings) for query in queries)
    at_once = max(1, min(QUERIES_AT_ONCE, _SCORES_IN_MEMORY // (codec.n_centroids * max(1, longest))))
    ranked: list[list[RankedRow]] = []
    for first in range(0, len(queries), at_once):
        batch = [query.embeddings for query in queries[first : first + at_once]]
        scored = plaid.search_many(batch, codec, postings, settings, allowed)
        for embeddings, (passage_ids, scores) in zip(batch, scored, strict=True):
            rows = _rows(view, passage_ids, scores, settings.k)
            # Candidates may share rows, or belong to deleted rows: look wider before returning too few.
            for exhaustive in (False, True):
                if len(rows) == settings.k:
                    break
                n_scored = len(passage_ids)
                scored_all = postings.has_at_most(n_scored) if allowed is None else n_scored == len(allowed)
                if scored_all or len(rows) == view.store.passages.count_rows(allowed):
                    break
                passage_ids, scores = plaid.search(embeddings, codec, postings, wider, allowed, exhaustive)
                rows = _rows(view, passage_ids, scores, settings.k)
            ranked.append(rows)
    return ranked


def _rank_full_text(view: View, query: Query, settings: SearchSettings, allowed: Allowed) -> list[RankedRow]:
    """Return the best matches of FTS5, ranked by MaxSim."""
    full_text, n = FullText.of(view.conn, view.source), max(settings.k, settings.ndocs // 4)
    passage_ids, _ = full_text.search(view.store, view.source, query.text, n, allowed)
    return _rank_passages(view, query, passage_ids, settings)


def _rank_passages(
    view: View, query: Query, passage_ids: NDArray[np.int64], settings: SearchSettings
) -> list[RankedRow]:
    """Return the rows of these passages, ranked by MaxSim. Every passage is scored."""
    scored = plaid.search(
        query.embeddings, view.codec.residual, view.postings, settings, np.unique(passage_ids), exhaustive=True
    )
    return _rows(view, *scored, settings.k)


def rankings_of_both(
    view: View, queries: Sequence[Query], settings: SearchSettings, allowed: Allowed
) -> Iterator[tuple[dict[Key, RankedRow], dict[Key, RankedRow]]]:
    """Yield for each query the two rankings that mode hybrid joins: ColBERT's, and that of FTS5.

    Every row of both has its ``maxsim``. In the second, ``score`` is that of FTS5. Arguments and errors as in
    :func:`search`.
    """
    full_text = FullText.of(view.conn, view.source)
    deep = replace(settings, k=max(settings.k, FUSED_ROWS))
    for query, by_colbert in zip(queries, rank(view, queries, deep, allowed), strict=True):
        passage_ids, scores = full_text.search(view.store, view.source, query.text, deep.k, allowed)
        score_of = dict(zip(passage_ids.tolist(), scores.tolist(), strict=True))
        rows = _rank_passages(view, query, passage_ids, deep)
        scored = (row._replace(score=score_of[row.passage_id]) for row in rows)
        by_fts = sorted(scored, key=lambda row: row.score, reverse=True)
        yield {row.key: row for row in by_colbert}, {row.key: row for row in by_fts}


def fuse(
    by_colbert: Mapping[Id, RankedRow], by_fts: Mapping[Id, RankedRow], query: Query, settings: SearchSettings
) -> list[tuple[Id, RankedRow]]:
    """Return the best rows of two joined rankings, without those below the threshold.

    :param by_colbert: ranked by ``maxsim``, best first
    :param by_fts: ranked by ``score``, best first
    """
    rows = {**by_fts, **by_colbert}
    weights = (settings.weight, 1 - settings.weight)
    if settings.fusion == "rrf":
        scores = reciprocal_rank_fusion([list(by_colbert), list(by_fts)], weights)
    else:
        maxsims = {row_id: row.maxsim for row_id, row in rows.items()}
        fts_scores = {row_id: row.score for row_id, row in by_fts.items()}
        scores = weighted_sum((maxsims, fts_scores), weights)
    ranked = (
        (row_id, row._replace(score=scores[row_id])) for row_id, row in rows.items() if passes(row, query, settings)
    )
    return sorted(ranked, key=lambda pair: (-pair[1].score, -pair[1].maxsim, pair[1].passage_id))[: settings.k]


def passes(row: RankedRow, query: Query, settings: SearchSettings) -> bool:
    """Return whether a row reaches the threshold of the settings."""
    return settings.threshold is None or query.normalized(row.maxsim) >= settings.threshold


def _rows(view: View, passage_ids: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> list[RankedRow]:
    """Return the first *k* rows of ranked passages, without those that the table lacks."""
    return [*islice(_each_row(view, passage_ids, scores, batch=4 * k), k)]


def _each_row(
    view: View, passage_ids: NDArray[np.int64], scores: NDArray[np.float32], *, batch: int
) -> Iterator[RankedRow]:
    seen: set[Key] = set()
    for first in range(0, len(passage_ids), batch):
        ids = passage_ids[first : first + batch].tolist()
        passages = view.store.passages.rows(ids)
        for passage_id, score in zip(ids, scores[first : first + batch].tolist(), strict=True):
            if passage_id not in passages:
                detail = f"they name passage {passage_id}, which is missing"
                raise damaged("inverted lists", detail, index=view.store.entry.name)
            passage = passages[passage_id]
            if passage.key not in seen:
                seen.add(passage.key)
                if view.source.key_now(view.conn, passage.key) is not None:
                    yield RankedRow(passage_id, passage, score, score)


def hits(view: View, ranked: Sequence[RankedRow], query: Query) -> list[Hit]:
    """Return ranked rows as hits: the rows as they are now, with their best passages."""
    return [hit for hit, _, _ in _hits(view, ranked, query, first_rank=1)]


def hits_with_passages(
    view: View, ranked: Sequence[RankedRow], query: Query, *, first_rank: int
) -> Iterator[tuple[Hit, PassageToExplain | None]]:
    """Yield the hits of :func:`hits`, each with its passage; None if the row changed after it was indexed.

    Each row is read once, and its text extracted once.
    """
    for hit, passage_id, row in _hits(view, ranked, query, first_rank=first_rank):
        yield hit, None if row.stale else view.passage_to_explain(passage_id, row)


def _hits(
    view: View, ranked: Sequence[RankedRow], query: Query, *, first_rank: int
) -> Iterator[tuple[Hit, int, CurrentRow]]:
    rank = first_rank
    for ranked_row in ranked:
        row = view.current_row(ranked_row.passage)
        if row is None:
            # The condition of an index may answer differently each time, such as one with random().
            continue
        # The key of the row now: an equal key may have replaced it, 1.0 for 1, or "a" for "A".
        key = tuple(row.values[column] for column in view.source.keys)
        hit = Hit(
            rank=rank,
            score=ranked_row.score,
            normalized_score=query.normalized(ranked_row.maxsim),
            pk=pk_of(key),
            row=row.values,
            passage=row.passage,
            index=view.store.entry.name,
            database=view.database,
            stale=row.stale,
        )
        yield hit, ranked_row.passage_id, row
        rank += 1


def passage_to_explain(view: View, key: Key, query: Query, ordinal: int | None) -> PassageToExplain:
    """Return one passage of a row: the one with this *ordinal*, or the one with the highest MaxSim.

    :raises ValueError: if the row has no passage with this *ordinal*
    :raises SourceError: if the row is not in the index, has no text, or changed after it was indexed
    """
    passage_ids = view.passages_of(key)
    passages = view.store.passages.rows(passage_ids.tolist())
    if ordinal is None:
        settings = SearchSettings.for_k(1)
        best, _ = plaid.search(query.embeddings, view.codec.residual, view.postings, settings, passage_ids, True)
        passage_id = int(best[0])
    else:
        by_ordinal = {row.ordinal: id_ for id_, row in passages.items()}
        if ordinal not in by_ordinal:
            raise ValueError(f"ordinal must be a whole number from 0 to {len(by_ordinal) - 1}, not {ordinal!r}")
        passage_id = by_ordinal[ordinal]
    row = view.current_row(passages[passage_id])
    if row is None or row.stale:
        raise SourceError(f"the row changed after it was indexed: sync index {view.store.entry.name!r} first")
    return view.passage_to_explain(passage_id, row)
