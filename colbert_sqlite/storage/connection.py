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
    """Return a connection, and whether the caller has to close it.

    A missing file is never created, and a write-protected one opens for reading.

    :param any_thread: threads will share it, one at a time
    :param busy_seconds: how long another connection may hold a lock
    :raises SourceError: if there is no such file, it is locked or not a SQLite database, or SQLite itself is too old
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
        if is_locked(error):
            raise locked(path, busy_seconds) from None
        if str(error) == "unable to open database file":
            raise SourceError(
                f"{path} can't be opened: a database in WAL mode needs a folder that can be written; if nobody writes "
                f"it, add ?immutable=1 to {uri.partition('?')[0]}"
            ) from None
        raise SourceError(f"{path} can't be read as a SQLite database: {error}") from None
    return conn, True


def is_locked(error: sqlite3.Error) -> bool:
    """Whether an error says that another connection holds a lock on the file."""
    return str(error) == "database is locked"


def locked(path: str, busy_seconds: float) -> SourceError:
    """What to raise if it did so for that long."""
    return SourceError(
        f"{path} has been locked for {busy_seconds:g} seconds by another connection, which may be your own: end its "
        "transaction, or close it, and try again"
    )


def files_of(conn: sqlite3.Connection) -> dict[str, str]:
    """Return the paths of a connection's files by schema, in lower case; empty for a database in memory."""
    with plain_rows(conn):
        # A path may be no valid UTF-8.
        conn.text_factory = os.fsdecode
        return {name.lower(): path or "" for _, name, path in conn.execute("PRAGMA database_list")}


def data_version(conn: sqlite3.Connection) -> tuple[int, ...]:
    """Return what differs after every change of the main database, by this connection or by others."""
    with plain_rows(conn):
        pragmas = (conn.execute(f"PRAGMA main.{name}") for name in ("data_version", "schema_version"))
        return conn.total_changes, *(pragma.fetchone()[0] for pragma in pragmas)


def file_of(conn: sqlite3.Connection, schema: str = "main") -> str:
    """Return the path of the file of a connection, or of a database attached to it; empty for one in memory.

    :raises SourceError: if nothing of that name is attached
    """
    files = files_of(conn)
    if schema.lower() not in files:
        raise SourceError(f"no database is attached as {schema!r}; there are {', '.join(files)}")
    return files[schema.lower()]


def attach(conn: sqlite3.Connection, path: str | os.PathLike[str], alias: str) -> None:
    """Let SQL on this connection read another file, as ``alias.table``.

    :raises SourceError: if it is no database that can be read, or the alias is taken
    """
    try:
        conn.execute("ATTACH DATABASE ? AS ?", (f"{Path(path).absolute().as_uri()}?mode=ro", alias))
    except sqlite3.DatabaseError as error:
        raise SourceError(f"{os.fspath(path)} can't be attached as {alias!r}: {error}") from None


def refuse_writes(conn: sqlite3.Connection) -> None:
    """Let SQL on this connection read only."""
    conn.execute("PRAGMA query_only = 1")


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
    is_open = not nested
    try:
        conn.execute("SAVEPOINT colbert" if nested else "BEGIN IMMEDIATE")
        is_open = True
        yield
        conn.execute("RELEASE colbert" if nested else "COMMIT")
    except BaseException:
        # SQLite itself rolls the transaction back on a full disk, among others.
        if is_open and conn.in_transaction:
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

    :raises IndexCorrupt: if a text of the index, or a key, is not valid UTF-8
    """
    factories: Any = conn.row_factory, conn.text_factory
    conn.row_factory, conn.text_factory = None, str
    try:
        yield
    except sqlite3.OperationalError as error:
        if "Could not decode" not in str(error):
            raise
        raise IndexCorrupt(
            f"a text in the index, or a key of its table, is not valid UTF-8: {error}; run verify"
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
