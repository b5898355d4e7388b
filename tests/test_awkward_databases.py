"""Names, keys and values that real databases have and tidy ones do not."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.errors import SourceError
from colbert_sqlite.index import Index
from colbert_sqlite.indexes import list_indexes


@pytest.fixture
def conn(tmp_path: Path) -> sqlite3.Connection:
    return sqlite3.connect(tmp_path / "t.db")


NAMES = [
    'a "b" [c] d',
    "naïve 日本 😀",
    "select",
    "x'; DROP TABLE t; --",
    "with\nnewline",
    "_colbert_x",
    "%s {0} ?1",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_works_for_tables_columns_keys_and_indexes(
    conn: sqlite3.Connection, encoder: Encoder, name: str
) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    key = '"key ' + name.replace('"', '""') + '"'
    heading = '"head ' + name.replace('"', '""') + '"'
    conn.execute(f"CREATE TABLE {quoted} ({key} TEXT PRIMARY KEY, {heading} TEXT, {quoted} TEXT)")
    conn.execute(f"INSERT INTO {quoted} VALUES ('k1', 'Sea', 'A walrus swims.'), ('k2', 'Land', 'A camel walks.')")
    index = Index.create(conn, name, [name], heading=f"head {name}", model=encoder)
    assert (index.name, index.verify()) == (name, [])
    hit = index.search("camel", k=1)[0]
    assert (hit.pk, hit.row) == ("k2", {f"key {name}": "k2", f"head {name}": "Land", name: "A camel walks."})
    assert index.search("camel", where=f"{key} = :k", params={"k": "k1"})[0].pk == "k1"
    assert index.rebuild().rows == 2
    assert [entry.name for entry in list_indexes(conn)] == [name]
    index.drop()
    assert list_indexes(conn) == []


@pytest.mark.parametrize("column", ["passage_id", "ordinal", "start", "end", "doclen", "content_hash", "rowid"])
def test_key_columns_may_be_called_like_ours(conn: sqlite3.Connection, encoder: Encoder, column: str) -> None:
    conn.execute(f'CREATE TABLE t ("{column}" TEXT PRIMARY KEY, body TEXT)')
    conn.execute("INSERT INTO t VALUES ('a', 'A walrus.')")
    assert Index.create(conn, "t", ["body"], model=encoder).search("walrus")[0].pk == "a"


@pytest.mark.parametrize(
    ("ddl", "keys"),
    [
        ("id INTEGER PRIMARY KEY", [-5, 0, 2**62]),
        ("id INT PRIMARY KEY", [1, 2, 3]),
        ("id TEXT PRIMARY KEY", ["", "a b", "é'\"\0x"]),
        ("id TEXT PRIMARY KEY COLLATE NOCASE", ["A", "b", "É"]),
        ("id BLOB PRIMARY KEY", [b"", b"\xff\x00", b"a"]),
        ("id REAL PRIMARY KEY", [-1.5, 0.1, 1e300]),
        ("id PRIMARY KEY", [1, "1", b"1"]),
        ("id DATE PRIMARY KEY", ["2024-01-01", "2024-01-02", "x"]),
        ("id VARCHAR(3) PRIMARY KEY", ["a", "b", "c"]),
    ],
)
@pytest.mark.parametrize("options", ["", "WITHOUT ROWID"])
def test_any_key_works(conn: sqlite3.Connection, encoder: Encoder, ddl: str, keys: list[Any], options: str) -> None:
    conn.execute(f"CREATE TABLE t ({ddl}, body TEXT) {options}")
    conn.executemany("INSERT INTO t VALUES (?, ?)", [(key, f"animal{i}") for i, key in enumerate(keys)])
    index = Index.create(conn, "t", ["body"], model=encoder)
    assert index.verify() == []
    for i, key in enumerate(keys):
        hit = index.search(f"animal{i}", k=1)[0]
        assert (hit.pk, type(hit.pk)) == (key, type(key))
        assert [h.pk for h in index.search("animal", pks=[key])] == [key]


def test_keys_are_compared_as_the_table_compares_them(conn: sqlite3.Connection, encoder: Encoder) -> None:
    conn.execute("CREATE TABLE t (id TEXT PRIMARY KEY COLLATE NOCASE, body TEXT)")
    conn.execute("INSERT INTO t VALUES ('A', 'walrus')")
    index = Index.create(conn, "t", ["body"], model=encoder)
    conn.execute("UPDATE t SET id = 'a'")
    assert index.verify() == []
    assert [hit.row["id"] for hit in index.search("walrus", pks=["a"], where="id = 'A'")] == ["a"]


@pytest.mark.parametrize("options", ["", "WITHOUT ROWID"])
def test_compound_keys_are_tuples(conn: sqlite3.Connection, encoder: Encoder, options: str) -> None:
    conn.execute(f"CREATE TABLE t (b TEXT, a INTEGER, body TEXT, PRIMARY KEY (a, b)) {options}")
    conn.execute("INSERT INTO t VALUES ('x', 1, 'A walrus.'), ('y', 1, 'A camel.'), ('x', 2, 'A heron.')")
    index = Index.create(conn, "t", ["body"], model=encoder)
    assert index.search("camel", k=1)[0].pk == (1, "y")
    assert {hit.pk for hit in index.search("a", pks=[(1, "x"), [2, "x"]])} == {(1, "x"), (2, "x")}
    assert {hit.pk for hit in index.search("a", where="b = 'x'")} == {(1, "x"), (2, "x")}
    assert index.verify() == []


def test_a_strict_table_with_an_any_key(conn: sqlite3.Connection, encoder: Encoder) -> None:
    conn.execute("CREATE TABLE t (id ANY PRIMARY KEY, body TEXT) STRICT")
    conn.execute("INSERT INTO t VALUES ('1', 'walrus'), (1, 'camel')")
    index = Index.create(conn, "t", ["body"], model=encoder)
    assert [index.search(word, k=1)[0].pk for word in ("walrus", "camel")] == ["1", 1]


def test_odd_values_are_indexed_or_counted(conn: sqlite3.Connection, encoder: Encoder) -> None:
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body)")
    conn.execute("INSERT INTO t VALUES (1, CAST(x'77616c727573ff21' AS TEXT)), (2, 'camel' || char(0) || 'heron')")
    conn.execute("INSERT INTO t VALUES (3, x'00ff00ff'), (4, 1234567), (5, NULL), (6, '   '), (7, x'6f74746572')")
    index = Index.create(conn, "t", ["body"], model=encoder)
    assert index.counts().rows_without_text == 3
    assert [index.search(w, k=1)[0].pk for w in ("walrus", "heron", "1234567", "otter")] == [1, 2, 4, 7]
    assert index.search("walrus", k=1)[0].row["body"] == "walrus\ufffd!"


@pytest.mark.slow
def test_a_row_of_a_megabyte_is_indexed_to_its_last_word(conn: sqlite3.Connection, encoder: Encoder) -> None:
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    words = random.Random(0)
    body = " ".join(f"{words.choice('bcdfg')}{words.choice('aeiou')}{words.randrange(100)}." for _ in range(180_000))
    conn.execute("INSERT INTO t VALUES (1, ? || ' walrus'), (2, 'A short row.')", (body,))
    index = Index.create(conn, "t", ["body"], model=encoder)
    hit = index.search("walrus", k=1)[0]
    assert (hit.pk, hit.passage.end) == (1, len(hit.row["body"]))


def test_a_generated_column_can_be_indexed(conn: sqlite3.Connection, encoder: Encoder) -> None:
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, body TEXT AS ('A ' || a) VIRTUAL)")
    conn.execute("INSERT INTO t (id, a) VALUES (1, 'walrus')")
    assert Index.create(conn, "t", ["body"], model=encoder).search("walrus")[0].passage.text == "A walrus"


def test_rows_without_a_key_are_refused_with_a_way_out_that_works(tmp_path: Path, encoder: Encoder) -> None:
    import sqlite_utils

    db = sqlite_utils.Database(tmp_path / "t.db")
    db["t"].insert_all([{"body": "A walrus."}])
    with pytest.raises(SourceError, match="transform .*t.db t --rename rowid id --pk id"):
        Index.create(db, "t", ["body"], model=encoder)
    db["t"].transform(rename={"rowid": "id"}, pk="id")
    assert Index.create(db, "t", ["body"], model=encoder).search("walrus")[0].pk == 1
