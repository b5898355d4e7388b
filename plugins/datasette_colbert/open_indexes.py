"""The open indexes of each database, and how long the SQL of a thread may run.

In: the names of a database and an index. Out: what a function returns for that index. Leaves to others: threads
(service.py), connections and open indexes (``colbert_sqlite.serving``).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from colbert_sqlite import serving
from colbert_sqlite.serving import Pool
from datasette_colbert.compat import open_database

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

    from colbert_sqlite import Index

Result = TypeVar("Result")
# SQLite asks whether to go on after this number of its instructions, about every millisecond.
INSTRUCTIONS = 10_000


class OpenIndexes:
    """The open indexes of a Datasette's databases. Each thread has connections of its own to them."""

    def __init__(self, datasette: Datasette) -> None:
        self._datasette = datasette
        self._pools: dict[str, tuple[Database, Pool]] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    @property
    def deadline(self) -> float:
        """When SQLite stops the SQL of this thread, by the monotonic clock."""
        deadline: float = getattr(self._local, "deadline", float("inf"))
        return deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        self._local.deadline = deadline

    def use(self, database: str, name: str, function: Callable[[Index], Result]) -> Result:
        """Return what *function* returns for an index."""
        with self._opened(database) as (pool, _):
            return pool.use(name, function)

    def names(self, database: str) -> tuple[str, ...]:
        """Return the names of the indexes in use."""
        with self._opened(database) as (_, conn):
            return serving.names_in_use(conn)

    @contextmanager
    def sooner(self, seconds: float) -> Iterator[None]:
        """Have SQLite stop after *seconds*, if the deadline is not sooner."""
        deadline = self.deadline
        self.deadline = min(deadline, monotonic() + seconds)
        try:
            yield
        finally:
            self.deadline = deadline

    @contextmanager
    def _opened(self, database: str) -> Iterator[tuple[Pool, sqlite3.Connection]]:
        """The indexes of a database and this thread's connection, whose SQL stops at the deadline."""
        pool = self._pool(database)
        with pool.session() as session:
            conn = session.conn
            conn.set_progress_handler(lambda: monotonic() > self.deadline, INSTRUCTIONS)
            try:
                yield pool, conn
            finally:
                conn.set_progress_handler(None, INSTRUCTIONS)

    def _pool(self, database: str) -> Pool:
        db = self._datasette.databases[database]
        with self._lock:
            earlier = self._pools.get(database)
            # Another database may have that name by now.
            if earlier is None or earlier[0] is not db:
                pool = Pool.connecting(lambda: open_database(self._datasette, database))
                self._pools[database] = db, pool
                return pool
            return earlier[1]

    def close(self) -> None:
        """Close the connections, as soon as no thread uses them."""
        with self._lock:
            pools = [pool for _, pool in self._pools.values()]
            self._pools.clear()
        for pool in pools:
            pool.close()
