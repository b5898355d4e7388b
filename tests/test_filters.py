"""Filters hold before anything is scored: as many hits as match, in the order of a search over everything."""

from __future__ import annotations

import random
import sqlite3
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_sqlite import Hit, Index, SourceError, load_encoder
from tests.helpers import connection_of

WORDS = "heron weir stone river bridge mill flour bread salt oven comet moon tail dust ice lamp wick oil flame".split()
N_ROWS = 120


@pytest.fixture(scope="module")
def index() -> Index:
    """An index of rows with tags and dates, some of several passages; in mode fts and hybrid too."""
    rng = random.Random(7)
    db = sqlite3.connect(":memory:")
    db.executescript(
        "create table posts (id integer primary key, created text, body text);"
        "create table tags (id integer primary key, name text);"
        "create table post_tags (post_id integer, tag_id integer, primary key (post_id, tag_id));"
        "create virtual table posts_fts using fts5(body, content=posts);"
    )
    for n in range(1, N_ROWS + 1):
        body = "\n\n".join(" ".join(rng.choices(WORDS, k=rng.randint(3, 40))) for _ in range(rng.randint(1, 4)))
        db.execute("insert into posts values (?, ?, ?)", (n, f"20{rng.randint(10, 25)}-01-01", body))
        tags = rng.sample(range(5), rng.randint(0, 3))
        db.executemany("insert into post_tags values (?, ?)", [(n, tag) for tag in tags])
    db.executemany("insert into tags values (?, ?)", enumerate("news til link note talk".split()))
    db.execute("insert into posts_fts(posts_fts) values ('rebuild')")
    db.commit()
    return Index.create(db, "posts", ["body"], model=load_encoder("hashing-32"), max_tokens=32)


# A condition, and its parameters.
Filter: TypeAlias = tuple[str, dict[str, Any]]
years: st.SearchStrategy[Filter] = st.integers(2009, 2026).map(lambda year: (f"created >= '{year}'", {}))
ids: st.SearchStrategy[Filter] = st.lists(st.integers(1, N_ROWS), max_size=6).map(
    lambda ids: (f"posts.id in ({', '.join(map(str, ids))})", {})
)
parameters = st.integers(0, N_ROWS).map(lambda n: ("id <= :most", {"most": n}))
joins = st.sampled_from(["news", "til", "link", "nothing"]).map(
    lambda tag: (
        "id in (select post_id from post_tags join tags on tags.id = tag_id where name = :tag) -- a comment",
        {"tag": tag},
    )
)
correlated = st.integers(0, 3).map(
    lambda n: ("(select count(*) from post_tags where post_id = posts.id) >= :n_tags", {"n_tags": n})
)
full_text = st.sampled_from(WORDS).map(
    lambda word: ("id in (select rowid from posts_fts where posts_fts match :word)", {"word": word})
)
conditions = st.one_of(years, ids, parameters, joins, correlated, full_text)
queries = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
keys = st.none() | st.lists(st.integers(-3, N_ROWS + 9), max_size=40)


def matching(index: Index, where: str, params: dict[str, Any]) -> set[int]:
    """What SQLite itself finds."""
    return {row[0] for row in connection_of(index).execute(f"select id from posts where ({where}\n)", params)}


@settings(max_examples=150)
@given(queries, conditions, keys, st.integers(1, 30))
def test_a_filtered_search_is_the_whole_ranking_without_the_rows_that_do_not_match(
    index: Index, query: str, condition: tuple[str, dict[str, Any]], pks: list[int] | None, k: int
) -> None:
    where, params = condition
    ranking = index.search(query, k=N_ROWS)
    assert len(ranking) == N_ROWS
    allowed = matching(index, where, params) & (set(pks) if pks is not None else {hit.pk for hit in ranking})
    expected = [(hit.pk, hit.score, hit.passage) for hit in ranking if hit.pk in allowed][:k]
    hits = index.search(query, k=k, where=where, params=params, pks=pks)
    assert [(hit.pk, hit.score, hit.passage) for hit in hits] == expected
    assert [hit.rank for hit in hits] == [*range(1, len(expected) + 1)]


@settings(max_examples=60)
@given(queries, conditions, st.integers(1, 30))
def test_narrow_settings_never_cost_hits(
    index: Index, query: str, condition: tuple[str, dict[str, Any]], k: int
) -> None:
    where, params = condition
    hits = index.search(query, k=k, where=where, params=params, nprobe=1, ndocs=4)
    allowed = matching(index, where, params)
    assert len(hits) == min(k, len(allowed))
    assert {hit.pk for hit in hits} <= allowed


@settings(max_examples=60)
@given(queries, conditions, st.integers(1, 30))
def test_fts_and_hybrid_find_only_what_matches_and_fts_all_of_it(
    index: Index, query: str, condition: tuple[str, dict[str, Any]], k: int
) -> None:
    where, params = condition
    allowed = matching(index, where, params)
    with_words = "id in (select rowid from posts_fts where posts_fts match :words)"
    in_fts = allowed & matching(index, with_words, {"words": " OR ".join(query.split())})
    by_fts: list[Hit] = index.search(query, k=k, where=where, params=params, mode="fts")
    assert len(by_fts) == min(k, len(in_fts))
    assert {hit.pk for hit in by_fts} <= in_fts
    hybrid = index.search(query, k=k, where=where, params=params, mode="hybrid")
    assert len(hybrid) == min(k, len(allowed))
    assert {hit.pk for hit in hybrid} <= allowed


@settings(max_examples=60)
@given(st.integers(1, N_ROWS), conditions, st.integers(1, 30))
def test_similar_rows_are_filtered_too(index: Index, pk: int, condition: tuple[str, dict[str, Any]], k: int) -> None:
    where, params = condition
    allowed = matching(index, where, params) - {pk}
    # So wide that every passage is scored.
    hits = index.similar(pk, k=k, where=where, params=params, ndocs=1 << 14)
    every = index.similar(pk, k=N_ROWS, ndocs=1 << 14)
    expected = [hit.pk for hit in every if hit.pk in allowed][:k]
    assert [hit.pk for hit in hits] == expected


def test_a_condition_is_sql_of_the_callers_and_says_what_is_wrong_with_it(index: Index) -> None:
    with pytest.raises(SourceError, match="the condition 'no_such_column = 1' can't be used: no such column"):
        index.search("heron", where="no_such_column = 1")
    with pytest.raises(SourceError, match="can't be used"):
        index.similar(1, where="id in (")


@pytest.mark.parametrize("value", [b"\x03", memoryview(b"\x03"), 3.0, None], ids=lambda value: type(value).__name__)
def test_a_parameter_may_be_whatever_sqlite_binds(index: Index, value: object) -> None:
    same = index.search("heron", k=3, where="typeof(:value) = :type", params={"value": value, "type": _type(value)})
    assert [hit.pk for hit in same] == [hit.pk for hit in index.search("heron", k=3)]


def _type(value: object) -> str:
    return "null" if value is None else "real" if isinstance(value, float) else "blob"


def test_a_condition_with_a_null_character_is_one_sentence(index: Index) -> None:
    with pytest.raises(SourceError, match="can't be used"):
        index.search("heron", where="body = '\0'")
