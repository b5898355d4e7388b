"""Which indexes the databases of a Datasette have.

In: a database of Datasette. Out: its indexes, from memory while its file is as it was. Leaves to others: who may see
them (access.py), reading them (service.py).
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from colbert_sqlite import ColbertError, serving
from datasette_colbert.compat import is_internal
from datasette_colbert.settings import settings_for
from datasette_colbert.state import state_of

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

    from colbert_sqlite.serving import RegisteredIndex

logger = logging.getLogger("colbert_sqlite")

SECONDS_TO_RETRY = 5.0

Signature = tuple[object, ...]


class Unreadable(ColbertError):
    """A database does not say which indexes it has: it is locked, damaged or gone."""


class Registries:
    """The indexes last read of each database, and for one that could not be read, when to try again."""

    def __init__(self, datasette: Datasette) -> None:
        self.indexes: dict[str, tuple[Signature | None, tuple[RegisteredIndex, ...]]] = {}
        self.retry_at: dict[str, float] = {}


async def all_indexes(datasette: Datasette, database: str) -> tuple[RegisteredIndex, ...]:
    """Return all indexes of a database, also those that are not finished or not served.

    :raises Unreadable: if its registry can't be read
    """
    registries, db = state_of(datasette, Registries), datasette.databases[database]
    signature = _signature(db)
    indexes: tuple[RegisteredIndex, ...]
    earlier, indexes = registries.indexes.get(database, (None, ()))
    if signature is not None and signature == earlier:
        return indexes
    if monotonic() < registries.retry_at.get(database, 0):
        raise Unreadable(f"the indexes of database {database!r} can't be read")
    try:
        indexes = await db.execute_fn(serving.registered_indexes)
    except (ColbertError, sqlite3.Error) as error:
        logger.error("the indexes of database %r can't be read: %s", database, error)
        # It may be locked, and every page would wait for it.
        registries.retry_at[database] = monotonic() + SECONDS_TO_RETRY
        raise Unreadable(str(error)) from None
    registries.indexes[database] = signature, indexes
    return indexes


def indexes_in_memory(datasette: Datasette, database: str) -> tuple[RegisteredIndex, ...]:
    """Return the indexes that a database had when they were last read."""
    return state_of(datasette, Registries).indexes.get(database, (None, ()))[1]


async def read_registries(datasette: Datasette) -> None:
    """Read which indexes there are, and say in the log which of the settings do not exist."""
    names: set[str] = set()
    configured: set[str] = set()
    for database in datasette.databases:
        if not is_internal(datasette, database):
            configured |= {name.lower() for name in settings_for(datasette, database).indexes or ()}
            try:
                names |= {index.name.lower() for index in await all_indexes(datasette, database)}
            except Unreadable:
                continue
    for name in sorted(configured - names):
        logger.warning("the settings of the plugin name an index %r, and no database has one", name)


def _signature(db: Database) -> Signature | None:
    """What differs once somebody committed something; None where nothing says so."""
    if db.is_memory or db.path is None:
        return None
    return tuple(_status(path) for path in (Path(db.path), Path(f"{db.path}-wal")))


def _status(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
