"""The space that deleted rows left, made free.

In: an index with gaps between its residuals. Out: the same index without gaps. Leaves to others: shrinking the file
(VACUUM).
"""

from __future__ import annotations

import dataclasses

from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.store import Store


def optimize(store: Store) -> None:
    """Leave no space between the residuals of passages, some at a time; each time is a transaction.

    :raises IndexNotFound: if the index was dropped meanwhile
    :raises IndexCorrupt: if residuals are damaged
    """
    moved: tuple[int, int] | None = (0, 0)
    while moved is not None:
        with atomic(store.conn):
            store = store.check_ready()
            codec = store.codec.load()
            last_id, end = moved
            moved = store.residuals.compact(codec, last_id, end)
            if moved is None:
                store.residuals.end_at(codec, end)
                store.codec.update(dataclasses.replace(codec, stream_tokens=end))
            store.update_entry()
