"""Search by the table's own FTS5 index, in ColBERT's order, and by both."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils
from hypothesis import example, given, settings
from hypothesis import strategies as st

from colbert_sqlite import Index, SearchSettings, SourceError
from colbert_sqlite.encoders import Encoder
from colbert_sqlite.engine.fusion import reciprocal_rank_fusion
from colbert_sqlite.storage.fts import match_any
from tests.helpers import connection_of

TEXTS = {
    1: "Bread needs flour, water, salt and time.",
    2: "Water boils at a lower temperature on a mountain.",
    3: "A mountain hut without water or bread.",
    4: "Flour moths eat flour, and only flour.",
    5: "The comet has a tail.",
}


def database(tmp_path: Path, **fts: Any) -> sqlite_utils.Database:
    db = sqlite_utils.Database(tmp_path / "blog.db")
    db["posts"].insert_all(({"id": n, "body": text} for n, text in TEXTS.items()), pk="id")
    if fts:
        db["posts"].enable_fts(["body"], **fts)
    return db


def keys(index: Index, query: str, **options: Any) -> list[Any]:
    return [hit.pk for hit in index.search(query, **options)]


@pytest.mark.parametrize(
    "fts",
    [
        {"create_triggers": True},
        {"tokenize": "porter"},
        {"tokenize": "trigram"},
        {"tokenize": "unicode61 remove_diacritics 2"},
        {"tokenize": "ascii"},
    ],
    ids=str,
)
def test_fts_finds_rows_with_any_word_and_ranks_them_by_colbert(
    tmp_path: Path, encoder: Encoder, fts: dict[str, Any]
) -> None:
    db = database(tmp_path, **fts)
    index = Index.create(db, "posts", ["body"], model=encoder)
    by_colbert = keys(index, "flour water")
    assert keys(index, "flour water", mode="fts") == [pk for pk in by_colbert if pk in (1, 2, 3, 4)]


def test_scores_in_mode_fts_are_those_of_colbert(tmp_path: Path, encoder: Encoder) -> None:
    index = Index.create(database(tmp_path, tokenize="porter"), "posts", ["body"], model=encoder)
    scores = {hit.pk: hit.score for hit in index.search("flour water")}
    assert {hit.pk: hit.score for hit in index.search("flour water", mode="fts")} == {
        n: scores[n] for n in (1, 2, 3, 4)
    }


def test_hybrid_joins_both_rankings_by_reciprocal_rank(tmp_path: Path, encoder: Encoder) -> None:
    db = database(tmp_path, tokenize="porter")
    index = Index.create(db, "posts", ["body"], model=encoder)
    by_fts = [row["id"] for row in db["posts"].search(match_any("flour on a mountain"))]
    fused = reciprocal_rank_fusion([keys(index, "flour on a mountain"), by_fts], [0.7, 0.3])
    hits = index.search("flour on a mountain", mode="hybrid")
    assert {hit.pk: hit.score for hit in hits} == pytest.approx(fused)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("fusion", ["rrf", "weighted"])
def test_a_weight_of_1_is_colbert_alone(tmp_path: Path, encoder: Encoder, fusion: Any) -> None:
    index = Index.create(database(tmp_path, tokenize="porter"), "posts", ["body"], model=encoder)
    options: dict[str, Any] = {"mode": "hybrid", "fusion": fusion, "weight": 1.0}
    assert keys(index, "flour on a mountain", **options) == keys(index, "flour on a mountain")


def test_weighted_scores_are_from_0_to_1(tmp_path: Path, encoder: Encoder) -> None:
    index = Index.create(database(tmp_path, tokenize="porter"), "posts", ["body"], model=encoder)
    hits = index.search("flour", mode="hybrid", fusion="weighted")
    assert hits[0].pk == 4
    assert hits[0].score == pytest.approx(1.0)
    assert all(0 <= hit.score <= 1 for hit in hits)


def test_filters_hold_in_every_mode(tmp_path: Path, encoder: Encoder) -> None:
    index = Index.create(database(tmp_path, tokenize="porter"), "posts", ["body"], model=encoder)
    for mode in ("fts", "hybrid"):
        assert set(keys(index, "flour water", mode=mode, where="id > :n", params={"n": 2}, k=2)) == {3, 4}
        assert set(keys(index, "flour water", mode=mode, pks=[2, 4, 99])) == {2, 4}
        assert keys(index, "flour water", mode=mode, pks=[2, 4], where="id = 4") == [4]
        assert keys(index, "flour water", mode=mode, pks=[]) == []


def test_only_rows_of_the_index_are_found_by_fts(tmp_path: Path, encoder: Encoder) -> None:
    db = database(tmp_path, create_triggers=True)
    index = Index.create(db, "posts", ["body"], model=encoder, where="id != 4")
    db["posts"].insert({"id": 6, "body": "Flour, not yet synced."})
    assert set(keys(index, "flour", mode="fts")) == {1}
    index.sync()
    assert set(keys(index, "flour", mode="fts")) == {1, 6}


def test_one_row_comes_once_with_its_best_passage(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite_utils.Database(tmp_path / "long.db")
    long = "\n\n".join([*(f"Paragraph {n} about nothing much at all." for n in range(60)), "A heron stood on a stone."])
    db["posts"].insert_all([{"id": 1, "body": long}, {"id": 2, "body": "A stone."}], pk="id")
    db["posts"].enable_fts(["body"])
    index = Index.create(db, "posts", ["body"], model=encoder, max_tokens=64)
    for mode in ("fts", "hybrid"):
        hits = index.search("heron on a stone", mode=mode)
        assert [hit.pk for hit in hits] == [1, 2]
        assert "heron" in hits[0].passage.text


@pytest.mark.parametrize(
    "sql",
    [
        'create virtual table f using fts5(body, content="posts")',
        "create virtual table f using fts5 (body, content=posts, content_rowid=id)",
        "CREATE VIRTUAL TABLE [f] USING FTS5(body, tokenize='porter', content=[posts], content_rowid=\"id\")",
        "create virtual table f using fts5(body, content='POSTS')",
    ],
)
def test_the_fts_table_of_the_source_is_found_however_it_was_made(tmp_path: Path, encoder: Encoder, sql: str) -> None:
    db = database(tmp_path)
    db.conn.executescript(f"{sql}; insert into f(f) values ('rebuild');")
    index = Index.create(db, "posts", ["body"], model=encoder)
    assert keys(index, "comet", mode="fts") == [5]


def test_of_several_fts_tables_the_one_with_most_indexed_columns_is_taken(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite_utils.Database(tmp_path / "blog.db")
    db["posts"].insert({"id": 1, "slug": "heron", "body": "A bird on a stone."}, pk="id")
    db.conn.executescript(
        "create virtual table a using fts5(slug, content='posts');"
        "create virtual table b using fts5(body, content='posts');"
        "insert into a(a) values ('rebuild'); insert into b(b) values ('rebuild');"
    )
    index = Index.create(db, "posts", ["body"], model=encoder)
    assert (keys(index, "heron", mode="fts"), keys(index, "bird", mode="fts")) == ([], [1])


def test_without_an_fts_table_a_sentence_says_how_to_make_one(tmp_path: Path, encoder: Encoder) -> None:
    db = database(tmp_path)
    index = Index.create(db, "posts", ["body"], model=encoder)
    for mode in ("fts", "hybrid"):
        with pytest.raises(SourceError) as raised:
            index.search("flour", mode=mode)
        assert str(raised.value) == (
            "table 'posts' has no FTS5 index: make one with: sqlite-utils enable-fts "
            f"{tmp_path / 'blog.db'} posts body --create-triggers"
        )
    db["posts"].enable_fts(["body"], fts_version="FTS4")
    with pytest.raises(SourceError, match="only an FTS4 index.*--replace"):
        index.search("flour", mode="fts")


def test_a_table_without_rowids_can_have_no_fts(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite3.connect(tmp_path / "blog.db")
    db.execute("create table posts (id text primary key, body text) without rowid")
    db.execute("insert into posts values ('a', 'flour')")
    db.commit()
    index = Index.create(db, "posts", ["body"], model=encoder)
    with pytest.raises(SourceError, match="has no rowids, which FTS5 needs"):
        index.search("flour", mode="hybrid")


def test_text_and_compound_keys_and_awkward_names(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite_utils.Database(tmp_path / "blog.db")
    name = 'a "b" [c] d'
    db.execute('create table "a ""b"" [c] d" ("k 1" text, rowid text, "te""xt" text, primary key ("k 1", rowid))')
    db.execute("insert into \"a \"\"b\"\" [c] d\" values ('x', 'y', 'flour'), ('x', 'z', 'water')")
    db.conn.executescript(
        'create virtual table f using fts5("te""xt", content=\'a "b" [c] d\', content_rowid=_rowid_);'
        "insert into f(f) values ('rebuild');"
    )
    index = Index.create(db, name, ['te"xt'], model=encoder)
    assert keys(index, "flour", mode="fts") == [("x", "y")]
    assert keys(index, "water", mode="hybrid", k=1) == [("x", "z")]


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60))
@example('"')
@example("flour AND (NOT) OR NEAR/2 * ^ body: {a b}")
@example("???")
@example("\0\0 flour")
@example("''; drop table posts")
def test_any_text_is_a_query(text: str) -> None:
    db = sqlite3.connect(":memory:")
    db.execute("create virtual table f using fts5(body)")
    db.execute("insert into f values ('flour and water')")
    for phrases in (True, False):
        expression = match_any("flour " + text, phrases=phrases)
        assert db.execute("select count(*) from f(?)", [expression]).fetchone() == (1,)


def test_thousands_of_words_are_a_query_too(tmp_path: Path, encoder: Encoder) -> None:
    index = Index.create(database(tmp_path, tokenize="porter"), "posts", ["body"], model=encoder)
    assert keys(index, "flour " + " ".join(f"word{n}" for n in range(9000)), mode="fts") != []


def test_search_many_answers_each_query_by_the_mode(tmp_path: Path, encoder: Encoder) -> None:
    index = Index.create(database(tmp_path, tokenize="porter"), "posts", ["body"], model=encoder)
    queries = ["comet", "flour", "nothing of it"]
    for mode in ("fts", "hybrid"):
        many = index.search_many(queries, mode=mode)
        assert many == [index.search(query, mode=mode) for query in queries]
    assert index.search("nothing of it", mode="fts") == []


def test_a_threshold_leaves_out_lower_normalized_scores(tmp_path: Path, encoder: Encoder) -> None:
    index = Index.create(database(tmp_path, tokenize="porter"), "posts", ["body"], model=encoder)
    for mode in ("colbert", "fts", "hybrid"):
        every = index.search("flour water", mode=mode)
        middle = sorted(hit.normalized_score for hit in every)[1]
        kept = index.search("flour water", mode=mode, threshold=middle)
        assert {hit.pk for hit in kept} == {hit.pk for hit in every if hit.normalized_score >= middle}
        assert all(0 <= hit.normalized_score <= 1 for hit in every)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"mode": "bm25"}, "mode must be colbert, fts or hybrid, not 'bm25'"),
        ({"fusion": "sum"}, "fusion must be rrf or weighted, not 'sum'"),
        ({"weight": 1.5}, "weight must be a number from 0 to 1, not 1.5"),
        ({"weight": True}, "weight must be a number from 0 to 1, not True"),
        ({"threshold": -0.1}, "threshold must be a number from 0 to 1, not -0.1"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SearchSettings.for_k(10, **given)


def test_rows_that_are_not_indexed_take_no_place_of_others(tmp_path: Path, encoder: Encoder) -> None:
    db = database(tmp_path, create_triggers=True)
    index = Index.create(db, "posts", ["body"], model=encoder)
    db["posts"].insert_all({"id": n, "body": "flour flour flour"} for n in range(100, 900))
    assert set(keys(index, "flour", mode="fts", k=1, ndocs=4)) <= {1, 4}
    assert len(keys(index, "flour", mode="fts", k=2, ndocs=4)) == 2


@pytest.mark.parametrize("detail", ["none", "column", "full"])
def test_fts_tables_that_know_no_phrases_are_searched_by_words(tmp_path: Path, encoder: Encoder, detail: str) -> None:
    db = database(tmp_path)
    db.conn.executescript(
        f"create virtual table f using fts5(body, content='posts', detail={detail});"
        "insert into f(f) values ('rebuild');"
    )
    index = Index.create(db, "posts", ["body"], model=encoder)
    assert set(keys(index, "comet-tail?", mode="fts")) == ({5} if detail != "full" else set())
    assert set(keys(index, "comet, tail!", mode="fts")) == {5}


def test_upper_case_is_left_to_the_tokenizer(tmp_path: Path, encoder: Encoder) -> None:
    db = database(tmp_path, tokenize="trigram case_sensitive 1")
    index = Index.create(db, "posts", ["body"], model=encoder)
    assert (keys(index, "Bread", mode="fts"), keys(index, "BREAD", mode="fts")) == ([1], [])


def test_a_threshold_in_hybrid_leaves_out_rows_before_the_first_k_are_taken(tmp_path: Path, encoder: Encoder) -> None:
    index = Index.create(database(tmp_path, tokenize="porter"), "posts", ["body"], model=encoder)
    options: dict[str, Any] = {"mode": "hybrid", "weight": 0.1}
    every = [(hit.pk, hit.normalized_score >= 0.5) for hit in index.search("flour on a mountain", **options)]
    assert every == [(2, True), (4, False), (3, True), (1, False), (5, False)]
    assert keys(index, "flour on a mountain", threshold=0.5, k=2, **options) == [2, 3]


def test_a_tokenizer_of_another_program_is_one_sentence(tmp_path: Path, encoder: Encoder) -> None:
    db = database(tmp_path, tokenize="porter")
    index = Index.create(db, "posts", ["body"], model=encoder)
    db.conn.executescript(
        "pragma writable_schema = on;"
        "update sqlite_master set sql = replace(sql, 'porter', 'theirs') where name = 'posts_fts';"
        "pragma writable_schema = off;"
    )
    db.conn.close()
    index = Index.open(tmp_path / "blog.db", "posts", model=encoder)
    with pytest.raises(SourceError, match="the FTS5 table 'posts_fts' can't be searched: no such tokenizer"):
        index.search("flour", mode="fts")
    assert keys(index, "comet", k=1) == [5]


def test_words_with_an_underscore_in_fts_tables_without_phrases(tmp_path: Path, encoder: Encoder) -> None:
    db = database(tmp_path)
    db.conn.executescript(
        "create virtual table f using fts5(body, content='posts', detail=none); insert into f(f) values ('rebuild');"
        "create table t (id integer primary key, body text); insert into t values (1, 'flour');"
        "create virtual table g using fts5(body, content='t', tokenize='trigram', detail=none);"
        "insert into g(g) values ('rebuild');"
    )
    assert keys(Index.create(db, "posts", ["body"], model=encoder), "comet_tail", mode="fts") == [5]
    with pytest.raises(
        SourceError, match="the FTS5 table 'g' can't be searched: fts5: phrase queries are not supported"
    ):
        Index.create(db, "t", ["body"], model=encoder).search("flour", mode="fts")


WORDS = "heron weir stone river flour bread salt oven comet moon".split()


@pytest.fixture(scope="module")
def many() -> Index:
    """An index of 60 rows, some of them alike, with an FTS5 table."""
    rng = random.Random(3)
    db = sqlite_utils.Database(memory=True)
    rows = ({"id": n, "body": " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))} for n in range(60))
    db["posts"].insert_all(rows, pk="id")
    db["posts"].enable_fts(["body"])
    return Index.create(db, "posts", ["body"], model="hashing-32")


@settings(max_examples=100)
@given(
    words=st.lists(st.sampled_from([*WORDS, "nothing"]), min_size=1, max_size=4),
    fusion=st.sampled_from(["rrf", "weighted"]),
    weight=st.floats(0, 1),
    threshold=st.none() | st.floats(0, 1),
    k=st.integers(1, 70),
)
def test_hybrid_is_what_a_slow_reference_finds(
    many: Index, words: list[str], fusion: Any, weight: float, threshold: float | None, k: int
) -> None:
    by_colbert = {hit.pk: hit for hit in many.search(" ".join(words), k=60)}
    sql = "select rowid, -rank from posts_fts where posts_fts match ? order by rank, rowid"
    found = dict(connection_of(many).execute(sql, [" OR ".join(dict.fromkeys(words))]))
    # Of rows with equal bm25 the one with the higher MaxSim comes first.
    by_fts = dict(sorted(found.items(), key=lambda item: (-item[1], by_colbert[item[0]].rank)))
    expected = {}
    maxsims = {pk: hit.score for pk, hit in by_colbert.items()}
    for pk, hit in by_colbert.items():
        if fusion == "rrf":
            score = weight / (60 + hit.rank)
            score += (1 - weight) / (60 + [*by_fts].index(pk) + 1) if pk in by_fts else 0
        else:
            score = weight * stretched(maxsims, pk) + (1 - weight) * (stretched(by_fts, pk) if pk in by_fts else 0)
        if threshold is None or hit.normalized_score >= threshold:
            expected[pk] = score
    hits = many.search(" ".join(words), k, mode="hybrid", fusion=fusion, weight=weight, threshold=threshold)
    assert len(hits) == min(k, len(expected))
    assert [hit.score for hit in hits] == pytest.approx(sorted(expected.values(), reverse=True)[:k])
    assert [hit.score for hit in hits] == pytest.approx([expected[hit.pk] for hit in hits])


def stretched(scores: dict[int, float], pk: int) -> float:
    low, high = min(scores.values()), max(scores.values())
    return (scores[pk] - low) / (high - low) if high > low else 1.0
