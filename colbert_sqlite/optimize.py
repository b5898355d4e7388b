"""The space that deleted rows left, made free.

In: an index with gaps between its residuals. Out: the same index without gaps. Leaves to others: shrinking the file
(VACUUM).
"""

from __future__ import annotations

from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.store import Store


def optimize(store: Store) -> None:
    """Leave no space between the residuals of passages, some at a time; each time is a transaction."""
    place: tuple[int, int] | None = (0, 0)
    while place is not None:
        with atomic(store.conn):
            store = store.check_ready()
            place = store.compact(*place)
            store.update_entry()
