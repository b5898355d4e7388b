"""Search: from encoded queries to ranked rows, by ColBERT, by the table's own full-text index, or by both.

In: queries as text and as embeddings, or keys of rows to compare others with; the tables of one index, read in one
transaction. Out: ranked rows, and hits made of them. Leaves to others: encoding, which passages a filter allows, and
the stages of a search (``engine/plaid.py``).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.engine import plaid
from colbert_sqlite.engine.codec import ResidualCodec
from colbert_sqlite.engine.fusion import reciprocal_rank_fusion, weighted_sum
from colbert_sqlite.engine.maxsim import normalized
from colbert_sqlite.engine.salience import salient_centroids
from colbert_sqlite.errors import IndexCorrupt, SourceError
from colbert_sqlite.passages import extract
from colbert_sqlite.results import Hit, Passage
from colbert_sqlite.settings import MAX_NDOCS, MAX_NPROBE, SearchSettings
from colbert_sqlite.storage.fts import FullText
from colbert_sqlite.storage.passages import PassageRow
from colbert_sqlite.storage.postings import StoredPostings
from colbert_sqlite.storage.source import Key, Source, pk_of
from colbert_sqlite.storage.store import Store

Id = TypeVar("Id", bound=Hashable)

# How much wider the second attempt looks when the first found too few rows; the third scores everything.
_WIDER = 4
# Queries of one batch that share what they read, and what they may hold of centroid scores: 64 MB.
_QUERIES_AT_ONCE = 16
_SCORES_IN_MEMORY = 1 << 25
# Rows of each ranking that hybrid joins, if k is not more.
FUSED = 100
# Centroids of a row that stand for it when similar rows are sought.
_SALIENT = 64


class Ranked(NamedTuple):
    """A row in its place. ``maxsim`` is that of its best passage, ``score`` what it is ranked by."""

    passage_id: int
    place: PassageRow
    maxsim: float
    score: float


class RowNow(NamedTuple):
    """A row as it is: every column, whether it has changed since it was indexed, and the passage that was found."""

    values: dict[str, Any]
    stale: bool
    heading: str
    passage: Passage


class PassageToExplain(NamedTuple):
    """A passage as it was encoded: under its heading, ``embeddings`` float32 [n_tokens, dim]; None if it was pooled."""

    heading: str
    passage: Passage
    embeddings: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Searcher:
    """One index as one read transaction sees it. ``source`` has the condition of the index, no other."""

    store: Store
    source: Source
    codec: ResidualCodec
    snapshot: StoredPostings
    database: str

    def search(
        self,
        queries: Sequence[str],
        embeddings: Sequence[NDArray[np.float32]],
        k: int,
        settings: SearchSettings,
        allowed: NDArray[np.int64] | None,
    ) -> list[list[Ranked]]:
        """Return at most *k* rows for each query, best first: as many as match.

        :param embeddings: float32 [n_query_tokens, dim] of each query
        :param allowed: int64, rising: only these passages may be found
        :raises SourceError: if the mode needs an FTS5 table and there is none
        :raises IndexCorrupt: if stored data contradicts itself
        """
        if settings.mode == "hybrid":
            joined = zip(self.both(queries, embeddings, k, settings, allowed), embeddings, strict=True)
            return [[row for _, row in fused(*both, len(embedding), k, settings)] for both, embedding in joined]
        if settings.mode == "colbert":
            ranked = self.by_colbert(embeddings, k, settings, allowed)
        else:
            full_text, n = FullText.of(self.store.conn, self.source), max(k, settings.ndocs // 4)
            found = (full_text.search(self.store, self.source, query, n, allowed)[0] for query in queries)
            ranked = [
                self._among(embedding, passage_ids, k, settings)
                for embedding, passage_ids in zip(embeddings, found, strict=True)
            ]
        return [
            [row for row in rows if passes(row, len(embedding), settings)]
            for rows, embedding in zip(ranked, embeddings, strict=True)
        ]

    def by_colbert(
        self,
        embeddings: Sequence[NDArray[np.float32]],
        k: int,
        settings: SearchSettings,
        allowed: NDArray[np.int64] | None,
    ) -> list[list[Ranked]]:
        """Return the *k* rows of the highest MaxSim for each query. Arguments and errors as in :meth:`search`."""
        wider = SearchSettings(
            nprobe=min(_WIDER * settings.nprobe, MAX_NPROBE),
            ndocs=min(_WIDER * max(settings.ndocs, _WIDER * k), MAX_NDOCS),
        )
        longest = max(map(len, embeddings))
        at_once = max(1, min(_QUERIES_AT_ONCE, _SCORES_IN_MEMORY // (self.codec.n_centroids * longest)))
        ranked: list[list[Ranked]] = []
        for first in range(0, len(embeddings), at_once):
            batch = embeddings[first : first + at_once]
            found = plaid.search_many(batch, self.codec, self.snapshot, settings, allowed)
            for embedding, (passage_ids, scores) in zip(batch, found, strict=True):
                rows = self._rows(passage_ids, scores, k)
                # Candidates may share rows, or rows may be gone: look wider before returning fewer than there are.
                for exhaustive in (False, True):
                    if len(rows) == k:
                        break
                    n_scored = len(passage_ids)
                    scored_all = self.snapshot.has_at_most(n_scored) if allowed is None else n_scored == len(allowed)
                    if scored_all or len(rows) == self.store.passages.count_rows(allowed):
                        break
                    passage_ids, scores = plaid.search(embedding, self.codec, self.snapshot, wider, allowed, exhaustive)
                    rows = self._rows(passage_ids, scores, k)
                ranked.append(rows)
        return ranked

    def _among(
        self, embedding: NDArray[np.float32], passage_ids: NDArray[np.int64], k: int, settings: SearchSettings
    ) -> list[Ranked]:
        """The *k* rows of these passages with the highest MaxSim, all of them scored."""
        allowed = np.unique(passage_ids)
        return self._rows(*plaid.search(embedding, self.codec, self.snapshot, settings, allowed, exhaustive=True), k)

    def both(
        self,
        queries: Sequence[str],
        embeddings: Sequence[NDArray[np.float32]],
        k: int,
        settings: SearchSettings,
        allowed: NDArray[np.int64] | None,
    ) -> Iterator[tuple[dict[Key, Ranked], dict[Key, Ranked]]]:
        """Yield for each query what mode hybrid joins: rows as ColBERT ranks them, and as FTS5 does, by its ``score``.

        Every row of both has been scored by ColBERT. Arguments and errors as in :meth:`search`.
        """
        full_text = FullText.of(self.store.conn, self.source)
        depth = max(k, FUSED)
        ranked = self.by_colbert(embeddings, depth, settings, allowed)
        for query, embedding, by_colbert in zip(queries, embeddings, ranked, strict=True):
            passage_ids, scores = full_text.search(self.store, self.source, query, depth, allowed)
            of_passage = dict(zip(passage_ids.tolist(), scores.tolist(), strict=True))
            among = self._among(embedding, passage_ids, depth, settings)
            scored = (row._replace(score=of_passage[row.passage_id]) for row in among)
            by_fts = sorted(scored, key=lambda row: row.score, reverse=True)
            yield {row.place.key: row for row in by_colbert}, {row.place.key: row for row in by_fts}

    def similar(
        self, keys: Sequence[Key], k: int, settings: SearchSettings, allowed: NDArray[np.int64] | None
    ) -> Iterator[list[Ranked]]:
        """Yield for each of these rows at most *k* others like it, best first, by what is stored of both.

        ``score`` is the mean of the similarities that the row's most telling tokens have in the other one.

        :raises SourceError: if a row is not in the index, or has no text in it
        """
        n_passages = self.snapshot.count()
        for first in range(0, len(keys), _QUERIES_AT_ONCE):
            mine = [self._passages_of(key) for key in keys[first : first + _QUERIES_AT_ONCE]]
            tokens = [self._telling_tokens(passage_ids, n_passages) for passage_ids in mine]
            found = self.by_colbert(tokens, k + 1, settings, allowed)
            for passage_ids, embeddings, rows in zip(mine, tokens, found, strict=True):
                others = (row for row in rows if row.passage_id not in passage_ids)
                means = [(row, row.maxsim / len(embeddings)) for row in others][:k]
                ranked = (row._replace(maxsim=mean, score=mean) for row, mean in means)
                yield [row for row in ranked if passes(row, 1, settings)]

    def _telling_tokens(self, passage_ids: NDArray[np.int64], n_passages: int) -> NDArray[np.float32]:
        """Embeddings float32 [n, dim] that stand for a row when others like it are sought.

        Weighing them by how much they tell was no better: of the five rows nearest to each section of three manuals,
        0.50 instead of 0.52 were of its page (0.45 by mean vectors).
        """
        codes, embeddings = self.embeddings(passage_ids)
        distinct, groups = np.unique(codes, return_inverse=True)
        lengths = self.snapshot.list_lengths(distinct)
        chosen = salient_centroids(np.bincount(groups), lengths, n_passages, _SALIENT)
        # The tokens of one centroid in this row are one: what they have in common.
        sums = np.zeros((len(distinct), self.codec.dim), np.float32)
        np.add.at(sums, groups, embeddings)
        norms = np.linalg.norm(sums[chosen], axis=1, keepdims=True)
        unit: NDArray[np.float32] = sums[chosen] / np.maximum(norms, np.float32(1e-12))
        return unit

    def _passages_of(self, key: Key) -> NDArray[np.int64]:
        passage_ids = self.store.passages.ids_of([key])
        if not len(passage_ids) or self.source.key_now(self.store.conn, key) is None:
            raise SourceError(
                f"index {self.store.entry.name!r} has no text of a row {pk_of(key)!r}: it is not there, not synced, or "
                "empty"
            )
        return passage_ids

    def passage_of(self, key: Key, embedding: NDArray[np.float32], ordinal: int | None) -> PassageToExplain:
        """Return a passage of a row: the one of that number, or the one of the highest MaxSim.

        :param embedding: float32 [n_query_tokens, dim] of a query
        :raises ValueError: if the row has no passage of that number
        :raises SourceError: if the row is not in the index, has no text, or changed after it was indexed
        """
        passage_ids = self._passages_of(key)
        places = self.store.passages.rows(passage_ids.tolist())
        if ordinal is None:
            best, _ = plaid.search(embedding, self.codec, self.snapshot, SearchSettings.for_k(1), passage_ids, True)
            chosen = int(best[0])
        else:
            numbered = {place.ordinal: passage_id for passage_id, place in places.items()}
            if ordinal not in numbered:
                raise ValueError(
                    f"the row has {len(passage_ids)} passages, numbered from 0: there is none of {ordinal}"
                )
            chosen = numbered[ordinal]
        found = self._row(places[chosen])
        if found is None or found.stale:
            raise SourceError(f"the row changed after it was indexed: sync index {self.store.entry.name!r} first")
        return self._to_explain(chosen, found)

    def _to_explain(self, passage_id: int, row: RowNow) -> PassageToExplain:
        pooled = self.store.entry.settings.pool_factor > 1
        stored = None if pooled else self.embeddings(np.array([passage_id]))[1]
        return PassageToExplain(row.heading, row.passage, stored)

    def embeddings(self, passage_ids: NDArray[np.int64]) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
        """Return the codes of these passages, and what is stored of their embeddings: float32 [n_tokens, dim].

        :raises IndexCorrupt: if they are damaged
        """
        codes, offsets = self.snapshot.codes(passage_ids)
        lengths = np.diff(offsets)
        residuals, starts = self.snapshot.residuals(passage_ids, lengths)
        rows = np.repeat(starts - offsets[:-1], lengths) + np.arange(len(codes))
        return codes, self.codec.reconstruct(codes, residuals[rows])

    def _rows(self, passage_ids: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> list[Ranked]:
        """The first *k* rows of ranked passages, those left out that are gone from the table."""
        return [*islice(self._each_row(passage_ids, scores, batch=4 * k), k)]

    def _each_row(self, passage_ids: NDArray[np.int64], scores: NDArray[np.float32], *, batch: int) -> Iterator[Ranked]:
        seen: set[Key] = set()
        for first in range(0, len(passage_ids), batch):
            ids = passage_ids[first : first + batch].tolist()
            places = self.store.passages.rows(ids)
            for passage_id, score in zip(ids, scores[first : first + batch].tolist(), strict=True):
                if passage_id not in places:
                    raise IndexCorrupt(
                        f"index {self.store.entry.name!r} lists passage {passage_id}, which is not there: run verify"
                    )
                place = places[passage_id]
                if place.key not in seen:
                    seen.add(place.key)
                    if self.source.key_now(self.store.conn, place.key) is not None:
                        yield Ranked(passage_id, place, score, score)

    def hits(self, ranked: Sequence[Ranked], n_query_tokens: int) -> list[Hit]:
        """Return the rows as they are now, with the passages that were found."""
        return [hit for hit, _, _ in self._hits_and_rows(ranked, n_query_tokens, first_rank=1)]

    def hits_to_explain(
        self, ranked: Sequence[Ranked], n_query_tokens: int, *, first_rank: int
    ) -> Iterator[tuple[Hit, PassageToExplain | None]]:
        """Yield the rows as :meth:`hits` returns them, each with its passage, None where the row changed since.

        Each row is read and its text extracted once.
        """
        for hit, passage_id, row in self._hits_and_rows(ranked, n_query_tokens, first_rank=first_rank):
            yield hit, None if row.stale else self._to_explain(passage_id, row)

    def _hits_and_rows(
        self, ranked: Sequence[Ranked], n_query_tokens: int, *, first_rank: int
    ) -> Iterator[tuple[Hit, int, RowNow]]:
        rank = first_rank
        for found in ranked:
            row = self._row(found.place)
            if row is None:
                # A condition of the index may answer otherwise each time, as one with random() does.
                continue
            # As it is spelled now: an equal key may replace another, 1.0 for 1, or "a" for "A".
            key = tuple(row.values[column] for column in self.source.keys)
            hit = Hit(
                rank=rank,
                score=found.score,
                normalized_score=normalized(found.maxsim, n_query_tokens),
                pk=pk_of(key),
                row=row.values,
                passage=row.passage,
                index=self.store.entry.name,
                database=self.database,
                stale=row.stale,
            )
            yield hit, found.passage_id, row
            rank += 1

    def _row(self, place: PassageRow) -> RowNow | None:
        settings = self.store.entry.settings
        found = self.source.read_whole_row(self.store.conn, place.key)
        if found is None:
            return None
        assert settings.max_tokens is not None
        values, raw = found
        extracted = extract(raw.values, raw.heading, html=settings.html, max_tokens=settings.max_tokens)
        start, end = place.start, place.end
        if not extracted.text[start:end].strip():
            # The row has another text now, which is too short for where its passage was.
            start, end = 0, min(end - start, len(extracted.text))
        passage = Passage(extracted.text[start:end], start, end, place.ordinal)
        return RowNow(values, raw.content_hash != place.content_hash, extracted.heading, passage)


def passes(row: Ranked, n_query_tokens: int, settings: SearchSettings) -> bool:
    """Return whether a row reaches the threshold, if there is one."""
    return settings.threshold is None or normalized(row.maxsim, n_query_tokens) >= settings.threshold


def fused(
    by_colbert: Mapping[Id, Ranked],
    by_fts: Mapping[Id, Ranked],
    n_query_tokens: int,
    k: int,
    settings: SearchSettings,
) -> list[tuple[Id, Ranked]]:
    """Return the first *k* of the rows of two rankings joined, best first, without those below the threshold.

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
    ranked = (
        (one, row._replace(score=scores[one])) for one, row in rows.items() if passes(row, n_query_tokens, settings)
    )
    return sorted(ranked, key=lambda found: (-found[1].score, -found[1].maxsim, found[1].passage_id))[:k]
