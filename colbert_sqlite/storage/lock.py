"""One writer of an index at a time, whichever process it is in.

In: a database and the name of an index. Out: a context that no other process or thread is in. Leaves to others: what is
written, and transactions: these keep the index sound even where two write.

The lock is on an empty file beside the database. The operating system lets go of it when a process ends, however it
ends.
"""

from __future__ import annotations

import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from colbert_sqlite.errors import IndexBusy, SourceError
from colbert_sqlite.progress import Progress, ProgressCallback, no_progress
from colbert_sqlite.storage.connection import plain_rows
from colbert_sqlite.storage.scratch import scratch_path

_RETRY_SECONDS = 0.1

_threads: dict[Path, int] = {}


@contextmanager
def writing(conn: sqlite3.Connection, index: str, progress: ProgressCallback | None = None) -> Iterator[None]:
    """Wait until nobody else writes the index, keep others out, and read plain rows.

    There is nobody to wait for where the database is in memory, or in a folder where no file can be made.

    :param progress: called with the stage "wait" before every further try, so that whoever waits can give up
    :raises IndexBusy: if another process writes the index and *conn* is in a transaction, which would never let it end
    :raises SourceError: if another file has the name of the lock file
    :raises ValueError: if this thread is writing the index, in a call that has not returned
    """
    path = _path(conn, index)
    if path is not None and _threads.get(path) == threading.get_ident():
        raise ValueError(f"index {index!r} is being written by this thread: let that call return first")
    lock = None if path is None else _acquire(path, conn, index, progress or no_progress)
    if path is None or lock is None:
        with plain_rows(conn):
            yield
        return
    _threads[path] = threading.get_ident()
    try:
        with plain_rows(conn):
            yield
    finally:
        del _threads[path]
        _release(path, lock)


def remove_lock(conn: sqlite3.Connection, index: str) -> None:
    """Delete the lock file that a killed writer left. Where somebody is writing, leave it to them."""
    path = _path(conn, index)
    if path is None or not path.exists():
        return
    with suppress(OSError, SourceError, Timeout):
        _release(path, _lock(path))


def _path(conn: sqlite3.Connection, index: str) -> Path | None:
    beside = scratch_path(conn, index)
    return None if beside is None else Path(f"{beside}-lock")


def _acquire(path: Path, conn: sqlite3.Connection, index: str, progress: ProgressCallback) -> FileLock | None:
    """Wait for the lock and return it; None where no file can be made."""
    while True:
        try:
            return _lock(path)
        except Timeout:
            if conn.in_transaction:
                raise IndexBusy(
                    f"another process is writing index {index!r}: end the transaction of this connection, then try "
                    "again"
                ) from None
        except OSError:
            return None
        progress(Progress("wait", 0, 1))
        time.sleep(_RETRY_SECONDS)


def _lock(path: Path) -> FileLock:
    """Take the lock and return it.

    :raises Timeout: if somebody else has it
    :raises SourceError: if the file can't be a lock file, which are empty: it came with the database, perhaps
    """
    with suppress(FileNotFoundError):
        there = path.lstat()
        if not stat.S_ISREG(there.st_mode) or there.st_size:
            raise SourceError(f"{path} has the name of a lock file and is not one: remove it")
    # A lock that is only a file with a name would outlive a killed process.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    lock.acquire(blocking=False)
    return lock


def _release(path: Path, lock: FileLock) -> None:
    # On POSIX the file goes while it is locked. Whoever has opened it already gets the lock of a file without a name,
    # which filelock gives back. Windows may refuse: there filelock removes the file itself.
    with suppress(OSError):
        path.unlink()
    lock.release()
