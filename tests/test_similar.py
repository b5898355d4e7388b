"""Rows like a row, from what is stored: no model is loaded, and the row itself is never among them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlite_utils

from colbert_sqlite import Index, Similar, SourceError
from colbert_sqlite.encoders import Encoder
from colbert_sqlite.engine.salience import salient_centroids
from colbert_sqlite.progress import Progress

NOTES = {
    1: "The sourdough starter sat on the window sill and smelled of apples.",
    2: "A sourdough starter wants flour, water and a warm window sill.",
    3: "Jupiter and its moons through a small telescope in the garden.",
    4: "The telescope shows the moons of Jupiter, and the rings of Saturn.",
    5: "Nothing is like this one: bicycle chains wear out.",
}


class NoEncoder:
    """Stands where a model would be, and must not be asked for anything."""

    def __init__(self, encoder: Encoder) -> None:
        self.name, self.fingerprint, self.dim = encoder.name, encoder.fingerprint, encoder.dim
        self.backend = "none"


@pytest.fixture
def notes(tmp_path: Path, encoder: Encoder) -> sqlite_utils.Database:
    db = sqlite_utils.Database(tmp_path / "notes.db")
    db["notes"].insert_all(({"id": n, "body": text} for n, text in NOTES.items()), pk="id")
    Index.create(db, "notes", ["body"], model=encoder)
    return db


def similar(index: Index, pk: Any, **options: Any) -> list[Any]:
    return [hit.pk for hit in index.similar(pk, **options)]


def test_the_rows_most_like_a_row_come_first_and_it_is_not_among_them(notes: sqlite_utils.Database) -> None:
    index = Index.open(notes, "notes")
    assert [similar(index, pk)[0] for pk in (1, 2, 3, 4)] == [2, 1, 4, 3]
    assert all(sorted([pk, *similar(index, pk)]) == [1, 2, 3, 4, 5] for pk in NOTES)


def test_no_model_is_loaded(notes: sqlite_utils.Database, encoder: Encoder) -> None:
    nobody: Any = NoEncoder(encoder)
    assert similar(Index.open(notes, "notes", model=nobody), 1, k=1) == [2]
    with pytest.raises(AttributeError):
        Index.open(notes, "notes", model=nobody).search("sourdough")


def test_scores_are_mean_similarities_and_equal_text_has_nearly_1(notes: sqlite_utils.Database) -> None:
    notes["notes"].insert({"id": 6, "body": NOTES[3]})
    index = Index.open(notes, "notes")
    index.sync()
    hits = index.similar(3)
    assert hits[0].pk == 6
    assert hits[0].score > 0.9
    assert all(0 <= hit.score <= 1 and hit.normalized_score == hit.score for hit in hits)
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]


def test_filters_and_thresholds_apply(notes: sqlite_utils.Database) -> None:
    index = Index.open(notes, "notes")
    assert set(similar(index, 1, where="id > :n", params={"n": 2})) == {3, 4, 5}
    assert similar(index, 1, pks=[1, 5]) == [5]
    assert similar(index, 1, where="id = 1") == []
    assert similar(index, 1, threshold=index.similar(1)[0].score) == [2]


def test_a_row_that_is_not_indexed_is_named(notes: sqlite_utils.Database, tmp_path: Path, encoder: Encoder) -> None:
    with pytest.raises(
        SourceError, match="index 'notes' has no text of row 99: the row is missing, not synced, or empty"
    ):
        Index.open(notes, "notes").similar(99)
    with pytest.raises(ValueError, match="k must be a whole number"):
        Index.open(notes, "notes").similar(1, 0)


def test_long_rows_are_compared_by_their_most_telling_tokens(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite3.connect(tmp_path / "long.db")
    db.execute("create table notes (id text primary key, body text)")
    filler = "\n\n".join(f"On day {n} we walked on and it was the same again." for n in range(60))
    db.executemany(
        "insert into notes values (?, ?)",
        [
            ("a", f"{filler}\n\nThe heron stood on the weir."),
            ("b", "A heron on a weir."),
            ("c", filler),
            ("d", "A kingfisher."),
        ],
    )
    db.commit()
    index = Index.create(db, "notes", ["body"], model=encoder, max_tokens=64)
    assert similar(index, "a", k=1) == ["c"]
    assert similar(index, "b", k=1) == ["a"]


def test_rare_and_frequent_tokens_tell_most() -> None:
    counts = np.array([1, 5, 5, 1])
    list_lengths = np.array([100, 100, 2, 2])
    assert salient_centroids(counts, list_lengths, 100, 3).tolist() == [2, 3, 1]


def test_compound_keys_in_tables_without_rowid(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite3.connect(tmp_path / "docs.db")
    db.execute("create table s (project text, n integer, body text, primary key (project, n)) without rowid")
    db.executemany("insert into s values ('p', ?, ?)", NOTES.items())
    db.commit()
    index = Index.create(db, "s", ["body"], model=encoder)
    assert similar(index, ("p", 3), k=1) == [("p", 4)]
    index.similar_all(2, into="related")
    assert [column[1] for column in db.execute("pragma table_info(related)")] == [
        "project", "n", "rank", "related_project", "related_n", "score",
    ]  # fmt: skip
    assert db.execute("select related_n from related where n = 4 and rank = 1").fetchall() == [(3,)]


def test_all_rows_at_once_are_each_row_by_itself(notes: sqlite_utils.Database) -> None:
    index = Index.open(notes, "notes")
    events: list[Progress] = []
    found = index.similar_all(3, progress=events.append)
    assert found == [Similar(pk, hit.rank, hit.pk, hit.score) for pk in NOTES for hit in index.similar(pk, 3)]
    assert found[0].to_dict() == {"pk": 1, "rank": 1, "related_pk": 2, "score": found[0].score}
    assert events == [Progress("similar", n, 5) for n in range(6)]
    within = index.similar_all(3, where="id < 4")
    assert {one.pk for one in within} == {one.related_pk for one in within} == {1, 2, 3}


def test_all_into_a_table_with_foreign_keys_which_a_second_call_replaces(notes: sqlite_utils.Database) -> None:
    index = Index.open(notes, "notes")
    index.similar_all(2, into="related")
    rows = list(notes.query("select id, rank, related_id from related order by id, rank"))
    assert rows[:2] == [
        {"id": 1, "rank": 1, "related_id": 2},
        {"id": 1, "rank": 2, "related_id": rows[1]["related_id"]},
    ]
    assert len(rows) == 10
    assert notes["related"].pks == ["id", "rank"]
    assert {(key.column, key.other_table, key.other_column) for key in notes["related"].foreign_keys} == {
        ("id", "notes", "id"),
        ("related_id", "notes", "id"),
    }
    notes.execute("delete from notes where id = 5")
    notes.conn.commit()
    index.similar_all(2, into="related")
    assert notes["related"].count_where("id = 5 or related_id = 5") == 0
    assert notes["related"].count == 8


def test_a_deleted_row_leaves_the_table_where_foreign_keys_are_enforced(notes: sqlite_utils.Database) -> None:
    Index.open(notes, "notes").similar_all(2, into="related")
    notes.execute("pragma foreign_keys = on")
    notes.execute("delete from notes where id = 1")
    assert notes["related"].count_where("id = 1 or related_id = 1") == 0


def test_another_table_of_that_name_is_left_alone(notes: sqlite_utils.Database) -> None:
    index = Index.open(notes, "notes")
    for name in ("notes", "a_view"):
        notes.execute("create view if not exists a_view as select id, 1 rank, 2 related_id, 3.0 score from notes")
        before = list(notes.query(f"select * from {name}"))
        with pytest.raises(SourceError, match=f"'{name}' exists already"):
            index.similar_all(2, into=name)
        assert list(notes.query(f"select * from {name}")) == before


def test_a_key_may_be_called_like_our_columns(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite3.connect(tmp_path / "r.db")
    db.execute("create table notes (Rank integer primary key, body text)")
    db.executemany("insert into notes values (?, ?)", NOTES.items())
    db.commit()
    Index.create(db, "notes", ["body"], model=encoder).similar_all(1, into="related")
    assert db.execute('select "row_Rank", rank, "related_Rank" from related').fetchone() == (1, 1, 2)


def test_searching_and_finding_similar_rows_work_on_a_read_only_file(
    notes: sqlite_utils.Database, tmp_path: Path
) -> None:
    notes.conn.close()
    with Index.open(f"file:{tmp_path / 'notes.db'}?mode=ro", "notes") as index:
        assert similar(index, 1, k=1) == [2]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            index.similar_all(1, into="related")


def test_a_deleted_row_is_like_nothing_synced_or_not(notes: sqlite_utils.Database) -> None:
    notes.execute("delete from notes where id = 1")
    notes.conn.commit()
    with pytest.raises(SourceError, match="no text of row 1"):
        Index.open(notes, "notes").similar(1)


def test_keys_are_written_as_they_are_spelled_now(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite3.connect(tmp_path / "n.db")
    db.execute("create table notes (id text, body text, primary key (id collate nocase))")
    db.executemany("insert into notes values (?, ?)", [(f"a{n}", text) for n, text in NOTES.items()])
    db.commit()
    index = Index.create(db, "notes", ["body"], model=encoder)
    db.execute("update notes set id = upper(id)")
    db.execute("pragma foreign_keys = on")
    assert {one.pk for one in index.similar_all(1, into="related")} == {f"A{n}" for n in NOTES}
    assert db.execute("select id, related_id from related where id = 'a3'").fetchall() == [("A3", "A4")]


def test_a_key_of_id_and_related_id(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite3.connect(tmp_path / "r.db")
    db.execute("create table notes (id integer, related_id integer, body text, primary key (id, related_id))")
    db.executemany("insert into notes values (?, 0, ?)", NOTES.items())
    db.commit()
    Index.create(db, "notes", ["body"], model=encoder).similar_all(1, into="related")
    assert [column[1] for column in db.execute("pragma table_info(related)")] == [
        "id", "related_id", "rank", "related_related_id", "related_related_related_id", "score",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "key",
    [
        "id text collate nocase, body text, primary key (id collate binary)",
        "id text primary key collate nocase, body text",
    ],
)
def test_deleting_rows_goes_on_working_whatever_the_key_compares_by(tmp_path: Path, encoder: Encoder, key: str) -> None:
    db = sqlite3.connect(tmp_path / "n.db")
    db.execute(f"create table notes ({key})")
    db.executemany("insert into notes values (?, ?)", [(f"a{n}", text) for n, text in NOTES.items()])
    db.commit()
    Index.create(db, "notes", ["body"], model=encoder).similar_all(1, into="related")
    db.execute("pragma foreign_keys = on")
    assert db.execute("delete from notes where id = 'a1'").rowcount == 1


def test_a_key_of_row_rank_and_rank(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite3.connect(tmp_path / "r.db")
    db.execute("create table notes (row_rank integer, rank integer, body text, primary key (row_rank, rank))")
    db.executemany("insert into notes values (?, 0, ?)", NOTES.items())
    db.commit()
    index = Index.create(db, "notes", ["body"], model=encoder)
    index.similar_all(1, into="related")
    index.similar_all(1, into="related")
    assert [column[1] for column in db.execute("pragma table_info(related)")] == [
        "row_row_rank", "row_rank", "rank", "related_row_rank", "related_rank", "score",
    ]  # fmt: skip


def test_trying_a_table_leaves_nothing(notes: sqlite_utils.Database) -> None:
    index = Index.open(notes, "notes")
    with pytest.raises(ValueError, match=r"params \(n\) need where"):
        index.similar_all(1, into="related", params={"n": 1})
    assert "related" not in notes.table_names()
