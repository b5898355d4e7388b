"""Tables as people make them."""

from __future__ import annotations

import sqlite3

import pytest

from colbert_sqlite.errors import SourceError
from colbert_sqlite.passages import RawValue
from colbert_sqlite.storage.source import Source, affinity


@pytest.fixture
def conn() -> sqlite3.Connection:
    return sqlite3.connect(":memory:")


def test_names_are_spelled_as_in_the_schema(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE Posts (Id INTEGER PRIMARY KEY, Title TEXT, Body TEXT)")
    source = Source.inspect(conn, "posts", ["BODY"], heading="title")
    assert (source.table, source.keys, source.columns, source.heading) == ("Posts", ("Id",), ("Body",), "Title")


def test_a_heading_among_the_columns_is_not_indexed_twice(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT, body TEXT)")
    assert Source.inspect(conn, "posts", ["title", "body"], heading="title").columns == ("body",)
    alone = Source.inspect(conn, "posts", ["title"], heading="title")
    assert (alone.columns, alone.heading) == (("title",), None)


def test_compound_keys_keep_their_order(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE t (b TEXT, a INT, body TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID")
    conn.executemany("INSERT INTO t VALUES (?, ?, 'x')", [("z", 1), ("a", 2), ("b", 1)])
    source = Source.inspect(conn, "t", ["body"])
    assert (source.keys, source.key_types) == (("a", "b"), ("INTEGER", "TEXT"))
    assert list(source.iter_keys(conn)) == [(1, "b"), (1, "z"), (2, "a")]
    assert [row.key for row in source.iter_rows(conn, after=(1, "b"))] == [(1, "z"), (2, "a")]


def test_a_condition_may_have_parameters_and_end_in_a_comment(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT, draft INT)")
    conn.executemany("INSERT INTO t VALUES (?, 'x', ?)", [(1, 0), (2, 1), (3, 0)])
    source = Source.inspect(conn, "t", ["body"], where="draft = :draft -- published", params={"draft": 0})
    assert (source.count(conn), list(source.iter_keys(conn))) == (2, [(1,), (3,)])
    assert [row.key for row in source.iter_rows(conn, after=(1,))] == [(3,)]
    assert source.read_row(conn, (2,)) is None


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
def test_values_are_bytes_of_utf8_in_any_encoding(encoding: str) -> None:
    conn = sqlite3.connect(":memory:")
    conn.execute(f"PRAGMA encoding = '{encoding}'")
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b, c)")
    conn.execute("INSERT INTO t VALUES (1, 'é日', x'ff', NULL)")
    (row,) = Source.inspect(conn, "t", ["a", "b"], heading="c").iter_rows(conn)
    assert row.values == [RawValue("text", "é日".encode()), RawValue("blob", b"\xff")]
    assert row.heading == RawValue("null", None)


def test_a_row_of_invalid_utf8_reads_whole(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    conn.execute("INSERT INTO t VALUES (1, CAST(x'636166e9' AS TEXT))")
    found = Source.inspect(conn, "t", ["body"]).read_whole_row(conn, (1,))
    assert found is not None and found[0] == {"id": 1, "body": "caf\ufffd"}


@pytest.mark.parametrize(
    ("ddl", "columns", "message"),
    [
        ("CREATE TABLE other (id INTEGER PRIMARY KEY)", ["body"], "no table 't' in this database; it has other"),
        ("CREATE TABLE t (id INTEGER PRIMARY KEY, a, b)", ["body"], "no column 'body' in table 't'; it has id, a, b"),
        ("CREATE TABLE t (body TEXT)", ["body"], "table 't' has no primary key, and VACUUM may renumber its rowids"),
        ("CREATE VIEW t AS SELECT 'x' AS body", ["body"], "'t' is a view, whose rows have no key to refer to"),
        ("CREATE VIRTUAL TABLE t USING fts5(body)", ["body"], "'t' is a virtual table, whose rows have no key"),
    ],
)
def test_what_cannot_be_indexed_is_refused_in_a_sentence(
    conn: sqlite3.Connection, ddl: str, columns: list[str], message: str
) -> None:
    conn.execute(ddl)
    with pytest.raises(SourceError) as error:
        Source.inspect(conn, "t", columns)
    assert message in str(error.value)


def test_null_keys_are_refused(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE t (slug TEXT PRIMARY KEY, body TEXT)")
    conn.execute("INSERT INTO t VALUES (NULL, 'x')")
    with pytest.raises(SourceError, match="1 rows of 't' have NULL in their primary key slug"):
        Source.inspect(conn, "t", ["body"]).refuse_null_keys(conn)


def test_a_key_of_invalid_utf8_is_refused(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE t (slug TEXT PRIMARY KEY, body TEXT)")
    conn.execute("INSERT INTO t VALUES (CAST(x'ff' AS TEXT), 'x')")
    with pytest.raises(SourceError, match="a key of table 't' is not valid UTF-8"):
        list(Source.inspect(conn, "t", ["body"]).iter_keys(conn))


def test_a_broken_condition_is_one_sentence(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    with pytest.raises(SourceError, match="the condition 'nope = 1' can't be used: no such column: nope"):
        Source.inspect(conn, "t", ["body"], where="nope = 1")


@pytest.mark.parametrize(
    ("declared", "expected"),
    [("INT", "INTEGER"), ("varchar(20)", "TEXT"), ("", ""), ("BLOB", ""), ("DOUBLE", "REAL"), ("DATE", "NUMERIC")],
)
def test_affinity_follows_sqlite(declared: str, expected: str) -> None:
    assert affinity(declared) == expected
