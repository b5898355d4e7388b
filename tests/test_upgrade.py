"""Files of earlier formats, as they were written then."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from colbert_sqlite import Index, list_indexes, upgrade
from colbert_sqlite.errors import IndexCorrupt, IndexNotFound, SchemaVersionError
from colbert_sqlite.indexes import drop

DATA = Path(__file__).parent / "data"


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def old(version: int, tmp_path: Path) -> Path:
    """A copy of a database whose index an earlier release wrote."""
    return Path(shutil.copy(DATA / f"format{version}.db", tmp_path))


@pytest.fixture
def old2(tmp_path: Path) -> Path:
    return Path(shutil.copy(DATA / "format2.db", tmp_path))


def test_opening_names_the_command(old: Path, version: int) -> None:
    message = (
        f"index 'posts' has schema version {version}, this release reads 3: bring it up with: "
        "sqlite-utils colbert upgrade DATABASE posts"
    )
    with pytest.raises(SchemaVersionError) as caught:
        Index.open(old, "posts")
    assert str(caught.value) == message
    assert list_indexes(old) == [{"name": "posts", "state": "unreadable", "problem": message}]


def test_an_upgraded_index_answers_and_follows_its_table(old: Path) -> None:
    assert upgrade(old, "posts")
    conn = sqlite3.connect(old, isolation_level=None)
    with Index.open(conn, "posts") as index:
        assert index.verify() == []
        assert [hit.pk for hit in index.search("comet dust", k=2)] == [2, 3]
        (n_triggers,) = conn.execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'").fetchone()
        assert n_triggers >= 3
        assert index.info()["pending_changes"] == 0
        conn.execute("INSERT INTO posts (id, body) VALUES (0, 'A narwhal.')")
        assert index.info()["pending_changes"] == 1
        assert index.sync() == {"added": 1, "updated": 0, "deleted": 0, "compared": 0}
        assert index.search("narwhal", k=1)[0].pk == 0
        assert index.verify() == []


def test_upgrading_again_is_harmless(old: Path) -> None:
    assert upgrade(old, "POSTS")
    before = dump(old)
    assert not upgrade(old, "posts")
    assert dump(old) == before


def test_settings_are_kept(old: Path) -> None:
    conn = sqlite3.connect(old)
    before = registry_row(conn)
    upgrade(conn, "posts")
    after = registry_row(conn)
    unchanged = ["name", "state", "source_table", "key_columns", "model", "model_fingerprint", "dim"]
    if before["schema_version"] == 2:
        unchanged.append("created")
        assert after["generation"] > before["generation"]
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}
    settings = dataclasses.asdict(Index.open(conn, "posts").settings)
    assert settings == {
        "table": "posts",
        "columns": ("body",),
        "model": "hashing-32",
        "nbits": settings["nbits"],
        "where": "id < :most",
        "params": settings["params"],
        "heading": "title",
        "html": "auto",
        "max_tokens": settings["max_tokens"],
        "pool_factor": 1,
        "triggers": True,
        "seed": 42,
    }
    for name in ("nbits", "params", "max_tokens"):
        assert f'"{name}": {str(settings[name]).replace(chr(39), chr(34))}' in before["settings"]


class Unloadable:
    """A model that nothing must be asked of."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"upgrading in place asks the model for its {name}")


def test_version_2_is_brought_up_in_place(old2: Path) -> None:
    conn = sqlite3.connect(old2)
    kept = 'SELECT passage_id, pk_id, ordinal, start, "end", doclen, residual_start, content_hash FROM _colbert_posts_'
    parts = [f"{kept}passages", "SELECT passage_id, codes FROM _colbert_posts_codes"]
    parts += ["SELECT block, residuals FROM _colbert_posts_residuals"]
    parts += ["SELECT block, centroids FROM _colbert_posts_centroids"]
    before = [conn.execute(sql).fetchall() for sql in parts]
    assert upgrade(conn, "posts", model=Unloadable())
    assert [conn.execute(sql).fetchall() for sql in parts] == before
    assert Index.open(conn, "posts").verify() == []


def test_rows_that_changed_before_the_upgrade_are_brought_up(old: Path) -> None:
    conn = sqlite3.connect(old, isolation_level=None)
    conn.execute("UPDATE posts SET body = 'A narwhal.' WHERE id = 3")
    conn.execute("DELETE FROM posts WHERE id = 2")
    upgrade(conn, "posts")
    index = Index.open(conn, "posts")
    assert index.verify() == []
    assert index.search("narwhal", k=1)[0].pk == 3
    assert 2 not in [hit.pk for hit in index.search("comet dust", k=10)]


class Killed(Exception):
    """What ends the upgrade."""


# Where a version is brought up, in which call.
STEPS = {
    1: ["index.build", "indexing._Build.encode_rows", "storage.store.Store.publish"],
    2: [
        "storage.upgrade.create_queue",
        "storage.upgrade._add_checksums",
        "storage.upgrade._write_codec",
        "storage.lists.InvertedLists.write",
        "storage.stored_codec.CodecTables.read_centroids",
    ],
}


@pytest.mark.parametrize(("version", "step"), [(v, step) for v, steps in STEPS.items() for step in steps])
def test_an_upgrade_that_is_killed_leaves_the_index_as_it_was(
    tmp_path: Path, version: int, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Path(shutil.copy(DATA / f"format{version}.db", tmp_path))
    before = dump(old)

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"colbert_sqlite.{step}", kill)
        with pytest.raises(Killed):
            upgrade(old, "posts")
    if version == 2:
        assert dump(old) == before
    with pytest.raises(SchemaVersionError, match="bring it up with"):
        Index.open(old, "posts")
    assert upgrade(old, "posts")
    with Index.open(old, "posts") as index:
        assert [hit.pk for hit in index.search("comet dust", k=2)] == [2, 3]
        assert index.verify() == []


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM _colbert_posts_codec",
        "UPDATE _colbert_posts_codec SET codes_dtype = '<f8'",
        "UPDATE _colbert_posts_codec SET n_centroids = 'x'",
        "UPDATE _colbert_posts_codec SET nbits = 'x'",
        "UPDATE _colbert_posts_codec SET avg_residual = 'x'",
        "UPDATE _colbert_posts_codec SET bucket_weights = 'x'",
        "UPDATE _colbert_posts_codec SET block_tokens = x'00'",
        "UPDATE _colbert_posts_codec SET dim = 7",
        "UPDATE _colbert_posts_codec SET dim = -32, n_centroids = -n_centroids",
        "UPDATE _colbert_posts_codes SET codes = 'text'",
        "UPDATE _colbert_posts_codes SET codes = 7",
        "UPDATE _colbert_posts_residuals SET residuals = 'text'",
        "UPDATE _colbert_posts_centroids SET centroids = 'text'",
        "UPDATE _colbert_posts_ivf SET passage_ids = 'text'",
        "UPDATE _colbert_posts_ivf SET passage_ids = x'00'",
        "UPDATE _colbert_posts_ivf SET centroid = centroid + (1 << 40)",
        "UPDATE _colbert_posts_ivf SET centroid = -1 - centroid",
        "UPDATE _colbert_indexes SET settings = '{'",
        "UPDATE _colbert_indexes SET key_columns = '[[7, 7]]'",
        'UPDATE _colbert_indexes SET key_columns = \'[["id", "INTEGER) , CHECK (1"]]\'',
        "UPDATE _colbert_indexes SET generation = 'x'",
    ],
)
def test_a_damaged_index_of_version_2_is_one_sentence_and_left_alone(old2: Path, damage: str) -> None:
    conn = sqlite3.connect(old2)
    conn.execute(damage)
    conn.commit()
    before = dump(old2)
    with pytest.raises(IndexCorrupt) as caught:
        upgrade(old2, "posts")
    assert "\n" not in str(caught.value)
    assert dump(old2) == before
    assert Index.create(conn, "posts", ["body"], model="hashing-32", replace=True).verify() == []


def test_an_old_index_can_be_replaced_and_dropped(old: Path) -> None:
    conn = sqlite3.connect(old)
    index = Index.create(conn, "posts", ["body"], model="hashing-32", replace=True)
    assert index.verify() == []
    drop(conn, "posts")
    assert conn.execute("SELECT name FROM sqlite_master WHERE name LIKE '%colbert%'").fetchall() == []


def test_an_old_index_can_be_dropped_at_once(old: Path) -> None:
    drop(old, "posts")
    assert "colbert" not in dump(old)


def test_a_new_index_fits_beside_an_old_one(old: Path) -> None:
    with Index.create(old, "posts", ["title"], name="titles", model="hashing-32") as index:
        assert index.verify() == []
    upgrade(old, "posts")
    assert [entry["name"] for entry in list_indexes(old)] == ["posts", "titles"]
    for name in ("posts", "titles"):
        assert Index.open(old, name).verify() == []


def test_what_there_is_nothing_to_bring_up_of(old: Path) -> None:
    with pytest.raises(IndexNotFound, match="no index 'other' in this database; it has posts"):
        upgrade(old, "other")
    conn = sqlite3.connect(old)
    conn.execute("UPDATE _colbert_indexes SET schema_version = 99")
    conn.commit()
    with pytest.raises(SchemaVersionError, match="index 'posts' has schema version 99, this release reads 3"):
        upgrade(old, "posts")


def dump(path: Path) -> str:
    conn = sqlite3.connect(path)
    try:
        return "\n".join(conn.iterdump())
    finally:
        conn.close()


def registry_row(conn: sqlite3.Connection) -> dict[str, Any]:
    cursor = conn.execute("SELECT * FROM _colbert_indexes")
    return dict(zip([column[0] for column in cursor.description], cursor.fetchone(), strict=True))
