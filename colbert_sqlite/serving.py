"""What hosts stand on: SQL functions, plugins and integrations import the public names, and this.

In: databases, names of indexes, connections that others own. Out: open indexes, shared encoders, and the parts of a
search that a page needs one by one. Leaves to others: permissions, pages, formats.

Every command of a host imports its plugins. So slow modules are imported by the first call that needs them.
"""

from __future__ import annotations

import importlib
import os
import re
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote

from colbert_sqlite.errors import IndexNotFound, ModelMismatch, SourceError
from colbert_sqlite.locks import ThreadLock
from colbert_sqlite.storage.connection import (
    attach,
    connect,
    data_version,
    files_of,
    is_locked,
    lenient_text,
    locked,
    plain_rows,
    reading,
    refuse_writes,
)
from colbert_sqlite.storage.schema import quote_identifier

if TYPE_CHECKING:
    from colbert_sqlite.encoders import DEFAULT_MODEL, Encoder
    from colbert_sqlite.encoders.checks import check_queries
    from colbert_sqlite.evaluate import MEASURES, missing_documents, relevant_documents
    from colbert_sqlite.explain import Explainer
    from colbert_sqlite.index import Index
    from colbert_sqlite.indexes import (
        check_source,
        drop,
        is_index_table,
        names_in_use,
        registered_indexes,
        tables_of_indexes,
        unfinished_build,
    )
    from colbert_sqlite.info import column_names, has_blob_keys, has_fts, pending_changes, why_rebuild
    from colbert_sqlite.progress import ProgressCallback, Stage, memory
    from colbert_sqlite.query import encode_query
    from colbert_sqlite.rerank import rerank_rows
    from colbert_sqlite.search import Allowed, RankedRow, hits_with_passages, search
    from colbert_sqlite.settings import NBITS, Backend, Html
    from colbert_sqlite.storage.registry import RegisteredIndex
    from colbert_sqlite.storage.source import pk_of
    from colbert_sqlite.storage.threads import Connections, Session
    from colbert_sqlite.values import PrimaryKey, SqlValue, json_value
    from colbert_sqlite.view import View

__all__ = [
    "DEFAULT_MODEL",
    "MEASURES",
    "NBITS",
    "Allowed",
    "Backend",
    "Explainer",
    "Guard",
    "Html",
    "Pool",
    "PrimaryKey",
    "ProgressCallback",
    "RankedRow",
    "RegisteredIndex",
    "SqlValue",
    "Stage",
    "View",
    "check_queries",
    "check_source",
    "close_pools",
    "column_names",
    "data_version",
    "drop",
    "encode_query",
    "encoder_named",
    "encoder_of",
    "files_of",
    "guard_connection",
    "has_blob_keys",
    "has_fts",
    "hits_with_passages",
    "is_guarded",
    "is_index_table",
    "json_value",
    "lock_errors",
    "memory",
    "missing_documents",
    "names_in_use",
    "one_state",
    "open_connection",
    "open_read_only",
    "pending_changes",
    "pk_of",
    "pool_of",
    "quote_identifier",
    "registered_indexes",
    "relevant_documents",
    "rerank_rows",
    "search",
    "tables_of_indexes",
    "unfinished_build",
    "why_rebuild",
]

_HOMES = {
    "Allowed": "search",
    "Backend": "settings",
    "DEFAULT_MODEL": "encoders",
    "Explainer": "explain",
    "Html": "settings",
    "MEASURES": "evaluate",
    "NBITS": "settings",
    "PrimaryKey": "values",
    "ProgressCallback": "progress",
    "RankedRow": "search",
    "RegisteredIndex": "storage.registry",
    "SqlValue": "values",
    "Stage": "progress",
    "View": "view",
    "check_queries": "encoders.checks",
    "check_source": "indexes",
    "column_names": "info",
    "drop": "indexes",
    "encode_query": "query",
    "has_blob_keys": "info",
    "has_fts": "info",
    "hits_with_passages": "search",
    "is_index_table": "indexes",
    "json_value": "values",
    "memory": "progress",
    "missing_documents": "evaluate",
    "names_in_use": "indexes",
    "pending_changes": "info",
    "pk_of": "storage.source",
    "registered_indexes": "indexes",
    "relevant_documents": "evaluate",
    "rerank_rows": "rerank",
    "search": "search",
    "tables_of_indexes": "indexes",
    "unfinished_build": "indexes",
    "why_rebuild": "info",
}

T = TypeVar("T")

# Database files kept open, with the centroids of their indexes.
MAX_FILES = 8
# Not longer: the statement that waits for this search may itself hold the lock.
BUSY_SECONDS = 5

_GUARDED = "_colbert_guarded"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"colbert_sqlite.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


class Guard(Protocol):
    """Decides who may call the SQL functions of a connection. Every call asks it."""

    def check(self) -> None:
        """Make sure that the actor of this statement may call the functions.

        :raises ColbertError: if not
        """

    def searchable(self, schema: str) -> Collection[str] | None:
        """Return the lower-case names of the indexes of a database to search; None for all."""

    def max_k(self, schema: str) -> int | None:
        """Return the highest *k* for a search of that database; None for no limit."""

    def record_error(self, sentence: str) -> None:
        """Keep the error of a call for the actor of this statement."""

    def last_error(self) -> str | None:
        """Return the last error of the actor of this statement."""


def guard_connection(conn: sqlite3.Connection) -> None:
    """From now on, register the SQL functions on this connection only with a guard.

    ``sqlite_utils.Database(conn)`` registers them without one, and any plugin of Datasette may call it.
    """
    conn.create_function(_GUARDED, 0, lambda: 1)


def is_guarded(conn: sqlite3.Connection) -> bool:
    """Return whether :func:`guard_connection` was called for a connection."""
    try:
        conn.execute(f"SELECT {_GUARDED}()")
    except sqlite3.OperationalError:
        return False
    return True


class Pool:
    """The open indexes of one database. Any thread may use them; each has a connection of its own."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._indexes: dict[str, Index] = {}

    @classmethod
    def connecting(cls, connect: Callable[[], sqlite3.Connection]) -> Pool:
        """Return a pool for a database that *connect* opens, once for each thread.

        :param connect: opens a connection that any thread may close
        """
        from colbert_sqlite.storage.threads import ConnectionPerThread

        return cls(ConnectionPerThread(connect, "the pool"))

    @classmethod
    def on(cls, conn: sqlite3.Connection) -> Pool:
        """Return a pool for a connection, which one thread at a time uses."""
        from colbert_sqlite.storage.threads import CallersConnection

        return cls(CallersConnection(conn, "the pool", any_thread=True))

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Yield the connection of this thread. Errors as in ``Index.open``."""
        with self._connections.use() as session:
            yield session

    def use(self, name: str, function: Callable[[Index], T]) -> T:
        """Call *function* with an index, and return its result.

        If the index was dropped, or replaced by one of another model, it is opened again.

        :raises IndexNotFound: if no index has that name
        """
        from colbert_sqlite.index import open_index

        if (index := self._indexes.get(name)) is not None:
            try:
                return function(index)
            except (IndexNotFound, ModelMismatch):
                self._indexes.pop(name, None)
        # Kept before it is used: threads that come together share one codec.
        with _lock:
            index = self._indexes.get(name) or self._indexes.setdefault(name, open_index(self._connections, name))
        return function(index)

    def close(self) -> None:
        """Close the connections of this pool, each as soon as no thread uses it."""
        self._connections.close()


class _FileIdentity(NamedTuple):
    """Identity of a file in a process: another file may have the same path later."""

    pid: int
    address: str
    device: int
    inode: int


_lock = ThreadLock()
_pools: dict[_FileIdentity, Pool] = {}


def pool_of(address: str) -> Pool:
    """Return the pool of a database file, for reading. A replaced file gets a new pool.

    :param address: path or URI
    :raises SourceError: if the file is missing
    """
    path = path_of(address)
    try:
        status = os.stat(path)
    except OSError as error:
        raise SourceError(f"no database file {path}: {error.strerror}") from None
    identity = _FileIdentity(os.getpid(), address, status.st_dev, status.st_ino)
    with _lock:
        pool = _pools.pop(identity, None) or Pool.connecting(lambda: _connect_to_read(address))
        # The last used is the last.
        _pools[identity] = pool
        replaced = [other for other in _pools if other.address == address and other != identity]
        unused = [other for other in _pools if other not in replaced][:-MAX_FILES]
        for other in (*replaced, *unused):
            # Its connections are closed when no thread uses it any more.
            del _pools[other]
        return pool


def close_pools() -> None:
    """Close every database file that :func:`pool_of` opened, as soon as no thread uses it."""
    with _lock:
        pools = [*_pools.values()]
        _pools.clear()
    for pool in pools:
        pool.close()


def _connect_to_read(address: str) -> sqlite3.Connection:
    conn, _ = connect(address, any_thread=True, busy_seconds=BUSY_SECONDS)
    refuse_writes(conn)
    return conn


@contextmanager
def lock_errors(address: str) -> Iterator[None]:
    """Raise one sentence if another connection locks the file.

    :raises SourceError: if it does
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        if is_locked(error):
            raise locked(path_of(address), BUSY_SECONDS) from None
        raise


@contextmanager
def one_state(conn: sqlite3.Connection) -> Iterator[None]:
    """Keep one state of a database for several reads, whatever others commit meanwhile."""
    with plain_rows(conn), reading(conn):
        yield


@contextmanager
def open_connection(path: str) -> Iterator[sqlite3.Connection]:
    """Open a connection to a file, and close it at the end.

    :raises SourceError: if the file is missing, or is not a database
    """
    conn, _ = connect(path)
    with closing(conn):
        yield conn


@contextmanager
def open_read_only(
    path: str,
    attached: Sequence[tuple[str, str]] = (),
    prepare: Callable[[sqlite3.Connection], object] | None = None,
) -> Iterator[sqlite3.Connection]:
    """Open a connection for SQL that must not write, and close it at the end. Text may have any encoding.

    :param attached: schemas and paths of other files that the SQL reads
    :param prepare: registers functions on the connection
    :raises SourceError: if a file is missing, or is not a database
    """
    with open_connection(path) as conn:
        for schema, other in attached:
            attach(conn, other, schema)
        if prepare is not None:
            prepare(conn)
        refuse_writes(conn)
        with lenient_text(conn):
            yield conn


def path_of(address: str) -> str:
    """Return the path in a URI such as ``file:/data/blog.db?immutable=1``, or the path itself."""
    if not address.startswith("file:"):
        return address
    path = unquote(address.removeprefix("file:").partition("?")[0].partition("#")[0])
    if path.startswith("//"):
        path = "/" + path[2:].partition("/")[2]
    return path[1:] if re.match("/[A-Za-z]:", path) else path


def encoder_of(index: Index, configured: str | None = None) -> Encoder:
    """Return the encoder of an index, shared by the process. It caches the embeddings of its last queries.

    :param configured: a model to use if it has the fingerprint that the index was built with
    """
    from colbert_sqlite.encoders.cache import shared_encoder, with_query_cache

    return with_query_cache(shared_encoder(index.model_fingerprint, index.load_encoder, configured=configured))


def encoder_named(model: str | Encoder | None) -> Encoder:
    """Return an encoder by its name, shared by the process. It caches the embeddings of its last queries.

    Errors as in :func:`load_encoder`.
    """
    from colbert_sqlite.encoders.cache import cached_encoder, with_query_cache

    return with_query_cache(cached_encoder(model))
