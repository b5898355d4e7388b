"""Judged test collections as indexed databases, made once and kept: what the other measurements of this folder share.

In: a collection in BEIR layout. Out: an index of it with an FTS5 table beside, its queries and judgments. Leaves to
others: measuring.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import sqlite_utils

from colbert_sqlite.index import Index
from tests.benchmarks.quality import Run, make_database, ndcg, read_corpus, read_judged_queries


@dataclass(frozen=True, slots=True)
class Judged:
    """A collection: its index, the judged queries, and the grades of documents for each."""

    name: str
    index: Index
    database: sqlite_utils.Database
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]

    def ndcg(self, run: Run) -> float:
        """Return nDCG@10 of a run."""
        return ndcg(self.qrels, run)


def open_judged(folder: Path, kept: Path, model: str) -> Judged:
    """Return a collection, indexed in a database in *kept* unless it is there already."""
    kept.mkdir(parents=True, exist_ok=True)
    path = kept / f"{folder.name}-{model}.db"
    if not path.exists():
        unfinished = path.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        make_database(unfinished, read_corpus(folder))
        db = sqlite_utils.Database(unfinished)
        db.table("documents").enable_fts(["title", "text"], tokenize="porter")
        db.conn.close()
        Index.create(unfinished, "documents", ["text"], heading="title", model=model).close()
        unfinished.rename(path)
    database = sqlite_utils.Database(path)
    queries, qrels = read_judged_queries(folder)
    return Judged(folder.name, Index.open(database, "documents"), database, queries, qrels)
