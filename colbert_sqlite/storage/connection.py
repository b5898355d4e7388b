"""Connections and transactions.

In: a path, a ``sqlite3.Connection`` or a ``sqlite_utils.Database``. Out: a connection, and context managers that
join whatever transaction the caller already has. Leaves to others: every statement about data.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from colbert_sqlite.errors import IndexCorrupt, SourceError

if TYPE_CHECKING:
    from sqlite_utils import Database as SqliteUtilsDatabase

Database: TypeAlias = "str | os.PathLike[str] | sqlite3.Connection | SqliteUtilsDatabase"

MINIMUM_SQLITE = (3, 37, 0)
# How long another connection may hold a lock.
BUSY_SECONDS = 30


def connect(
    db: Database, *, any_thread: bool = False, busy_seconds: float = BUSY_SECONDS
) -> tuple[sqlite3.Connection, bool]:
    """Return a connection, and whether it is ours to close.

    A missing file is never created, and a write-protected one opens for reading.

    :param any_thread: threads will share it, one at a time
    :param busy_seconds: how long another connection may hold a lock
    :raises SourceError: if there is no such file, it is not a SQLite database, or SQLite itself is too old
    """
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        raise SourceError(f"SQLite {sqlite3.sqlite_version} is too old: 3.37 or newer is needed")
    if isinstance(db, sqlite3.Connection):
        return db, False
    if not isinstance(db, (str, os.PathLike)):
        return db.conn, False
    path = os.fspath(db)
    if path == ":memory:":
        raise SourceError("a path of ':memory:' is a new, empty database: pass the connection that holds your tables")
    uri = path if path.startswith("file:") else Path(path).absolute().as_uri()
    if "mode=" not in uri.partition("?")[2]:
        uri += ("&" if "?" in uri else "?") + "mode=rw"
    if not path.startswith("file:") and not Path(path).is_file():
        raise SourceError(f"no database file {path}")
    try:
        conn = sqlite3.connect(
            uri, uri=True, isolation_level=None, timeout=busy_seconds, check_same_thread=not any_thread
        )
    except sqlite3.OperationalError as error:
        raise SourceError(f"{path} can't be opened: {error}") from None
    try:
        conn.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        conn.close()
        if str(error) == "unable to open database file":
            raise SourceError(
                f"{path} can't be opened: a database in WAL mode needs a folder that can be written; if nobody writes "
                f"it, add ?immutable=1 to {uri.partition('?')[0]}"
            ) from None
        raise SourceError(f"{path} can't be read as a SQLite database: {error}") from None
    return conn, True


def file_of(conn: sqlite3.Connection, schema: str = "main") -> str:
    """Return the path of the file of a connection, or of a database attached to it; empty for one in memory.

    :raises SourceError: if nothing of that name is attached
    """
    with plain_rows(conn):
        files = {name.lower(): path or "" for _, name, path in conn.execute("PRAGMA database_list")}
    if schema.lower() not in files:
        raise SourceError(f"no database is attached as {schema!r}; there are {', '.join(files)}")
    return files[schema.lower()]


@contextmanager
def connected(db: Database) -> Iterator[sqlite3.Connection]:
    """A connection that gives plain rows; closed at the end if it was opened here. Errors as in :func:`connect`."""
    conn, owned = connect(db)
    try:
        with plain_rows(conn):
            yield conn
    finally:
        if owned:
            conn.close()


@contextmanager
def atomic(conn: sqlite3.Connection) -> Iterator[None]:
    """All or nothing: begin a write transaction, or nest as a savepoint in the caller's."""
    nested = conn.in_transaction
    began = not nested
    try:
        conn.execute("SAVEPOINT colbert" if nested else "BEGIN IMMEDIATE")
        began = True
        yield
        conn.execute("RELEASE colbert" if nested else "COMMIT")
    except BaseException:
        # SQLite itself rolls the transaction back on a full disk, among others.
        if began and conn.in_transaction:
            conn.execute("ROLLBACK TO colbert" if nested else "ROLLBACK")
            if nested:
                conn.execute("RELEASE colbert")
        raise


@contextmanager
def reading(conn: sqlite3.Connection) -> Iterator[None]:
    """One consistent view for several SELECTs, whatever other connections commit meanwhile."""
    # Nobody else writes a database in memory, and in a SQL function a ROLLBACK would end the caller's statement.
    if conn.in_transaction or not file_of(conn):
        yield
        return
    try:
        conn.execute("BEGIN")
        yield
    finally:
        if conn.in_transaction:
            conn.execute("ROLLBACK")


@contextmanager
def plain_rows(conn: sqlite3.Connection) -> Iterator[None]:
    """Rows as tuples and text as str, whatever factories the caller has set on the connection.

    :raises IndexCorrupt: if a text of ours, or a key, is no valid UTF-8
    """
    factories: Any = conn.row_factory, conn.text_factory
    conn.row_factory, conn.text_factory = None, str
    try:
        yield
    except sqlite3.OperationalError as error:
        if "Could not decode" not in str(error):
            raise
        raise IndexCorrupt(
            f"a text in the index, or a key of its table, is no valid UTF-8: {error}; run verify"
        ) from None
    finally:
        conn.row_factory, conn.text_factory = factories


def _decode(raw: bytes) -> str:
    return raw.decode(errors="replace")


@contextmanager
def lenient_text(conn: sqlite3.Connection) -> Iterator[None]:
    """Read TEXT that is not valid UTF-8 with replacement characters instead of an error."""
    before: Any = conn.text_factory
    conn.text_factory = _decode
    try:
        yield
    finally:
        conn.text_factory = before
