"""The connections and open indexes of each thread that searches, and how long its SQL may run.

In: the names of a database and an index. Out: what a function returns for that index. Leaves to others: threads
(service.py), opening an index (``colbert_sqlite``).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from colbert_sqlite import IndexNotFound, ModelMismatch
from datasette_colbert.compat import open_database

if TYPE_CHECKING:
    from datasette.app import Datasette

    from colbert_sqlite import Index

Result = TypeVar("Result")
# SQLite asks whether to go on after this number of its instructions, about every millisecond.
INSTRUCTIONS = 10_000


class OpenIndexes(threading.local):
    """What one thread has open. ``deadline``, of the monotonic clock, is when SQLite stops its SQL."""

    def __init__(self, datasette: Datasette) -> None:
        self.deadline = float("inf")
        self._datasette = datasette
        self._open: dict[str, tuple[object, sqlite3.Connection, dict[str, Index]]] = {}

    def use(self, database: str, name: str, function: Callable[[Index], Result]) -> Result:
        """Return what *function* returns for an index."""
        from colbert_sqlite import Index

        conn, indexes = self._opened(database)
        with self._time_limit(conn):
            if (index := indexes.get(name)) is not None:
                try:
                    return function(index)
                except (IndexNotFound, ModelMismatch):
                    # It was dropped, or built with another model, since it was opened.
                    del indexes[name]
            index = Index.open(conn, name)
            result = function(index)
            indexes[name] = index
            return result

    def connection(self, database: str) -> sqlite3.Connection:
        """Return the connection that reads a database."""
        return self._opened(database)[0]

    @contextmanager
    def sooner(self, seconds: float) -> Iterator[None]:
        """Have SQLite stop after *seconds*, if the deadline is not sooner."""
        deadline = self.deadline
        self.deadline = min(deadline, monotonic() + seconds)
        try:
            yield
        finally:
            self.deadline = deadline

    def _opened(self, database: str) -> tuple[sqlite3.Connection, dict[str, Index]]:
        db = self._datasette.databases[database]
        earlier = self._open.get(database)
        # Another database may have that name by now.
        if earlier is None or earlier[0] is not db:
            earlier = self._open[database] = db, open_database(self._datasette, database), {}
        return earlier[1], earlier[2]

    @contextmanager
    def _time_limit(self, conn: sqlite3.Connection) -> Iterator[None]:
        conn.set_progress_handler(lambda: monotonic() > self.deadline, INSTRUCTIONS)
        try:
            yield
        finally:
            conn.set_progress_handler(None, INSTRUCTIONS)
