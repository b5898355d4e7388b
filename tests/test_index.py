"""Create, open, search, rebuild, drop: what a user sees, on real files."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlite_utils

from colbert_sqlite import IndexCounts
from colbert_sqlite.encoders import Encoder, load_encoder
from colbert_sqlite.encoders.hashing import HashingEncoder
from colbert_sqlite.engine.maxsim import maxsim
from colbert_sqlite.errors import (
    IndexCorrupt,
    IndexExists,
    IndexNotFound,
    ModelError,
    ModelMismatch,
    SchemaVersionError,
    SourceError,
)
from colbert_sqlite.index import Index
from colbert_sqlite.indexes import drop, list_indexes
from colbert_sqlite.progress import Progress
from colbert_sqlite.results import Passage
from tests.helpers import connection_of


def test_the_row_with_the_words_comes_first(small_index: Index) -> None:
    hits = small_index.search("restore the database copy", k=3)
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert hits[0].pk == 3
    assert hits[0].row["title"] == "Backups"
    assert hits[0].passage == Passage(
        text="Copy the database every night. Try to restore the copy every month.", start=0, end=67, ordinal=0
    )
    assert (hits[0].index, hits[0].stale) == ("posts", False)
    assert hits[0].score > hits[1].score >= hits[2].score


def test_a_row_without_text_is_counted_and_never_found(small_index: Index) -> None:
    assert small_index.counts().rows == 5
    assert small_index.counts().rows_without_text == 1
    assert sorted(hit.pk for hit in small_index.search("bread", k=100)) == [1, 2, 3, 5]


def test_scores_of_a_small_index_are_maxsim_over_its_embeddings(small_index: Index, encoder: Encoder) -> None:
    """At 8 bits what is stored is nearly what was encoded."""
    conn = connection_of(small_index)
    small_index.drop()
    index = Index.create(conn, "posts", ["body"], model=encoder, nbits=8)
    (query,) = encoder.encode_queries(["dark soil"])
    for hit in index.search("dark soil", k=10):
        (document,) = encoder.encode_passages([hit.passage.text])
        assert hit.score == pytest.approx(maxsim(query, document), abs=0.01)


@pytest.mark.parametrize("n_rows", [0, 1, 2, 5, 50])
@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_any_number_of_rows_works(tmp_path: Path, encoder: Encoder, n_rows: int, nbits: int) -> None:
    db = sqlite3.connect(tmp_path / "t.db")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    db.executemany("INSERT INTO t VALUES (?, ?)", [(i, f"Row {i} talks of topic{i} alone.") for i in range(n_rows)])
    index = Index.create(db, "t", ["body"], model=encoder, nbits=nbits)
    assert index.verify() == []
    assert len(index.search("topic3", k=10)) == min(10, n_rows)
    if n_rows > 3:
        assert index.search("topic3", k=1)[0].pk == 3


def test_a_table_where_all_rows_are_equal_or_empty_works(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite3.connect(tmp_path / "t.db")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, same TEXT, blank TEXT)")
    db.executemany("INSERT INTO t VALUES (?, 'the same words', ?)", [(i, (None, "", " \n")[i % 3]) for i in range(30)])
    same = Index.create(db, "t", ["same"], model=encoder)
    assert [hit.pk for hit in same.search("same", k=5)] == [0, 1, 2, 3, 4]
    blank = Index.create(db, "t", ["blank"], name="blank", model=encoder)
    assert blank.search("same") == []
    assert blank.counts() == IndexCounts(rows=30, rows_without_text=30, passages=0, tokens=0)


def test_a_long_row_is_one_hit_with_its_best_passage(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite3.connect(tmp_path / "t.db")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, title TEXT, body TEXT)")
    filler = " ".join(f"Sentence {i} is about nothing." for i in range(200))
    body = f"{filler} A walrus appears late. {filler}"
    db.executemany("INSERT INTO t VALUES (?, ?, ?)", [(1, "Long", body), (2, "Short", "A short row.")])
    index = Index.create(db, "t", ["body"], heading="title", model=encoder, max_tokens=40)
    hits = index.search("walrus", k=10)
    assert [hit.pk for hit in hits] == [1, 2]
    assert "walrus" in hits[0].passage.text
    assert body[hits[0].passage.start : hits[0].passage.end] == hits[0].passage.text
    assert hits[0].passage.ordinal > 0


def test_where_and_pks_narrow_the_rows(small_index: Index) -> None:
    assert {hit.pk for hit in small_index.search("the", k=10, where="id < :n", params={"n": 3})} == {1, 2}
    assert {hit.pk for hit in small_index.search("the", k=10, pks=[5, 2, 4, 77])} == {2, 5}
    assert {hit.pk for hit in small_index.search("the", k=10, pks=[5, 2], where="title != 'Comets'")} == {5}
    assert small_index.search("the", k=10, pks=[]) == []
    assert {h.pk for h in small_index.search("x", where="posts.id IN (SELECT id FROM posts WHERE id > 2)")} == {3, 5}


def test_a_broken_condition_is_one_sentence(small_index: Index) -> None:
    with pytest.raises(SourceError, match="the condition 'nope' can't be used: no such column: nope"):
        small_index.search("x", where="nope")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": " "}, "the query is empty"),
        ({"query": ["x"]}, r"a query is one text, not \['x'\]"),
        ({"query": "\udc80"}, "the query has characters that are not Unicode text"),
        ({"query": "x", "k": 0}, "k must be a whole number from 1 to 1,048,576, not 0"),
        ({"query": "x", "k": 2.5}, "k must be a whole number from 1 to .*, not 2.5"),
        ({"query": "x", "k": 10**19}, "k must be a whole number from 1 to .*, not 10000000000000000000"),
        ({"query": "x", "nprobe": 0}, "nprobe must be a whole number from 1 to 1,048,576, not 0"),
        ({"query": "x", "nprobe": True}, "nprobe must be a whole number from 1 to .*, not True"),
        ({"query": "x", "ndocs": 17.5}, "ndocs must be a whole number from 4 to .*, not 17.5"),
        ({"query": "x", "ndocs": 10**30}, "ndocs must be a whole number from 4 to .*"),
        ({"query": "x", "pks": "12"}, r"pks must be a list of primary keys, such as \['12'\]"),
        ({"query": "x", "pks": [2**70]}, r"\(1180591620717411303424,\) can't be a key"),
        ({"query": "x", "pks": [{}]}, r"\(\{\},\) can't be a key"),
        ({"query": "x", "where": "id = :id", "params": [3]}, r"params must map names to values, not \[3\]"),
        ({"query": "x", "pks": [(1, 2)]}, r"a key of 'posts' has 1 values \(id\), not \(1, 2\)"),
    ],
)
def test_wrong_arguments_are_value_errors(small_index: Index, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_index.search(**arguments)


def test_rows_deleted_since_are_not_found_and_changed_ones_are_marked(small_index: Index, db_path: Path) -> None:
    conn = sqlite3.connect(db_path)
    conn.execute("DELETE FROM posts WHERE id = 1")
    conn.execute("UPDATE posts SET body = 'Nothing.' WHERE id = 2")
    conn.commit()
    hits = {hit.pk: hit for hit in small_index.search("comet dough", k=10)}
    assert sorted(hits) == [2, 3, 5]
    assert hits[2].stale and hits[2].passage.text == "Nothing."
    assert not hits[3].stale
    assert small_index.verify() == [], "triggers have queued them"
    conn.execute("DELETE FROM _colbert_posts_queue")
    conn.commit()
    assert small_index.verify() == [
        "indexed rows that the table lacks: 1",
        "rows that were changed after they were indexed: 2",
    ]


def test_the_database_may_be_a_path_a_connection_or_a_sqlite_utils_database(db_path: Path, encoder: Encoder) -> None:
    Index.create(str(db_path), "posts", ["body"], model=encoder).close()
    for db in (db_path, sqlite3.connect(db_path), sqlite_utils.Database(db_path)):
        assert Index.open(db, "posts").search("comet", k=1)[0].pk == 2


def test_creating_joins_the_callers_transaction(db_path: Path, encoder: Encoder) -> None:
    conn = sqlite3.connect(db_path)
    conn.execute("INSERT INTO posts VALUES (9, 'Uncommitted', 'A walrus.')")
    index = Index.create(conn, "posts", ["body"], model=encoder)
    assert index.search("walrus", k=1)[0].pk == 9
    conn.rollback()
    assert list_indexes(conn) == []


def test_searching_never_writes(db_path: Path, small_index: Index, encoder: Encoder) -> None:
    small_index.close()
    before = db_path.read_bytes()
    conn = sqlite3.connect(f"{db_path.as_uri()}?mode=ro", uri=True)
    index = Index.open(conn, "posts", model=encoder)
    assert index.search("comet", k=1)[0].pk == 2
    assert index.info().tokens > 0 and index.verify() == []
    assert db_path.read_bytes() == before
    immutable = Index.open(f"{db_path.as_uri()}?immutable=1", "posts", model=encoder)
    assert immutable.search("comet", k=1)[0].pk == 2


def test_two_searches_give_the_same_numbers(small_index: Index) -> None:
    first, second = (small_index.search("the night", k=10) for _ in range(2))
    assert first == second


def test_an_index_of_the_same_name_is_not_overwritten(db_path: Path, small_index: Index, encoder: Encoder) -> None:
    with pytest.raises(IndexExists, match="index 'POSTS' exists already"):
        Index.create(db_path, "posts", ["title"], name="POSTS", model=encoder)
    replaced = Index.create(db_path, "posts", ["title"], model=encoder, replace=True)
    assert replaced.search("comets", k=1)[0].passage.text == "Comets"
    assert small_index.search("comets", k=1)[0].passage.text == "Comets"


def test_several_indexes_live_in_one_database(db_path: Path, small_index: Index, encoder: Encoder) -> None:
    Index.create(db_path, "posts", ["title"], name="titles", model=encoder, nbits=2).close()
    assert [(i.name, i.nbits, i.rows) for i in list_indexes(db_path)] == [("posts", 4, 5), ("titles", 2, 5)]
    drop(db_path, "posts")
    assert [i.name for i in list_indexes(db_path)] == ["titles"]
    with pytest.raises(IndexNotFound, match="no index 'posts' in this database; it has titles"):
        small_index.search("x")


def test_a_rebuild_follows_the_table_under_new_passage_ids(small_index: Index, db_path: Path) -> None:
    conn = sqlite3.connect(db_path)
    conn.execute("INSERT INTO posts VALUES (6, 'Walrus', 'A walrus on the beach.')")
    conn.commit()
    before = {row[0] for row in conn.execute("SELECT passage_id FROM _colbert_posts_passages")}
    assert small_index.rebuild().rows == 6
    assert small_index.search("walrus", k=1)[0].pk == 6
    assert before.isdisjoint(row[0] for row in conn.execute("SELECT passage_id FROM _colbert_posts_passages"))


def test_another_model_is_refused(db_path: Path, small_index: Index) -> None:
    other = Index.open(db_path, "posts", model=load_encoder("hashing-64"))
    with pytest.raises(ModelMismatch, match=r"index 'posts' was built with 'hashing' \(dim 128"):
        other.search("x")


def test_progress_counts_rows(db_path: Path, encoder: Encoder) -> None:
    seen: list[Progress] = []
    Index.create(db_path, "posts", ["body"], model=encoder, progress=seen.append)
    assert [p.stage for p in seen if p.done == p.total] == ["encode", "train", "write"]
    assert {p.total for p in seen if p.stage == "encode"} == {5}


@pytest.mark.parametrize("missing", ["nowhere.db", "folder/nowhere.db"])
def test_a_missing_database_is_not_created(tmp_path: Path, missing: str) -> None:
    with pytest.raises(SourceError, match="no database file"):
        Index.open(tmp_path / missing, "posts")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look at" * 50)
    with pytest.raises(SourceError, match="notes.txt can't be read as a SQLite database: file is not a database"):
        Index.open(tmp_path / "notes.txt", "posts")


def test_the_index_survives_dump_and_vacuum_into(db_path: Path, small_index: Index, encoder: Encoder) -> None:
    expected = [(hit.pk, hit.score) for hit in small_index.search("night", k=10)]
    small_index.close()
    conn = sqlite3.connect(db_path)
    copy = db_path.with_name("copy.db")
    conn.execute("VACUUM INTO ?", (str(copy),))
    dumped = sqlite3.connect(db_path.with_name("dump.db"))
    dumped.executescript("\n".join(conn.iterdump()))
    for db in (copy, dumped):
        index = Index.open(db, "posts", model=encoder)
        assert index.verify() == []
        assert [(hit.pk, hit.score) for hit in index.search("night", k=10)] == expected


def test_info_adds_up(small_index: Index) -> None:
    info = small_index.info()
    assert info.bytes == sum(info.bytes_by_part.values())
    assert info.bytes_per_token == round(info.bytes / info.tokens, 2)
    assert (info.columns, info.key_columns, info.generation) == (("body",), ("id",), 1)
    assert json.loads(json.dumps(info.to_dict()))["columns"] == ["body"]


def test_only_rows_that_meet_the_condition_are_indexed(db_path: Path, encoder: Encoder) -> None:
    index = Index.create(db_path, "posts", ["body"], model=encoder, where="id > :n", params={"n": 2})
    assert index.counts().rows == 3
    assert index.verify() == []
    assert Index.open(db_path, "posts", model=encoder).rebuild().rows == 3


def test_the_four_stages_agree_with_scoring_everything(tmp_path: Path, encoder: Encoder) -> None:
    """Over random words most rows are near ties; the best ones, and every score, must still be the same."""
    generator = np.random.default_rng(7)
    vocabulary = [f"word{i}" for i in range(400)]
    db = sqlite3.connect(tmp_path / "t.db")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    db.executemany(
        "INSERT INTO t VALUES (?, ?)", [(i, " ".join(generator.choice(vocabulary, 12))) for i in range(3000)]
    )
    index = Index.create(db, "t", ["body"], model=encoder)
    for query in ("word1 word2 word3", "word399 word17"):
        exhaustive = index.search(query, k=3000, ndocs=1_000_000)
        scores = {hit.pk: hit.score for hit in exhaustive}
        hits = index.search(query, k=10)
        assert [hit.pk for hit in hits[:3]] == [hit.pk for hit in exhaustive[:3]]
        assert [hit.score for hit in hits] == pytest.approx([scores[hit.pk] for hit in hits], abs=1e-5)
    assert len(index.search("word5", k=5000)) == 3000


def test_a_search_after_a_rebuild_uses_the_new_codec(db_path: Path, small_index: Index, encoder: Encoder) -> None:
    small_index.search("comet")
    conn = sqlite3.connect(db_path)
    conn.executemany("INSERT INTO posts VALUES (?, 'New', ?)", [(i, f"Row {i} is of topic{i}.") for i in range(10, 60)])
    conn.commit()
    other = Index.open(db_path, "posts", model=encoder)
    other.search("comet")
    small_index.rebuild()
    for index in (small_index, other):
        assert index.search("topic33", k=1)[0].pk == 33


def test_a_rebuild_keeps_what_another_connection_chose(db_path: Path, small_index: Index, encoder: Encoder) -> None:
    Index.create(db_path, "posts", ["title"], model=encoder, nbits=1, replace=True).close()
    small_index.rebuild()
    assert (small_index.settings.nbits, small_index.settings.columns) == (1, ("title",))
    drop(db_path, "posts")
    with pytest.raises(IndexNotFound):
        small_index.rebuild()
    with pytest.raises(IndexNotFound):
        _ = small_index.counts()


def test_conditions_see_only_the_source_table(tmp_path: Path, encoder: Encoder) -> None:
    """SQLite takes "start" for a string unless a table in sight has such a column, as ours has."""
    db = sqlite3.connect(tmp_path / "t.db")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, kind TEXT, body TEXT)")
    db.executemany("INSERT INTO t VALUES (?, ?, 'words')", [(1, "start"), (2, "end"), (3, "doclen")])
    index = Index.create(db, "t", ["body"], model=encoder, where='kind != "ordinal"')
    assert index.verify() == []
    assert [hit.pk for hit in index.search("words", where='kind = "start"')] == [1]
    ended = Index.create(db, "t", ["body"], name="ended", model=encoder, where='kind = "end"')
    assert (ended.counts().rows, ended.verify()) == (1, [])


@pytest.mark.parametrize(
    "factory", [sqlite3.Row, lambda cursor, row: {c[0]: v for c, v in zip(cursor.description, row, strict=True)}]
)
def test_the_callers_row_and_text_factories_do_not_matter(
    db_path: Path,
    encoder: Encoder,
    factory: Any,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(empty)
    conn = sqlite3.connect(db_path)
    conn.row_factory, conn.text_factory = factory, bytes
    index = Index.create(conn, "posts", ["body"], model=encoder)
    hit = index.search("comet", k=1, where="id > 1")[0]
    assert (hit.pk, hit.row["title"], index.verify()) == (2, "Comets", [])
    assert [entry.name for entry in list_indexes(conn)] == ["posts"]
    assert index.rebuild().rows == 5
    assert (conn.row_factory, conn.text_factory) == (factory, bytes)
    assert [*empty.iterdir()] == []


def test_another_primary_key_asks_for_a_rebuild(db_path: Path, small_index: Index) -> None:
    sqlite_utils.Database(db_path)["posts"].transform(pk="title")
    for call in (lambda: small_index.search("comet"), lambda: small_index.search("x", where="1"), small_index.verify):
        with pytest.raises(SourceError, match="primary key of table 'posts' was id when .* is title now: rebuild"):
            call()
    small_index.rebuild()
    assert small_index.search("comet", k=1)[0].pk == "Comets"


def test_an_index_of_another_version_can_be_listed_replaced_and_dropped(
    db_path: Path, small_index: Index, encoder: Encoder
) -> None:
    Index.create(db_path, "posts", ["title"], name="titles", model=encoder).close()
    conn = sqlite3.connect(db_path)
    conn.execute("UPDATE _colbert_indexes SET schema_version = 99, settings = '{' WHERE name = 'posts'")
    conn.commit()
    with pytest.raises(SchemaVersionError, match="index 'posts' has schema version 99, this release reads 1: install"):
        small_index.search("comet")
    assert [(i.name, i.state) for i in list_indexes(db_path)] == [("posts", "unreadable"), ("titles", "ready")]
    replaced = Index.create(db_path, "posts", ["body"], model=encoder, replace=True)
    assert replaced.search("comet", k=1)[0].pk == 2
    conn.execute("UPDATE _colbert_indexes SET settings = '{' WHERE name = 'posts'")
    conn.commit()
    with pytest.raises(IndexCorrupt, match="the registry entry of index 'posts' is damaged"):
        replaced.search("comet")
    drop(db_path, "posts")
    assert [i.name for i in list_indexes(db_path)] == ["titles"]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE _colbert_posts_codes SET codes = CAST(substr(codes, 3) AS BLOB)",
        "UPDATE _colbert_posts_codes SET codes = CAST(codes || x'0000' AS BLOB)",
        "UPDATE _colbert_posts_codes SET codes = x'' WHERE passage_id = 2",
        "UPDATE _colbert_posts_passages SET doclen = doclen - 1 WHERE passage_id = 2",
        "UPDATE _colbert_posts_passages SET doclen = 1 << 36, residual_start = 0",
        "UPDATE _colbert_posts_codec SET stream_tokens = 1 << 39",
        "UPDATE _colbert_indexes SET model_fingerprint = x'00'",
    ],
)
def test_damage_is_never_a_wrong_hit(small_index: Index, damage: str) -> None:
    connection_of(small_index).execute(damage)
    with pytest.raises(IndexCorrupt, match="index 'posts'"):
        Index.open(connection_of(small_index), "posts", model=small_index.load_encoder()).search("bread")


class StopWords(HashingEncoder):
    """A model that skips every word of a query."""

    def encode_queries(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.empty((0, self.dim), np.float32) for _ in texts]


def test_a_query_that_the_model_leaves_nothing_of(small_index: Index) -> None:
    with (
        Index.open(connection_of(small_index), "posts", model=StopWords(128)) as index,
        pytest.raises(ValueError, match="has no tokens for the query 'the': use other words"),
    ):
        index.search("the")


def test_no_queries_have_no_hits(small_index: Index) -> None:
    assert small_index.search_many([]) == []
    assert small_index.search_many(query for query in ["comet"]) == [small_index.search("comet")]


def test_a_loaded_model_leaves_no_thread(small_index: Index) -> None:
    before = threading.active_count()
    assert Index.open(connection_of(small_index), "posts").load_encoder().dim
    assert threading.active_count() == before


def test_a_temporary_table_does_not_hide_the_source(db_path: Path, encoder: Encoder) -> None:
    conn = sqlite3.connect(db_path)
    conn.execute("CREATE TEMP TABLE posts (id INTEGER PRIMARY KEY, title TEXT, body TEXT)")
    index = Index.create(conn, "posts", ["body"], model=encoder)
    assert index.counts().rows == 5
    assert [hit.row["title"] for hit in index.search("comet", k=1, where="posts.id = 2")] == ["Comets"]


def test_a_uri_does_not_create_a_file_either(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="can't be opened"):
        Index.open(f"{(tmp_path / 'nowhere.db').as_uri()}", "posts")
    assert list(tmp_path.iterdir()) == []


def test_parameters_that_cannot_be_stored_are_refused_before_the_model_is_loaded(db_path: Path) -> None:
    with pytest.raises(ValueError, match="params must be text, numbers or NULL"):
        Index.create(db_path, "posts", ["body"], where="id = :b", params={"b": b"x"}, model="no such model")
    with pytest.raises(ValueError, match=r"columns must be a list of names, such as \['body'\]"):
        Index.create(db_path, "posts", "body", model="no such model")


class NanEncoder:
    """The hashing encoder with one number that is none."""

    def __init__(self, encoder: Encoder, *, in_queries: bool) -> None:
        self._encoder = encoder
        self._in_queries = in_queries

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_queries(self, texts: list[str]) -> list[Any]:
        return [np.full_like(e, np.nan) if self._in_queries else e for e in self._encoder.encode_queries(texts)]

    def encode_passages(self, texts: list[str]) -> list[Any]:
        return [e if self._in_queries else np.full_like(e, np.nan) for e in self._encoder.encode_passages(texts)]


@pytest.mark.parametrize("in_queries", [True, False])
def test_embeddings_that_are_no_numbers_are_refused(db_path: Path, encoder: Encoder, in_queries: bool) -> None:
    model: Any = NanEncoder(encoder, in_queries=in_queries)
    with pytest.raises(ModelError, match="gives embeddings that are not numbers"):
        Index.create(db_path, "posts", ["body"], model=model).search("comet")


@pytest.mark.parametrize("other_connection", [False, True])
def test_damage_done_after_a_search_is_noticed_by_the_next(
    db_path: Path, encoder: Encoder, other_connection: bool
) -> None:
    conn = sqlite3.connect(db_path)
    index = Index.create(conn, "posts", ["body"], model=encoder)
    assert index.search("comet", k=1)[0].pk == 2
    writer = sqlite3.connect(db_path) if other_connection else conn
    # As long as before, so that only the checksum tells.
    writer.execute("UPDATE _colbert_posts_residuals SET residuals = zeroblob(length(residuals))")
    writer.commit()
    with pytest.raises(IndexCorrupt, match="residuals of index 'posts' are damaged: a checksum differs"):
        index.search("comet", k=1)
