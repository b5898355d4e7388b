"""Judged test collections as indexed databases, made once and kept: what the other measurements of this folder share.

In: a collection in BEIR layout. Out: an index of it with an FTS5 table beside, its queries and judgements. Leaves to
others: measuring.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import ir_measures
import sqlite_utils
from ir_measures import nDCG

from colbert_sqlite.index import Index
from tests.benchmarks.quality import Run, make_database, read_lines


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
        scored = {query_id: dict(found) for query_id, found in run.items()}
        return float(ir_measures.calc_aggregate([nDCG @ 10], self.qrels, scored)[nDCG @ 10])


def open_judged(folder: Path, kept: Path, model: str) -> Judged:
    """Return a collection, indexed in a database in *kept* unless it is there already."""
    kept.mkdir(parents=True, exist_ok=True)
    path = kept / f"{folder.name}-{model}.db"
    if not path.exists():
        corpus = [json.loads(line) for line in read_lines(folder / "corpus.jsonl")]
        unfinished = path.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        make_database(unfinished, corpus)
        db = sqlite_utils.Database(unfinished)
        db.table("documents").enable_fts(["title", "text"], tokenize="porter")
        db.conn.close()
        Index.create(unfinished, "documents", ["text"], heading="title", model=model).close()
        unfinished.rename(path)
    database = sqlite_utils.Database(path)
    qrels: dict[str, dict[str, int]] = {}
    for line in read_lines(folder / "qrels" / "test.tsv")[1:]:
        query_id, document_id, grade = line.split("\t")
        qrels.setdefault(query_id, {})[document_id] = int(grade)
    judged = (query for query in map(json.loads, read_lines(folder / "queries.jsonl")) if query["_id"] in qrels)
    queries = {query["_id"]: query["text"] for query in judged}
    return Judged(folder.name, Index.open(database, "documents"), database, queries, qrels)
