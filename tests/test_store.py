"""The tables of an index, without an encoder."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from colbert_sqlite.errors import BuildInterrupted, IndexCorrupt, IndexNotFound, SchemaVersionError
from colbert_sqlite.settings import IndexSettings
from colbert_sqlite.storage.check import check
from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.schema import PARTS, quote_identifier, table_name
from colbert_sqlite.storage.snapshot import Snapshot
from colbert_sqlite.storage.source import Source
from colbert_sqlite.storage.store import EncodedPassage, EncodedRow, Store, StoredCodec, drop_index, read_entries

DIM, NBITS, N_CENTROIDS = 12, 2, 40
WIDTH = 4


def new_store(conn: sqlite3.Connection, name: str = "posts", build_id: str = "a") -> Store:
    conn.execute("CREATE TABLE IF NOT EXISTS posts (id INTEGER PRIMARY KEY, body TEXT)")
    source = Source.inspect(conn, "posts", ["body"])
    settings = IndexSettings(table="posts", columns=("body",), model="hashing", nbits=NBITS, max_tokens=32)
    return Store.start_build(conn, name, source, settings, "fingerprint", DIM, build_id=build_id, replace=True)


def with_codec(store: Store) -> Store:
    generator = np.random.default_rng(0)
    with atomic(store.conn):
        store.write_codec(
            nbits=NBITS,
            centroids=generator.integers(-127, 128, (N_CENTROIDS, DIM)).astype(np.int8),
            bucket_cutoffs=np.array([-0.1, 0, 0.1], np.float32),
            bucket_weights=np.array([-0.2, -0.05, 0.05, 0.2], np.float32),
            avg_residual=0.1,
            scale_step=0.01,
        )
    return store


def row_of(key: int, doclens: list[int]) -> EncodedRow:
    generator = np.random.default_rng([key, *doclens])
    passages = [
        EncodedPassage(
            i,
            i + 1,
            generator.integers(0, N_CENTROIDS, n).astype(np.uint32),
            generator.integers(0, 256, (n, WIDTH)).astype(np.uint8),
        )
        for i, n in enumerate(doclens)
    ]
    return EncodedRow((key,), bytes(16), passages)


def codec_of(store: Store) -> StoredCodec:
    codec = store.read_codec()
    assert codec is not None
    return codec


def inverted(rows: list[tuple[NDArray[np.int64], NDArray[np.uint32]]]) -> dict[int, list[int]]:
    lists: dict[int, set[int]] = {}
    for passage_ids, codes in rows:
        for passage_id in passage_ids.tolist():
            for code in codes.tolist():
                lists.setdefault(code, set()).add(passage_id)
    return {code: sorted(ids) for code, ids in lists.items()}


STEPS = st.lists(
    st.tuples(st.integers(0, 6), st.one_of(st.none(), st.lists(st.integers(1, 400), max_size=3))), max_size=12
)


@given(STEPS)
def test_tokens_come_back_whatever_was_added_and_deleted_before(
    steps: list[tuple[int, list[int] | None]],
) -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    conn.execute("PRAGMA page_size = 512")
    store = with_codec(new_store(conn))
    expected: dict[int, EncodedRow] = {}
    for key, doclens in steps:
        with atomic(conn):
            store.delete([(key,)])
            expected.pop(key, None)
            if doclens is not None:
                expected[key] = row_of(key, doclens)
                store.append([expected[key]])
    lists = []
    snapshot = Snapshot(store, codec_of(store))
    for key, row in expected.items():
        passage_ids = store.passage_ids_of([(key,)])
        codes, offsets = snapshot.codes(passage_ids)
        residuals, starts = snapshot.residuals(passage_ids, np.diff(offsets))
        for i, passage in enumerate(row.passages):
            found = codes[offsets[i] : offsets[i + 1]]
            assert found.tolist() == passage.codes.tolist()
            assert residuals[starts[i] : starts[i] + len(found)].tolist() == passage.residuals.tolist()
            lists.append((passage_ids[i : i + 1], passage.codes))
    with atomic(conn):
        store.write_inverted_lists((code, np.array(ids)) for code, ids in inverted(lists).items())
    assert check(store, None) == []
    assert snapshot.all_passage_ids().tolist() == sorted({i for ids, _ in lists for i in ids.tolist()})
    assert store.counts() == {
        "rows": len(expected),
        "rows_without_text": sum(not row.passages for row in expected.values()),
        "passages": sum(len(row.passages) for row in expected.values()),
        "tokens": sum(len(p.codes) for row in expected.values() for p in row.passages),
    }


def test_deleting_everything_frees_the_blocks() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    store = with_codec(new_store(conn))
    with atomic(conn):
        store.append([row_of(key, [2000, 2000]) for key in range(4)])
        store.delete([(key,) for key in (1, 3, 0, 2)])
    (blocks,) = conn.execute(f"SELECT count(*) FROM {store.table('residuals')}").fetchone()
    assert blocks <= 1


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_a_block_of_residuals_fills_one_page(page_size: int) -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    conn.execute(f"PRAGMA page_size = {page_size}")
    store = with_codec(new_store(conn))
    with atomic(conn):
        store.append([row_of(1, [400_000])])
    size = store.bytes_by_part()["residuals"]
    n_blocks = conn.execute(f"SELECT count(*) FROM {store.table('residuals')}").fetchone()[0]
    assert n_blocks * page_size < size <= (1.05 * n_blocks + 1) * page_size
    assert 400_000 * WIDTH / size > 0.8


def test_names_are_quoted() -> None:
    assert quote_identifier('a "b" [c] d') == '"a ""b"" [c] d"'


def test_no_two_indexes_share_a_table() -> None:
    indexes = ["a", "a_codes", "a_codes_building", "a_building", "building"]
    names = [table_name(i, part, building=b) for i in indexes for part in PARTS for b in (False, True)]
    assert len(set(names)) == len(names)


def test_an_equal_build_is_continued_and_the_former_builder_stopped() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    first = with_codec(new_store(conn, build_id="a"))
    second = new_store(conn, build_id="b")
    assert second.read_codec() is not None
    with pytest.raises(BuildInterrupted, match="another process took over the build of index 'posts'"):
        first.check_build("a")


def test_publishing_replaces_the_old_tables_and_never_uses_an_id_again() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    conn.execute("CREATE VIEW broken AS SELECT * FROM nowhere")
    for expected_ids in ([1, 2], [3, 4]):
        store = with_codec(new_store(conn))
        with atomic(conn):
            store.append([row_of(1, [3, 4])])
            published = store.publish()
        assert published.passage_ids_of([(1,)]).tolist() == expected_ids
    assert published.entry.generation == 2
    names = {name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert not any(name.endswith("_building") for name in names)


def test_dropping_the_last_index_leaves_no_table_of_ours() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    with_codec(new_store(conn))
    with atomic(conn):
        drop_index(conn, "POSTS", "building")
    names = {name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE name LIKE '%colbert%'")}
    assert names == set()


def test_an_unknown_index_names_those_that_exist() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    with pytest.raises(IndexNotFound, match="no index 'posts' in this database; it has none"):
        Store.open(conn, "posts")
    store = with_codec(new_store(conn, name="Posts"))
    with pytest.raises(IndexNotFound, match="index 'posts' is not complete: its first build is running"):
        Store.open(conn, "posts")
    with atomic(conn):
        store.publish()
    assert Store.open(conn, "posts").entry.name == "Posts"
    with pytest.raises(IndexNotFound, match="no index 'other' in this database; it has Posts"):
        Store.open(conn, "other")


def test_another_schema_version_is_refused() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    new_store(conn)
    conn.execute("UPDATE _colbert_indexes SET schema_version = 99")
    with pytest.raises(SchemaVersionError, match="index 'posts' has schema version 99, this release reads 2"):
        read_entries(conn, "posts")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("UPDATE {codes} SET codes = x'00' WHERE passage_id = 1", "passages whose codes do not have the length"),
        ("DELETE FROM {codes} WHERE passage_id = 2", "passages whose codes do not have the length of the passage: 2"),
        ("INSERT INTO {codes} VALUES (99, x'0000')", "codes without a passage: 99"),
        ("UPDATE {codes} SET codes = CAST(substr(codes, 3) || x'ffff' AS BLOB)", "codes beyond the 40 centroids: 1, 2"),
        ("UPDATE {codes} SET codes = CAST(codes AS TEXT)", "passages whose codes do not have the length"),
        ("UPDATE {ivf} SET passage_ids = 'ab'", "inverted lists are not all BLOBs of 2-byte items"),
        ("DELETE FROM {residuals} WHERE block = 0", "passages whose residuals are missing: 1"),
        ("UPDATE {residuals} SET residuals = x'00' WHERE block = 0", "blocks of residuals of the wrong length: 0"),
        ("UPDATE {passages} SET residual_start = 1 WHERE passage_id = 2", "residuals overlap or lie beyond the end: 2"),
        ("UPDATE {passages} SET ordinal = 7 WHERE passage_id = 2", "not numbered from 0 or differ in content hash: 1"),
        ("UPDATE {passages} SET content_hash = x'00'", "impossible offsets or hashes: 1, 2"),
        ("DELETE FROM {ivf}", "passages missing from inverted lists: 1, 2"),
        ("UPDATE {ivf} SET passage_ids = x'0900'", "inverted lists name passages they should not: 9"),
        ("UPDATE {ivf} SET passage_ids = x'09'", "inverted lists are not all BLOBs of 2-byte items"),
        ("UPDATE {codec} SET dim = 13", "the codec of index 'posts' contradicts itself"),
        ("UPDATE {codec} SET codes_dtype = '<f8'", "the codec of index 'posts' contradicts itself"),
        ("UPDATE {codec} SET scale_step = 1e300", "the codec of index 'posts' contradicts itself"),
        ("UPDATE {codec} SET scale_step = 0", "the codec of index 'posts' contradicts itself"),
        ("UPDATE {codec} SET bucket_weights = CAST(zeroblob(60) || x'01000000' AS BLOB)", "contradicts itself"),
        ("UPDATE {codec} SET bucket_weights = CAST(zeroblob(60) || x'0000c07f' AS BLOB)", "contradicts itself"),
        ("UPDATE {codec} SET block_tokens = 'z'", "the codec of index 'posts' contradicts itself"),
        ("UPDATE {codec} SET block_tokens = 1 << 60", "the codec of index 'posts' contradicts itself"),
        ("UPDATE {centroids} SET centroids = x'00'", "the codec of index 'posts' contradicts itself"),
        ("UPDATE {centroids} SET centroids = 'text'", "centroids of index 'posts' are not all BLOBs"),
        ("UPDATE {passages} SET doclen = 'x'", "passages whose codes do not have the length of the passage: 1, 2"),
        ("UPDATE {passages} SET start = 'x'", "impossible offsets or hashes: 1, 2"),
        ("DELETE FROM {codec}", "there is no codec"),
    ],
)
def test_verify_names_what_is_damaged(damage: str, problem: str) -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    store = with_codec(new_store(conn))
    row = row_of(1, [1300, 1500])
    with atomic(conn):
        store.append([row])
        lists = [(np.array([i + 1]), passage.codes) for i, passage in enumerate(row.passages)]
        store.write_inverted_lists((code, np.array(ids)) for code, ids in inverted(lists).items())
    assert check(store, None) == []
    tables = {part: store.table(part) for part in ("passages", "codes", "residuals", "centroids", "ivf", "codec")}
    conn.execute(damage.format(**tables))
    problems = check(store, None)
    assert any(problem in found for found in problems), problems


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM {codes} WHERE passage_id = 2",
        "UPDATE {codes} SET codes = x'000000' WHERE passage_id = 2",
        "UPDATE {codes} SET codes = 'text'",
        "UPDATE {codes} SET codes = 7",
    ],
)
def test_reading_damaged_codes_is_an_error(damage: str) -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    store = with_codec(new_store(conn))
    with atomic(conn):
        store.append([row_of(1, [1300, 1500])])
    conn.execute(damage.format(codes=store.table("codes")))
    with pytest.raises(IndexCorrupt):
        Snapshot(store, codec_of(store)).codes(np.array([1, 2]))


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM {residuals} WHERE block = 1",
        "UPDATE {residuals} SET residuals = x'00'",
        "UPDATE {residuals} SET residuals = 'text'",
        "UPDATE {passages} SET residual_start = 100000 WHERE passage_id = 2",
        "UPDATE {passages} SET doclen = -1 WHERE passage_id = 2",
        "UPDATE {passages} SET doclen = 'x' WHERE passage_id = 2",
        "UPDATE {passages} SET doclen = 1499 WHERE passage_id = 2",
        "UPDATE {passages} SET doclen = 1 << 62 WHERE passage_id = 2",
        "UPDATE {passages} SET residual_start = 1 << 62 WHERE passage_id = 2",
    ],
)
def test_reading_damaged_residuals_is_an_error(damage: str) -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    store = with_codec(new_store(conn))
    with atomic(conn):
        store.append([row_of(1, [1300, 1500])])
    conn.execute(damage.format(residuals=store.table("residuals"), passages=store.table("passages")))
    with pytest.raises(IndexCorrupt):
        Snapshot(store, codec_of(store)).residuals(np.array([1, 2]), np.array([1300, 1500]))
