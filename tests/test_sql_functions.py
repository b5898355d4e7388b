"""The SQL functions: on connections of Python's sqlite3 and of sqlite-utils, and what they keep and let go."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils
import sqlite_utils_colbert
from click.testing import CliRunner
from sqlite_utils.cli import cli

from colbert_sqlite import register, serving
from colbert_sqlite.encoders import Encoder, cached_encoder, load_encoder
from colbert_sqlite.encoders.cache import shared_encoder
from colbert_sqlite.encoders.hashing import HashingEncoder
from colbert_sqlite.index import Index
from colbert_sqlite.rerank import rerank
from colbert_sqlite.sql import _Functions
from tests.conftest import POSTS

# Importing Datasette makes SQLite's callbacks print their tracebacks, in the whole process.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TEXTS = {pk: body for pk, _, body in POSTS if body}


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    serving.close_pools()


@pytest.fixture
def path(indexed_blog: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(indexed_blog, tmp_path))


@pytest.fixture
def conn(path: Path) -> Iterator[sqlite3.Connection]:
    conn = sqlite3.connect(path)
    register(conn, model="hashing")
    yield conn
    conn.close()


def one(conn: sqlite3.Connection, sql: str, *params: Any) -> Any:
    [[value]] = conn.execute(sql, params).fetchall()
    return value


def pks(conn: sqlite3.Connection, sql: str, *params: Any) -> list[Any]:
    return [hit["pk"] for hit in json.loads(one(conn, sql, *params))]


def refusal(conn: sqlite3.Connection, sql: str, *params: Any) -> str:
    """What ``colbert_error()`` says after a statement that fails."""
    with pytest.raises(sqlite3.OperationalError, match="user-defined"):
        conn.execute(sql, params).fetchall()
    return str(one(conn, "SELECT colbert_error()"))


# colbert_search


def test_search_gives_hits_as_json(conn: sqlite3.Connection, path: Path) -> None:
    with Index.open(path, "posts") as index:
        expected = index.search("restore a copy of the database", k=2)
    assert json.loads(one(conn, "SELECT colbert_search('posts', 'restore a copy of the database', 2)")) == [
        {
            "rank": hit.rank,
            "score": hit.score,
            "normalized_score": hit.normalized_score,
            "pk": hit.pk,
            "passage": hit.passage.text,
            "stale": False,
        }
        for hit in expected
    ]


def test_hits_are_joined_to_their_rows(conn: sqlite3.Connection) -> None:
    sql = """
        select p.id, p.title, json_extract(r.value, '$.rank') from json_each(colbert_search('posts', :q, 20)) as r
        join posts as p on p.id = json_extract(r.value, '$.pk') where p.title != 'Bread' order by r.key
    """
    found = conn.execute(sql, {"q": "comet dust"}).fetchall()
    assert found[0] == (2, "Comets", 1)
    assert {row[0] for row in found} == {2, 3, 5}


def test_views_and_common_table_expressions_can_search(conn: sqlite3.Connection) -> None:
    conn.execute("""
        create temp view about_comets as
        select json_extract(value, '$.pk') as id from json_each(colbert_search('posts', 'comet', 1))
    """)
    assert conn.execute("select title from posts join about_comets using (id)").fetchall() == [("Comets",)]
    sql = """
        with found as (
            select json_extract(value, '$.pk') as id, key as place from json_each(colbert_search('posts', ?, 2))
        )
        select id from found where place = 0
    """
    assert one(conn, sql, "soil in the heap") == 5


def test_each_row_can_ask_its_own_question(conn: sqlite3.Connection) -> None:
    best = "json_extract(colbert_search('posts', title || ' ' || body, 1), '$[0].pk')"
    sql = f"select id, {best} from posts where body is not null"
    assert conn.execute(sql).fetchall() == [(pk, pk) for pk in TEXTS]


def test_keys_narrow_a_search_before_anything_is_scored(conn: sqlite3.Connection) -> None:
    some = "(select json_group_array(id) from posts where id > 2)"
    assert sorted(pks(conn, f"select colbert_search('posts', 'comet', 10, 'colbert', {some})")) == [3, 5]
    assert pks(conn, "select colbert_search('posts', 'comet', 10, 'colbert', '[]')") == []
    assert pks(conn, "select colbert_search('posts', 'comet', 10, 'colbert', '[2, 2, 77, null]')") == [2]


def test_modes_are_those_of_search(conn: sqlite3.Connection) -> None:
    sqlite_utils.Database(conn)["posts"].enable_fts(["body"])
    assert pks(conn, "select colbert_search('posts', 'comet', 10, 'fts')") == [2]
    assert pks(conn, "select colbert_search('posts', 'comet', 1, 'hybrid')") == [2]


def test_null_gives_null(conn: sqlite3.Connection) -> None:
    for sql in (
        "colbert_search(null, 'comet')",
        "colbert_search('posts', null)",
        "colbert_search('posts', 'comet', null)",
        "colbert_search('posts', 'comet', 10, null)",
        "colbert_search('posts', 'comet', 10, 'colbert', null)",
        "colbert_score(null, 'comet')",
        "colbert_score('comet', null)",
        "colbert_score('comet', 'comet', null)",
        "colbert_highlight(null, 'comet')",
        "colbert_highlight('comet', null)",
        "colbert_snippet('comet', null)",
        "colbert_error()",
    ):
        assert one(conn, f"select {sql}") is None
    assert conn.execute("select * from json_each(colbert_search('posts', null))").fetchall() == []


def test_a_blank_query_finds_nothing(conn: sqlite3.Connection) -> None:
    assert one(conn, "select colbert_search('posts', ' ')") == "[]"
    assert one(conn, "select colbert_score('', 'comet')") is None
    assert one(conn, "select colbert_rerank(' ', id, body) from posts") == "[]"


def test_numbers_may_come_as_text_from_a_form(conn: sqlite3.Connection) -> None:
    assert len(pks(conn, "select colbert_search('posts', 'comet', ?)", "2")) == 2
    assert len(pks(conn, "select colbert_search('posts', 'comet', ?)", 2.0)) == 2


def test_wrong_arguments_are_told(conn: sqlite3.Connection) -> None:
    sql = "select colbert_search('posts', 'comet', ?, ?, ?)"
    assert refusal(conn, sql, "ten", "colbert", "[]") == "colbert_search: k must be a whole number, not 'ten'"
    assert refusal(conn, sql, 0, "colbert", "[]").startswith("colbert_search: k must be a whole number from 1 to ")
    assert refusal(conn, sql, 1, "bm25", "[]") == "colbert_search: mode must be colbert, fts or hybrid, not 'bm25'"
    assert refusal(conn, sql, 1, "colbert", "").startswith("colbert_search: pks must be a JSON array of primary keys")
    assert refusal(conn, sql, 1, "colbert", "[[1, 2]]").startswith("colbert_search: a key of 'posts' has 1 values (id)")
    assert refusal(conn, sql, 1, "colbert", '[{"a": 1}]') == ('colbert_search: pks has {"a": 1}, which can\'t be a key')
    assert refusal(conn, "select colbert_search('posts', x'00')") == "colbert_search: query is a BLOB: cast it to text"
    assert "no index 'pots' in this database; it has posts" in refusal(conn, "select colbert_search('pots', 'comet')")


def test_a_wrong_number_of_arguments_is_sqlites_own_error(conn: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError, match="wrong number of arguments to function colbert_search"):
        conn.execute("select colbert_search('posts')")


def test_errors_are_logged_and_kept_by_connection(conn: sqlite3.Connection, caplog: pytest.LogCaptureFixture) -> None:
    other = sqlite3.connect(":memory:")
    register(other, hold=False)
    with caplog.at_level(logging.ERROR, "colbert_sqlite"):
        refusal(conn, "select colbert_search('pots', 'comet')")
    assert caplog.messages == ["colbert_search: no index 'pots' in this database; it has posts"]
    assert one(other, "select colbert_error()") is None


def test_python_prints_errors_where_nobody_configured_logging(path: Path) -> None:
    script = "import sqlite3, sys, colbert_sqlite\nconn = sqlite3.connect(sys.argv[1])\ncolbert_sqlite.register(conn)\n"
    script += "try: conn.execute(\"select colbert_search('pots', 'comet')\")\nexcept sqlite3.Error: pass"
    run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert run.stderr == "colbert_search: no index 'pots' in this database; it has posts\n"


# Keys


@pytest.mark.parametrize(
    ("keys", "declared", "rows", "expected"),
    [
        ("topic, slug", "topic TEXT, slug TEXT", [("a", "x"), ("b", "y")], [["a", "x"], ["b", "y"]]),
        ("id", "id REAL", [(0.5,), (2.5,)], [0.5, 2.5]),
        ("id", "id BLOB", [(b"\x00\xff",), (b"7",)], [{"hex": "00FF"}, {"hex": "37"}]),
        ("id", "id INTEGER", [(2**63 - 1,), (-1,)], [2**63 - 1, -1]),
    ],
    ids=["compound", "real", "blob", "large"],
)
@pytest.mark.parametrize("without_rowid", ["", "WITHOUT ROWID"])
def test_keys_of_every_kind_come_out_and_go_in(
    tmp_path: Path,
    encoder: Encoder,
    keys: str,
    declared: str,
    rows: list[tuple[Any, ...]],
    expected: list[Any],
    without_rowid: str,
) -> None:
    conn = sqlite3.connect(tmp_path / "keys.db")
    conn.execute(f"CREATE TABLE docs ({declared}, body TEXT, PRIMARY KEY ({keys})) {without_rowid}")
    for row, body in zip(rows, ["comet dust", "bread dough"], strict=True):
        conn.execute(f"INSERT INTO docs VALUES ({', '.join('?' * len(row))}, ?)", (*row, body))
    conn.commit()
    Index.create(conn, "docs", ["body"], model=encoder)
    register(conn)
    assert pks(conn, "select colbert_search('docs', 'comet dust')") == expected
    sql = "select colbert_search('docs', 'comet dust', 10, 'colbert', ?)"
    assert pks(conn, sql, json.dumps(expected[1:])) == expected[1:]
    conn.close()


def test_a_hit_of_a_blob_key_is_joined_through_hex(tmp_path: Path, encoder: Encoder) -> None:
    conn = sqlite3.connect(tmp_path / "keys.db")
    conn.execute("CREATE TABLE docs (id BLOB PRIMARY KEY, body TEXT)")
    conn.execute("INSERT INTO docs VALUES (x'00ff', 'comet'), (x'01', 'bread')")
    conn.commit()
    Index.create(conn, "docs", ["body"], model=encoder)
    register(conn)
    sql = """
        select body from json_each(colbert_search('docs', 'comet', 9, 'colbert', (
          select json_group_array(json_object('hex', hex(id))) from docs where id < x'01'
        ))) as r join docs on hex(docs.id) = json_extract(r.value, '$.pk.hex')
    """
    assert conn.execute(sql).fetchall() == [("comet",)]
    conn.close()


def test_a_key_that_json_cannot_hold_is_told(tmp_path: Path, encoder: Encoder) -> None:
    conn = sqlite3.connect(tmp_path / "keys.db")
    conn.execute("CREATE TABLE docs (id REAL PRIMARY KEY, body TEXT)")
    conn.execute("INSERT INTO docs VALUES (9e999, 'comet'), (1.5, 'bread')")
    conn.commit()
    Index.create(conn, "docs", ["body"], model=encoder)
    register(conn, model=encoder)
    wrong = "a row has the key inf, for which JSON has no number: leave the row out, or change its key"
    assert refusal(conn, "select colbert_search('docs', 'comet')") == f"colbert_search: {wrong}"
    assert refusal(conn, "select colbert_rerank('comet', id, body) from docs") == f"colbert_rerank: {wrong}"
    some = "(select json_group_array(id) from docs where id < 9e999)"
    assert pks(conn, f"select colbert_search('docs', 'comet', 10, 'colbert', {some})") == [1.5]
    conn.close()


# colbert_score, colbert_rerank


def test_score_is_that_of_rerank(conn: sqlite3.Connection) -> None:
    scores = dict(conn.execute("select id, colbert_score('comet dust', body) from posts where body is not null"))
    found = rerank("comet dust", list(TEXTS.values()), model="hashing")
    keys = list(TEXTS)
    assert scores == {keys[one.position]: pytest.approx(one.score, abs=1e-5) for one in found}
    assert one(conn, "select id from posts order by colbert_score('comet dust', body) desc limit 1") == 2


def test_score_takes_another_model(conn: sqlite3.Connection) -> None:
    [expected] = rerank("comet dust", ["a comet"], model="hashing-32")
    assert one(conn, "select colbert_score('comet dust', 'a comet', 'hashing-32')") == pytest.approx(expected.score)
    assert "no model is called 'hashed'" in refusal(conn, "select colbert_score('comet', 'comet', 'hashed')")


def test_score_of_what_is_no_text(conn: sqlite3.Connection) -> None:
    assert one(conn, "select colbert_score('2024', 2024)") == pytest.approx(2, abs=1e-4)
    assert one(conn, "select colbert_score('comet', '  ')") is None
    assert "text is a BLOB: cast it to text" in refusal(conn, "select colbert_score('comet', x'00')")


def test_rerank_puts_a_group_in_order(conn: sqlite3.Connection) -> None:
    found = json.loads(one(conn, "select colbert_rerank('comet dust', id, body) from posts"))
    expected = rerank("comet dust", list(TEXTS.values()), model="hashing")
    keys = list(TEXTS)
    assert found == [
        {"rank": rank, "score": hit.score, "normalized_score": hit.normalized_score, "pk": keys[hit.position]}
        for rank, hit in enumerate(expected, start=1)
    ]
    assert pks(conn, "select colbert_rerank('comet dust', id, body, 1) from posts") == [2]
    groups = conn.execute("select id % 2, colbert_rerank('comet', title, body) from posts group by 1").fetchall()
    assert [(group, [hit["pk"] for hit in json.loads(found)][:1]) for group, found in groups] == [
        (0, ["Comets"]),
        (1, [json.loads(groups[1][1])[0]["pk"]]),
    ]


def test_rerank_of_nothing_and_of_null(conn: sqlite3.Connection) -> None:
    # As of other aggregates but count().
    assert one(conn, "select colbert_rerank('comet', id, body) from posts where id > 5") is None
    assert one(conn, "select colbert_rerank(null, id, body) from posts") is None
    assert one(conn, "select colbert_rerank('comet', id, body, null) from posts") is None
    assert "k must be a whole number" in refusal(conn, "select colbert_rerank('comet', id, body, 0) from posts")
    assert "text is a BLOB" in refusal(conn, "select colbert_rerank('comet', id, x'00') from posts")
    texts = "(select 'a' as id, '' as body union all select 'b', 'comet')"
    found = json.loads(one(conn, f"select colbert_rerank('comet', id, body) from {texts}"))
    assert [(hit["pk"], hit["score"] is None) for hit in found] == [("b", False), ("a", True)]


# colbert_highlight, colbert_snippet


def test_highlight_marks_the_words_that_match(conn: sqlite3.Connection) -> None:
    sql = "select colbert_highlight('comet', body) from posts where id = 2"
    assert "<b>comet</b>" in one(conn, sql)
    assert "[comet]" in one(conn, "select colbert_highlight('comet', body, '[', ']') from posts where id = 2")
    assert one(conn, "select colbert_highlight('', 'a < b')") == "a < b"


def test_snippet_is_the_best_window(conn: sqlite3.Connection) -> None:
    long = "water " * 100 + "a comet of dust" + " soil" * 100
    found = one(conn, "select colbert_snippet('comet dust', ?, '[', ']', 8)", long)
    assert "[comet]" in found
    assert len(found.split()) <= 10
    assert one(conn, "select colbert_snippet('', 'a comet of dust', '[', ']', 2)") == "a comet…"
    assert one(conn, "select colbert_snippet('', 'a comet', '[', ']', 2)") == "a comet"
    assert one(conn, "select colbert_snippet(' ', ?, '[', ']', 2)", " a \n comet  of dust") == " a \n comet…"
    assert one(conn, "select colbert_snippet(' ', ?, '[', ']', 2)", " a \n comet  ") == " a \n comet  "
    for query in ("comet", " "):
        for n_words in ("ten", 0, -3):
            assert "n_words must be" in refusal(conn, "select colbert_snippet(?, 'comet', '[', ']', ?)", query, n_words)
        assert "before is a BLOB" in refusal(conn, "select colbert_snippet(?, 'comet', x'00', ']')", query)
        assert "after is a BLOB" in refusal(conn, "select colbert_highlight(?, 'comet', '[', x'00')", query)


# What a search sees


def test_a_search_sees_what_is_committed(conn: sqlite3.Connection, path: Path) -> None:
    sql = "select colbert_search('posts', 'a rare meteor')"
    assert 9 not in pks(conn, sql)
    conn.execute("insert into posts values (9, 'Meteors', 'a rare meteor')")
    with Index.open(path, "posts") as index:
        conn.commit()
        index.sync()
    assert pks(conn, sql)[0] == 9
    conn.execute("delete from posts where id = 9")
    assert pks(conn, sql)[0] == 9
    conn.commit()
    assert 9 not in pks(conn, sql)


def test_statements_that_write_may_search(conn: sqlite3.Connection) -> None:
    sql = "select json_extract(value, '$.pk') as id from json_each(colbert_search('posts', 'comet', 2))"
    conn.execute(f"create table related as {sql}")
    conn.execute(f"insert into related {sql}")
    conn.commit()
    assert one(conn, "select count(*) from related") == 4


def test_a_changed_row_is_told_to_be_stale(conn: sqlite3.Connection) -> None:
    conn.execute("update posts set body = 'A comet' where id = 2")
    conn.commit()
    [hit] = json.loads(one(conn, "select colbert_search('posts', 'comet', 1)"))
    assert (hit["pk"], hit["passage"], hit["stale"]) == (2, "A comet", True)


def test_an_index_may_be_dropped_rebuilt_and_replaced_meanwhile(conn: sqlite3.Connection, path: Path) -> None:
    sql = "select colbert_search('posts', ?, 1)"
    assert pks(conn, sql, "comet") == [2]
    with Index.open(path, "posts") as index:
        index.rebuild()
        assert pks(conn, sql, "comet") == [2]
        index.drop()
    assert "it has none" in refusal(conn, sql, "comet")
    for model in ("hashing-32", "hashing-64"):
        Index.create(path, "posts", ["title"], model=model, replace=True).close()
        assert pks(conn, sql, "Comets") == [2]


def test_a_file_that_is_replaced_is_read_anew(conn: sqlite3.Connection, path: Path, encoder: Encoder) -> None:
    assert len(pks(conn, "select colbert_search('posts', 'comet')")) == 4
    other = path.with_name("other.db")
    with sqlite3.connect(other) as made:
        made.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, body TEXT)")
        made.execute("INSERT INTO posts VALUES (77, 'comet')")
    Index.create(other, "posts", ["body"], model=encoder).close()
    os.replace(other, path)
    assert pks(conn, "select colbert_search('posts', 'comet')") == [77]
    path.unlink()
    assert "no database file" in refusal(conn, "select colbert_search('posts', 'comet')")


def test_a_file_that_cannot_be_written_is_searched(path: Path) -> None:
    path.chmod(0o444)
    conn = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    register(conn)
    assert pks(conn, "select colbert_search('posts', 'comet', 1)") == [2]
    register(conn, database=f"{path.as_uri()}?immutable=1")
    assert pks(conn, "select colbert_search('posts', 'comet', 1)") == [2]
    conn.close()


def test_a_file_name_may_hold_any_character(tmp_path: Path, encoder: Encoder) -> None:
    path = tmp_path / "a%20b ?#é.db"
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, body TEXT)")
    conn.execute("INSERT INTO posts VALUES (1, 'comet')")
    conn.commit()
    Index.create(conn, "posts", ["body"], model=encoder)
    for database in (None, f"{path.as_uri()}?mode=ro"):
        register(conn, database=database)
        assert pks(conn, "select colbert_search('posts', 'comet')") == [1]
    conn.close()


@pytest.mark.parametrize("searched_before", [False, True])
def test_what_waits_for_its_own_caller_gives_up(
    conn: sqlite3.Connection, path: Path, monkeypatch: pytest.MonkeyPatch, searched_before: bool
) -> None:
    monkeypatch.setattr(serving, "BUSY_SECONDS", 0.05)
    sql = "select colbert_search('posts', 'comet', 1)"
    if searched_before:
        assert pks(conn, sql) == [2]
    conn.execute("BEGIN EXCLUSIVE")
    assert refusal(conn, sql) == (
        f"colbert_search: {path} has been locked for 0.05 seconds by another connection, which may be your own: end "
        "its transaction, or close it, and try again"
    )
    conn.rollback()
    assert pks(conn, sql) == [2]


def test_a_database_in_wal_mode_is_searched_while_it_is_written(conn: sqlite3.Connection) -> None:
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("insert into posts values (9, 'Meteors', 'comet')")
    assert pks(conn, "select colbert_search('posts', 'comet', 1)") == [2]
    conn.rollback()


# In memory, and attached


def in_memory(model: Encoder, isolation_level: Any = None) -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:", isolation_level=isolation_level)
    conn.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, body TEXT)")
    conn.executemany("INSERT INTO posts VALUES (?, ?)", TEXTS.items())
    conn.commit()
    Index.create(conn, "posts", ["body"], model=model)
    return conn


@pytest.mark.parametrize("isolation_level", ["", None])
def test_a_database_in_memory_is_searched_through_its_own_connection(
    encoder: Encoder, isolation_level: str | None
) -> None:
    conn = in_memory(encoder, isolation_level)
    conn.row_factory, conn.text_factory = sqlite3.Row, bytes
    register(conn)
    sql = "select json_extract(value, '$.pk') from json_each(colbert_search('posts', 'comet', 2)) limit 1"
    assert [tuple(row) for row in conn.execute(sql)] == [(2,)]
    conn.execute(f"create table found as {sql}")
    conn.execute(f"insert into found {sql}")
    conn.commit()
    conn.execute("begin")
    conn.execute("delete from posts where id = 2")
    assert conn.execute(sql).fetchone()[0] != 2
    conn.rollback()
    assert conn.execute(sql).fetchone()[0] == 2
    assert conn.execute("select count(*) from found").fetchone()[0] == 2
    assert conn.row_factory is sqlite3.Row
    conn.close()


def test_plugins_do_not_hold_a_database_in_memory(encoder: Encoder) -> None:
    conn = in_memory(encoder)
    register(conn, hold=False)
    assert "colbert_sqlite.register(conn)" in refusal(conn, "select colbert_search('posts', 'comet')")
    assert one(conn, "select colbert_score('comet', 'comet', 'hashing')") == pytest.approx(2, abs=1e-4)
    conn.close()


def test_an_index_of_an_attached_database_has_a_schema(conn: sqlite3.Connection, path: Path, encoder: Encoder) -> None:
    outer = sqlite3.connect(path.with_name("outer.db"))
    outer.execute("ATTACH ? AS Blog", [str(path)])
    register(outer)
    assert pks(outer, "select colbert_search('blog.posts', 'comet', 1)") == [2]
    assert pks(conn, "select colbert_search('main.posts', 'comet', 1)") == [2]
    assert "no index 'other.posts'" in refusal(outer, "select colbert_search('other.posts', 'comet')")
    assert "no index 'pots'" in refusal(outer, "select colbert_search('blog.pots', 'comet')")
    outer.close()
    memory = in_memory(encoder)
    register(memory)
    memory.execute("ATTACH ? AS later", [str(path)])
    assert pks(memory, "select colbert_search('later.posts', 'comet', 1)") == [2]
    memory.close()
    nothing = sqlite3.connect(":memory:")
    register(nothing, attached={"Blog": f"{path.as_uri()}?mode=ro"})
    assert pks(nothing, "select colbert_search('blog.posts', 'comet', 1)") == [2]


def test_an_index_whose_name_has_a_dot_comes_first(conn: sqlite3.Connection, path: Path, encoder: Encoder) -> None:
    Index.create(path, "posts", ["title"], name="blog.posts", model=encoder).close()
    outer = sqlite3.connect(path)
    outer.execute("ATTACH ? AS blog", [str(path)])
    register(outer)
    assert json.loads(one(outer, "select colbert_search('blog.posts', 'Comets', 1)"))[0]["passage"] == "Comets"
    assert json.loads(one(outer, "select colbert_search('blog.blog.posts', 'Comets', 1)"))[0]["passage"] == "Comets"
    outer.close()


# What is kept


def open_files() -> list[str]:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc")
    links = []
    for link in folder.iterdir():
        try:
            links.append(os.readlink(link))
        except OSError:
            continue
    return links


def test_a_connection_that_is_forgotten_is_closed(path: Path) -> None:
    before = open_files().count(str(path))
    for _ in range(3):
        conn = sqlite3.connect(path)
        register(conn, hold=False)
        assert pks(conn, "select colbert_search('posts', 'comet', 1)") == [2]
    del conn
    gc.collect()
    assert open_files().count(str(path)) == before + 1
    serving.close_pools()
    gc.collect()
    assert open_files().count(str(path)) == before


def test_only_so_many_files_are_kept_open(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_FILES", 2)
    for i in range(4):
        copy = tmp_path / f"copy{i}.db"
        copy.write_bytes(path.read_bytes())
        conn = sqlite3.connect(copy)
        register(conn, hold=False)
        assert pks(conn, "select colbert_search('posts', 'comet', 1)") == [2]
        conn.close()
    gc.collect()
    assert sorted({Path(name).name for name in open_files() if "copy" in Path(name).name}) == ["copy2.db", "copy3.db"]


def test_closing_a_connection_lets_go_of_a_database_in_memory(encoder: Encoder) -> None:
    conn = in_memory(encoder)
    register(conn)
    assert pks(conn, "select colbert_search('posts', 'comet', 1)") == [2]
    functions = [thing for thing in gc.get_objects() if type(thing) is _Functions]
    assert any(one._held is conn for one in functions)
    del functions
    conn.close()
    gc.collect()
    left = [thing for thing in gc.get_objects() if type(thing) is _Functions]
    assert not any(one._held is conn for one in left)


def test_a_join_that_asks_again_for_every_row_searches_once(
    conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = 0
    search_encoded = Index.search_encoded

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal searches
        searches += 1
        return search_encoded(*args, **kwargs)

    monkeypatch.setattr(Index, "search_encoded", counting)
    hits = "json_each(colbert_search('posts', 'comet'))"
    sql = f"select 1 from posts as p cross join {hits} on json_extract(value, '$.pk') = p.id"
    assert len(conn.execute(sql).fetchall()) == 4
    assert searches == 1


def test_threads_with_a_connection_each_search_at_once(path: Path) -> None:
    failures: list[BaseException] = []

    def work(query: str, pk: int) -> None:
        try:
            conn = sqlite3.connect(path)
            register(conn, model="hashing", hold=False)
            for i in range(20):
                assert pks(conn, "select colbert_search('posts', ?, ?)", query, 1 + i % 3)[0] == pk
                assert one(conn, "select id from posts order by colbert_score(?, body) desc", query) == pk
            conn.close()
        except BaseException as error:
            failures.append(error)

    def one(conn: sqlite3.Connection, sql: str, query: str) -> Any:
        return conn.execute(sql, [query]).fetchone()[0]

    asked = {"knead the dough": 1, "comet of ice": 2, "restore the copy": 3, "waste rot into dark soil": 5}
    threads = [threading.Thread(target=work, args=item) for item in asked.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("searched_first", [False, True])
def test_a_process_has_one_copy_of_a_model(conn: sqlite3.Connection, path: Path, searched_first: bool) -> None:
    model = f"hashing-{104 + 8 * searched_first}"
    for column in ("title", "body"):
        Index.create(path, "posts", [column], name=column, model=model).close()
    uses = [
        lambda: pks(conn, "select colbert_search('body', 'comet', 1)") == [2],
        lambda: pks(conn, "select colbert_search('title', 'comets', 1)") == [2],
        lambda: one(conn, "select colbert_score('comet', 'comet', ?)", model) > 1.9,
        lambda: rerank("comet", ["dust", "comet"], model=model)[0].position == 1,
    ]
    assert all([use() for use in (uses if searched_first else reversed(uses))])
    gc.collect()
    encoders = [thing for thing in gc.get_objects() if type(thing) is HashingEncoder]
    assert [encoder.name for encoder in encoders].count(model) == 1


def test_who_has_a_model_does_not_wait_for_one_that_loads() -> None:
    started, go_on = threading.Event(), threading.Event()

    def load() -> Encoder:
        started.set()
        assert go_on.wait(60)
        return load_encoder("hashing-88")

    known = cached_encoder("hashing-80")
    with ThreadPoolExecutor(2) as pool:
        loading = pool.submit(shared_encoder, load_encoder("hashing-88").fingerprint, load)
        assert started.wait(60)
        try:
            assert pool.submit(cached_encoder, "hashing-80").result(60) is known
            assert pool.submit(shared_encoder, known.fingerprint, load).result(60) is known
        finally:
            go_on.set()
        assert cached_encoder("hashing-88") is loading.result()


FORKING = """
import atexit, gc, os, sqlite3, sys
from colbert_sqlite import register
from colbert_sqlite import register, serving

path, sql = sys.argv[1], "select colbert_search('posts', 'comet', 1)"

def n_open():
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if os.path.islink(link)].count(path)

def search():
    conn = sqlite3.connect(path)
    register(conn)
    conn.execute(sql).fetchone()
    conn.close()

parent = os.getpid()
atexit.register(lambda: os.getpid() == parent or print(n_open(), flush=True))
search()
if child := os.fork():
    os.waitpid(child, 0)
else:
    serving.MAX_FILES = 1
    search()
    gc.collect()
    print(n_open(), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_leaves_the_connections_of_its_parent_alone(path: Path) -> None:
    open_files()
    run = subprocess.run([sys.executable, "-c", FORKING, path], capture_output=True, text=True, check=True)
    # The inherited one and its own, which is closed at the end.
    assert (run.stdout, run.stderr) == ("2\n1\n", "")


# sqlite-utils


@pytest.fixture
def plugin() -> Iterator[None]:
    from sqlite_utils.plugins import pm

    name = pm.register(sqlite_utils_colbert) if not pm.is_registered(sqlite_utils_colbert) else None
    yield
    if name:
        pm.unregister(sqlite_utils_colbert)


SEARCH = "(select json_group_array(json_extract(value, '$.pk')) from json_each(colbert_search('posts', :q, 1)))"
# Each function, called, and what it gives.
CALLS = {
    SEARCH: "[2]",
    "colbert_score(:q, 'a comet') > 1.9": 1,
    "colbert_score(:q, 'a comet', 'hashing-32') > 1.9": 1,
    "(select json_extract(colbert_rerank(:q, id, body, 1), '$[0].pk') from posts)": 2,
    "colbert_highlight(:q, 'a comet of dust')": "a <b>comet</b> of dust",
    "colbert_highlight(:q, 'a comet of dust', '[', ']')": "a [comet] of dust",
    "colbert_snippet(:q, 'a comet of dust')": "a <b>comet</b> of dust",
    "colbert_snippet(:q, 'a comet of dust', '[', ']', 1)": "…[comet]…",
    "colbert_error()": None,
}


@pytest.fixture
def usual_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder without a model, where none is named."""
    monkeypatch.setattr("colbert_sqlite.serving.DEFAULT_MODEL", "hashing")


@pytest.mark.parametrize(("call", "expected"), CALLS.items(), ids=CALLS)
def test_databases_of_sqlite_utils_have_every_function(
    plugin: None, usual_model: None, path: Path, call: str, expected: Any
) -> None:
    db = sqlite_utils.Database(path)
    assert list(db.query(f"select {call} as found", {"q": "comet"})) == [{"found": expected}]
    db.close()


@pytest.mark.parametrize(("call", "expected"), CALLS.items(), ids=CALLS)
def test_the_query_command_of_sqlite_utils_has_every_function(
    plugin: None, usual_model: None, path: Path, call: str, expected: Any
) -> None:
    result = CliRunner().invoke(cli, ["query", str(path), f"select {call} as found", "-p", "q", "comet"])
    assert json.loads(result.output) == [{"found": expected}]


def test_databases_of_sqlite_utils_can_be_registered_with_a_model(plugin: None, path: Path) -> None:
    db = sqlite_utils.Database(path)
    register(db, model="hashing")
    assert list(db.query("select colbert_score('comet', 'comet') > 1.9 as close")) == [{"close": 1}]
    db.close()


def test_errors_in_sqlite_utils_have_their_sentence(plugin: None, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sentence = "colbert_search: no index 'pots' in this database; it has posts"
    sql = "select colbert_search('pots', 'comet')"
    db = sqlite_utils.Database(path)
    with pytest.raises(sqlite3.OperationalError):
        list(db.query(sql))
    assert list(db.query("select colbert_error() as error")) == [{"error": sentence}]
    db.close()
    result = CliRunner().invoke(cli, ["query", str(path), sql])
    assert result.output == "Error: user-defined function raised exception\n"
    assert caplog.messages == [sentence] * 2


def test_the_memory_command_of_sqlite_utils_has_the_functions(plugin: None) -> None:
    result = CliRunner().invoke(cli, ["memory", "select colbert_score('comet', 'comet', 'hashing') > 1.9 as close"])
    assert json.loads(result.output) == [{"close": 1}]
