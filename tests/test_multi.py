"""Several indexes searched as one."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_sqlite.encoders import load_encoder
from colbert_sqlite.errors import SourceError
from colbert_sqlite.index import Index
from colbert_sqlite.indexes import attached_file
from colbert_sqlite.multi import search_all
from colbert_sqlite.results import Hit
from colbert_sqlite.settings import Fusion
from tests.helpers import connection_of

WORDS = "bread dough oven comet tail dust backup disk night soil heap water".split()
SMALL, LARGE = load_encoder("hashing-32"), load_encoder("hashing-64")


def make(path: Path | None, texts: Sequence[str], model: str = "hashing-32", table: str = "docs") -> Index:
    conn = sqlite3.connect(path or ":memory:", isolation_level=None)
    conn.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, body TEXT)")
    conn.executemany(f"INSERT INTO {table} VALUES (?, ?)", enumerate(texts))
    return Index.create(conn, table, ["body"], model=SMALL if model == "hashing-32" else LARGE)


def where_from(hits: Sequence[Hit]) -> list[tuple[int, str, str, int]]:
    return [(hit.rank, Path(hit.database).name, hit.index, hit.pk) for hit in hits]


def test_equal_models_are_ranked_by_score(tmp_path: Path) -> None:
    a = make(tmp_path / "a.db", ["bread and dough", "a comet"])
    b = make(tmp_path / "b.db", ["bread", "bread and dough in the oven"], table="other")
    found = search_all([a, b], "bread and dough", k=3)
    assert where_from(found)[0] == (1, "a.db", "docs", 0)
    assert {one[1:] for one in where_from(found)} == {
        ("a.db", "docs", 0),
        ("b.db", "other", 0),
        ("b.db", "other", 1),
    }
    assert [hit.rank for hit in found] == [1, 2, 3]
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


def test_of_equal_scores_the_earlier_index_comes_first(tmp_path: Path) -> None:
    a, b = (make(tmp_path / name, ["bread", "bread"]) for name in ("a.db", "b.db"))
    assert where_from(search_all([b, a], "bread", k=3)) == [
        (1, "b.db", "docs", 0),
        (2, "b.db", "docs", 1),
        (3, "a.db", "docs", 0),
    ]


def test_different_models_take_turns(tmp_path: Path) -> None:
    a = make(tmp_path / "a.db", ["comet dust", "bread"])
    b = make(tmp_path / "b.db", ["soil", "bread dough", "bread"], model="hashing-64")
    assert where_from(search_all([a, b], "bread")) == [
        (1, "a.db", "docs", 1),
        (2, "b.db", "docs", 2),
        (3, "a.db", "docs", 0),
        (4, "b.db", "docs", 1),
        (5, "b.db", "docs", 0),
    ]


def test_one_encoder_serves_all_indexes_of_a_model(tmp_path: Path) -> None:
    for name in ("a.db", "b.db"):
        make(tmp_path / name, ["bread"]).close()
    a, b = (Index.open(tmp_path / name, "docs") for name in ("a.db", "b.db"))
    assert b.load_encoder().name == "hashing-32"
    search_all([a, b], "bread")
    assert not a.is_loaded
    assert b.is_loaded


def test_filters_and_settings_apply_to_every_index(tmp_path: Path) -> None:
    a, b = (make(tmp_path / name, ["bread", "bread", "dust"]) for name in ("a.db", "b.db"))
    found = search_all([a, b], "bread", where="id > :least", params={"least": 0})
    assert [hit.pk for hit in found] == [1, 1, 2, 2]
    assert [hit.pk for hit in search_all([a, b], "bread", threshold=0.9)] == [0, 1, 0, 1]


def with_fts(index: Index) -> Index:
    conn = connection_of(index)
    conn.execute("CREATE VIRTUAL TABLE docs_fts USING fts5(body, content='docs', content_rowid='id')")
    conn.execute("INSERT INTO docs_fts (docs_fts) VALUES ('rebuild')")
    return index


@pytest.mark.parametrize("fusion", ["rrf", "weighted"])
def test_hybrid_over_one_index_is_hybrid(fusion: Fusion) -> None:
    index = with_fts(make(None, ["bread and dust", "soil", "bread", "dust of a comet", "water"]))
    for query in ("bread dust", "a comet", "heap"):
        assert search_all([index], query, mode="hybrid", fusion=fusion) == index.search(
            query, mode="hybrid", fusion=fusion
        )


def test_hybrid_over_shards_joins_rankings_of_all_of_them() -> None:
    texts = [
        "bread and dust",
        "soil",
        "bread",
        "dust of a comet",
        "water in the heap",
        "heap",
        "oven",
        "tail of a disk",
    ]
    whole = with_fts(make(None, texts))
    shards = [with_fts(make(None, texts[:4])), with_fts(make(None, texts[4:]))]
    for query in ("bread dust", "a comet", "water heap"):
        best = whole.search(query, k=1, mode="hybrid")[0]
        found = search_all(shards, query, k=8, mode="hybrid")
        assert found[0].row["body"] == best.row["body"]
        assert sorted(hit.row["body"] for hit in found) == sorted(texts)
    assert [hit.row["body"] for hit in search_all(shards, "bread", mode="fts")] == ["bread", "bread and dust"]
    assert len(search_all(shards, "bread", mode="hybrid", threshold=0.9)) == 2


def test_no_index_finds_nothing() -> None:
    assert search_all([], "bread") == []


def test_an_index_that_appears_twice_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a.db", ["bread"]).close()
    once, again = (Index.open(tmp_path / "a.db", "docs") for _ in range(2))
    with pytest.raises(ValueError, match="index 'docs' appears twice: name each index once"):
        search_all([once, again], "bread")
    in_memory = [make(None, ["bread"]) for _ in range(2)]
    assert len(search_all(in_memory, "bread")) == 2
    with pytest.raises(ValueError, match="appears twice"):
        search_all([in_memory[0], in_memory[0]], "bread")
    with pytest.raises(ValueError, match="appears twice"):
        search_all([in_memory[0], Index.open(connection_of(in_memory[0]), "docs")], "bread")


@pytest.mark.parametrize(("query", "k"), [("", 10), ("bread", 0)])
def test_a_wrong_argument_is_refused_before_anything_is_searched(query: str, k: int) -> None:
    with pytest.raises(ValueError, match=r"the query is empty|k must be"):
        search_all([], query, k)


def test_an_attached_database_is_opened_by_its_file(tmp_path: Path) -> None:
    make(tmp_path / "other.db", ["bread"]).close()
    conn = sqlite3.connect(tmp_path / "main.db")
    conn.execute("ATTACH ? AS Other", [str(tmp_path / "other.db")])
    conn.execute("ATTACH ':memory:' AS scratch")
    with Index.open(attached_file(conn, "other"), "docs") as index:
        assert len(search_all([index], "bread")) == 1
    with pytest.raises(SourceError, match="no database is attached as 'nope'; there are main, "):
        attached_file(conn, "nope")
    with pytest.raises(SourceError, match="'scratch' is in memory"):
        attached_file(conn, "scratch")


text = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
collections = st.lists(
    st.tuples(st.sampled_from(["hashing-32", "hashing-64"]), st.lists(text, min_size=1, max_size=6)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25)
@given(collections=collections, query=text, k=st.integers(1, 12))
def test_search_all_is_every_search_merged(collections: list[tuple[str, list[str]]], query: str, k: int) -> None:
    indexes = [make(None, texts, model) for model, texts in collections]
    assert search_all(indexes, query, k) == merged_slowly(indexes, query, k)


def merged_slowly(indexes: Sequence[Index], query: str, k: int) -> list[Hit]:
    """Every hit of every index; again and again the best one left, of the model that has given fewest."""
    models = list(dict.fromkeys(index.info().model for index in indexes))
    left: dict[str, list[tuple[float, int, int, Hit]]] = {model: [] for model in models}
    for place, index in enumerate(indexes):
        for hit in index.search(query, k=n_rows(indexes)):
            left[index.info().model].append((-hit.score, place, hit.rank, hit))
    taken = dict.fromkeys(models, 0)
    found: list[Hit] = []
    while len(found) < k and any(left.values()):
        model = min((model for model in models if left[model]), key=lambda model: (taken[model], models.index(model)))
        best = min(left[model], key=lambda one: one[:3])
        left[model].remove(best)
        taken[model] += 1
        found.append(dataclasses.replace(best[3], rank=len(found) + 1))
    return found


def n_rows(indexes: Sequence[Index]) -> int:
    return sum(index.info().rows for index in indexes)


def test_a_row_that_disappears_while_it_is_ranked_is_no_hit() -> None:
    """The condition of this index changes its mind with every row and reading."""
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE docs (id INTEGER PRIMARY KEY, body TEXT)")
    db.executemany("INSERT INTO docs VALUES (?, 'bread and dust')", [(n,) for n in range(1, 41)])
    db.execute("CREATE VIRTUAL TABLE docs_fts USING fts5(body, content='docs', content_rowid='id')")
    db.execute("INSERT INTO docs_fts (docs_fts) VALUES ('rebuild')")
    index = Index.create(db, "docs", ["body"], model="hashing-32", where="random() % 2 = 0", triggers=False)
    assert 0 < len(search_all([index], "bread", k=40, mode="hybrid")) < 40
