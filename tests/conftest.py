"""Fixtures shared by every test file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from colbert_sqlite.encoders import Encoder, load_encoder
from colbert_sqlite.index import Index

ROOT = Path(__file__).resolve().parent.parent

# No example has a time limit, and no strategy is called slow: a busy machine fails no test. Everybody tries the same
# examples: a change fails by its own fault. COLBERT_RANDOM=1 tries others, as CI does once a week, and prints how to
# repeat what fails.
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=not os.environ.get("COLBERT_RANDOM"),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    print_blob=True,
)
settings.load_profile("tests")

POSTS = [
    (1, "Bread", "Knead the dough well. Let it rise overnight in a cold kitchen."),
    (2, "Comets", "A comet is ice and dust. Its tail points away from the sun."),
    (3, "Backups", "Copy the database every night. Try to restore the copy every month."),
    (4, "Empty", None),
    (5, "Compost", "Green waste and brown waste rot into dark soil when the heap stays damp."),
]


def pytest_report_header() -> str:
    import numba
    import numpy

    return f"SQLite {sqlite3.sqlite_version}, numpy {numpy.__version__}, numba {numba.__version__}"


@pytest.fixture(scope="session", autouse=True)
def cache_of_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own: indexing writes exported models to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLBERT_SQLITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Path(os.environ["COLBERT_SQLITE_CACHE"])


@pytest.fixture(autouse=True)
def failing_sql_functions_print_nothing() -> None:
    """Datasette has them print tracebacks from its import on, in the whole process."""
    sqlite3.enable_callback_tracebacks(False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """A folder with real databases in ``data``. Tests that use it have the mark ``real_databases``."""
    folder = Path(os.environ.get("COLBERT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real databases in {folder / 'data'}: COLBERT_SHARED names another folder")
    return folder


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The encoder without a model."""
    return load_encoder("hashing")


@pytest.fixture
def db_path(tmp_path: Path) -> Path:
    """A database file with a table of five posts, one of them without text."""
    return write_posts(tmp_path / "blog.db")


def write_posts(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT, body TEXT)")
        conn.executemany("INSERT INTO posts VALUES (?, ?, ?)", POSTS)
        conn.commit()
    return path


@pytest.fixture(scope="session")
def indexed_blog(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Path:
    """A file with an index of the five posts, made once: copy it."""
    path = write_posts(tmp_path_factory.mktemp("indexed") / "blog.db")
    Index.create(path, "posts", ["body"], model=encoder).close()
    return path


@pytest.fixture
def small_index(db_path: Path, encoder: Encoder) -> Iterator[Index]:
    """An index of the five posts."""
    with Index.create(db_path, "posts", ["body"], model=encoder) as index:
        yield index
