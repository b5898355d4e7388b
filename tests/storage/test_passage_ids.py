"""Ids of passages are never used again, and no table of SQLite's own is needed for that."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlite_utils

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.errors import IndexCorrupt
from colbert_sqlite.index import Index
from colbert_sqlite.progress import SyncResult
from colbert_sqlite.storage.blobs import MAX_PASSAGE_ID
from tests.damage import forge_checksums, make_older


@pytest.fixture
def conn(db_path: Path) -> sqlite3.Connection:
    return sqlite3.connect(db_path, isolation_level=None)


@pytest.fixture
def index(conn: sqlite3.Connection, encoder: Encoder) -> Index:
    """An index of five posts, one passage each."""
    return Index.create(conn, "posts", ["body"], model=encoder)


def ids(conn: sqlite3.Connection) -> list[int]:
    return [row[0] for row in conn.execute("SELECT passage_id FROM _colbert_posts_passages ORDER BY passage_id")]


def delete_last(conn: sqlite3.Connection) -> None:
    """Delete the row of the highest id."""
    conn.execute("DELETE FROM posts WHERE id = (SELECT pk_id FROM _colbert_posts_passages ORDER BY passage_id DESC)")


def test_ids_begin_with_one_in_the_order_of_the_table(conn: sqlite3.Connection, index: Index) -> None:
    assert ids(conn) == [1, 2, 3, 4, 5]


def test_the_id_of_a_deleted_passage_is_not_given_again(conn: sqlite3.Connection, index: Index) -> None:
    delete_last(conn)
    index.sync()
    conn.execute("INSERT INTO posts VALUES (9, 'Yeast', 'Feed the starter.')")
    index.sync()
    assert ids(conn) == [1, 2, 3, 4, 6]


@pytest.mark.parametrize("again", ["rebuild", "replace"])
def test_no_build_gives_an_id_again(conn: sqlite3.Connection, index: Index, encoder: Encoder, again: str) -> None:
    delete_last(conn)
    index.sync()
    if again == "rebuild":
        index.rebuild()
    else:
        Index.create(conn, "posts", ["title"], model=encoder, nbits=2, replace=True)
    assert ids(conn) == [6, 7, 8, 9]


def test_an_empty_index_remembers_its_ids(conn: sqlite3.Connection, index: Index) -> None:
    conn.execute("DELETE FROM posts")
    index.sync()
    index.optimize()
    index.rebuild()
    conn.execute("INSERT INTO posts VALUES (9, 'Yeast', 'Feed the starter.')")
    index.sync()
    assert min(ids(conn)) > 5


@pytest.mark.parametrize("damage", ["DELETE FROM {}", "UPDATE {} SET next_passage_id = 'x'", "DROP TABLE {}"])
def test_where_the_codec_is_lost_the_passages_say_which_ids_were_given(
    conn: sqlite3.Connection, index: Index, damage: str
) -> None:
    conn.execute(damage.format("_colbert_posts_codec"))
    index.rebuild()
    assert ids(conn) == [6, 7, 8, 9, 10]


def test_an_index_of_an_older_format_is_built_anew_with_other_ids(
    conn: sqlite3.Connection, index: Index, encoder: Encoder
) -> None:
    make_older(conn, "posts")
    Index.create(conn, "posts", ["body"], model=encoder, replace=True)
    assert ids(conn) == [6, 7, 8, 9, 10]


def test_an_index_that_has_run_out_of_ids_says_so(conn: sqlite3.Connection, index: Index) -> None:
    conn.execute("UPDATE _colbert_posts_codec SET next_passage_id = ?", (MAX_PASSAGE_ID + 1,))
    forge_checksums(conn, "posts")
    conn.execute("INSERT INTO posts VALUES (9, 'Yeast', 'Feed the starter.')")
    with pytest.raises(IndexCorrupt, match="index 'posts' has no passage ids left: drop the index, then create it"):
        index.sync()
    assert ids(conn) == [1, 2, 3, 4, 5]


def test_ids_that_no_passage_should_have_yet_are_found_and_given_anew(conn: sqlite3.Connection, index: Index) -> None:
    conn.execute("UPDATE _colbert_posts_codec SET next_passage_id = 5")
    forge_checksums(conn, "posts")
    assert "passages with impossible ids, offsets, lengths or hashes: 5" in index.verify()
    index.repair()
    assert index.verify() == []


def test_everything_works_beside_triggers_that_count_rows_of_every_table(
    conn: sqlite3.Connection, index: Index, encoder: Encoder
) -> None:
    assert conn.execute("SELECT count(*) FROM sqlite_master WHERE name = 'sqlite_sequence'").fetchone() == (0,)
    database = sqlite_utils.Database(conn)
    database.enable_counts()
    conn.execute("INSERT INTO posts VALUES (9, 'Yeast', 'Feed the starter.')")
    conn.execute("DELETE FROM posts WHERE id = 1")
    assert index.sync() == SyncResult(added=1, deleted=1)
    assert database.cached_counts(["_colbert_posts_passages"]) == {"_colbert_posts_passages": 5}
    assert index.rebuild().rows == 5
    assert index.search("starter", k=1)[0].pk == 9
    index.optimize()
    assert index.verify() == []
    index.drop()
    assert conn.execute("SELECT name FROM sqlite_master WHERE name LIKE '\\_colbert%' ESCAPE '\\'").fetchall() == []
