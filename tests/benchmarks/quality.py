"""What compression and pruning cost: nDCG@10 and recall of an index against exhaustive MaxSim, beside BM25.

    python -m tests.benchmarks.quality [--data ../shared/data] [--model minilm] [--pool-factor 1] [COLLECTION …]

A collection is a folder in BEIR layout: corpus.jsonl, queries.jsonl, qrels/test.tsv, any of them gzipped. Each is
put in a fresh database, indexed at every nbits, and searched through ``Index.search`` with default settings. The
embeddings are made once and shared by all, so the columns differ in nothing but the index. Exhaustive MaxSim is always
over all tokens, whatever the index pools. Prints Markdown, a row per collection and pool factor.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bm25s
import ir_measures
import numpy as np
import Stemmer
from ir_measures import nDCG
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder, load_encoder
from colbert_sqlite.engine.maxsim import maxsim_scores
from colbert_sqlite.evaluate import read_qrels, read_queries
from colbert_sqlite.index import Index
from colbert_sqlite.passages import DEFAULT_MAX_TOKENS, RawValue, extract

Run = dict[str, list[tuple[str, float]]]

NBITS = (4, 2)
K = 100


class RememberingEncoder:
    """An encoder that encodes each passage once."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.passages: dict[str, NDArray[np.float32]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_passages(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        new = [text for text in dict.fromkeys(texts) if text not in self.passages]
        self.passages.update(zip(new, self._encoder.encode_passages(new), strict=True))
        return [self.passages[text] for text in texts]


def read_corpus(folder: Path) -> list[dict[str, str]]:
    text = _file(folder / "corpus.jsonl").read_bytes()
    lines = gzip.decompress(text) if text.startswith(b"\x1f\x8b") else text
    return [json.loads(line) for line in lines.decode().splitlines()]


def read_judged_queries(folder: Path) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Return the queries that are judged, and the grades of documents for each."""
    qrels = read_qrels(_file(folder / "qrels" / "test.tsv"))
    queries = read_queries(_file(folder / "queries.jsonl"))
    return {qid: text for qid, text in queries.items() if qid in qrels}, qrels


def _file(path: Path) -> Path:
    zipped = path.with_name(path.name + ".gz")
    return zipped if zipped.exists() else path


def make_database(path: Path, corpus: Iterable[dict[str, str]]) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE documents (id TEXT PRIMARY KEY, title TEXT, text TEXT)")
    db.executemany("INSERT INTO documents VALUES (?, ?, ?)", ((d["_id"], d["title"], d["text"]) for d in corpus))
    db.commit()
    db.close()


def search_all(index: Index, queries: dict[str, str], k: int) -> Run:
    return {qid: [(hit.pk, hit.score) for hit in index.search(text, k=k)] for qid, text in queries.items()}


def exhaustive(path: Path, encoder: RememberingEncoder, queries: dict[str, str]) -> Run:
    """Rank every row by the best MaxSim of its passages, over embeddings that were never compressed."""
    keys, texts = zip(*passages(path), strict=True)
    embeddings = encoder.encode_passages(texts)
    offsets = np.concatenate([[0], np.cumsum([len(e) for e in embeddings])])
    flat = np.concatenate(embeddings)
    run: Run = {}
    for qid, embedding in zip(queries, encoder.encode_queries(list(queries.values())), strict=True):
        best: dict[str, float] = {}
        for key, score in zip(keys, maxsim_scores(embedding, flat, offsets).tolist(), strict=True):
            best[key] = max(score, best.get(key, -np.inf))
        run[qid] = sorted(best.items(), key=lambda item: -item[1])[:K]
    return run


def passages(path: Path) -> Iterator[tuple[str, str]]:
    """Yield key and text of every passage of an index: the title, if it is short, above a span of the row."""
    rows = sqlite3.connect(path).execute(
        'SELECT d.id, d.title, d.text, p.start, p."end" FROM _colbert_documents_passages AS p'
        " JOIN documents AS d ON d.id = p.pk_id WHERE p.doclen ORDER BY p.passage_id"
    )
    for key, title, text, start, end in rows:
        values, heading = [RawValue("text", text.encode())], RawValue("text", title.encode())
        extracted = extract(values, heading, html="auto", max_tokens=DEFAULT_MAX_TOKENS)
        yield key, (f"{extracted.heading}\n" if extracted.heading else "") + extracted.text[start:end]


def bm25(corpus: list[dict[str, str]], queries: dict[str, str]) -> Run:
    stemmer = Stemmer.Stemmer("english")

    def tokens(texts: list[str]) -> Any:
        return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)

    index = bm25s.BM25(k1=0.9, b=0.4)
    index.index(tokens([f"{d['title']} {d['text']}" for d in corpus]), show_progress=False)
    found, scores = index.retrieve(tokens(list(queries.values())), k=K, show_progress=False)
    return {
        qid: [(corpus[i]["_id"], float(score)) for i, score in zip(ids, row, strict=True)]
        for qid, ids, row in zip(queries, found.tolist(), scores.tolist(), strict=True)
    }


def ndcg(qrels: dict[str, dict[str, int]], run: Run) -> float:
    value = ir_measures.calc_aggregate([nDCG @ 10], qrels, {qid: dict(hits) for qid, hits in run.items()})[nDCG @ 10]
    return float(value)


def overlap(run: Run, truth: Run, k: int) -> float:
    """Mean share of the exhaustive top k that the index returned in its own top k."""
    shares = [len({pk for pk, _ in run[q][:k]} & {pk for pk, _ in truth[q][:k]}) / k for q in truth]
    return float(np.mean(shares))


def measure(folder: Path, encoder: RememberingEncoder, pool_factors: Sequence[int]) -> Iterator[str]:
    corpus = read_corpus(folder)
    queries, qrels = read_judged_queries(folder)
    lexical = ndcg(qrels, bm25(corpus, queries))
    truth: Run = {}
    model: Any = encoder
    for pool_factor in pool_factors:
        cells: list[str] = []
        for nbits in NBITS:
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / "quality.db"
                make_database(path, corpus)
                options: dict[str, Any] = {"heading": "title", "nbits": nbits, "pool_factor": pool_factor}
                with Index.create(path, "documents", ["text"], model=model, **options) as index:
                    truth = truth or exhaustive(path, encoder, queries)
                    run = search_all(index, queries, 10)
                    cells += [f"{ndcg(qrels, run):.3f}", f"{overlap(run, truth, 10):.3f}"]
                    cells.append(f"{overlap(search_all(index, queries, K), truth, K):.3f}")
                    cells.append(f"{index.info().bytes / 1e6:.1f}")
        whole = [f"{len(corpus):,}", str(len(queries)), f"{lexical:.3f}", f"{ndcg(qrels, truth):.3f}"]
        yield "| " + " | ".join([folder.name, *whole, str(pool_factor), *cells]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="*", default=["cranfield", "med", "cacm", "npl"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--pool-factor", type=int, nargs="+", default=[1])
    arguments = parser.parse_args()
    columns = ["collection", "documents", "queries", "BM25", "exhaustive", "pool factor"]
    columns += [f"{what}, {nbits} bits" for nbits in NBITS for what in ("index", "recall@10", f"recall@{K}", "MB")]
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" + " ---: |" * (len(columns) - 1))
    for collection in arguments.collections:
        encoder = RememberingEncoder(load_encoder(arguments.model))
        for row in measure(arguments.data / collection, encoder, arguments.pool_factor):
            print(row, flush=True)


if __name__ == "__main__":
    main()
