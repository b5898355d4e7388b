"""Sync: the index follows its table, does no more than is needed, and loses nothing that changes meanwhile."""

from __future__ import annotations

import json
import random
import sqlite3
import string
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlite_utils
from numpy.typing import NDArray

from colbert_sqlite.codec import load_codec
from colbert_sqlite.encoders.hashing import HashingEncoder
from colbert_sqlite.errors import IndexCorrupt, ModelNotFound
from colbert_sqlite.index import Index
from colbert_sqlite.progress import Progress, SyncResult
from colbert_sqlite.rows import OUTLIER_RESIDUAL
from colbert_sqlite.settings import MAX_K, MAX_QUERY_CHARACTERS
from colbert_sqlite.storage.connection import reading
from colbert_sqlite.storage.postings import StoredPostings
from colbert_sqlite.storage.store import Store
from tests.marks import slow

ROOT = Path(__file__).resolve().parent.parent
NOTHING = SyncResult()
LOST = ["the triggers on the table are not those they should be: sync puts them back"]


class WatchedEncoder(HashingEncoder):
    """Counts the passages it encodes, and lets something happen meanwhile."""

    def __init__(self) -> None:
        super().__init__(32)
        self.passages: list[str] = []
        self.meanwhile: list[Callable[[], object]] = []

    def encode_passages(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        self.passages += texts
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return super().encode_passages(texts)


@pytest.fixture
def watched() -> WatchedEncoder:
    return WatchedEncoder()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file with a table of ten rows."""
    path = tmp_path / "t.db"
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT, kind TEXT DEFAULT 'note', n REAL)")
    conn.executemany("INSERT INTO t (id, body) VALUES (?, ?)", [(i, f"word{i} alone") for i in range(1, 11)])
    conn.commit()
    conn.close()
    return path


@pytest.fixture
def conn(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def indexed(path: Path, encoder: WatchedEncoder, **arguments: Any) -> Index:
    index = Index.create(path, "t", ["body"], model=encoder, **arguments)
    encoder.passages.clear()
    return index


def found(index: Index) -> dict[Any, str]:
    """The text of every hit, by key."""
    hits = index.search("word", k=10_000)
    assert [hit.pk for hit in hits if hit.stale] == []
    return {hit.pk: hit.passage.text for hit in hits}


def assert_in_step(conn: sqlite3.Connection, index: Index) -> None:
    condition = f"({index.settings.where})" if index.settings.where else "TRUE"
    sql = f"SELECT id, body FROM t WHERE body > '' AND {condition}"
    assert found(index) == dict(conn.execute(sql, index.settings.params).fetchall())
    assert index.verify() == []


def test_what_changed_is_counted_and_encoded_once(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder
) -> None:
    index = indexed(path, watched)
    conn.execute("INSERT INTO t (id, body) VALUES (11, 'word11 new'), (12, NULL)")
    conn.execute("UPDATE t SET body = 'word2 other' WHERE id = 2")
    conn.execute("UPDATE t SET body = NULL WHERE id = 3")
    conn.execute("DELETE FROM t WHERE id IN (4, 5)")
    conn.execute("UPDATE t SET kind = 'letter'")
    assert index.info().pending_changes == 6
    assert index.sync() == SyncResult(added=2, updated=2, deleted=2)
    assert sorted(watched.passages) == ["word11 new", "word2 other"]
    assert index.info().pending_changes == 0
    assert index.counts().rows_without_text == 2
    assert_in_step(conn, index)
    generation = index.info().generation
    assert [index.sync(), index.sync()] == [NOTHING, NOTHING]
    assert index.sync(full=True) == SyncResult(compared=10)
    assert (index.info().generation, len(watched.passages)) == (generation, 2)


def test_a_change_taken_back_is_nothing_to_do(path: Path, conn: sqlite3.Connection, watched: WatchedEncoder) -> None:
    index = indexed(path, watched)
    generation = index.info().generation
    conn.execute("UPDATE t SET body = 'other' WHERE id = 2")
    conn.execute("UPDATE t SET body = 'word2 alone' WHERE id = 2")
    conn.execute("INSERT INTO t (id, body) VALUES (11, 'word11')")
    conn.execute("DELETE FROM t WHERE id = 11")
    assert index.info().pending_changes == 2
    assert index.sync() == NOTHING
    assert (watched.passages, index.info().generation, index.info().pending_changes) == ([], generation, 0)


def test_no_model_is_loaded_where_there_is_nothing_to_encode(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder
) -> None:
    index = indexed(path, watched)
    with Index.open(path, "t", model="no/such-model") as without_model:
        assert without_model.sync() == NOTHING
        assert without_model.sync(full=True) == SyncResult(compared=10)
        conn.execute("DELETE FROM t WHERE id = 1")
        assert without_model.sync() == SyncResult(deleted=1)
        assert without_model.optimize() > 0
        conn.execute("INSERT INTO t (id, body) VALUES (11, 'word11')")
        with pytest.raises(ModelNotFound):
            without_model.sync()
    assert index.sync() == SyncResult(added=1)
    assert_in_step(conn, index)


def reload_by_replace(path: Path, rows: list[dict[str, Any]]) -> None:
    sqlite_utils.Database(path).table("t").insert_all(rows, replace=True)


def reload_by_truncate(path: Path, rows: list[dict[str, Any]]) -> None:
    sqlite_utils.Database(path).table("t").insert_all(rows, truncate=True)


def reload_by_upsert(path: Path, rows: list[dict[str, Any]]) -> None:
    sqlite_utils.Database(path).table("t").upsert_all(rows, pk="id")


def reload_by_drop(path: Path, rows: list[dict[str, Any]]) -> None:
    db = sqlite_utils.Database(path)
    db.table("t").drop()
    db.table("t").insert_all(rows, pk="id")


def reload_by_transform(path: Path, rows: list[dict[str, Any]]) -> None:
    table = sqlite_utils.Database(path).table("t")
    table.transform(rename={"n": "number"}, defaults={"kind": "memo"})
    table.update(rows[2]["id"], {"body": rows[2]["body"]})


@pytest.mark.parametrize(
    ("reload", "compared"),
    [
        (reload_by_replace, 0),
        (reload_by_truncate, 0),
        (reload_by_upsert, 0),
        (reload_by_drop, 10),
        (reload_by_transform, 10),
    ],
)
def test_a_reloaded_table_has_only_rows_of_other_text_encoded(
    path: Path,
    conn: sqlite3.Connection,
    watched: WatchedEncoder,
    reload: Callable[[Path, list[dict[str, Any]]], None],
    compared: int,
) -> None:
    index = indexed(path, watched)
    installed = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
    before = conn.execute(installed).fetchall()
    rows = [{"id": i, "body": f"word{i} alone", "kind": "note", "n": None} for i in range(1, 11)]
    rows[2]["body"] = "word3 in company"
    reload(path, rows)
    assert index.verify() == (LOST if compared else []) + (
        ["rows that were changed after they were indexed: 3"] if compared else []
    )
    assert index.sync() == SyncResult(updated=1, compared=compared)
    assert watched.passages == ["word3 in company"]
    assert conn.execute(installed).fetchall() == before
    assert_in_step(conn, index)
    assert index.sync() == NOTHING


def test_without_triggers_sync_compares_all_rows(path: Path, conn: sqlite3.Connection, watched: WatchedEncoder) -> None:
    index = indexed(path, watched, triggers=False)
    conn.execute("UPDATE t SET body = 'word1 other' WHERE id = 1")
    conn.execute("DELETE FROM t WHERE id = 2")
    conn.execute("INSERT INTO t (id, body) VALUES (11, 'word11')")
    assert index.info().pending_changes is None
    assert index.sync() == SyncResult(added=1, updated=1, deleted=1, compared=10)
    assert sorted(watched.passages) == ["word1 other", "word11"]
    assert index.sync() == SyncResult(compared=10)
    assert conn.execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'").fetchone() == (0,)
    assert_in_step(conn, index)


def test_more_rows_than_are_compared_at_once(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_sqlite.sync._COMPARED_BYTES", 25)
    monkeypatch.setattr("colbert_sqlite.sync.CHUNK_BYTES", 25)
    index = indexed(path, watched, triggers=False)
    conn.execute("UPDATE t SET body = body || ' more' WHERE id % 3")
    conn.execute("DELETE FROM t WHERE id = 10")
    events: list[Progress] = []
    assert index.sync(progress=events.append) == SyncResult(updated=6, deleted=1, compared=9)
    assert [event for event in events if event.stage == "compare"][-1] == Progress("compare", 9, 9)
    assert events[-1] == Progress("encode", 7, 7)
    assert_in_step(conn, index)


def test_a_condition_with_a_parameter_lets_rows_in_and_out(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder
) -> None:
    index = indexed(path, watched, where="kind = :kind", params={"kind": "letter"})
    assert found(index) == {}
    conn.execute("UPDATE t SET kind = 'letter' WHERE id <= 3")
    assert index.sync() == SyncResult(added=3)
    conn.execute("UPDATE t SET kind = 'note' WHERE id = 1")
    conn.execute("UPDATE t SET body = 'word2 other' WHERE id = 2")
    assert sorted(hit.pk for hit in index.search("word", k=10)) == [2, 3]
    assert index.sync() == SyncResult(updated=1, deleted=1)
    assert_in_step(conn, index)


def test_a_condition_on_another_table_compares_keys(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder
) -> None:
    conn.execute("CREATE TABLE published (id INTEGER PRIMARY KEY)")
    conn.execute("INSERT INTO published VALUES (1), (2)")
    index = indexed(path, watched, where="id IN (SELECT id FROM published)")
    assert index.sync() == SyncResult(compared=2)
    conn.execute("UPDATE published SET id = 3 WHERE id = 1")
    conn.execute("UPDATE t SET body = 'word2 other' WHERE id = 2")
    assert sorted(hit.pk for hit in index.search("word", k=10)) == [2]
    assert index.sync() == SyncResult(added=1, updated=1, deleted=1, compared=2)
    assert sorted(watched.passages) == ["word2 other", "word3 alone"]
    assert_in_step(conn, index)


def test_a_condition_on_the_clock_compares_keys(path: Path, conn: sqlite3.Connection, watched: WatchedEncoder) -> None:
    conn.execute("UPDATE t SET n = julianday('now') + CASE id % 2 WHEN 0 THEN 1 ELSE 1.0 / 86400 END")
    until = indexed(path, watched, where="n > julianday('now')")
    since = indexed(path, watched, name="since", where="n <= julianday('now')")
    while conn.execute("SELECT count(*) FROM t WHERE n <= julianday('now')").fetchone() != (5,):
        time.sleep(0.05)
    assert sorted(hit.pk for hit in until.search("word", k=10)) == [2, 4, 6, 8, 10]
    for index in (until, since):
        assert index.sync().compared == 5
        assert_in_step(conn, index)
    assert sorted(found(since)) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("triggers", [True, False])
def test_a_row_that_changes_while_it_is_encoded_is_not_lost(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder, triggers: bool
) -> None:
    index = indexed(path, watched, triggers=triggers)
    conn.execute("UPDATE t SET body = body || ' once'")
    watched.meanwhile = [
        lambda: conn.executescript(
            "UPDATE t SET body = body || ' and twice' WHERE id = 2; DELETE FROM t WHERE id = 3;"
            "UPDATE t SET id = 44 WHERE id = 4; UPDATE t SET body = 'word5 alone' WHERE id = 5;"
            "UPDATE t SET kind = 'letter'; INSERT INTO t (id, body) VALUES (0, 'word0'), (12, 'word12')"
        )
    ]
    index.sync()
    assert index.verify() == [] if triggers else True
    index.sync()
    assert_in_step(conn, index)
    assert index.info().pending_changes == (0 if triggers else None)


def test_a_row_that_never_stops_changing_stays_queued(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder
) -> None:
    index = indexed(path, watched)
    conn.execute("UPDATE t SET body = 'word' WHERE id < 3")
    watched.meanwhile = [lambda: conn.execute("UPDATE t SET body = body || ' again' WHERE id = 1")] * 100
    assert index.sync() == SyncResult(updated=1)
    assert index.info().pending_changes == 1
    assert index.verify() == []
    watched.meanwhile = []
    assert index.sync() == SyncResult(updated=1)
    assert_in_step(conn, index)


CHANGES = (
    "UPDATE t SET body = 'word1 changed' WHERE id = 1; DELETE FROM t WHERE id = 2; REPLACE INTO t (id, body) VALUES"
    " (3, 'word3 replaced'), (-1, 'before'), (12, 'behind'); UPDATE t SET id = 55 WHERE id = 5"
)


@pytest.mark.parametrize("moment", [0, 1, 2])
@pytest.mark.parametrize("rebuild", [False, True])
def test_changes_during_a_build_are_in_the_index_at_its_end(
    path: Path,
    conn: sqlite3.Connection,
    watched: WatchedEncoder,
    monkeypatch: pytest.MonkeyPatch,
    moment: int,
    rebuild: bool,
) -> None:
    monkeypatch.setattr("colbert_sqlite.rows.CHUNK_BYTES", 25)
    monkeypatch.setattr("colbert_sqlite.build._SAMPLE_TOKENS", 10)
    index = indexed(path, watched) if rebuild else None
    watched.meanwhile = [lambda: None] * moment + [lambda: conn.executescript(CHANGES)]
    if index is None:
        index = indexed(path, watched)
    else:
        index.rebuild()
    assert watched.meanwhile == []
    assert_in_step(conn, index)
    assert found(index)[1] == "word1 changed"


def test_changes_while_the_lists_are_written_are_in_the_index_at_its_end(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder
) -> None:
    def meanwhile(now: Progress) -> None:
        if now == Progress("write", 0, 1):
            conn.executescript(CHANGES)

    index = indexed(path, watched, progress=meanwhile)
    assert_in_step(conn, index)


class Interruption(Exception):
    pass


def interrupt() -> None:
    raise Interruption


def test_a_rebuild_that_puts_lost_triggers_back_and_is_interrupted_hides_no_change(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder
) -> None:
    index = indexed(path, watched)
    sqlite_utils.Database(path).table("t").transform(drop={"n"})
    conn.execute("UPDATE t SET body = 'word1 changed' WHERE id = 1")
    watched.meanwhile = [interrupt]
    with pytest.raises(Interruption):
        index.rebuild()
    assert index.sync() == SyncResult(updated=1, compared=10)
    assert_in_step(conn, index)


def test_an_interrupted_sync_goes_on(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_sqlite.sync.CHUNK_BYTES", 25)
    index = indexed(path, watched)
    conn.execute("UPDATE t SET body = body || ' more'")
    watched.meanwhile = [lambda: None, interrupt]
    with pytest.raises(Interruption):
        index.sync()
    assert index.verify() == []
    pending = index.info().pending_changes
    assert pending is not None and 0 < pending < 10
    assert index.sync() == SyncResult(updated=pending)
    assert_in_step(conn, index)


@pytest.mark.parametrize("triggers", [True, False])
def test_sync_joins_the_callers_transaction(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder, triggers: bool
) -> None:
    indexed(path, watched, triggers=triggers).close()
    before = conn.execute("SELECT * FROM _colbert_t_passages").fetchall()
    index = Index.open(conn, "t", model=watched)
    for end in ("ROLLBACK", "COMMIT"):
        conn.execute("BEGIN")
        conn.execute("UPDATE t SET body = 'word1 changed' WHERE id = 1")
        conn.execute("DELETE FROM t WHERE id = 2")
        counts = index.sync()
        assert counts == SyncResult(updated=1, deleted=1, compared=0 if triggers else 9)
        assert conn.in_transaction
        assert_in_step(conn, index)
        conn.execute(end)
        assert_in_step(conn, index)
        assert (conn.execute("SELECT * FROM _colbert_t_passages").fetchall() == before) == (end == "ROLLBACK")


def connection_of_its_own_kind(path: Path, kind: str) -> sqlite3.Connection:
    if kind == "autocommit off":
        return sqlite3.connect(path, autocommit=False)  # type: ignore[call-overload,no-any-return,unused-ignore]
    conn = sqlite3.connect(path)
    conn.row_factory, conn.text_factory = sqlite3.Row, bytes
    return conn


# Connections have autocommit since Python 3.12.
@pytest.mark.parametrize("kind", ["factories", "autocommit off"][: 2 if sys.version_info >= (3, 12) else 1])
@pytest.mark.parametrize("method", ["sync", "repair", "optimize", "rebuild"])
@pytest.mark.parametrize("triggers", [True, False])
def test_a_connection_of_the_callers_own_kind_is_left_as_it_was(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder, kind: str, method: str, triggers: bool
) -> None:
    opened = indexed(path, watched, triggers=triggers)
    dump = list(conn.iterdump())
    theirs = connection_of_its_own_kind(path, kind)
    factories: list[Any] = [theirs.row_factory, theirs.text_factory]
    for end in (theirs.rollback, theirs.commit):
        theirs.execute("UPDATE t SET body = 'word1 changed' WHERE id = 1")
        theirs.execute("DELETE FROM t WHERE id = 2")
        index = Index.open(theirs, "t", model=watched)
        getattr(index, method)()
        index.sync()
        assert theirs.in_transaction
        assert [theirs.row_factory, theirs.text_factory] == factories
        assert (index.verify(), found(index)[1], 2 in found(index)) == ([], "word1 changed", False)
        assert list(conn.iterdump()) == dump
        end()
        assert (list(conn.iterdump()) == dump) == (end == theirs.rollback)
        assert_in_step(conn, opened)
        assert index.verify() == []


def test_a_missing_queue_is_named_and_made_anew(path: Path, conn: sqlite3.Connection, watched: WatchedEncoder) -> None:
    index = indexed(path, watched)
    conn.execute("DROP TABLE _colbert_t_queue")
    assert index.verify() == ["tables are missing (queue): sync puts it back and compares every row"]
    assert index.info().pending_changes is None
    assert len(index.search("word", k=100)) == 10
    assert index.sync() == SyncResult(compared=10)
    assert index.info().pending_changes == 0
    # A connection that knows the table as missing looks for it again when asked for it, not when a trigger is.
    assert conn.execute("SELECT * FROM _colbert_t_queue").fetchall() == []
    conn.execute("UPDATE t SET body = 'word1 changed' WHERE id = 1")
    assert index.sync() == SyncResult(updated=1)
    assert_in_step(conn, index)
    conn.execute("DROP TABLE _colbert_t_queue")
    assert index.repair() == SyncResult(compared=10)
    assert_in_step(conn, index)


@pytest.mark.parametrize("part", ["ivf", "codes", "passages", "residuals", "centroids", "codec", "outliers"])
def test_a_missing_table_is_named_and_only_a_rebuild_helps(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder, part: str
) -> None:
    index = indexed(path, watched)
    conn.execute(f"DROP TABLE _colbert_t_{part}")
    assert index.verify() == [f"tables are missing ({part}): rebuild the index"]
    dump = list(conn.iterdump())
    with pytest.raises(IndexCorrupt) as caught:
        index.repair()
    assert str(caught.value) == f"tables are missing ({part}): rebuild the index"
    assert list(conn.iterdump()) == dump
    index.rebuild()
    assert_in_step(conn, index)


def test_a_row_whose_first_passage_was_lost_is_indexed_again_when_its_text_changes(
    tmp_path: Path, watched: WatchedEncoder
) -> None:
    path = tmp_path / "long.db"
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    bodies = [(i, ". ".join(f"topic{i} word{i * j % 17}" for j in range(12))) for i in range(8)]
    conn.executemany("INSERT INTO t VALUES (?, ?)", bodies)
    index = indexed(path, watched, max_tokens=16)
    lost = "SELECT passage_id FROM _colbert_t_passages WHERE pk_id = 3 AND ordinal = 0"
    [(passage_id,)] = conn.execute(lost).fetchall()
    assert conn.execute("SELECT count(*) FROM _colbert_t_passages WHERE pk_id = 3").fetchone() > (1,)
    conn.execute("DELETE FROM _colbert_t_passages WHERE passage_id = ?", (passage_id,))
    conn.execute("UPDATE t SET body = 'topic3 changed. ' || body WHERE id = 3")
    assert index.sync() == SyncResult(added=1)
    hits = conn.execute("SELECT ordinal FROM _colbert_t_passages WHERE pk_id = 3 ORDER BY passage_id").fetchall()
    assert hits == [(ordinal,) for ordinal in range(len(hits))]
    assert index.verify() != []
    index.repair()
    assert index.verify() == []
    assert index.search("topic3 changed", k=1)[0].pk == 3


HOLD = """
import sqlite3, sys
from colbert_sqlite.storage.lock import writing
with writing(sqlite3.connect(sys.argv[1]), "t"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_sync_waits_for_another_process_that_writes_the_index(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder
) -> None:
    index = indexed(path, watched)
    conn.execute("DELETE FROM t WHERE id = 1")
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "held\n"
        events: list[Progress] = []

        def release(now: Progress) -> None:
            events.append(now)
            if len(events) == 1:
                other.stdin.write("let go\n")
                other.stdin.flush()

        assert found(index) == dict(conn.execute("SELECT id, body FROM t"))
        assert index.sync(progress=lambda now: release(now) if now.stage == "wait" else None).deleted == 1
    assert {*events} == {Progress("wait", 0, 1)}
    assert sorted(file.name for file in path.parent.iterdir() if "colbert" in file.name) == []


def test_sync_waits_while_the_database_is_locked(path: Path, conn: sqlite3.Connection, watched: WatchedEncoder) -> None:
    index = indexed(path, watched)
    locker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    conn.execute("UPDATE t SET body = 'word1 changed' WHERE id = 1")

    def lock() -> None:
        locker.execute("BEGIN IMMEDIATE")
        locker.execute("UPDATE t SET body = 'word2 changed' WHERE id = 2")
        threading.Timer(0.3, lambda: locker.execute("COMMIT")).start()

    watched.meanwhile = [lock]
    assert index.sync().updated >= 1
    index.sync()
    assert_in_step(conn, index)


def many_words(n_rows: int, vocabulary: str, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(f"{vocabulary}{draw.randrange(40)}" for _ in range(30)) for _ in range(n_rows)]


@pytest.mark.parametrize("nbits", [4, *slow(2)])
def test_outliers_earn_centroids_of_their_own(
    tmp_path: Path, watched: WatchedEncoder, monkeypatch: pytest.MonkeyPatch, nbits: int
) -> None:
    monkeypatch.setattr("colbert_sqlite.growth.OUTLIERS_AT_ONCE", 200)
    path = tmp_path / "grow.db"
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    conn.executemany("INSERT INTO t (body) VALUES (?)", [(text,) for text in many_words(200, "alpha", 0)])
    index = indexed(path, watched, nbits=nbits)
    before = load_codec(Store.open(conn, "t")).residual
    conn.executemany("INSERT INTO t (body) VALUES (?)", [(text,) for text in many_words(150, "zq", 1)])
    assert index.sync() == SyncResult(added=150)
    info = index.info()
    assert info.n_centroids_added > 0
    assert info.n_centroids == before.n_centroids + info.n_centroids_added
    assert_in_step(conn, index)

    with reading(conn):
        store = Store.open(conn, "t")
        stored, grown = load_codec(store)
        snapshot = StoredPostings(store, stored)
        places = conn.execute(
            "SELECT passage_id, body FROM _colbert_t_passages JOIN t ON id = pk_id WHERE pk_id > 200"
        ).fetchall()
        n_recoded = 0
        for passage_id, body in places:
            ids = np.array([passage_id])
            codes, _ = snapshot.codes(ids)
            rows, starts = snapshot.residuals(ids, np.array([len(codes)]))
            residuals = rows[starts[0] : starts[0] + len(codes)]
            embeddings = watched.encode_passages([body])[0].astype(np.float16)
            old_codes, old_residuals = before.compress(embeddings)
            new_codes, new_residuals = grown.compress(embeddings)
            far = before.mean_residuals(embeddings, old_codes) > OUTLIER_RESIDUAL * before.avg_residual
            np.testing.assert_array_equal(codes, np.where(far, new_codes, old_codes))
            np.testing.assert_array_equal(residuals, np.where(far[:, None], new_residuals, old_residuals))
            n_recoded += int(np.count_nonzero(codes >= before.n_centroids))
    assert n_recoded > 100
    hits = index.search(conn.execute("SELECT body FROM t WHERE id = 250").fetchone()[0], k=3)
    assert hits[0].pk == 250
    conn.execute("DELETE FROM t WHERE id % 2")
    index.sync()
    index.optimize()
    assert_in_step(conn, index)


def test_the_codec_grows_by_a_quarter_at_most(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_sqlite.growth.OUTLIERS_AT_ONCE", 50)
    monkeypatch.setattr("colbert_sqlite.sync.CHUNK_BYTES", 10_000)
    index = indexed(path, watched)
    for seed, vocabulary in enumerate(("zq", "mandarin", "xyz")):
        rows = many_words(60, vocabulary, seed)
        conn.executemany("INSERT INTO t (body) VALUES (?)", [(text,) for text in rows])
        index.sync()
        assert_in_step(conn, index)
    info = index.info()
    assert info.n_centroids_added <= (info.n_centroids - info.n_centroids_added) // 4
    assert index.rebuild().rows == 190
    assert index.info().n_centroids_added == 0
    assert_in_step(conn, index)


def test_centroids_of_a_transaction_rolled_back_are_forgotten(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_sqlite.growth.OUTLIERS_AT_ONCE", 50)
    monkeypatch.setattr("colbert_sqlite.sync.MIN_NEW_ROWS", 1000)
    indexed(path, watched).close()
    index = Index.open(conn, "t", model=watched)
    first, second = ([(text,) for text in many_words(60, vocabulary, 0)] for vocabulary in ("zq", "mandarin"))
    conn.execute("BEGIN")
    conn.executemany("INSERT INTO t (body) VALUES (?)", first)
    index.sync()
    n_centroids = index.info().n_centroids
    assert_in_step(conn, index)
    conn.execute("ROLLBACK")
    conn.executemany("INSERT INTO t (body) VALUES (?)", second)
    with Index.open(path, "t", model=watched) as opened_anew:
        opened_anew.sync()
        info = opened_anew.info()
        assert (info.n_centroids, info.n_centroids_added > 0) == (n_centroids, True)
        for query in ("mandarin7 mandarin8", "zq3", "word1"):
            assert index.search(query, k=100) == opened_anew.search(query, k=100)


@pytest.mark.parametrize("nbits", [1, 4])
def test_optimize_leaves_no_gap_and_changes_no_hit(tmp_path: Path, watched: WatchedEncoder, nbits: int) -> None:
    path = tmp_path / "gaps.db"
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    conn.executemany("INSERT INTO t (body) VALUES (?)", [(text,) for text in many_words(150, "alpha", 0)])
    index = indexed(path, watched, nbits=nbits)
    queries = ["alpha1 alpha2", "alpha33", "alpha7 and something else"]
    for condition in ("id % 3 = 0", "id < 30", "id > 120 OR id IN (70, 71)", "TRUE"):
        conn.execute(f"DELETE FROM t WHERE {condition}")
        index.sync()
        before = [[(hit.pk, hit.score) for hit in hits] for hits in index.search_many(queries, k=1000)]
        free = index.info().bytes_reclaimable
        assert index.optimize() == free
        assert index.info().bytes_reclaimable == 0
        assert [[(hit.pk, hit.score) for hit in hits] for hits in index.search_many(queries, k=1000)] == before
        assert_in_step(conn, index)
        assert index.optimize() == 0
    conn.execute("INSERT INTO t (id, body) VALUES (1, 'alpha1 returns')")
    index.sync()
    assert_in_step(conn, index)


def test_the_longest_query_and_the_largest_k(path: Path, conn: sqlite3.Connection, watched: WatchedEncoder) -> None:
    index = indexed(path, watched)
    longest = ("word3 " * MAX_QUERY_CHARACTERS)[:MAX_QUERY_CHARACTERS]
    assert index.search(longest, k=1)[0].pk == 3
    with pytest.raises(ValueError, match="the query has 100,001 characters, more than 100,000: shorten it"):
        index.search(f"{longest}x")
    assert len(index.search("word3", k=MAX_K)) == 10
    with pytest.raises(ValueError, match="k must be a whole number from 1 to 1,048,576"):
        index.search("word3", k=MAX_K + 1)


def test_rows_of_other_kinds_of_values_are_compared_as_they_were_indexed(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder
) -> None:
    """What the triggers take for no change is none for the content hash either, and the other way round."""
    conn.execute("DROP TABLE t")
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body)")
    conn.execute("INSERT INTO t VALUES (1, NULL)")
    index = indexed(path, watched)
    values = [0, 0.0, -0.0, "0", b"0", None, "", b"", 1, 1.0, 1e300, "A", "a", "A ", "A\0", "A\0b", 2**62, 2.0**62]
    for value in values:
        conn.execute("UPDATE t SET body = ?", (value,))
        assert index.verify() == [], json.dumps(repr(value))
        index.sync()
        assert index.sync(full=True) == SyncResult(compared=1)


def test_an_index_that_began_empty_is_trained_on_the_rows_that_come(tmp_path: Path) -> None:
    conn = sqlite3.connect(tmp_path / "t.db", isolation_level=None)
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    index = Index.create(conn, "t", ["body"], model="hashing-32")
    assert index.info().n_centroids == 1
    words = random.Random(0)
    for i in range(30):
        conn.execute(
            "INSERT INTO t VALUES (?, ?)", (i, f"topic{i} " + " ".join(words.choices(string.ascii_letters, k=8)))
        )
        assert index.sync().added == 1
        assert index.search(f"topic{i}", k=1)[0].pk == i
    conn.executemany(
        "INSERT INTO t VALUES (?, ?)",
        ((i, f"topic{i} " + " ".join(f"word{words.randrange(500)}" for _ in range(20))) for i in range(100, 400)),
    )
    assert index.sync().added == 300
    facts = index.info()
    assert (facts.why_rebuild, facts.pending_changes, index.verify()) == (None, 0, [])
    assert facts.n_centroids > 100
    assert [index.search(f"topic{i}", k=1)[0].pk for i in (0, 29, 100, 399)] == [0, 29, 100, 399]


def test_rows_that_come_one_by_one_have_the_codec_trained_again_and_again(tmp_path: Path) -> None:
    conn = sqlite3.connect(tmp_path / "t.db", isolation_level=None)
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    words = random.Random(0)
    bodies = [" ".join(f"word{words.randrange(2000)}" for _ in range(40)) for _ in range(400)]
    conn.executemany("INSERT INTO t VALUES (?, ?)", enumerate(bodies[:40]))
    index = Index.create(conn, "t", ["body"], model="hashing-32")
    n_centroids = [index.info().n_centroids]
    for first in range(40, 400, 20):
        conn.executemany("INSERT INTO t VALUES (?, ?)", list(enumerate(bodies))[first : first + 20])
        assert index.sync().added == 20
        assert index.info().why_rebuild is None
        n_centroids.append(index.info().n_centroids)
    assert 2 <= len(set(n_centroids)) - 1 <= 4
    assert n_centroids == sorted(n_centroids)
    assert index.verify() == []


def test_a_training_that_was_interrupted_goes_on_with_the_next_sync(
    path: Path, conn: sqlite3.Connection, watched: WatchedEncoder
) -> None:
    index = indexed(path, watched)
    conn.executemany("INSERT INTO t (body) VALUES (?)", [(text,) for text in many_words(90, "new", 0)])
    with pytest.raises(Interruption):
        index.sync(progress=interrupt_training)
    assert (index.info().pending_changes, len(index.search("word", k=1000))) == (90, 10)
    n_encoded = len(watched.passages)
    counts = index.sync()
    assert (counts, n_encoded) == (SyncResult(added=90), 100)
    # Those that were encoded before the training waited in a file beside the database.
    assert len(watched.passages) == n_encoded
    assert_trained_anew(path, conn, index)


def test_a_training_of_an_outgrown_codec_that_was_interrupted_goes_on_with_the_next_sync(
    tmp_path: Path, watched: WatchedEncoder
) -> None:
    path = tmp_path / "t.db"
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    texts = [(text,) for text in many_words(95, "alpha", 0)]
    conn.executemany("INSERT INTO t (body) VALUES (?)", texts[:46])
    index = indexed(path, watched)
    conn.executemany("INSERT INTO t (body) VALUES (?)", texts[46:])
    with pytest.raises(Interruption):
        index.sync(progress=interrupt_training)
    assert (index.info().pending_changes, index.info().why_rebuild is None) == (0, False)
    assert_in_step(conn, index)
    assert index.sync() == NOTHING
    assert_trained_anew(path, conn, index)


def interrupt_training(now: Progress) -> None:
    if now.stage == "train":
        interrupt()


def assert_trained_anew(path: Path, conn: sqlite3.Connection, index: Index) -> None:
    """The codec was trained on all there is, and nothing of the training is left, in the database or beside it."""
    assert index.info().why_rebuild is None
    assert Store.open(conn, "t").codec.load().trained_tokens == index.counts().tokens
    assert_in_step(conn, index)
    assert conn.execute("SELECT name FROM sqlite_master WHERE name LIKE '%building%'").fetchall() == []
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert index.sync() == NOTHING
