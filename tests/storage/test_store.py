"""The tables of an index, without an encoder."""

from __future__ import annotations

import dataclasses
import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_sqlite.errors import BuildInterrupted, IndexCorrupt, IndexNotFound, SchemaVersionError
from colbert_sqlite.progress import IndexCounts
from colbert_sqlite.settings import IndexSettings
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.encoded import EncodedPassage, EncodedRow
from colbert_sqlite.storage.postings import StoredPostings
from colbert_sqlite.storage.registry import drop_index, read_entry
from colbert_sqlite.storage.schema import PARTS, quote_identifier, table_name
from colbert_sqlite.storage.source import Source
from colbert_sqlite.storage.store import Store
from colbert_sqlite.storage.swap import begin_build, check_build, publish
from colbert_sqlite.verify import verify
from tests.damage import forge_checksums

DIM, NBITS, N_CENTROIDS = 12, 2, 40
WIDTH = 4


def new_store(conn: sqlite3.Connection, name: str = "posts", build_id: str = "a") -> Store:
    conn.execute("CREATE TABLE IF NOT EXISTS posts (id INTEGER PRIMARY KEY, body TEXT)")
    source = Source.inspect(conn, "posts", ["body"])
    settings = IndexSettings(table="posts", columns=("body",), model="hashing", nbits=NBITS, max_tokens=32)
    return begin_build(conn, name, source, settings, "fingerprint", DIM, build_id=build_id, replace=True)


def with_codec(store: Store) -> Store:
    generator = np.random.default_rng(0)
    with atomic(store.conn):
        store.codec.write(
            nbits=NBITS,
            centroids=generator.integers(-127, 128, (N_CENTROIDS, DIM)).astype(np.int8),
            cells=np.zeros(N_CENTROIDS, np.uint16),
            bucket_cutoffs=np.array([-0.1, 0, 0.1], np.float32),
            bucket_weights=np.array([-0.2, -0.05, 0.05, 0.2], np.float32),
            avg_residual=0.1,
            scale_step=0.01,
            trained_tokens=1000,
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
    return store.codec.load()


def make_dense(store: Store) -> None:
    codec, last_id, end = codec_of(store), 0, 0
    while moved := store.residuals.compact(codec, last_id, end):
        last_id, end = moved
    store.residuals.end_at(codec, end)
    store.codec.update(dataclasses.replace(codec, stream_tokens=end))


def source_of(conn: sqlite3.Connection) -> Source:
    return Source.inspect(conn, "posts", ["body"])


STEPS = st.lists(
    st.tuples(st.integers(0, 6), st.one_of(st.none(), st.lists(st.integers(1, 400), max_size=3))), max_size=12
)


@given(STEPS, st.booleans())
def test_tokens_come_back_whatever_was_added_and_deleted_before(
    steps: list[tuple[int, list[int] | None]], compacted: bool
) -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    conn.execute("PRAGMA page_size = 512")
    store = with_codec(new_store(conn))
    expected: dict[int, EncodedRow] = {}
    for key, doclens in steps:
        with atomic(conn):
            removed = store.delete([(key,)])
            expected.pop(key, None)
            if doclens is not None:
                expected[key] = row_of(key, doclens)
            store.ivf.change(removed, store.append([expected[key]] if doclens is not None else []))
    assert verify(store, None).problems == []
    if compacted:
        with atomic(conn):
            make_dense(store)
        assert store.residuals.reclaimable_bytes(codec_of(store)) == 0
        assert verify(store, None).problems == []
    ids: set[int] = set()
    snapshot = StoredPostings(store, codec_of(store))
    for key, row in expected.items():
        passage_ids = store.passages.ids_of([(key,)])
        codes, offsets = snapshot.codes(passage_ids)
        residuals, starts = snapshot.residuals(passage_ids, np.diff(offsets))
        for i, passage in enumerate(row.passages):
            found = codes[offsets[i] : offsets[i + 1]]
            assert found.tolist() == passage.codes.tolist()
            assert residuals[starts[i] : starts[i] + len(found)].tolist() == passage.residuals.tolist()
        ids.update(passage_ids.tolist())
    assert snapshot.all_passage_ids().tolist() == sorted(ids)
    assert store.passages.counts() == IndexCounts(
        rows=len(expected),
        rows_without_text=sum(not row.passages for row in expected.values()),
        passages=sum(len(row.passages) for row in expected.values()),
        tokens=sum(len(p.codes) for row in expected.values() for p in row.passages),
    )


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
    assert second.codec.exists()
    with pytest.raises(BuildInterrupted, match="another process took over the build of index 'posts'"):
        check_build(first)


def test_publishing_replaces_the_old_tables_and_never_uses_an_id_again() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    conn.execute("CREATE VIEW broken AS SELECT * FROM nowhere")
    for expected_ids in ([1, 2], [3, 4]):
        store = with_codec(new_store(conn))
        with atomic(conn):
            store.append([row_of(1, [3, 4])])
            published = publish(store, source_of(conn))
        assert published.passages.ids_of([(1,)]).tolist() == expected_ids
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
        publish(store, source_of(conn))
    assert Store.open(conn, "posts").entry.name == "Posts"
    with pytest.raises(IndexNotFound, match="no index 'other' in this database; it has Posts"):
        Store.open(conn, "other")


def test_another_schema_version_is_refused() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    new_store(conn)
    conn.execute("UPDATE _colbert_indexes SET schema_version = 99")
    with pytest.raises(SchemaVersionError, match="index 'posts' has schema version 99, this release reads 1"):
        read_entry(conn, "posts", "building")


OTHER_CODES = "UPDATE {codes} SET codes = CAST(substr(codes, 3) || x'ffff' AS BLOB)"
OTHER_RESIDUALS = "UPDATE {residuals} SET residuals = CAST(x'ff' || substr(residuals, 2) AS BLOB) WHERE block = 0"
# Residuals and centroids may be any bytes: only their checksums tell that these are others.
ANY_BYTES = "any bytes will do"
LISTS = "the inverted lists of index 'posts' are damaged"
OTHER_LISTS = f"{LISTS}: a checksum differs; run verify, then repair"
CENTROIDS = "the centroids of index 'posts' are damaged"
OTHER_BLOCK = f"{CENTROIDS}: the checksum of block 0 differs; rebuild the index"

DAMAGE = [
    ("UPDATE {codes} SET codes = x'00' WHERE passage_id = 1", *2 * ["whose codes do not have the length"]),
    ("DELETE FROM {codes} WHERE passage_id = 2", *2 * ["whose codes do not have the length of the passage: 2"]),
    ("INSERT INTO {codes} VALUES (99, x'0000', 0)", *2 * ["codes without a passage: 99"]),
    (OTHER_CODES, "passages with codes beyond the 40 centroids: 1, 2", "codes have another checksum: 1, 2"),
    ("UPDATE {codes} SET codes = CAST(codes AS TEXT)", *2 * ["whose codes do not have the length"]),
    ("DELETE FROM {residuals} WHERE block = 0", *2 * ["passages whose residuals are missing: 1"]),
    ("UPDATE {residuals} SET residuals = x'00' WHERE block = 0", *2 * ["blocks of residuals of the wrong length: 0"]),
    (OTHER_RESIDUALS, ANY_BYTES, "blocks of residuals that have another checksum: 0"),
    ("UPDATE {passages} SET residual_start = 1 WHERE passage_id = 2", *2 * ["overlap or lie beyond the end: 2"]),
    (
        "UPDATE {passages} SET ordinal = 7 WHERE passage_id = 2",
        *2 * ["not numbered from 0 or differ in content hash: 1"],
    ),
    ("UPDATE {passages} SET content_hash = x'00'", *2 * ["impossible ids, offsets, lengths or hashes: 1, 2"]),
    ("UPDATE {passages} SET doclen = 'x'", *2 * ["impossible ids, offsets, lengths or hashes: 1, 2"]),
    ("UPDATE {passages} SET start = 'x'", *2 * ["impossible ids, offsets, lengths or hashes: 1, 2"]),
    ("DELETE FROM {ivf}", *2 * ["passages missing from inverted lists: 1, 2"]),
    ("UPDATE {ivf} SET passage_ids = x'00000900'", "lists name passages they should not: 10", OTHER_LISTS),
    ("UPDATE {ivf} SET passage_ids = x'09'", f"{LISTS}: a BLOB has 1 bytes, which 2 does not divide", OTHER_LISTS),
    (
        "UPDATE {ivf} SET passage_ids = 'ab'",
        *2 * [f"{LISTS}: a value is not a BLOB, or its checksum not a number; run verify, then repair"],
    ),
    ("INSERT INTO {outliers} VALUES (99, 0, zeroblob(24), 0)", *2 * ["passages with damaged outliers: 99"]),
    ("INSERT INTO {outliers} VALUES (1, 1300, zeroblob(24), 0)", *2 * ["passages with damaged outliers: 1"]),
    ("INSERT INTO {outliers} VALUES (1, 0, zeroblob(23), 0)", *2 * ["passages with damaged outliers: 1"]),
    ("INSERT INTO {outliers} VALUES (1, 0, zeroblob(24), 0)", ANY_BYTES, "passages with damaged outliers: 1"),
    ("INSERT INTO {outliers} VALUES ('x', 0, zeroblob(24), 0)", *2 * ["passages with damaged outliers: x"]),
    ("DELETE FROM {codec}", *2 * ["the codec of index 'posts' is damaged: its row is missing; rebuild the index"]),
    ("DELETE FROM {centroids}", *2 * [f"{CENTROIDS}: 0 of them and 0 cells, not 40; rebuild the index"]),
    ("UPDATE {centroids} SET centroids = x'00'", f"{CENTROIDS}: 0.0833333 of them and 40 cells, not 40", OTHER_BLOCK),
    ("UPDATE {centroids} SET cells = x'0000'", f"{CENTROIDS}: 40 of them and 1 cells, not 40", OTHER_BLOCK),
    ("UPDATE {centroids} SET centroids = zeroblob(480)", ANY_BYTES, OTHER_BLOCK),
    ("UPDATE {centroids} SET centroids = 'text'", *2 * [f"{CENTROIDS}: a value is not a BLOB; rebuild the index"]),
    *(
        (
            f"UPDATE {{codec}} SET {change}",
            f"the codec of index 'posts' is damaged: {detail}; rebuild the index",
            "the codec of index 'posts' is damaged: its checksum differs; rebuild the index",
        )
        for change, detail in (
            ("dim = 13", "dim is 13"),
            ("nbits = 3", "nbits is 3"),
            ("n_centroids = 0", "n_centroids is 0"),
            ("codes_dtype = '<f8'", "codes_dtype is '<f8'"),
            ("codes_dtype = x'00'", r"codes_dtype is b'\x00'"),
            ("scale_step = 1e300", "scale_step is 1e+300"),
            ("scale_step = 0", "scale_step is 0.0"),
            ("avg_residual = -1", "avg_residual is -1.0"),
            ("n_trained = 41", "n_trained is 41"),
            ("recent_tokens = 9e999", "recent_tokens is inf"),
            ("bucket_weights = CAST(zeroblob(12) || x'01000000' AS BLOB)", "bucket_weights has 1.4013e-45"),
            ("bucket_weights = CAST(zeroblob(12) || x'0000c07f' AS BLOB)", "bucket_weights has nan"),
            ("bucket_weights = x'00'", r"bucket_weights is b'\x00'"),
            ("bucket_cutoffs = zeroblob(16)", "bucket_cutoffs has 4 values, not 3"),
            ("block_tokens = 'z'", "block_tokens is 'z'"),
            ("block_tokens = 1 << 60", f"block_tokens is {1 << 60}"),
            ("stream_tokens = -1", "stream_tokens is -1"),
            ("trained_tokens = -1", "trained_tokens is -1"),
        )
    ),
]


def damaged_store(damage: str, *, forged: bool) -> Store:
    """An index of one row with two passages, damaged."""
    conn = sqlite3.connect(":memory:", isolation_level=None)
    store = with_codec(new_store(conn))
    with atomic(conn):
        store.ivf.write(store.append([row_of(1, [1300, 1500])]))
    assert verify(store, None).problems == []
    conn.execute(damage.format(**{part: store.table(part) for part in PARTS}))
    if forged:
        forge_checksums(conn, "posts", building=True)
    return store


@pytest.mark.parametrize(("damage", "problem"), [(damage, structural) for damage, structural, _ in DAMAGE])
def test_verify_names_what_contradicts_itself_though_checksums_agree(damage: str, problem: str) -> None:
    problems = verify(damaged_store(damage, forged=True), None).problems
    assert any(problem in found for found in problems) or (problem, problems) == (ANY_BYTES, [])


@pytest.mark.parametrize(("damage", "problem"), [(damage, unforged) for damage, _, unforged in DAMAGE])
def test_verify_names_what_is_damaged(damage: str, problem: str) -> None:
    problems = verify(damaged_store(damage, forged=False), None).problems
    assert any(problem in found for found in problems), problems


@pytest.mark.parametrize("forged", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM {codes} WHERE passage_id = 2",
        "UPDATE {codes} SET codes = x'000000' WHERE passage_id = 2",
        "UPDATE {codes} SET codes = 'text'",
        "UPDATE {codes} SET codes = 7",
    ],
)
def test_reading_damaged_codes_is_an_error(damage: str, forged: bool) -> None:
    store = damaged_store(damage, forged=forged)
    with pytest.raises(IndexCorrupt):
        StoredPostings(store, codec_of(store)).codes(np.array([1, 2]))


@pytest.mark.parametrize("forged", [False, True])
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
def test_reading_damaged_residuals_is_an_error(damage: str, forged: bool) -> None:
    store = damaged_store(damage, forged=forged)
    with pytest.raises(IndexCorrupt):
        StoredPostings(store, codec_of(store)).residuals(np.array([1, 2]), np.array([1300, 1500]))


@pytest.mark.parametrize(
    "damage",
    [
        "INSERT INTO {outliers} VALUES ('x', 0, zeroblob(24), 0)",
        "INSERT INTO {outliers} VALUES (1, x'00', zeroblob(24), 0)",
        "INSERT INTO {outliers} VALUES (1, -1, zeroblob(24), 0)",
        "INSERT INTO {outliers} VALUES (1, 0, zeroblob(22), 0)",
        "INSERT INTO {outliers} VALUES (1, 0, 'text', 0)",
    ],
)
def test_taking_damaged_outliers_is_an_error(damage: str) -> None:
    store = damaged_store(damage, forged=True)
    with pytest.raises(IndexCorrupt, match="outliers of index 'posts' are"), atomic(store.conn):
        store.outliers.take(codec_of(store))


@pytest.mark.parametrize("forged", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE {ivf} SET passage_ids = x'09'",
        "UPDATE {ivf} SET passage_ids = 'text'",
        "UPDATE {ivf} SET passage_ids = 7",
    ],
)
def test_reading_damaged_lists_is_an_error(damage: str, forged: bool) -> None:
    store = damaged_store(damage, forged=forged)
    with pytest.raises(IndexCorrupt):
        StoredPostings(store, codec_of(store)).inverted_lists(np.arange(N_CENTROIDS))
