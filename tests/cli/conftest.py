"""Databases that the tests of several commands use."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlite_utils

from colbert_sqlite import Index
from colbert_sqlite.encoders import Encoder
from tests.cli.helpers import POSTS, run

SHORT_POSTS = [
    {"id": 1, "title": "Bread", "created": "2019", "body": "Flour, water, salt and a warm oven."},
    {"id": 2, "title": "Tea", "created": "2021", "body": "Boil the water, warm the pot."},
    {"id": 3, "title": "Comets", "created": "2022", "body": "Ice and dust, and a tail away from the sun."},
    {"id": 4, "title": "Moths", "created": "2023", "body": "Flour moths eat flour, and only flour."},
]


@pytest.fixture
def blog(tmp_path: Path) -> str:
    """A database with four posts and no index."""
    path = tmp_path / "blog.db"
    db = sqlite3.connect(path)
    db.execute("create table posts (id integer primary key, title text, body text, created text, picture blob)")
    db.executemany("insert into posts values (?, ?, ?, ?, ?)", POSTS)
    db.commit()
    db.close()
    return str(path)


@pytest.fixture
def indexed(blog: str) -> str:
    """The same with an index of the bodies, titles as headings."""
    run("index", blog, "posts", "body", "--heading", "title", "--model", "hashing", "--silent")
    return blog


@pytest.fixture
def path(tmp_path: Path, encoder: Encoder) -> str:
    """A database with an index of four posts, and an FTS5 table beside it."""
    db = sqlite_utils.Database(tmp_path / "blog.db")
    db["posts"].insert_all(SHORT_POSTS, pk="id")
    db["posts"].enable_fts(["title", "body"], create_triggers=True)
    Index.create(db, "posts", ["body"], heading="title", model=encoder)
    db.conn.close()
    return str(tmp_path / "blog.db")
