"""Search: from encoded queries to ranked rows, by ColBERT, by the table's own full-text index, or by both.

In: queries, a view of one index, the passages that a filter lets through. Out: ranked rows, and hits made of them.
Leaves to others: encoding, the stages of a search (``engine/plaid.py``), rows like a row (``similar.py``).
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
from colbert_sqlite.view import CurrentRow, EncodedPassage, View

Id = TypeVar("Id", bound=Hashable)
Allowed = NDArray[np.int64] | None
"""Ids of the passages that may be found, rising; None for all."""

# How much wider the second attempt looks when the first found too few rows; the third scores everything.
_WIDER = 4
# Queries of one batch that share what they read, and what they may hold of centroid scores: 64 MB.
QUERIES_AT_ONCE = 16
_SCORES_IN_MEMORY = 1 << 25
# Rows of each ranking that hybrid joins, if k is not more.
FUSED_ROWS = 100


class RankedRow(NamedTuple):
    """A row by its best passage. ``maxsim`` is that of the passage, ``score`` what the row is ranked by."""

    passage_id: int
    passage: PassageRow
    maxsim: float
    score: float

    @property
    def key(self) -> Key:
        return self.passage.key


def search(view: View, queries: Sequence[Query], settings: SearchSettings, allowed: Allowed) -> list[list[RankedRow]]:
    """Return at most ``settings.k`` rows for each query, best first: as many as match.

    :raises SourceError: if the mode needs an FTS5 table and there is none
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
            # Candidates may share rows, or rows may be gone: look wider before returning fewer than there are.
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
    """The rows that FTS5 finds, by MaxSim."""
    full_text, n = FullText.of(view.conn, view.source), max(settings.k, settings.ndocs // 4)
    passage_ids, _ = full_text.search(view.store, view.source, query.text, n, allowed)
    return _rank_passages(view, query, passage_ids, settings)


def _rank_passages(
    view: View, query: Query, passage_ids: NDArray[np.int64], settings: SearchSettings
) -> list[RankedRow]:
    """The rows of these passages with the highest MaxSim, all of the passages scored."""
    scored = plaid.search(
        query.embeddings, view.codec.residual, view.postings, settings, np.unique(passage_ids), exhaustive=True
    )
    return _rows(view, *scored, settings.k)


def rankings_of_both(
    view: View, queries: Sequence[Query], settings: SearchSettings, allowed: Allowed
) -> Iterator[tuple[dict[Key, RankedRow], dict[Key, RankedRow]]]:
    """Yield for each query what mode hybrid joins: rows as ColBERT ranks them, and as FTS5 does, by its ``score``.

    Every row of both has been scored by ColBERT. Arguments and errors as in :func:`search`.
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
    """Return the first rows of two rankings joined, best first, without those below the threshold.

    :param by_colbert: best first; ``maxsim`` is what it is ranked by
    :param by_fts: best first; ``score`` is what it is ranked by
    """
    rows = {**by_fts, **by_colbert}
    weights = (settings.weight, 1 - settings.weight)
    if settings.fusion == "rrf":
        scores = reciprocal_rank_fusion([list(by_colbert), list(by_fts)], weights)
    else:
        by_scores = {one: row.maxsim for one, row in rows.items()}, {one: row.score for one, row in by_fts.items()}
        scores = weighted_sum(by_scores, weights)
    ranked = ((one, row._replace(score=scores[one])) for one, row in rows.items() if passes(row, query, settings))
    return sorted(ranked, key=lambda pair: (-pair[1].score, -pair[1].maxsim, pair[1].passage_id))[: settings.k]


def passes(row: RankedRow, query: Query, settings: SearchSettings) -> bool:
    """Return whether a row reaches the threshold, if there is one."""
    return settings.threshold is None or query.normalized(row.maxsim) >= settings.threshold


def _rows(view: View, passage_ids: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> list[RankedRow]:
    """The first *k* rows of ranked passages, without those that are gone from the table."""
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
    """Return the rows as they are now, with the passages that were found."""
    return [hit for hit, _, _ in _hits(view, ranked, query, first_rank=1)]


def hits_with_passages(
    view: View, ranked: Sequence[RankedRow], query: Query, *, first_rank: int
) -> Iterator[tuple[Hit, EncodedPassage | None]]:
    """Yield the rows as :func:`hits` returns them, each with its passage; None where the row changed since.

    Each row is read and its text extracted once.
    """
    for hit, passage_id, row in _hits(view, ranked, query, first_rank=first_rank):
        yield hit, None if row.stale else view.encoded_passage(passage_id, row)


def _hits(
    view: View, ranked: Sequence[RankedRow], query: Query, *, first_rank: int
) -> Iterator[tuple[Hit, int, CurrentRow]]:
    rank = first_rank
    for found in ranked:
        row = view.current_row(found.passage)
        if row is None:
            # A condition of the index may answer otherwise each time, as one with random() does.
            continue
        # As it is spelled now: an equal key may replace another, 1.0 for 1, or "a" for "A".
        key = tuple(row.values[column] for column in view.source.keys)
        hit = Hit(
            rank=rank,
            score=found.score,
            normalized_score=query.normalized(found.maxsim),
            pk=pk_of(key),
            row=row.values,
            passage=row.passage,
            index=view.store.entry.name,
            database=view.database,
            stale=row.stale,
        )
        yield hit, found.passage_id, row
        rank += 1


def passage_to_explain(view: View, key: Key, query: Query, ordinal: int | None) -> EncodedPassage:
    """Return a passage of a row: the one of that number, or the one of the highest MaxSim.

    :raises ValueError: if the row has no passage of that number
    :raises SourceError: if the row is not in the index, has no text, or changed after it was indexed
    """
    passage_ids = view.passages_of(key)
    passages = view.store.passages.rows(passage_ids.tolist())
    if ordinal is None:
        settings = SearchSettings.for_k(1)
        best, _ = plaid.search(query.embeddings, view.codec.residual, view.postings, settings, passage_ids, True)
        chosen = int(best[0])
    else:
        numbered = {passage.ordinal: passage_id for passage_id, passage in passages.items()}
        if ordinal not in numbered:
            raise ValueError(f"ordinal must be a whole number from 0 to {len(numbered) - 1}, not {ordinal!r}")
        chosen = numbered[ordinal]
    row = view.current_row(passages[chosen])
    if row is None or row.stale:
        raise SourceError(f"the row changed after it was indexed: sync index {view.store.entry.name!r} first")
    return view.encoded_passage(chosen, row)
