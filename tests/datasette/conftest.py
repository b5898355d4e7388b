"""Fixtures and settings that all tests of the Datasette plugin share."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
# Datasette has the tracebacks of SQL functions printed.
TRACEBACKS = "ignore::pytest.PytestUnraisableExceptionWarning"

try:
    metadata.version("datasette")
except metadata.PackageNotFoundError:
    # The browser may be here and Datasette in another environment: see test_browser.py.
    HAS_DATASETTE = False
    collect_ignore = [path.name for path in FOLDER.glob("test_*.py") if path.name != "test_browser.py"]
else:
    HAS_DATASETTE = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(TRACEBACKS))


@pytest.fixture(autouse=True)
def plugin() -> Iterator[None]:
    """The plugin registered, installed or not, and what it leaves in the process cleared away."""
    if not HAS_DATASETTE:
        yield
        return
    import datasette_colbert
    from datasette import handle_exception
    from datasette.plugins import pm

    from colbert_sqlite import serving

    name = None if pm.is_registered(datasette_colbert) else pm.register(datasette_colbert)
    # Where it is installed, Datasette prints a picture of every page that is not found, which takes half a second.
    rich, handle_exception.rich = handle_exception.rich, None
    try:
        yield
    finally:
        handle_exception.rich = rich
        if name:
            pm.unregister(datasette_colbert)
        serving.close_pools()
        # Datasette switches them on for the whole process, where they would come up in the tests of others.
        sqlite3.enable_callback_tracebacks(False)
