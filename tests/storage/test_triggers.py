"""Triggers: whatever changes a row, in plain SQL on a connection that knows nothing of us, queues its key."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils

from colbert_sqlite.encoders import Encoder, load_encoder
from colbert_sqlite.errors import SourceError
from colbert_sqlite.index import Index
from colbert_sqlite.progress import SyncResult

PLAIN = """
CREATE TABLE t (id INTEGER PRIMARY KEY, title TEXT, body TEXT, n INTEGER DEFAULT 0);
INSERT INTO t VALUES (1, 'One', 'apple alpha', 0), (2, 'Two', 'banana beta', 0), (3, 'Three', 'cherry gamma', 0);
"""
HEADED = {"heading": "title"}
SLUGS = """
CREATE TABLE t (id INTEGER PRIMARY KEY, slug TEXT UNIQUE, body TEXT);
INSERT INTO t VALUES (1, 'a', 'apple alpha'), (2, 'b', 'banana beta'), (3, 'c', 'cherry gamma');
"""
PAIRS = """
CREATE TABLE t (id INTEGER PRIMARY KEY, a INTEGER, b TEXT, body TEXT, UNIQUE (a, b));
INSERT INTO t VALUES (1, 1, 'x', 'apple alpha'), (2, 1, 'y', 'banana beta'), (3, NULL, 'y', 'cherry gamma');
"""
NOCASE_UNIQUE = f"""{PLAIN} CREATE UNIQUE INDEX titles ON t (title COLLATE NOCASE);"""
PARTIAL_UNIQUE = f"""{PLAIN} UPDATE t SET n = id; CREATE UNIQUE INDEX numbers ON t (n) WHERE n > 1;"""
EXPRESSION_UNIQUE = f"""{PLAIN} CREATE UNIQUE INDEX lowered ON t (lower(title));"""
DEFAULT_UNIQUE = """
CREATE TABLE t (id INTEGER PRIMARY KEY, slug TEXT NOT NULL DEFAULT 'b' UNIQUE, body TEXT);
INSERT INTO t VALUES (1, 'a', 'apple alpha'), (2, 'b', 'banana beta'), (3, 'c', 'cherry gamma');
"""
GENERATED_UNIQUE = """
CREATE TABLE t (id INTEGER PRIMARY KEY, s TEXT, low TEXT AS (lower(s)) {} UNIQUE, body TEXT);
INSERT INTO t VALUES (1, 'A', 'apple alpha'), (2, 'B', 'banana beta'), (3, 'C', 'cherry gamma');
"""
GENERATED_TEXT = """
CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT, body TEXT AS (a || ' ' || b) {});
INSERT INTO t (id, a, b) VALUES (1, 'apple', 'alpha'), (2, 'banana', 'beta'), (3, 'cherry', 'gamma');
"""
TEXT_KEYS = """
CREATE TABLE t (id TEXT PRIMARY KEY{}, body TEXT);
INSERT INTO t VALUES ('A', 'apple alpha'), ('B', 'banana beta'), ('C', 'cherry gamma');
"""
NOCASE_KEYS = TEXT_KEYS.format(" COLLATE NOCASE")
COMPOUND = """
CREATE TABLE t (a TEXT, b INTEGER, body TEXT, PRIMARY KEY (b, a)) {};
INSERT INTO t VALUES ('x', 1, 'apple alpha'), ('x', 2, 'banana beta'), ('y', 1, 'cherry gamma');
"""
NO_ROWID = """
CREATE TABLE t (id TEXT PRIMARY KEY, slug TEXT UNIQUE, body TEXT) WITHOUT ROWID;
INSERT INTO t VALUES ('a', 's1', 'apple alpha'), ('b', 's2', 'banana beta'), ('c', 's3', 'cherry gamma');
"""
STRICT = """
CREATE TABLE t (id INTEGER PRIMARY KEY, slug ANY UNIQUE, body TEXT) STRICT;
INSERT INTO t VALUES (1, '1', 'apple alpha'), (2, 1, 'banana beta'), (3, x'31', 'cherry gamma');
"""
NO_TYPE = """
CREATE TABLE t (id INTEGER PRIMARY KEY, body);
INSERT INTO t VALUES (1, 1), (2, 1.0), (3, '1');
"""
NO_TYPE_KEY = """
CREATE TABLE t (id PRIMARY KEY, body TEXT);
INSERT INTO t VALUES (1, 'apple alpha'), ('1', 'banana beta'), (x'31', 'cherry gamma');
"""
FAMILY = """
CREATE TABLE p (id INTEGER PRIMARY KEY, name TEXT);
INSERT INTO p VALUES (1, 'p1'), (2, 'p2');
CREATE TABLE t (id INTEGER PRIMARY KEY, p INTEGER REFERENCES p {}, body TEXT);
INSERT INTO t VALUES (1, 1, 'apple alpha'), (2, 1, 'banana beta'), (3, 2, 'cherry gamma');
"""
KEY_IS_FOREIGN = """
CREATE TABLE p (id INTEGER PRIMARY KEY, name TEXT);
INSERT INTO p VALUES (1, 'p1'), (2, 'p2');
CREATE TABLE t (id INTEGER PRIMARY KEY REFERENCES p ON UPDATE CASCADE ON DELETE CASCADE, body TEXT);
INSERT INTO t VALUES (1, 'apple alpha'), (2, 'banana beta');
"""
TREE = """
CREATE TABLE t (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES t ON DELETE CASCADE, body TEXT);
INSERT INTO t VALUES (1, NULL, 'apple'), (2, 1, 'banana'), (3, 2, 'cherry'), (4, 3, 'date'), (5, NULL, 'elder');
"""
NAMED_AFTER_PARENT = """
CREATE TABLE p (name TEXT PRIMARY KEY);
INSERT INTO p VALUES ('apple'), ('banana');
CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT REFERENCES p ON UPDATE CASCADE ON DELETE SET NULL);
INSERT INTO t VALUES (1, 'apple'), (2, 'apple'), (3, 'banana');
"""
USERS_TRIGGERS = f"""{PLAIN}
CREATE TABLE log (what TEXT UNIQUE);
CREATE TRIGGER after_insert AFTER INSERT ON t BEGIN
    UPDATE t SET body = 'shouted ' || new.body WHERE id = new.id;
    INSERT OR REPLACE INTO log VALUES ('inserted');
END;
CREATE TRIGGER before_delete BEFORE DELETE ON t BEGIN
    UPDATE t SET body = 'bereaved of ' || old.id WHERE id = old.id + 1;
END;
CREATE TRIGGER after_update AFTER UPDATE OF n ON t BEGIN
    INSERT INTO t VALUES (new.n, 'New', 'number ' || new.n, 0);
END;
"""

# Tables, arguments of create, what is done, the keys then queued.
CHANGES = [
    (PLAIN, {}, "INSERT INTO t VALUES (4, 'Four', 'date delta', 0)", {4}),
    (PLAIN, {}, "INSERT INTO t (body) VALUES ('date delta')", {4}),
    (PLAIN, {}, "INSERT INTO t SELECT id + 10, title, body || ' again', n FROM t", {11, 12, 13}),
    (PLAIN, {}, "INSERT OR IGNORE INTO t VALUES (1, 'x', 'x', 0), (4, 'Four', 'date delta', 0)", {4}),
    (PLAIN, {}, "UPDATE t SET body = 'date delta' WHERE id = 1", {1}),
    (PLAIN, {}, "UPDATE t SET body = NULL WHERE id = 1", {1}),
    (PLAIN, {}, "UPDATE t SET body = CAST(body AS BLOB) WHERE id = 1", {1}),
    (PLAIN, {}, "UPDATE t SET body = body, title = 'x', n = 3", set()),
    (PLAIN, {}, "UPDATE t SET n = 9, title = 'Other'", set()),
    (PLAIN, HEADED, "UPDATE t SET title = 'Other' WHERE id = 2", {2}),
    (PLAIN, HEADED, "UPDATE t SET n = 9", set()),
    (PLAIN, {"where": "n >= 0"}, "UPDATE t SET n = 9 WHERE id = 2", {2}),
    (PLAIN, {"where": "n = 0"}, "UPDATE t SET n = 9 WHERE id = 2", {2}),
    (PLAIN, {}, "UPDATE t SET id = 9 WHERE id = 1", {1, 9}),
    (PLAIN, {}, "UPDATE t SET rowid = 9 WHERE id = 1", {1, 9}),
    (PLAIN, {}, "UPDATE t SET _rowid_ = _rowid_ + 10", {1, 2, 3, 11, 12, 13}),
    (PLAIN, {}, "UPDATE t SET id = -id, body = body || ' x'", {1, 2, 3, -1, -2, -3}),
    (PLAIN, {}, "DELETE FROM t WHERE id = 2", {2}),
    (PLAIN, {}, "DELETE FROM t", {1, 2, 3}),
    (PLAIN, {}, "DELETE FROM t; INSERT INTO t VALUES (2, 'Two', 'banana beta', 0)", {1, 2, 3}),
    (PLAIN, {}, "INSERT OR REPLACE INTO t VALUES (2, 'Two', 'date delta', 0)", {2}),
    (PLAIN, {}, "REPLACE INTO t (rowid, body) VALUES (2, 'date delta')", {2}),
    (PLAIN, {}, "UPDATE OR REPLACE t SET id = 2 WHERE id = 1", {1, 2}),
    (PLAIN, {}, "INSERT INTO t VALUES (1, '', 'date', 0) ON CONFLICT DO UPDATE SET body = excluded.body", {1}),
    (PLAIN, {}, "INSERT INTO t VALUES (1, '', 'date', 0) ON CONFLICT (id) DO UPDATE SET n = 4", set()),
    (PLAIN, {}, "INSERT INTO t VALUES (1, '', 'date', 0) ON CONFLICT DO NOTHING", set()),
    (
        PLAIN,
        {},
        "UPDATE OR ABORT t SET body = 'x1' WHERE id = 1; UPDATE OR FAIL t SET body = 'x2' WHERE id = 1;"
        "UPDATE OR ROLLBACK t SET body = 'x3' WHERE id = 1; UPDATE OR REPLACE t SET body = 'x4' WHERE id = 1;"
        "UPDATE OR IGNORE t SET body = 'x5' WHERE id = 1; INSERT OR REPLACE INTO t (id, body) VALUES (1, 'x6')",
        {1},
    ),
    (PLAIN, {}, "BEGIN; DELETE FROM t; INSERT INTO t (id) VALUES (77); ROLLBACK", set()),
    (
        PLAIN,
        {},
        "BEGIN; DELETE FROM t WHERE id = 1; SAVEPOINT s; DELETE FROM t WHERE id = 2; ROLLBACK TO s; COMMIT",
        {1},
    ),
    (SLUGS, {}, "INSERT OR REPLACE INTO t VALUES (4, 'b', 'date delta')", {2, 4}),
    (SLUGS, {}, "INSERT OR REPLACE INTO t VALUES (1, 'b', 'date delta')", {1, 2}),
    (SLUGS, {}, "INSERT OR REPLACE INTO t (slug, body) VALUES ('a', 'x'), ('b', 'y'), ('a', 'z')", {1, 2, 4, 5, 6}),
    (SLUGS, {}, "UPDATE OR REPLACE t SET slug = 'b' WHERE id = 1", {2}),
    (SLUGS, {}, "UPDATE OR REPLACE t SET slug = 'b', id = 3 WHERE id = 1", {1, 2, 3}),
    (SLUGS, {}, "INSERT INTO t VALUES (9, 'b', 'date') ON CONFLICT (slug) DO UPDATE SET body = excluded.body", {2}),
    (SLUGS, {}, "INSERT INTO t VALUES (9, 'b', 'date') ON CONFLICT (slug) DO UPDATE SET id = excluded.id", {2, 9}),
    (SLUGS, {}, "INSERT OR REPLACE INTO t VALUES (9, NULL, 'date')", {9}),
    (SLUGS.replace("UNIQUE", "UNIQUE ON CONFLICT REPLACE"), {}, "INSERT INTO t VALUES (9, 'b', 'date')", {2, 9}),
    (PAIRS, {}, "INSERT OR REPLACE INTO t VALUES (4, 1, 'y', 'date delta')", {2, 4}),
    (PAIRS, {}, "INSERT OR REPLACE INTO t VALUES (4, NULL, 'y', 'date delta')", {4}),
    (PAIRS, {}, "UPDATE OR REPLACE t SET b = 'y' WHERE id = 1", {2}),
    (NOCASE_UNIQUE, {}, "INSERT OR REPLACE INTO t VALUES (4, 'TWO', 'date delta', 0)", {2, 4}),
    (NOCASE_UNIQUE, {}, "UPDATE OR REPLACE t SET title = 'tWo' WHERE id = 1", {2}),
    (GENERATED_UNIQUE.format("VIRTUAL"), {}, "REPLACE INTO t (id, s, body) VALUES (4, 'b', 'date')", {2, 4}),
    (GENERATED_UNIQUE.format("STORED"), {}, "REPLACE INTO t (id, s, body) VALUES (4, 'b', 'date')", {2, 4}),
    (GENERATED_UNIQUE.format("VIRTUAL"), {}, "UPDATE OR REPLACE t SET s = 'b' WHERE id = 1", {2}),
    (GENERATED_UNIQUE.format("STORED"), {}, "UPDATE OR REPLACE t SET s = 'b' WHERE id = 1", {2}),
    (GENERATED_TEXT.format("VIRTUAL"), {}, "UPDATE t SET b = 'delta' WHERE id = 2", {2}),
    (GENERATED_TEXT.format("STORED"), {}, "UPDATE t SET b = 'delta' WHERE id = 2", {2}),
    (GENERATED_TEXT.format("STORED"), {}, "REPLACE INTO t (id, a, b) VALUES (2, 'date', 'delta')", {2}),
    (TEXT_KEYS.format(""), {}, "INSERT INTO t (rowid, id, body) VALUES (7, 'a', 'date delta')", {"a"}),
    (TEXT_KEYS.format(""), {}, "REPLACE INTO t (rowid, id, body) VALUES (2, 'D', 'date delta')", {"B", "D"}),
    (TEXT_KEYS.format(""), {}, "REPLACE INTO t (rowid, id, body) VALUES (2, 'A', 'date delta')", {"A", "B"}),
    (TEXT_KEYS.format(""), {}, "UPDATE OR REPLACE t SET rowid = 2 WHERE id = 'A'", {"B"}),
    (TEXT_KEYS.format(""), {}, "UPDATE OR REPLACE t SET id = 'B' WHERE id = 'A'", {"A", "B"}),
    (NOCASE_KEYS, {}, "REPLACE INTO t VALUES ('a', 'date delta')", {"a"}),
    (NOCASE_KEYS, {}, "UPDATE t SET id = 'a' WHERE id = 'A'", {"A"}),
    (NOCASE_KEYS, {}, "UPDATE t SET id = 'a', body = 'date' WHERE id = 'A'", {"A"}),
    (NOCASE_KEYS, {}, "UPDATE OR REPLACE t SET id = 'b' WHERE id = 'A'", {"A", "b"}),
    (NOCASE_KEYS, {}, "DELETE FROM t WHERE id = 'a'; INSERT INTO t VALUES ('a', 'apple alpha')", {"A"}),
    (COMPOUND.format(""), {}, "REPLACE INTO t VALUES ('x', 1, 'date delta')", {(1, "x")}),
    (COMPOUND.format("WITHOUT ROWID"), {}, "REPLACE INTO t VALUES ('x', 1, 'date delta')", {(1, "x")}),
    (COMPOUND.format(""), {}, "UPDATE OR REPLACE t SET b = 2 WHERE b = 1 AND a = 'x'", {(1, "x"), (2, "x")}),
    (COMPOUND.format("WITHOUT ROWID"), {}, "UPDATE OR REPLACE t SET b = 2 WHERE body LIKE 'a%'", {(1, "x"), (2, "x")}),
    (COMPOUND.format(""), {}, "REPLACE INTO t (rowid, a, b, body) VALUES (1, 'z', 9, 'date')", {(1, "x"), (9, "z")}),
    (NO_ROWID, {}, "REPLACE INTO t VALUES ('d', 's2', 'date delta')", {"b", "d"}),
    (NO_ROWID, {}, "UPDATE OR REPLACE t SET slug = 's2' WHERE id = 'a'", {"b"}),
    (NO_ROWID, {}, "DELETE FROM t", {"a", "b", "c"}),
    (STRICT, {}, "REPLACE INTO t VALUES (4, 1, 'date delta')", {2, 4}),
    (STRICT, {}, "UPDATE OR REPLACE t SET slug = x'31' WHERE id = 1", {3}),
    (NO_TYPE, {}, "UPDATE t SET body = 1.0 WHERE id = 1", {1}),
    (NO_TYPE, {}, "UPDATE t SET body = '1' WHERE id = 2", {2}),
    (NO_TYPE, {}, "UPDATE t SET body = 1", {2, 3}),
    (NO_TYPE_KEY, {}, "UPDATE t SET id = 1.0 WHERE typeof(id) = 'integer'", {1}),
    (NO_TYPE_KEY, {}, "UPDATE t SET id = 2 WHERE typeof(id) = 'text'", {"1", 2}),
    (NO_TYPE_KEY, {}, "DELETE FROM t WHERE typeof(id) = 'blob'", {b"1"}),
    (FAMILY.format("ON DELETE CASCADE"), {}, "DELETE FROM p WHERE id = 1", {1, 2}),
    (FAMILY.format("ON DELETE CASCADE"), {}, "REPLACE INTO p VALUES (1, 'again')", {1, 2}),
    (FAMILY.format("ON DELETE SET NULL"), {}, "DELETE FROM p WHERE id = 1", set()),
    (FAMILY.format("ON DELETE SET NULL"), {"where": "p"}, "DELETE FROM p WHERE id = 1", {1, 2}),
    (FAMILY.format("ON UPDATE CASCADE"), {"where": "p < 5"}, "UPDATE p SET id = 7 WHERE id = 1", {1, 2}),
    (KEY_IS_FOREIGN, {}, "UPDATE p SET id = 7 WHERE id = 1", {1, 7}),
    (KEY_IS_FOREIGN, {}, "DELETE FROM p WHERE id = 1", {1}),
    (TREE, {}, "DELETE FROM t WHERE id = 1", {1, 2, 3, 4}),
    (TREE, {}, "REPLACE INTO t VALUES (2, NULL, 'blueberry')", {2, 3, 4}),
    (NAMED_AFTER_PARENT, {}, "UPDATE p SET name = 'date' WHERE name = 'apple'", {1, 2}),
    (NAMED_AFTER_PARENT, {}, "DELETE FROM p WHERE name = 'apple'", {1, 2}),
    (USERS_TRIGGERS, {}, "INSERT INTO t VALUES (4, 'Four', 'date delta', 0)", {4}),
    (USERS_TRIGGERS, {}, "DELETE FROM t WHERE id = 2", {2, 3}),
    (USERS_TRIGGERS, {}, "UPDATE t SET n = 8 WHERE id = 2", {8}),
    (USERS_TRIGGERS, {}, "INSERT OR REPLACE INTO t VALUES (9, 'Nine', 'date delta', 0)", {9}),
]


@pytest.fixture(scope="module")
def small_encoder() -> Encoder:
    return load_encoder("hashing-32")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.db"


def plain_connection(path: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def made(path: Path | str, encoder: Encoder, tables: str, **arguments: Any) -> tuple[sqlite3.Connection, Index]:
    """A connection to a new database with these tables, and an index of column body of table t."""
    conn = plain_connection(path)
    conn.executescript(tables)
    database = conn if path == ":memory:" else path
    return conn, Index.create(database, "t", ["body"], model=encoder, **arguments)


def queue(conn: sqlite3.Connection, index: str = "t") -> set[Any]:
    rows = conn.execute(f'SELECT * FROM "_colbert_{index}_queue"').fetchall()
    return {row[0] if len(row) == 1 else row for row in rows}


def triggers_of(conn: sqlite3.Connection) -> list[str]:
    return [row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' ORDER BY name")]


def texts(conn: sqlite3.Connection, index: Index) -> dict[Any, tuple[Any, ...]]:
    """What decides the passages of each row that is to be found, by key; rows without a whole key left out."""
    keys = index.info().key_columns
    settings = index.settings
    text = ", ".join(f'"{c}"' for c in [*settings.columns, *([settings.heading] if settings.heading else [])])
    condition = f"WHERE {settings.where}" if settings.where else ""
    names = ", ".join(f'"{key}"' for key in keys)
    rows = conn.execute(f'SELECT {names}, {text} FROM main."{settings.table}" {condition}', settings.params).fetchall()
    found = {}
    for row in rows:
        key, values = row[: len(keys)], row[len(keys) :]
        if None not in key and any(value is not None for value in values):
            found[key[0] if len(key) == 1 else key] = tuple((type(value), value) for value in values)
    return found


def key_in(row: dict[str, Any], index: Index) -> Any:
    keys = tuple(row[column] for column in index.info().key_columns)
    return keys[0] if len(keys) == 1 else keys


def assert_in_step(conn: sqlite3.Connection, index: Index) -> None:
    """The index is sound, nothing is queued, and the hits are the rows of the table, as they are."""
    assert (index.verify(), queue(conn, index.name)) == ([], set())
    hits = index.search("apple", k=1000)
    assert sorted(map(repr, (hit.pk for hit in hits))) == sorted(map(repr, texts(conn, index)))
    assert [hit.pk for hit in hits if hit.stale] == []


@pytest.mark.parametrize("recursive", [False, True], ids=["", "recursive"])
@pytest.mark.parametrize(("tables", "arguments", "change", "queued"), CHANGES, ids=lambda v: v if str(v) == v else "")
def test_a_change_queues_the_keys_it_concerns(
    small_encoder: Encoder,
    tables: str,
    arguments: dict[str, Any],
    change: str,
    queued: set[Any],
    recursive: bool,
) -> None:
    def spelled(keys: Iterable[Any]) -> list[Any]:
        return sorted((key.lower() if tables is NOCASE_KEYS else key for key in keys), key=repr)

    conn, index = made(":memory:", small_encoder, tables, **arguments)
    conn.execute("PRAGMA foreign_keys = ON")
    conn.execute(f"PRAGMA recursive_triggers = {recursive}")
    before = texts(conn, index)
    conn.executescript(change)
    assert spelled(queue(conn)) == spelled(queued)
    after = texts(conn, index)
    was = dict(zip(spelled(before), (before[key] for key in sorted(before, key=repr)), strict=True))
    for hit in index.search("apple", k=1000):
        assert hit.pk == key_in(hit.row, index)
        assert hit.stale == (was.get(*spelled([hit.pk])) != after.get(hit.pk))
    compared = index.sync().compared
    assert compared == 0
    assert_in_step(conn, index)
    assert index.sync() == SyncResult()


@pytest.mark.parametrize("recursive", [False, True])
def test_a_refused_change_is_undone_with_what_it_queued(path: Path, small_encoder: Encoder, recursive: bool) -> None:
    conn, index = made(path, small_encoder, SLUGS)
    conn.execute(f"PRAGMA recursive_triggers = {recursive}")
    for policy in ("", "OR ABORT", "OR ROLLBACK"):
        for refused in (
            f"INSERT {policy} INTO t VALUES (9, 'new', 'date'), (1, 'x', 'egg')",
            f"INSERT {policy} INTO t VALUES (9, 'b', 'date')",
            f"UPDATE {policy} t SET slug = 'b', body = 'date' WHERE id = 1",
        ):
            conn.execute("BEGIN")
            conn.execute("DELETE FROM t WHERE id = 3")
            with pytest.raises(sqlite3.IntegrityError):
                conn.execute(refused)
            assert conn.in_transaction == (policy != "OR ROLLBACK")
            if conn.in_transaction:
                assert queue(conn) == {3}
                conn.execute("ROLLBACK")
            assert queue(conn) == set()
    with pytest.raises(sqlite3.IntegrityError):
        conn.execute("INSERT OR FAIL INTO t VALUES (9, 'new', 'date'), (1, 'x', 'egg')")
    assert queue(conn) == {9}
    index.sync()
    assert_in_step(conn, index)


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize(
    ("tables", "change", "queued", "replaced"),
    [
        (EXPRESSION_UNIQUE, "REPLACE INTO t VALUES (4, 'TWO', 'date delta', 0)", {4}, 2),
        (PARTIAL_UNIQUE, "REPLACE INTO t VALUES (4, 'Four', 'date delta', 2)", {4}, 2),
        (PARTIAL_UNIQUE, "UPDATE OR REPLACE t SET n = 3 WHERE id = 1", set(), 3),
        (DEFAULT_UNIQUE, "REPLACE INTO t VALUES (4, NULL, 'date delta')", {4}, 2),
        (DEFAULT_UNIQUE, "REPLACE INTO t (body) VALUES ('date delta')", {4}, 2),
        (DEFAULT_UNIQUE, "UPDATE OR REPLACE t SET slug = NULL WHERE id = 1", set(), 2),
    ],
)
def test_rows_replaced_through_a_unique_index_that_no_trigger_looks_into_are_found_by_comparing_keys(
    path: Path, small_encoder: Encoder, tables: str, change: str, queued: set[int], replaced: int, recursive: bool
) -> None:
    conn, index = made(path, small_encoder, tables)
    conn.execute(f"PRAGMA recursive_triggers = {recursive}")
    # What looked for the row in such an index would read the whole table at every change.
    assert triggers_of(conn) == ["_colbert_t_delete", "_colbert_t_insert", "_colbert_t_update"]
    conn.execute(change)
    assert queue(conn) == (queued | {replaced} if recursive else queued)
    assert replaced not in {hit.pk for hit in index.search("banana")}
    added = len(queued)
    assert index.sync() == SyncResult(added=added, deleted=1, compared=2 + added)
    assert_in_step(conn, index)


def test_looking_for_a_replaced_row_never_reads_the_whole_table(path: Path, small_encoder: Encoder) -> None:
    tables = "id TEXT PRIMARY KEY, slug TEXT UNIQUE, a INTEGER, b TEXT, body TEXT, UNIQUE (b, a)"
    conn, _ = made(path, small_encoder, f"CREATE TABLE t ({tables}); CREATE UNIQUE INDEX n ON t (a) WHERE a > 1")
    assert [name for name in triggers_of(conn) if "replace" in name] == [
        "_colbert_t_replaceinsert",
        "_colbert_t_replaceupdate",
    ]
    for change in (
        "REPLACE INTO t VALUES ('x', 's', 1, 'b', 'd')",
        "UPDATE OR REPLACE t SET slug = 's' WHERE id = 'x'",
    ):
        assert "Rewind" not in {row[1] for row in conn.execute(f"EXPLAIN {change}")}
    conn.execute("CREATE TRIGGER scans BEFORE INSERT ON t BEGIN UPDATE t SET b = 'x' WHERE body = new.body; END")
    assert "Rewind" in {row[1] for row in conn.execute("EXPLAIN REPLACE INTO t VALUES ('x', 's', 1, 'b', 'date')")}


def fold(a: str, b: str) -> int:
    """A collation that only those connections have that were given it."""
    return (a.casefold() > b.casefold()) - (a.casefold() < b.casefold())


def test_a_collation_of_one_connection_keeps_no_other_from_changing_rows(path: Path, small_encoder: Encoder) -> None:
    knows = plain_connection(path)
    knows.create_collation("fold", fold)
    knows.executescript(f"{PLAIN} CREATE UNIQUE INDEX titles ON t (title COLLATE fold)")
    index = Index.create(knows, "t", ["body"], model=small_encoder)
    other = plain_connection(path)
    other.execute("UPDATE t SET body = 'date delta' WHERE id = 1")
    assert queue(other) == {1}
    knows.execute("REPLACE INTO t VALUES (4, 'tWO', 'egg epsilon', 0)")
    assert index.sync() == SyncResult(added=1, updated=1, deleted=1, compared=3)
    assert_in_step(knows, index)
    with Index.open(path, "t", model=small_encoder) as elsewhere:
        assert elsewhere.search("egg", k=1)[0].pk == 4


@pytest.mark.parametrize("change", ["id = 'ANNA'", "id = 'ANNA', body = 'date delta'"])
def test_a_key_may_change_its_case_where_the_primary_key_ignores_it(
    path: Path, small_encoder: Encoder, change: str
) -> None:
    conn, index = made(
        path,
        small_encoder,
        "CREATE TABLE t (id TEXT, body TEXT, PRIMARY KEY (id COLLATE NOCASE));"
        "INSERT INTO t VALUES ('anna', 'apple alpha'), ('bob', 'banana beta')",
    )
    conn.execute(f"UPDATE t SET {change} WHERE id = 'anna'")
    assert {str(key).lower() for key in queue(conn)} == {"anna"}
    assert {hit.pk for hit in index.search("apple")} == {"ANNA", "bob"}
    updated = int("body" in change)
    assert index.sync() == SyncResult(updated=updated)
    assert index.sync(full=True) == SyncResult(compared=2)
    assert_in_step(conn, index)
    assert [hit.pk for hit in index.search("apple", pks=["Anna"])] == ["ANNA"]
    conn.execute("DELETE FROM t WHERE id = 'ANNA'")
    assert index.sync() == SyncResult(deleted=1)
    assert_in_step(conn, index)


def test_keys_that_differ_in_case_are_two_where_the_primary_key_says_so(path: Path, small_encoder: Encoder) -> None:
    conn, index = made(
        path,
        small_encoder,
        "CREATE TABLE t (id TEXT COLLATE NOCASE, slug TEXT UNIQUE, body TEXT, PRIMARY KEY (id COLLATE BINARY));"
        "INSERT INTO t VALUES ('Anna', 's1', 'apple alpha'), ('anna', 's2', 'banana beta'), ('Bob', 's3', 'cherry')",
    )
    assert [index.search(query, k=1)[0].pk for query in ("apple", "banana")] == ["Anna", "anna"]
    assert_in_step(conn, index)
    conn.execute("UPDATE t SET body = 'date delta' WHERE id = 'anna' COLLATE BINARY")
    assert queue(conn) == {"anna"}
    assert index.sync() == SyncResult(updated=1)
    assert index.sync(full=True) == SyncResult(compared=3)
    assert_in_step(conn, index)
    assert [hit.pk for hit in index.search("apple", pks=["Anna"])] == ["Anna"]
    conn.execute("UPDATE t SET id = 'ANNA' WHERE id = 'Anna' COLLATE BINARY")
    assert index.sync() == SyncResult(added=1, deleted=1)
    conn.execute("UPDATE OR REPLACE t SET slug = 's2' WHERE id = 'ANNA' COLLATE BINARY")
    assert queue(conn) == {"anna"}
    assert index.sync() == SyncResult(deleted=1)
    assert_in_step(conn, index)


def test_an_indexed_column_can_not_be_dropped_and_the_sentence_names_our_trigger(
    path: Path, small_encoder: Encoder
) -> None:
    conn, index = made(path, small_encoder, PLAIN)
    with pytest.raises(sqlite3.OperationalError, match="error in trigger _colbert_t_update after drop column"):
        conn.execute("ALTER TABLE t DROP COLUMN body")
    assert_in_step(conn, index)
    index.drop()
    conn.execute("ALTER TABLE t DROP COLUMN body")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_unique_index_made_later_is_watched_from_the_next_sync_on(
    path: Path, small_encoder: Encoder, when: str
) -> None:
    conn, index = made(path, small_encoder, PLAIN)
    conn.execute("CREATE UNIQUE INDEX titles ON t (title)")
    if when == "after":
        assert index.verify() == ["the triggers on the table are not those they should be: sync puts them back"]
        assert index.sync() == SyncResult(compared=3)
    conn.execute("REPLACE INTO t VALUES (4, 'Two', 'date delta', 0)")
    assert queue(conn) == ({2, 4} if when == "after" else {4})
    compared = 0 if when == "after" else 3
    assert index.sync() == SyncResult(added=1, deleted=1, compared=compared)
    assert_in_step(conn, index)


def test_through_sqlite_utils_too(path: Path, small_encoder: Encoder) -> None:
    conn, index = made(path, small_encoder, SLUGS)
    table = sqlite_utils.Database(path).table("t")
    table.insert({"id": 4, "slug": "d", "body": "date delta"})
    table.upsert({"id": 1, "body": "egg epsilon"}, pk="id")
    table.insert({"id": 5, "slug": "b", "body": "fig zeta"}, replace=True)
    table.update(4, {"body": "date eta"})
    table.delete(3)
    assert queue(conn) == {1, 2, 3, 4, 5}
    assert index.sync() == SyncResult(added=2, updated=1, deleted=2)
    assert_in_step(conn, index)
    assert index.search("fig", k=1)[0].pk == 5


@pytest.mark.parametrize("options", ["", ", PRIMARY KEY (id, part)"])
def test_a_null_key_is_the_users_business_and_verify_names_it(path: Path, small_encoder: Encoder, options: str) -> None:
    key = "id TEXT, part TEXT" if options else "id TEXT PRIMARY KEY, part TEXT"
    conn, index = made(
        path, small_encoder, f"CREATE TABLE t ({key}, body TEXT{options}); INSERT INTO t VALUES ('a', 'p', 'apple')"
    )
    conn.execute("INSERT INTO t VALUES (NULL, 'p', 'banana'), (NULL, 'p', 'cherry'), ('b', 'p', 'date')")
    for full in (False, True):
        index.sync(full=full)
        assert index.verify() == ["rows whose key is NULL, which can't be indexed: 2"]
        assert {hit.row["id"] for hit in index.search("date", k=10)} == {"a", "b"}
    conn.execute("UPDATE t SET id = 'c' WHERE body = 'banana'")
    conn.execute("UPDATE t SET id = NULL WHERE body = 'apple'")
    assert index.sync() == SyncResult(added=1, deleted=1)
    conn.execute("DELETE FROM t WHERE id IS NULL")
    assert index.sync() == SyncResult()
    assert_in_step(conn, index)


@pytest.mark.parametrize("where", ["part IN (SELECT 'p' FROM other)", "part > ''"])
def test_null_keys_do_not_stop_a_comparison(path: Path, small_encoder: Encoder, where: str) -> None:
    conn, index = made(
        path,
        small_encoder,
        "CREATE TABLE other AS SELECT 1; CREATE TABLE t (id TEXT, part TEXT, body TEXT, PRIMARY KEY (id, part));"
        "INSERT INTO t VALUES ('a', 'p', 'apple')",
        where=where,
    )
    conn.executemany("INSERT INTO t VALUES (NULL, 'p', ?)", [(f"word{i}",) for i in range(20)])
    conn.execute("INSERT INTO t VALUES ('b', 'p', 'date'), ('b', NULL, 'x')")
    for full in (False, True):
        index.sync(full=full)
        assert {hit.pk for hit in index.search("date", k=10)} == {("a", "p"), ("b", "p")}
        assert index.verify() == ["rows whose key is NULL, which can't be indexed: 20"]


NAMES = ['a "b" [c] d', "naïve 日本 😀", "select", "x'; DROP TABLE t; --", "with\nnewline", "END", "%s {0} ?1"]


@pytest.mark.parametrize("name", NAMES)
def test_any_names_work(path: Path, small_encoder: Encoder, name: str) -> None:
    conn = plain_connection(path)
    quoted = '"' + name.replace('"', '""') + '"'
    key, slug = (f'"{word} ' + name.replace('"', '""') + '"' for word in ("key", "slug"))
    conn.execute(f"CREATE TABLE {quoted} ({key} TEXT PRIMARY KEY, {slug} TEXT UNIQUE, {quoted} TEXT)")
    conn.execute(f"INSERT INTO {quoted} VALUES ('k1', 's1', 'apple'), ('k2', 's2', 'banana')")
    index = Index.create(path, name, [name], model=small_encoder)
    conn.execute(f"REPLACE INTO {quoted} VALUES ('k3', 's2', 'cherry')")
    conn.execute(f"UPDATE {quoted} SET {quoted} = 'date'")
    assert {row[0] for row in conn.execute(f'SELECT * FROM "_colbert_{quoted[1:-1]}_queue"')} == {"k1", "k2", "k3"}
    assert index.sync() == SyncResult(added=1, updated=1, deleted=1)
    assert index.sync() == SyncResult()
    assert index.verify() == []
    assert [hit.pk for hit in index.search("date", k=9)] in (["k1", "k3"], ["k3", "k1"])


@pytest.mark.parametrize("temp", ["(id, body)", "(rowid, _rowid_, oid, slug, body)"])
def test_a_temp_table_of_the_same_name_is_left_alone(path: Path, small_encoder: Encoder, temp: str) -> None:
    conn = plain_connection(path)
    conn.executescript(TEXT_KEYS.format(""))
    conn.executescript(f"CREATE TEMP TABLE t {temp}; CREATE TEMP TABLE _colbert_t_queue (x)")
    index = Index.create(conn, "t", ["body"], model=small_encoder)
    conn.execute("INSERT INTO temp.t (body) VALUES ('egg')")
    conn.execute("REPLACE INTO main.t (rowid, id, body) VALUES (2, 'D', 'date delta')")
    conn.execute("DELETE FROM temp.t")
    assert conn.execute("SELECT pk_id FROM main._colbert_t_queue ORDER BY 1").fetchall() == [("B",), ("D",)]
    assert conn.execute("SELECT count(*) FROM temp._colbert_t_queue").fetchone() == (0,)
    assert index.sync() == SyncResult(added=1, deleted=1)
    assert index.verify() == []
    with Index.open(path, "t") as elsewhere:
        assert elsewhere.verify() == []
        assert elsewhere.sync() == SyncResult()


@pytest.mark.parametrize(
    "alter",
    [
        "ALTER TABLE t ADD COLUMN more TEXT DEFAULT 'x'",
        "ALTER TABLE t RENAME COLUMN n TO number",
        "ALTER TABLE t DROP COLUMN n",
        "CREATE INDEX of_n ON t (n)",
    ],
)
def test_the_rest_of_the_table_may_change(path: Path, small_encoder: Encoder, alter: str) -> None:
    conn, index = made(path, small_encoder, PLAIN, heading="title")
    conn.execute(alter)
    conn.execute("UPDATE t SET body = 'date' WHERE id = 1")
    assert queue(conn) == {1}
    assert index.sync() == SyncResult(updated=1)
    assert_in_step(conn, index)


@pytest.mark.parametrize(
    ("alter", "back", "message"),
    [
        ("RENAME TO u", "RENAME TO t", "no table 't' in this database"),
        ("RENAME COLUMN body TO text", "RENAME COLUMN text TO body", "no column 'body' in table 't'"),
        ("RENAME COLUMN id TO number", "RENAME COLUMN number TO id", "primary key of table 't' was id .* is number"),
    ],
)
def test_what_is_indexed_may_be_renamed_and_back(
    path: Path, small_encoder: Encoder, alter: str, back: str, message: str
) -> None:
    conn, index = made(path, small_encoder, PLAIN)
    conn.execute(f"ALTER TABLE t {alter}")
    table = "u" if alter == "RENAME TO u" else "t"
    conn.execute(f"DELETE FROM {table} WHERE rowid = 1")
    for refused in (index.sync, index.verify, lambda: index.search("apple")):
        with pytest.raises(SourceError, match=message):
            refused()
    conn.execute(f"ALTER TABLE {table} {back}")
    conn.execute("INSERT INTO t (body) VALUES ('date')")
    index.sync()
    assert_in_step(conn, index)
    conn.execute("DELETE FROM t WHERE id = 2")
    assert index.sync().compared == 0


def test_changes_through_an_attached_database_are_seen(path: Path, small_encoder: Encoder, tmp_path: Path) -> None:
    conn, index = made(path, small_encoder, SLUGS)
    other = plain_connection(tmp_path / "other.db")
    other.executescript("CREATE TABLE t (id INTEGER PRIMARY KEY, slug TEXT, body TEXT)")
    other.execute("ATTACH ? AS blog", (str(path),))
    other.execute("INSERT INTO t VALUES (77, 'b', 'not this one')")
    other.execute("REPLACE INTO blog.t VALUES (4, 'b', 'date')")
    other.execute("DELETE FROM blog.t WHERE id = 3")
    assert queue(conn) == {2, 3, 4}
    index.sync()
    assert_in_step(conn, index)


def test_an_index_does_not_see_tables_of_attached_databases(path: Path, small_encoder: Encoder, tmp_path: Path) -> None:
    conn, _ = made(path, small_encoder, SLUGS)
    plain_connection(tmp_path / "other.db").executescript(SLUGS)
    conn.execute("ATTACH ? AS other", (str(tmp_path / "other.db"),))
    with Index.open(conn, "t", model=small_encoder) as index:
        conn.execute("DELETE FROM other.t")
        assert index.sync() == SyncResult()
        conn.execute("DELETE FROM t")
        assert index.sync().deleted == 3
        assert_in_step(conn, index)


def test_a_cautious_connection_may_write(path: Path, small_encoder: Encoder) -> None:
    conn, index = made(path, small_encoder, SLUGS)
    conn.execute("PRAGMA trusted_schema = OFF")
    conn.execute("PRAGMA cell_size_check = ON")
    if sys.version_info >= (3, 12):
        conn.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
        conn.setconfig(sqlite3.SQLITE_DBCONFIG_DQS_DML, False)
        conn.setconfig(sqlite3.SQLITE_DBCONFIG_DQS_DDL, False)
    conn.execute("REPLACE INTO t VALUES (4, 'b', 'date')")
    conn.execute("UPDATE t SET body = 'egg' WHERE id = 1")
    with Index.open(conn, "t", model=small_encoder) as cautious:
        assert cautious.sync() == SyncResult(added=1, updated=1, deleted=1)
        assert cautious.rebuild().rows == 3
        assert_in_step(conn, cautious)
    assert index.verify() == []


def ours(conn: sqlite3.Connection) -> list[str]:
    return [row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE name LIKE '%colbert%' ORDER BY name")]


def test_triggers_go_with_their_index_and_the_last_leaves_nothing(path: Path, small_encoder: Encoder) -> None:
    conn, index = made(
        path,
        small_encoder,
        f"{SLUGS} CREATE TABLE log (x); CREATE TRIGGER mine AFTER DELETE ON t BEGIN"
        " INSERT INTO log VALUES (old.id); END",
    )
    schema = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE '%colbert%'"
    before = conn.execute(schema).fetchall()
    other = Index.create(path, "t", ["slug", "body"], name="other", model=small_encoder)
    assert len([name for name in ours(conn) if "insert" in name or "update" in name or "delete" in name]) == 10
    index.drop()
    assert [name for name in ours(conn) if "_t_" in name] == []
    conn.execute("REPLACE INTO t VALUES (4, 'b', 'date')")
    assert queue(conn, "other") == {2, 4}
    assert other.sync() == SyncResult(added=1, deleted=1)
    assert_in_step(conn, other)
    other.drop()
    assert ours(conn) == []
    assert conn.execute(schema).fetchall() == before
    conn.execute("REPLACE INTO t VALUES (5, 'c', 'egg')")
    assert conn.execute("SELECT count(*) FROM t").fetchone() == (3,)


def test_indexes_of_one_table_have_queues_of_their_own(path: Path, small_encoder: Encoder) -> None:
    conn, bodies = made(path, small_encoder, PLAIN)
    titles = Index.create(path, "t", ["title"], name="titles", model=small_encoder)
    some = Index.create(path, "t", ["body"], name="some", where="n > 0", model=small_encoder)
    conn.execute("UPDATE t SET title = 'Other' WHERE id = 1")
    conn.execute("UPDATE t SET body = 'date' WHERE id = 2")
    conn.execute("UPDATE t SET n = 1 WHERE id = 3")
    assert (queue(conn), queue(conn, "titles"), queue(conn, "some")) == ({2}, {1}, {1, 2, 3})
    assert bodies.sync() == SyncResult(updated=1)
    assert (queue(conn), queue(conn, "titles"), queue(conn, "some")) == (set(), {1}, {1, 2, 3})
    assert titles.sync() == SyncResult(updated=1)
    assert some.sync() == SyncResult(added=1)
    for index in (bodies, titles, some):
        assert_in_step(conn, index)
    bodies.rebuild()
    conn.execute("DELETE FROM t WHERE id = 3")
    assert (queue(conn), queue(conn, "titles"), queue(conn, "some")) == ({3}, {3}, {3})


def test_an_index_without_triggers_puts_none_on_the_table(path: Path, small_encoder: Encoder) -> None:
    conn, index = made(path, small_encoder, PLAIN, triggers=False)
    triggers = "SELECT count(*) FROM sqlite_master WHERE type = 'trigger'"
    assert conn.execute(triggers).fetchone() == (0,)
    conn.execute("UPDATE t SET body = 'date' WHERE id = 2")
    assert index.sync() == SyncResult(updated=1, compared=3)
    assert conn.execute(triggers).fetchone() == (0,)
    assert_in_step(conn, index)


def test_triggers_that_were_altered_are_put_back_and_all_rows_compared(path: Path, small_encoder: Encoder) -> None:
    conn, index = made(path, small_encoder, PLAIN)
    installed = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
    before = conn.execute(installed).fetchall()
    assert [name for name, _ in before] == ["_colbert_t_delete", "_colbert_t_insert", "_colbert_t_update"]
    conn.execute("DROP TRIGGER _colbert_t_update")
    conn.execute("CREATE TRIGGER _colbert_t_update AFTER UPDATE OF n ON t BEGIN SELECT 1; END")
    conn.execute("UPDATE t SET body = 'date' WHERE id = 2")
    assert queue(conn) == set()
    assert {hit.pk: hit.stale for hit in index.search("date", k=3)} == {1: False, 2: True, 3: False}
    assert index.verify() == [
        "the triggers on the table are not those they should be: sync puts them back",
        "rows that were changed after they were indexed: 2",
    ]
    assert index.sync() == SyncResult(updated=1, compared=3)
    assert conn.execute(installed).fetchall() == before
    assert_in_step(conn, index)
