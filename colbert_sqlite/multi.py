"""Search several indexes as one, of any databases and models.

In: open indexes, a query. Out: one ranking of their hits. Leaves to others: the search of each (``index.py``).
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice, zip_longest

from colbert_sqlite.encoders.checks import check_queries
from colbert_sqlite.index import Index
from colbert_sqlite.query import Query, encode_query
from colbert_sqlite.results import Hit
from colbert_sqlite.search import FUSED_ROWS, RankedRow, fuse, hits, rankings_of_both
from colbert_sqlite.settings import Filter, Fusion, Mode, SearchSettings
from colbert_sqlite.storage.source import Key

RowOfIndex = tuple[int, Key]
"""Position of an index among the searched ones, and a key in it."""


def search_all(
    indexes: Sequence[Index],
    query: str,
    k: int = 10,
    *,
    where: str | None = None,
    params: Mapping[str, object] | None = None,
    mode: Mode | None = None,
    fusion: Fusion | None = None,
    weight: float | None = None,
    threshold: float | None = None,
    nprobe: int | None = None,
    ndocs: int | None = None,
) -> list[Hit]:
    """Return the *k* rows of all *indexes* that answer *query* best, or as many as match, best first.

    A hit names its ``index`` and ``database``. Indexes with one model share one encoder, and are ranked together by
    score as the parts of one collection; mode hybrid joins two rankings of all their rows. Scores of different models
    can't be compared: the best hit of each model comes first, then the second best, and so on (reciprocal rank fusion).

    :param where: SQL condition on the source table of every index; *params* are its named parameters
    :raises ValueError: if an index appears twice

    Other arguments and errors as in :meth:`Index.search`.
    """
    settings = SearchSettings.for_k(
        k, mode=mode, fusion=fusion, weight=weight, threshold=threshold, nprobe=nprobe, ndocs=ndocs
    )
    filter = Filter(where, params)
    check_queries([query])
    rankings = []
    for group in _by_model(indexes):
        encoded = encode_query(next((index for index in group if index.is_loaded), group[0]).load_encoder(), query)
        if settings.mode == "hybrid":
            rankings.append(_search_hybrid(group, encoded, settings, filter))
            continue
        of_group = [hit for index in group for hit in index.search_encoded([encoded], settings, filter)[0]]
        # The sort is stable: ties keep the order of the indexes and of their hits.
        rankings.append(sorted(of_group, key=lambda hit: -hit.score))
    # No row is in two of these rankings, so reciprocal rank fusion is taking turns.
    turns = (hit for turn in zip_longest(*rankings) for hit in turn if hit is not None)
    return [dataclasses.replace(hit, rank=rank) for rank, hit in enumerate(islice(turns, settings.k), start=1)]


def _search_hybrid(group: Sequence[Index], query: Query, settings: SearchSettings, filter: Filter) -> list[Hit]:
    """Return the hits of indexes of one model, ranked as if one index had all their rows.

    Ranks within each index would not do: the best row of an index without any match would be as good as any.
    """
    by_colbert: dict[RowOfIndex, RankedRow] = {}
    by_fts: dict[RowOfIndex, RankedRow] = {}
    with ExitStack() as stack:
        views = [stack.enter_context(index.read()) for index in group]
        for position, view in enumerate(views):
            [rankings] = rankings_of_both(view, [query], settings, view.passage_ids(filter))
            for all_rows, rows in zip((by_colbert, by_fts), rankings, strict=True):
                all_rows.update({(position, key): row for key, row in rows.items()})
        n = max(settings.k, FUSED_ROWS)
        fused = fuse(_best(by_colbert, n), _best(by_fts, n), query, settings)
        return [hit for (position, _), row in fused for hit in hits(views[position], [row], query)]


def _best(rows: dict[RowOfIndex, RankedRow], n: int) -> dict[RowOfIndex, RankedRow]:
    return dict(sorted(rows.items(), key=lambda item: -item[1].score)[:n])


def _by_model(indexes: Sequence[Index]) -> list[list[Index]]:
    """Return the indexes of each model together, in their order.

    :raises ValueError: if an index appears twice
    """
    groups: dict[str, list[Index]] = {}
    seen = set()
    for index in indexes:
        identity = index.database or _connection_of(index), index.name
        if identity in seen:
            raise ValueError(f"index {index.name!r} appears twice: name each index once")
        seen.add(identity)
        groups.setdefault(index.model_fingerprint, []).append(index)
    return list(groups.values())


def _connection_of(index: Index) -> sqlite3.Connection:
    with index.read() as view:
        return view.conn
