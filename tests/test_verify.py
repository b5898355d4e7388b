"""Damage of each kind: verify names it, repair mends it and encodes no more than it must."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_sqlite.encoders import Encoder, load_encoder
from colbert_sqlite.errors import ColbertError, IndexCorrupt, IndexNotFound, ModelMismatch
from colbert_sqlite.index import Index
from colbert_sqlite.indexes import drop, list_indexes
from colbert_sqlite.progress import SyncResult
from tests.damage import forge_checksums

N_ROWS = 40
QUERIES = ["word3 word17 word91", "word5", "word60 word61 word62 word63", "nothing of this"]


class CountingEncoder:
    """The hashing encoder, and the texts that it was given."""

    def __init__(self) -> None:
        self._encoder = load_encoder("hashing-32")
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_passages(self, texts: Sequence[str]) -> list[np.ndarray]:
        self.texts += texts
        return self._encoder.encode_passages(texts)


class Damaged:
    """An index of rows with several passages each, the way it answers, and a connection that damages it."""

    def __init__(self, path: Path) -> None:
        self.conn = sqlite3.connect(path, isolation_level=None)
        self.encoder = CountingEncoder()
        self.index = Index.open(path, "posts", model=self.encoder)
        self.before = self.hits()

    def hits(self) -> list[list[tuple[Any, ...]]]:
        """All that is found, but for passages of equal score, whose ids decide."""
        found = self.index.search_many(QUERIES, k=N_ROWS)
        return [[(hit.pk, round(hit.score, 6), hit.row, hit.stale) for hit in hits] for hits in found]

    def table(self, part: str) -> str:
        return f"_colbert_posts_{part}"

    def execute(self, sql: str, *values: object) -> None:
        tables = {part: self.table(part) for part in "passages codes residuals ivf codec centroids outliers".split()}
        n = self.conn.execute(sql.format(**tables), values).rowcount
        assert n != 0, "this damages nothing"

    def value(self, sql: str) -> Any:
        tables = {part: self.table(part) for part in "passages codes residuals ivf codec centroids outliers".split()}
        return self.conn.execute(sql.format(**tables)).fetchone()[0]

    def rows_in_block(self, block: int) -> set[int]:
        """Keys of the rows with a passage in a block of residuals."""
        (tokens,) = self.conn.execute(f"SELECT block_tokens FROM {self.table('codec')}").fetchone()
        sql = (
            f"SELECT DISTINCT pk_id FROM {self.table('passages')}"
            " WHERE doclen AND residual_start < ? AND residual_start + doclen > ?"
        )
        return {pk for (pk,) in self.conn.execute(sql, ((block + 1) * tokens, block * tokens))}

    def passages_of(self, keys: set[int]) -> int:
        places = ", ".join("?" * len(keys))
        sql = f"SELECT count(*) FROM {self.table('passages')} WHERE pk_id IN ({places}) AND doclen"
        n: int = self.conn.execute(sql, [*keys]).fetchone()[0]
        return n


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "posts.db"
    conn = sqlite3.connect(path, isolation_level=None)
    # Small pages: several blocks of residuals.
    conn.execute("PRAGMA page_size = 1024")
    conn.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, body TEXT)")
    generator = np.random.default_rng(3)
    bodies = (" ".join(f"word{n}" for n in generator.integers(0, 100, 40)) for _ in range(N_ROWS))
    conn.executemany("INSERT INTO posts VALUES (?, ?)", enumerate(bodies, 1))
    index = Index.create(conn, "posts", ["body"], model="hashing-32", max_tokens=32)
    # Rows synced later than the codec was trained: some of their tokens are outliers.
    conn.execute("UPDATE posts SET body = body || ' quite another thing' WHERE id IN (7, 9)")
    index.sync()
    conn.close()
    return path


@pytest.fixture
def damaged(sound: Path, tmp_path: Path) -> Damaged:
    return Damaged(Path(shutil.copy(sound, tmp_path)))


LAST_BLOCK = "(SELECT max(block) FROM {residuals})"
FLIPPED = "CAST(x'ff' || substr({0}, 2) AS BLOB)"

# What is done, what verify says, and the rows that have to be encoded again: keys, or a block that they are in.
DAMAGE: list[tuple[str, str, set[int] | str]] = [
    (
        "UPDATE {codes} SET codes = CAST(x'0700' || substr(codes, 3) AS BLOB) WHERE passage_id IN"
        " (SELECT passage_id FROM {passages} WHERE pk_id = 5 AND ordinal = 1)",
        "passages whose codes have another checksum",
        {5},
    ),
    (
        "DELETE FROM {codes} WHERE passage_id IN (SELECT passage_id FROM {passages} WHERE pk_id IN (5, 6))",
        "passages whose codes do not have the length of the passage",
        {5, 6},
    ),
    (
        "UPDATE {residuals} SET residuals = CAST(zeroblob(8) || substr(residuals, 9) AS BLOB) WHERE block = 2",
        "blocks of residuals that have another checksum: 2",
        "2",
    ),
    ("UPDATE {residuals} SET residuals = x'00' WHERE block = 3", "blocks of residuals of the wrong length: 3", "3"),
    ("DELETE FROM {residuals} WHERE block = 1", "passages whose residuals are missing", "1"),
    (f"DELETE FROM {{residuals}} WHERE block = {LAST_BLOCK}", "the last block of residuals is missing", "last"),
    (
        f"UPDATE {{residuals}} SET residuals = CAST(residuals || x'00' AS BLOB) WHERE block = {LAST_BLOCK}",
        "blocks of residuals of the wrong length",
        "last",
    ),
    ("INSERT INTO {codes} VALUES (9999, x'0000', 0)", "codes without a passage: 9999", set()),
    ("INSERT INTO {outliers} VALUES (9999, 0, x'00', 0)", "passages with damaged outliers: 9999", set()),
    ("INSERT INTO {outliers} VALUES ('x', 0, x'00', 0)", "passages with damaged outliers: x", set()),
    ("INSERT INTO {residuals} VALUES (9999, x'00', 0)", "blocks of residuals of the wrong length: 9999", set()),
    # The last passage of the row before an orphan may be lost too.
    ("DELETE FROM {passages} WHERE pk_id = 4", "codes without a passage", {3, 4}),
    ("DELETE FROM {passages} WHERE pk_id = 4 AND ordinal = 1", "codes without a passage", {4}),
    ("DELETE FROM {ivf} WHERE segment & 1", "passages missing from inverted lists", set()),
    ("UPDATE {ivf} SET passage_ids = CAST(x'0100' || passage_ids AS BLOB)", "a checksum differs", set()),
    (
        "UPDATE {ivf} SET passage_ids = 'text'",
        "inverted lists of index 'posts' are damaged: a value is not a BLOB",
        set(),
    ),
    (
        "INSERT INTO {ivf} VALUES (-5, x'', -2147483648)",
        "inverted lists of index 'posts' are damaged: a segment has 0 bytes",
        set(),
    ),
    ("INSERT INTO {ivf} VALUES (-5, x'0000', -1042738433)", "inverted lists name passages they should not", set()),
    ("DELETE FROM {ivf}", "passages missing from inverted lists", set()),
    ("UPDATE {passages} SET ordinal = 9 WHERE pk_id = 8 AND ordinal = 1", "passages are not numbered from 0", {8}),
    ("UPDATE {passages} SET ordinal = -1 WHERE pk_id = 8 AND ordinal = 0", "passages are not numbered from 0", {8}),
    ("UPDATE {passages} SET ordinal = 'x' WHERE pk_id = 8 AND ordinal = 0", "impossible ids, offsets, lengths or", {8}),
    (
        "UPDATE {passages} SET start = -1 WHERE pk_id = 8 AND ordinal = 0",
        "impossible ids, offsets, lengths or hashes",
        {8},
    ),
    ('UPDATE {passages} SET "end" = 1.5 WHERE pk_id = 8', "impossible ids, offsets, lengths or hashes", {8}),
    ("UPDATE {passages} SET doclen = doclen + 1 WHERE pk_id = 8 AND ordinal = 0", "do not have the length", {8}),
    (
        "UPDATE {passages} SET doclen = x'00' WHERE pk_id = 8 AND ordinal = 0",
        "impossible ids, offsets, lengths or",
        {8},
    ),
    ("UPDATE {passages} SET residual_start = 0 WHERE pk_id = 8", "passages whose residuals overlap", {8}),
    ("UPDATE {passages} SET residual_start = residual_start + 9 WHERE pk_id = 8 AND ordinal = 0", "overlap", {8}),
    ("UPDATE {passages} SET residual_start = residual_start + 500 WHERE pk_id = 8 AND ordinal = 0", "overlap", {8}),
    ("UPDATE {passages} SET residual_start = residual_start - 9 WHERE pk_id = 6 AND ordinal = 0", "overlap", {5, 6}),
    ("UPDATE {passages} SET residual_start = 1 << 50 WHERE pk_id = 8 AND ordinal = 0", "lie beyond the end", {8}),
    (
        "UPDATE {passages} SET content_hash = zeroblob(16) WHERE pk_id = 8",
        "were changed after they were indexed: 8",
        {8},
    ),
    (
        "UPDATE {passages} SET content_hash = zeroblob(16) WHERE pk_id = 8 AND ordinal = 1",
        "differ in content hash: 8",
        {8},
    ),
    ("UPDATE {passages} SET pk_id = 500 WHERE pk_id = 8", "indexed rows that the table lacks: 500", {8}),
    ("UPDATE {passages} SET pk_id = 'x' WHERE pk_id = 8 AND ordinal = 1", "passages are not numbered from 0", {8}),
    ("UPDATE {outliers} SET embedding = CAST(x'ff' || substr(embedding, 2) AS BLOB)", "damaged outliers", {7, 9}),
    ("UPDATE {outliers} SET position = 500 + position", "passages with damaged outliers", {7, 9}),
    ("UPDATE {outliers} SET embedding = 7", "passages with damaged outliers", {7, 9}),
]


@pytest.mark.parametrize(("damage", "problem", "concerned"), DAMAGE)
def test_repair_encodes_the_damaged_rows_and_no_others(
    damaged: Damaged, damage: str, problem: str, concerned: set[int] | str
) -> None:
    if isinstance(concerned, str):
        last = damaged.value("SELECT max(block) FROM {residuals}")
        concerned = damaged.rows_in_block(last if concerned == "last" else int(concerned))
        assert 0 < len(concerned) < N_ROWS / 2
    n_passages = damaged.passages_of(concerned) if concerned else 0
    damaged.execute(damage)
    problems = damaged.index.verify()
    assert any(problem in found for found in problems), problems
    damaged.index.repair()
    assert damaged.index.verify() == []
    assert damaged.hits() == damaged.before
    assert len(damaged.encoder.texts) == n_passages
    damaged.index.sync(full=True)
    assert len(damaged.encoder.texts) == n_passages, "there was nothing left to do"


def test_repairing_what_is_sound_changes_nothing(damaged: Damaged) -> None:
    before = "\n".join(damaged.conn.iterdump())
    assert damaged.index.repair() == SyncResult(compared=N_ROWS)
    assert "\n".join(damaged.conn.iterdump()) == before


def test_nothing_is_removed_that_could_not_be_encoded_again(damaged: Damaged) -> None:
    damaged.execute("DELETE FROM {codes} WHERE passage_id = 3")
    before = "\n".join(damaged.conn.iterdump())
    with pytest.raises(ModelMismatch):
        Index.open(damaged.conn, "posts", model=load_encoder("hashing-64")).repair()
    assert "\n".join(damaged.conn.iterdump()) == before


def test_all_kinds_of_damage_at_once_are_repaired(damaged: Damaged) -> None:
    for damage in (
        "UPDATE {codes} SET codes = CAST(x'0700' || substr(codes, 3) AS BLOB) WHERE passage_id = 3",
        "DELETE FROM {residuals} WHERE block IN (1, 4)",
        "INSERT INTO {codes} VALUES (9999, x'0000', 0)",
        "DELETE FROM {passages} WHERE pk_id = 30",
        "UPDATE {passages} SET ordinal = 9 WHERE pk_id = 8 AND ordinal = 1",
        "UPDATE {outliers} SET embedding = 7",
        "DELETE FROM {ivf} WHERE segment & 1",
    ):
        damaged.execute(damage)
    assert len(damaged.index.verify()) >= 7
    damaged.index.repair()
    assert damaged.index.verify() == []
    assert damaged.hits() == damaged.before


CODEC_DAMAGE = [
    "DELETE FROM {codec}",
    "UPDATE {codec} SET nbits = 2",
    "UPDATE {codec} SET stream_tokens = stream_tokens + 1",
    "UPDATE {codec} SET bucket_weights = zeroblob(64)",
    "UPDATE {codec} SET checksum = checksum + 1",
    "UPDATE {centroids} SET centroids = CAST(x'55' || substr(centroids, 2) AS BLOB)",
    "UPDATE {centroids} SET cells = zeroblob(2)",
    "UPDATE {centroids} SET checksum = 'x'",
    "DELETE FROM {centroids}",
]


@pytest.mark.parametrize("damage", CODEC_DAMAGE)
def test_a_damaged_codec_can_only_be_rebuilt(damaged: Damaged, damage: str) -> None:
    damaged.execute(damage)
    before = damaged.conn.execute("SELECT * FROM _colbert_indexes").fetchall()
    (problem,) = damaged.index.verify()
    for call in (damaged.index.repair, lambda: Index.open(damaged.conn, "posts", model="hashing-32").search("word1")):
        with pytest.raises(IndexCorrupt) as caught:
            call()
        assert "\n" not in str(caught.value) and "posts" in str(caught.value)
    with pytest.raises(IndexCorrupt, match="; rebuild the index$"):
        damaged.index.repair()
    assert damaged.conn.execute("SELECT * FROM _colbert_indexes").fetchall() == before
    damaged.index.rebuild()
    assert damaged.index.verify() == []
    assert [hits[0][0] for hits in damaged.hits()[:3]] == [hits[0][0] for hits in damaged.before[:3]]


REGISTRY_DAMAGE = [
    "settings = '{'",
    "settings = replace(settings, '32', '33')",
    "settings = x'00'",
    "settings = CAST(x'ff22' AS TEXT)",
    "key_columns = '[]'",
    "key_columns = 7",
    "source_table = 'other'",
    "dim = 33",
    "generation = generation + 1",
    "generation = 'x'",
    "model_fingerprint = x'00'",
    "build_id = ''",
    "queue_complete = 7",
    "schema_version = 99",
    "schema_version = 'x'",
    "checksum = checksum + 1",
    "created = CAST(x'ff' AS TEXT)",
]


@pytest.mark.parametrize("damage", REGISTRY_DAMAGE)
def test_a_damaged_registry_row_is_one_sentence_and_can_be_dropped(damaged: Damaged, damage: str) -> None:
    damaged.conn.execute(f"UPDATE _colbert_indexes SET {damage}")
    index, encoder = damaged.index, damaged.encoder
    calls: list[Callable[[], object]] = [
        lambda: Index.open(damaged.conn, "posts", model=encoder),
        lambda: index.search("word1"),
        index.info,
        index.verify,
        index.sync,
        index.repair,
        index.optimize,
        index.rebuild,
        index.counts,
    ]
    for call in calls:
        with pytest.raises(ColbertError) as caught:
            call()
        assert "\n" not in str(caught.value) and "index" in str(caught.value)
    ((name, state),) = [(entry.name, entry.state) for entry in list_indexes(damaged.conn)]
    assert (name, state) == ("posts", "unreadable")
    drop(damaged.conn, "posts")
    assert damaged.conn.execute("SELECT name FROM sqlite_master WHERE name LIKE '%colbert%'").fetchall() == []
    again = Index.create(damaged.conn, "posts", ["body"], model=encoder, max_tokens=32)
    assert again.verify() == []
    assert [hit.pk for hit in again.search(QUERIES[0], k=3)] == [row[0] for row in damaged.before[0][:3]]


@pytest.mark.parametrize("damage", REGISTRY_DAMAGE)
def test_a_damaged_registry_row_can_be_replaced(damaged: Damaged, damage: str) -> None:
    damaged.conn.execute(f"UPDATE _colbert_indexes SET {damage}")
    again = Index.create(damaged.conn, "posts", ["body"], model="hashing-32", max_tokens=32, replace=True)
    assert again.verify() == []
    assert [hit.pk for hit in again.search(QUERIES[0], k=3)] == [row[0] for row in damaged.before[0][:3]]


def test_a_registry_row_of_another_name_is_another_index(damaged: Damaged, encoder: Encoder) -> None:
    damaged.conn.execute("UPDATE _colbert_indexes SET name = 'other'")
    with pytest.raises(IndexNotFound, match="no index 'posts' in this database; it has other"):
        damaged.index.search("word1")
    with pytest.raises(IndexCorrupt, match="the registry entry of index 'other' is damaged"):
        Index.open(damaged.conn, "other")
    again = Index.create(damaged.conn, "posts", ["body"], model=encoder)
    assert again.verify() == []
    drop(damaged.conn, "other")
    assert [entry.name for entry in list_indexes(damaged.conn)] == ["posts"]


def test_a_damaged_row_of_a_build_does_not_keep_the_index_from_use(damaged: Damaged) -> None:
    damaged.conn.execute(
        "INSERT INTO _colbert_indexes SELECT name, 'building', schema_version, source_table, key_columns, '{', model,"
        " model_fingerprint, dim, generation, build_id, created, updated, queue_complete, 0 FROM _colbert_indexes"
    )
    assert damaged.hits() == damaged.before
    assert [entry.state for entry in list_indexes(damaged.conn)] == ["ready", "unreadable"]
    damaged.index.rebuild()
    assert [entry.state for entry in list_indexes(damaged.conn)] == ["ready"]


def test_a_row_without_codec_can_not_be_deleted(damaged: Damaged) -> None:
    damaged.execute("DELETE FROM {codec}")
    damaged.conn.execute("DELETE FROM posts WHERE id = 3")
    with pytest.raises(IndexCorrupt, match="the codec of index 'posts' is damaged: its row is missing"):
        damaged.index.sync()


@pytest.mark.parametrize("place", ["0", "'x'", "1.5", "1 << 40", "-1"])
@pytest.mark.parametrize("key", [19, 20, 21])
def test_deleting_beside_a_damaged_place_takes_little_else_along(damaged: Damaged, place: str, key: int) -> None:
    n_blocks = damaged.value("SELECT count(*) FROM {residuals}")
    of_row = (damaged.value(f"SELECT sum(doclen) FROM {{passages}} WHERE pk_id = {key}") or 0) // damaged.value(
        "SELECT block_tokens FROM {codec}"
    )
    damaged.execute(f"UPDATE {{passages}} SET residual_start = {place} WHERE pk_id = 20")
    damaged.conn.execute("DELETE FROM posts WHERE id = ?", (key,))
    try:
        damaged.index.sync()
    except IndexCorrupt as error:
        assert "residuals of index 'posts'" in str(error) and "run verify, then repair" in str(error)
    assert damaged.value("SELECT count(*) FROM {residuals}") >= n_blocks - of_row - 2
    damaged.index.repair()
    assert damaged.index.verify() == []
    assert damaged.hits() == [[hit for hit in hits if hit[0] != key] for hits in damaged.before]


@pytest.mark.parametrize("doclen", ["-1 << 40", "'x'", "x'00'", "0.5"])
def test_doclens_that_are_no_numbers_are_not_counted(damaged: Damaged, doclen: str) -> None:
    damaged.execute(f"UPDATE {{passages}} SET doclen = {doclen}")
    for call in (damaged.index.info, damaged.index.counts):
        with pytest.raises(
            IndexCorrupt, match="passages of index 'posts' are damaged: the sum of doclen is .*; run ver"
        ):
            call()
    damaged.index.repair()
    assert damaged.index.verify() == []
    assert damaged.hits() == damaged.before


@pytest.mark.parametrize("damage", ["start = 'x'", "\"end\" = x'00'", "ordinal = 1.5", "start = -5"])
def test_offsets_of_passages_that_are_no_numbers_are_an_error(damaged: Damaged, damage: str) -> None:
    damaged.execute(f"UPDATE {{passages}} SET {damage} WHERE pk_id = 20 AND ordinal = 0")
    field = damage.split()[0].strip('"')
    with pytest.raises(IndexCorrupt, match=f"passages of index 'posts' are damaged: {field} of passage .*; run verify"):
        damaged.index.search("word1", k=N_ROWS)


@pytest.mark.parametrize(
    "settings",
    [
        "json_set(settings, '$.max_tokens', NULL)",
        "json_set(settings, '$.max_tokens', 'x')",
        "json_set(settings, '$.table', 7)",
        "json_set(settings, '$.columns', json('[7]'))",
        "json_set(settings, '$.columns', 'body')",
        "json_set(settings, '$.heading', json('[]'))",
        "json_set(settings, '$.where', 7)",
        "json_set(settings, '$.params', json('[]'))",
        "json_set(settings, '$.params', json('{\"a\": [1]}'))",
        "json_set(settings, '$.seed', 'x')",
        "json_set(settings, '$.triggers', 'x')",
        "json_set(settings, '$.model', json('{}'))",
        "json_set(settings, '$.extra', 1)",
        "json_remove(settings, '$.table')",
        "'[]'",
        "'[1]'",
        "'null'",
        f"'{'[' * 100_000}'",
    ],
)
def test_settings_made_with_intent_are_one_sentence(damaged: Damaged, settings: str) -> None:
    damaged.conn.execute(f"UPDATE _colbert_indexes SET settings = {settings}")
    forge_checksums(damaged.conn, "posts")
    with pytest.raises(
        IndexCorrupt, match="the registry entry of index 'posts' is damaged: .*; drop the index, then create it"
    ):
        damaged.index.search("word1")


@pytest.mark.parametrize(
    "damage",
    [
        "dim = 'x'",
        "generation = 'x'",
        "generation = 1.5",
        "model_fingerprint = x'00'",
        "model = x'00'",
        "source_table = x'00'",
        "build_id = x'00'",
        "created = x'00'",
        "key_columns = '[[7, \"INTEGER\"]]'",
        "key_columns = '[[\"id\", 7]]'",
        "key_columns = '{}'",
    ],
)
def test_a_registry_row_made_with_intent_is_one_sentence(damaged: Damaged, damage: str) -> None:
    damaged.conn.execute(f"UPDATE _colbert_indexes SET {damage}")
    forge_checksums(damaged.conn, "posts")
    with pytest.raises(
        IndexCorrupt, match="the registry entry of index 'posts' is damaged: .*; drop the index, then create it"
    ):
        damaged.index.search("word1")


@pytest.mark.parametrize("passage_id", [-(2**63), 0, 2**63 - 1])
def test_codes_of_impossible_passages_are_repaired(damaged: Damaged, passage_id: int) -> None:
    damaged.execute(f"UPDATE {{codes}} SET passage_id = {passage_id} WHERE passage_id = 2")
    assert damaged.index.verify() != []
    damaged.index.repair()
    assert damaged.index.verify() == []


def test_damaged_centroids_leave_the_facts_of_an_index_readable(damaged: Damaged) -> None:
    damaged.execute("UPDATE {centroids} SET checksum = 'x'")
    index = Index.open(damaged.index.database, "posts")
    with pytest.raises(IndexCorrupt, match="centroids"):
        index.search(QUERIES[0])
    assert index.info().rows == N_ROWS
    assert index.optimize() >= 0
