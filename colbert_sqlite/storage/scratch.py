"""Embeddings that a build has computed and not yet compressed, so that a second run need not compute them again.

In: embeddings by the content hash of their row. Out: the same, in this run or the next. Leaves to others: which rows
are sampled, what is made of them.

The codec of an index is trained on embeddings, so the first ones cannot be compressed yet. They are too big for the
database, which would keep their space for good. They wait in a file beside it, as SQLite's own journal does, until
the codec is there; the index never depends on it.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.storage.blobs import DOCLENS, HALVES
from colbert_sqlite.storage.connection import file_of


class Scratch:
    """The scratch file of one build; it remembers nothing where the database is no file or its folder is read-only.

    :param identity: everything that decides the embeddings of a row; a file of another identity is emptied
    """

    def __init__(self, conn: sqlite3.Connection, index: str, identity: str, dim: int) -> None:
        self._dim = dim
        self._path = scratch_path(conn, index)
        self._conn: sqlite3.Connection | None = None
        # A link would lead to a file that is not ours.
        if self._path is not None and not self._path.is_symlink():
            try:
                self._conn = self._open(self._path, identity)
            except sqlite3.Error:
                self.remove()

    def _open(self, path: Path, identity: str) -> sqlite3.Connection:
        conn = sqlite3.connect(path, isolation_level=None)
        try:
            # Losing what was written last costs encoding it again.
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute("PRAGMA synchronous = OFF")
            conn.execute("CREATE TABLE IF NOT EXISTS identity (text TEXT)")
            conn.execute("CREATE TABLE IF NOT EXISTS rows (hash BLOB PRIMARY KEY, doclens BLOB, embeddings BLOB)")
            if conn.execute("SELECT text FROM identity").fetchall() != [(identity,)]:
                conn.execute("DELETE FROM identity")
                conn.execute("DELETE FROM rows")
                conn.execute("INSERT INTO identity VALUES (?)", (identity,))
        except BaseException:
            conn.close()
            raise
        return conn

    def get(self, content_hash: bytes) -> list[NDArray[np.float16]] | None:
        """Return the embeddings float16 [doclen, dim] of each passage of a row; None if they are not here."""
        if self._conn is None:
            return None
        try:
            row = self._conn.execute("SELECT doclens, embeddings FROM rows WHERE hash = ?", (content_hash,)).fetchone()
            if row is None:
                return None
            ends = np.cumsum(np.frombuffer(row[0], DOCLENS))
            values = np.frombuffer(row[1], HALVES).reshape(-1, self._dim)
            return np.split(values, ends[:-1]) if len(ends) else []
        except (sqlite3.Error, ValueError, TypeError):
            return None

    def put(self, rows: Sequence[tuple[bytes, Sequence[NDArray[np.float16]]]]) -> None:
        """Keep the embeddings of the passages of rows, by content hash."""
        if self._conn is None:
            return
        values = [
            (
                content_hash,
                np.array([len(passage) for passage in passages], DOCLENS).tobytes(),
                b"".join(passage.astype(HALVES).tobytes() for passage in passages),
            )
            for content_hash, passages in rows
        ]
        try:
            self._conn.execute("BEGIN")
            self._conn.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", values)
            self._conn.execute("COMMIT")
        except sqlite3.Error:
            self.remove()

    def close(self) -> None:
        """Let go of the file and leave it for the next run."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def remove(self) -> None:
        """Delete the file."""
        self.close()
        if self._path is not None:
            remove_scratch(self._path)


def scratch_path(conn: sqlite3.Connection, index: str) -> Path | None:
    """Return where the scratch file of an index is; None for a database in memory."""
    file = file_of(conn)
    if not file:
        return None
    digest = hashlib.blake2b(index.lower().encode(), digest_size=4).hexdigest()
    return Path(f"{file}-colbert-{digest}")


def remove_scratch(path: Path) -> None:
    """Delete a scratch file and what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        try:
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        except OSError:
            pass
