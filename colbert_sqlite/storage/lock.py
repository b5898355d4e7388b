"""One writer of an index at a time, whichever process it is in.

In: a database and the name of an index. Out: a context that no other process or thread is in. Leaves to others: what is
written, and transactions: these keep the index sound even where two write.

What is held is the write lock of an empty database beside the user's own. The operating system lets go of it when a
process ends, however it ends, and SQLite has the same lock on every system.
"""

from __future__ import annotations

import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from colbert_sqlite.errors import IndexBusy, SourceError
from colbert_sqlite.progress import Progress, ProgressCallback, no_progress
from colbert_sqlite.storage.connection import plain_rows
from colbert_sqlite.storage.scratch import scratch_path

_RETRY_SECONDS = 0.1
# Written into a lock file that was removed, for those who have it open.
_REMOVED = 1

_held: dict[Path, int] = {}


@contextmanager
def writing(conn: sqlite3.Connection, index: str, progress: ProgressCallback | None) -> Iterator[None]:
    """Be the only writer of an index, and read plain rows. Errors as in :func:`only_writer`."""
    report = progress or no_progress
    with plain_rows(conn), only_writer(conn, index, lambda: report(Progress("wait", 0, 1))):
        yield


@contextmanager
def only_writer(conn: sqlite3.Connection, index: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Wait until nobody else writes the index, and keep others out.

    There is nobody to wait for where the database is in memory.

    :param waiting: called once if there is somebody to wait for
    :raises IndexBusy: if there is, and a transaction of the caller's, which would keep others from ever being done
    :raises SourceError: if a file that is no lock of ours is in its place
    :raises ValueError: if this very thread is writing the index, in a call that has not returned
    """
    beside = scratch_path(conn, index)
    if beside is None:
        yield
        return
    path = _beside(beside)
    if _held.get(path) == threading.get_ident():
        raise ValueError(f"index {index!r} is being written by this thread: let that call return first")
    try:
        lock = _lock(path) if conn.in_transaction else _acquire(path, waiting)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise IndexBusy(
                f"another process is writing index {index!r}: end the transaction of this connection, then try again"
            ) from None
        lock = None
    if lock is None:
        yield
        return
    _held[path] = threading.get_ident()
    try:
        yield
    finally:
        del _held[path]
        _release(path, lock)


def remove_lock(conn: sqlite3.Connection, index: str) -> None:
    """Delete the lock file that a killed writer left; where somebody is writing, leave it to them."""
    beside = scratch_path(conn, index)
    if beside is None or not (path := _beside(beside)).exists():
        return
    try:
        lock = _lock(path)
    except (sqlite3.Error, SourceError):
        return
    if lock is not None:
        _release(path, lock)


def _beside(scratch: Path) -> Path:
    return Path(f"{scratch}-lock")


def _acquire(path: Path, waiting: Callable[[], None]) -> sqlite3.Connection | None:
    """Return a connection that holds the lock; None in a folder where no file can be made.

    :param waiting: called before every further try, so that whoever waits can give up
    """
    while True:
        try:
            if (lock := _lock(path)) is not None:
                return lock
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                return None
            waiting()
            time.sleep(_RETRY_SECONDS)


def _lock(path: Path) -> sqlite3.Connection | None:
    """Return a connection that holds the lock; None if the file was removed before it was ours.

    :raises SourceError: if the file is no lock of ours, which are empty: it came with the database, perhaps
    """
    try:
        there = path.lstat()
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISREG(there.st_mode) or there.st_size:
            raise SourceError(f"{path} is in the place of a lock file of ours, and is none: remove it")
    # SQLite makes the file. Whoever else opened and closed it would, on POSIX, let go of this process's locks.
    lock = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
    try:
        # No journal beside it, where that of the next lock file may be already.
        lock.execute("PRAGMA journal_mode = MEMORY")
        lock.execute("PRAGMA synchronous = OFF")
        lock.execute("BEGIN IMMEDIATE")
        removed = lock.execute("PRAGMA user_version").fetchone() == (_REMOVED,)
    except sqlite3.OperationalError:
        lock.close()
        raise
    if removed:
        lock.close()
        return None
    return lock


def _release(path: Path, lock: sqlite3.Connection) -> None:
    """Remove the file, and tell those who have opened it already that it is not the one to hold any more."""
    try:
        # Those who wait look at the file from time to time.
        lock.execute("PRAGMA busy_timeout = 1000")
        lock.execute(f"PRAGMA user_version = {_REMOVED}")
        path.unlink(missing_ok=True)
        lock.execute("COMMIT")
    except (OSError, sqlite3.Error):
        pass
    finally:
        lock.close()
