"""The codec of an index, its centroids read once for all threads.

In: the tables of one index. Out: a :class:`Codec`. Leaves to others: training it, its bytes (``storage/codec.py``), its
mathematics (``engine/codec.py``).
"""

from __future__ import annotations

from typing import NamedTuple

from colbert_sqlite.engine.codec import ResidualCodec
from colbert_sqlite.locks import ThreadLock
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.store import Store


class Codec(NamedTuple):
    """A codec: its stored row, and its arrays ready to compress and score."""

    stored: StoredCodec
    residual: ResidualCodec


def load_codec(store: Store) -> Codec:
    """Return the codec of an index.

    :raises IndexCorrupt: if it is damaged
    """
    stored = store.codec.load()
    return Codec(stored, _residual_codec(store, stored))


class CodecCache:
    """Keeps the codec used last. Threads share it, each with a connection of its own."""

    def __init__(self) -> None:
        self._lock = ThreadLock()
        self._last: tuple[object, ResidualCodec] | None = None

    def load(self, store: Store) -> Codec:
        """Return the codec as it is now; its centroids are read only after they changed.

        :raises IndexCorrupt: if it is damaged
        """
        stored = store.codec.load()
        # After a rollback, another growth may reach the same number of centroids: the checksum differs then.
        version = store.entry.build_id, stored.n_centroids, store.codec.last_checksum()
        with self._lock:
            last = self._last
            if last is None or last[0] != version:
                last = self._last = version, _residual_codec(store, stored)
        return Codec(stored, last[1])


def _residual_codec(store: Store, stored: StoredCodec) -> ResidualCodec:
    centroids, cells = store.codec.centroids(stored)
    return ResidualCodec(
        nbits=stored.nbits,
        centroids=centroids,
        bucket_cutoffs=stored.bucket_cutoffs,
        bucket_weights=stored.bucket_weights,
        avg_residual=stored.avg_residual,
        scale_step=stored.scale_step,
        cells=cells,
    )
