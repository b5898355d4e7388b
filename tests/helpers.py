"""What several test files need of an index."""

from __future__ import annotations

import sqlite3

from colbert_sqlite import Index


def connection_of(index: Index) -> sqlite3.Connection:
    """The connection through which this thread uses an index."""
    with index.read() as view:
        return view.conn
