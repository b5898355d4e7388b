"""Several indexes searched as one: of one database or of several, of one model or of several.

In: open indexes, a query. Out: one ranking of their hits. Leaves to others: each search (index.py).
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice, zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.encoders.queries import check_queries, encode_queries
from colbert_sqlite.errors import SourceError
from colbert_sqlite.index import Index
from colbert_sqlite.results import Hit
from colbert_sqlite.search import FUSED, Ranked, fused
from colbert_sqlite.settings import Fusion, Mode, SearchSettings
from colbert_sqlite.storage.connection import file_of
from colbert_sqlite.storage.source import Key


def search_all(
    indexes: Sequence[Index],
    query: str,
    k: int = 10,
    *,
    where: str | None = None,
    params: Mapping[str, Any] | None = None,
    mode: Mode | None = None,
    fusion: Fusion | None = None,
    weight: float | None = None,
    threshold: float | None = None,
    nprobe: int | None = None,
    ndocs: int | None = None,
) -> list[Hit]:
    """Return the *k* rows of all *indexes* that answer *query* best, or as many as match, best first.

    A hit says which ``index`` of which ``database`` it is from. Indexes of equal models are ranked together by score,
    and share one encoder, as the parts of one collection do; in mode hybrid both of the rankings that are joined are of
    all of them. Scores of different models can't be compared: there the best of each model come first, then the second
    best, and so on (reciprocal rank fusion).

    :param where: SQL condition on the source table of every index; *params* are its named parameters

    Other arguments, and errors, as in :meth:`Index.search`.

    :raises ValueError: if an index is given twice
    """
    settings = SearchSettings.for_k(
        k, mode=mode, fusion=fusion, weight=weight, threshold=threshold, nprobe=nprobe, ndocs=ndocs
    )
    check_queries([query])
    rankings = []
    for group in _by_model(indexes):
        embeddings = encode_queries(_encoder_of(group), [query])
        if settings.mode == "hybrid":
            rankings.append(_hybrid(group, query, embeddings, k, settings, where, params))
            continue
        found = [
            hit
            for index in group
            for hit in index.search_encoded([query], embeddings, k, settings, where=where, params=params)[0]
        ]
        # Sorting keeps the order of indexes, and of each one's hits, among equals.
        rankings.append(sorted(found, key=lambda hit: -hit.score))
    # No row is in two of these rankings, so fusing them by reciprocal ranks is taking turns.
    turns = (hit for turn in zip_longest(*rankings) for hit in turn if hit is not None)
    return [dataclasses.replace(hit, rank=rank) for rank, hit in enumerate(islice(turns, k), start=1)]


def attached(conn: sqlite3.Connection, schema: str) -> str:
    """Return the path of the database file attached to *conn* as *schema*: open an index in it by that path.

    :raises SourceError: if nothing is attached under that name, or what is attached is in memory
    """
    path = file_of(conn, schema)
    if not path:
        raise SourceError(f"the database {schema!r} is in memory: open its index through the connection that made it")
    return path


def _hybrid(
    group: Sequence[Index],
    query: str,
    embeddings: Sequence[NDArray[np.float32]],
    k: int,
    settings: SearchSettings,
    where: str | None,
    params: Mapping[str, Any] | None,
) -> list[Hit]:
    """The hits of indexes of one model, as one index of all their rows would find them.

    Places in one of them say little: the best row of an index where nothing fits would be as good as any.
    """
    [embedding] = embeddings
    by_colbert: dict[tuple[int, Key], Ranked] = {}
    by_fts: dict[tuple[int, Key], Ranked] = {}
    with ExitStack() as stack:
        searchers = []
        for place, index in enumerate(group):
            searcher, allowed = stack.enter_context(index.searcher(where, params))
            searchers.append(searcher)
            [both] = searcher.both([query], embeddings, k, settings, allowed)
            for all_rows, rows in zip((by_colbert, by_fts), both, strict=True):
                all_rows.update({(place, key): row for key, row in rows.items()})
        depth = max(k, FUSED)
        found = fused(_best(by_colbert, depth), _best(by_fts, depth), len(embedding), k, settings)
        return [searchers[place].hits([row], len(embedding))[0] for (place, _), row in found]


def _best(rows: dict[tuple[int, Key], Ranked], n: int) -> dict[tuple[int, Key], Ranked]:
    return dict(sorted(rows.items(), key=lambda item: -item[1].score)[:n])


def _by_model(indexes: Sequence[Index]) -> list[list[Index]]:
    """The indexes of each model together, in the order in which they came."""
    groups: dict[str, list[Index]] = {}
    seen = set()
    for index in indexes:
        one = index.database or _connection_of(index), index.name
        if one in seen:
            raise ValueError(f"index {index.name!r} is given twice")
        seen.add(one)
        groups.setdefault(index.model_fingerprint, []).append(index)
    return list(groups.values())


def _connection_of(index: Index) -> sqlite3.Connection:
    with index.searcher() as (searcher, _):
        return searcher.store.conn


def _encoder_of(group: Sequence[Index]) -> Encoder:
    """The encoder of all these indexes, loaded once: by one that has it already, if there is one."""
    return next((index for index in group if index.is_loaded), group[0]).encoder
