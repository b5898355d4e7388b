"""An index of an older format is built anew, with its settings, or left as it was."""

from __future__ import annotations

import dataclasses
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from colbert_sqlite import Index, IndexSummary, list_indexes, upgrade
from colbert_sqlite.errors import IndexCorrupt, IndexNotFound, ModelMismatch, ModelNotFound, SchemaVersionError
from colbert_sqlite.indexes import drop
from colbert_sqlite.progress import SyncResult
from tests.damage import make_older


@pytest.fixture
def old(db_path: Path) -> Path:
    """A database with an index of format 0, made with settings that are not the defaults."""
    conn = sqlite3.connect(db_path)
    Index.create(
        conn,
        "posts",
        ["body"],
        model="hashing-32",
        nbits=2,
        where="id < :most",
        params={"most": 5},
        heading="title",
        html="yes",
        max_tokens=24,
        pool_factor=2,
    )
    make_older(conn, "posts")
    conn.close()
    return db_path


def test_opening_names_the_command(old: Path) -> None:
    message = (
        "index 'posts' has schema version 0, this release reads 1: upgrade it with: "
        "sqlite-utils colbert upgrade DATABASE posts"
    )
    with pytest.raises(SchemaVersionError) as caught:
        Index.open(old, "posts")
    assert str(caught.value) == message
    assert list_indexes(old) == [IndexSummary(name="posts", state="unreadable", problem=message)]


def test_an_upgraded_index_answers_and_follows_its_table(old: Path) -> None:
    assert upgrade(old, "posts") == 0
    conn = sqlite3.connect(old, isolation_level=None)
    with Index.open(conn, "posts") as index:
        assert index.verify() == []
        assert [hit.pk for hit in index.search("comet dust", k=2)] == [2, 3]
        (n_triggers,) = conn.execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'").fetchone()
        assert n_triggers >= 3
        assert index.info().pending_changes == 0
        conn.execute("INSERT INTO posts (id, body) VALUES (0, 'A narwhal.')")
        assert index.info().pending_changes == 1
        assert index.sync() == SyncResult(added=1)
        assert index.search("narwhal", k=1)[0].pk == 0
        assert index.verify() == []


def test_upgrading_again_is_harmless(old: Path) -> None:
    assert upgrade(old, "POSTS") == 0
    before = dump(old)
    assert upgrade(old, "posts") is None
    assert dump(old) == before


def test_settings_are_kept(old: Path) -> None:
    conn = sqlite3.connect(old)
    before = registry_row(conn)
    upgrade(conn, "posts")
    after = registry_row(conn)
    unchanged = ["name", "state", "source_table", "key_columns", "settings", "model", "model_fingerprint", "dim"]
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}
    assert dataclasses.asdict(Index.open(conn, "posts").settings) == {
        "table": "posts",
        "columns": ("body",),
        "model": "hashing-32",
        "nbits": 2,
        "where": "id < :most",
        "params": {"most": 5},
        "heading": "title",
        "html": "yes",
        "max_tokens": 24,
        "pool_factor": 2,
        "triggers": True,
        "seed": 42,
        "encoder": "",
    }


def test_an_index_without_triggers_gets_none(db_path: Path) -> None:
    conn = sqlite3.connect(db_path)
    Index.create(conn, "posts", ["body"], model="hashing-32", triggers=False)
    make_older(conn, "posts")
    assert upgrade(conn, "posts") == 0
    assert conn.execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'").fetchone() == (0,)
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


@pytest.mark.parametrize("step", ["create.build", "build._Build.encode_rows", "build.publish"])
def test_an_upgrade_that_is_killed_leaves_the_index_as_it_was(
    old: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object, **__: object) -> None:
        raise Killed

    before = dump_of_index(old)
    with monkeypatch.context() as patch:
        module, _, attribute = f"colbert_sqlite.{step}".rpartition(".")
        patch.setattr(resolved(module), attribute, kill)
        with pytest.raises(Killed):
            upgrade(old, "posts")
    assert dump_of_index(old) == before
    with pytest.raises(SchemaVersionError, match="upgrade it with: sqlite-utils colbert upgrade"):
        Index.open(old, "posts")
    assert upgrade(old, "posts") == 0
    with Index.open(old, "posts") as index:
        assert [hit.pk for hit in index.search("comet dust", k=2)] == [2, 3]
        assert index.verify() == []


@pytest.mark.parametrize(
    "damage",
    ["settings = '{'", "key_columns = '[[7, 7]]'", 'key_columns = \'[["id", "INTEGER) , CHECK (1"]]\'', "dim = 'x'"],
)
def test_a_registry_row_that_cannot_be_read_is_one_sentence_and_left_alone(old: Path, damage: str) -> None:
    conn = sqlite3.connect(old)
    conn.execute(f"UPDATE _colbert_indexes SET {damage}")
    conn.commit()
    before = dump(old)
    with pytest.raises(
        IndexCorrupt, match="^the registry entry of index 'posts' is damaged: .*; drop the index, then create it"
    ):
        upgrade(old, "posts")
    assert dump(old) == before
    assert Index.create(conn, "posts", ["body"], model="hashing-32", replace=True).verify() == []


@pytest.mark.parametrize(("model", "error"), [("hashing-64", ModelMismatch), ("/no/such/model", ModelNotFound)])
def test_with_another_model_or_none_the_index_is_left_alone(old: Path, model: str, error: type[Exception]) -> None:
    before = dump(old)
    with pytest.raises(error):
        upgrade(old, "posts", model=model)
    assert dump(old) == before


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
    assert [entry.name for entry in list_indexes(old)] == ["posts", "titles"]
    for name in ("posts", "titles"):
        assert Index.open(old, name).verify() == []


def test_what_there_is_nothing_to_bring_up_of(old: Path) -> None:
    with pytest.raises(IndexNotFound, match="no index 'other' in this database; it has posts"):
        upgrade(old, "other")
    conn = sqlite3.connect(old)
    conn.execute("UPDATE _colbert_indexes SET schema_version = 99")
    conn.commit()
    with pytest.raises(SchemaVersionError, match="index 'posts' has schema version 99, this release reads 1"):
        upgrade(old, "posts")


def resolved(name: str) -> Any:
    """A module, or a class in one. By its own name: the package shows functions in the place of some modules."""
    module, _, attribute = name.rpartition(".")
    return sys.modules[name] if name in sys.modules else getattr(sys.modules[module], attribute)


def dump(path: Path) -> str:
    conn = sqlite3.connect(path)
    try:
        return "\n".join(conn.iterdump())
    finally:
        conn.close()


def dump_of_index(path: Path) -> list[str]:
    """All of the index in use but its triggers, which see more columns or other keys from the first moment on."""
    return [line for line in dump(path).splitlines() if "_building" not in line and "_colbert_posts_" in line[:60]]


def registry_row(conn: sqlite3.Connection) -> dict[str, Any]:
    cursor = conn.execute("SELECT * FROM _colbert_indexes")
    return dict(zip([column[0] for column in cursor.description], cursor.fetchone(), strict=True))
