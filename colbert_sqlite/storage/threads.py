"""The connections of one index: one for each thread, or the only one, which a caller handed over.

In: a database. Out: the session of the calling thread, while it is used. Leaves to others: every statement.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from cachetools import LRUCache

from colbert_sqlite.errors import WrongThread
from colbert_sqlite.storage.connection import Database, connect, file_of
from colbert_sqlite.storage.postings import Checked

MAX_ANSWERS = 8


class Session:
    """A connection in use by one thread, and what that thread has read through it and found sound."""

    def __init__(self, conn: sqlite3.Connection, *, owned: bool) -> None:
        self.conn = conn
        self.checked: defaultdict[str, Checked] = defaultdict(Checked)
        """For each index, by its name."""
        self.answers: LRUCache[object, tuple[object, str]] = LRUCache(MAX_ANSWERS)
        """What a host computed from this connection, and keeps until the database changes."""
        self.n_uses = 0
        if owned:
            self.close = weakref.finalize(self, _close, conn, os.getpid())


class Connections(Protocol):
    """Where an index gets its connection from."""

    def use(self) -> AbstractContextManager[Session]:
        """The session of this thread. Several uses may be nested.

        :raises WrongThread: if the connection belongs to another thread
        :raises SourceError: if the database can't be opened
        :raises ValueError: if the index is closed
        """

    def close(self) -> None:
        """Close what was opened here, as soon as no thread uses it any more."""


class CallersConnection:
    """The connection of a caller. It belongs to the thread that handed it over.

    :param owner: what uses it, for error messages
    :param any_thread: the caller sees to it that one thread at a time uses it
    """

    def __init__(self, conn: sqlite3.Connection, owner: str, *, any_thread: bool = False) -> None:
        self._owner = owner
        self._any_thread = any_thread
        self._thread = threading.get_ident()
        self._session = Session(conn, owned=False)
        try:
            conn.cursor().close()
        except sqlite3.ProgrammingError as error:
            if "thread" not in str(error):
                raise
            raise self._wrong_thread() from None

    @contextmanager
    def use(self) -> Iterator[Session]:
        if not self._any_thread and threading.get_ident() != self._thread:
            raise self._wrong_thread()
        yield self._session

    def close(self) -> None:
        pass

    def _wrong_thread(self) -> WrongThread:
        return WrongThread(
            f"{self._owner} was opened on a connection that belongs to another thread: open the index by the "
            "path of its file, then any thread may use it"
        )


class _Sessions:
    """The sessions of the threads of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.local = threading.local()
        self.all: weakref.WeakSet[Session] = weakref.WeakSet()

    def add(self, session: Session) -> Session:
        """Keep the session of this thread."""
        self.local.session = session
        with self.lock:
            self.all.add(session)
        return session


class ConnectionPerThread:
    """A connection for each thread, opened when the thread needs it and closed when the thread ends.

    A process that was forked opens connections of its own. It neither uses nor closes those of its parent: SQLite
    would release the parent's locks (https://sqlite.org/howtocorrupt.html, section 2.6).

    :param connect: opens a connection that any thread may close
    :param owner: what uses the connections, for error messages
    :param first: the connection of this thread, if there is one already
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], owner: str, first: sqlite3.Connection | None = None
    ) -> None:
        self._connect = connect
        self._owner = owner
        self._closed = False
        self._sessions = _Sessions()
        if first is not None:
            self._sessions.add(Session(first, owned=True))

    @contextmanager
    def use(self) -> Iterator[Session]:
        sessions = self._of_this_process()
        session: Session | None = getattr(sessions.local, "session", None)
        if session is None:
            self._refuse_closed()
            session = sessions.add(Session(self._connect(), owned=True))
        try:
            with sessions.lock:
                session.n_uses += 1
            self._refuse_closed()
            yield session
        finally:
            with sessions.lock:
                session.n_uses -= 1
                is_last = self._closed and not session.n_uses
            if is_last:
                session.close()

    def _of_this_process(self) -> _Sessions:
        sessions = self._sessions
        if sessions.pid != os.getpid():
            # Assigned whole: no thread of a forked process meets a session or a lock of its parent.
            sessions = self._sessions = _Sessions()
        return sessions

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ValueError(f"{self._owner} is closed: open it again")

    def close(self) -> None:
        sessions = self._of_this_process()
        with sessions.lock:
            self._closed = True
            idle = [session for session in sessions.all if not session.n_uses]
        for session in idle:
            session.close()


def connections_to(db: Database, index: str) -> Connections:
    """Return the connections to a database: a file has one for each thread, a caller's connection is the only one.

    :param index: name for error messages
    :raises SourceError: if there is no such file, or it can't be read
    :raises WrongThread: if a connection belongs to another thread
    """
    conn, owned = connect(db, any_thread=True)
    if not owned:
        return CallersConnection(conn, f"index {index!r}")
    address = _absolute(os.fspath(db), file_of(conn))  # type: ignore[arg-type]
    return ConnectionPerThread(lambda: connect(address, any_thread=True)[0], f"index {index!r}", conn)


@contextmanager
def closed_on_error(connections: Connections) -> Iterator[Connections]:
    """Close connections if what is done with them fails: the traceback of an error keeps them open otherwise."""
    try:
        yield connections
    except BaseException:
        connections.close()
        raise


def _absolute(path: str, file: str) -> str:
    """The address of *file*, which *path* led to: the process may change its folder before the next thread opens it."""
    if not path.startswith("file:"):
        return file or path
    _, mark, query = path.partition("?")
    return f"{Path(file).as_uri()}{mark}{query}" if file else path


def _close(conn: sqlite3.Connection, pid: int) -> None:
    if os.getpid() == pid:
        conn.close()
    else:
        # Python closes a connection that nobody refers to.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(conn))
