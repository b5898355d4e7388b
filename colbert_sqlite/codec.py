"""The codec of an index, read from its tables and ready to compress and to score.

In: the tables of an index. Out: the codec, read again only after it changed. Leaves to others: its numbers
(``engine/codec.py``) and its rows (``storage/``).
"""

from __future__ import annotations

from threading import Lock
from typing import NamedTuple

from colbert_sqlite.engine.codec import ResidualCodec
from colbert_sqlite.errors import IndexCorrupt
from colbert_sqlite.indexing import codec_from
from colbert_sqlite.storage.store import Store
from colbert_sqlite.storage.stored_codec import StoredCodec


class Codec(NamedTuple):
    """What is stored of a codec, and what it does."""

    stored: StoredCodec
    residual: ResidualCodec


class CodecCache:
    """The codec of one index, for all threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._version: object = None
        self._residual: ResidualCodec | None = None

    def load(self, store: Store) -> Codec:
        """Return the codec as it is now.

        :raises IndexCorrupt: if it is damaged
        """
        stored = store.read_codec()
        if stored is None:
            raise IndexCorrupt(f"index {store.entry.name!r} has no codec: build it again with --replace")
        # A growth that was rolled back may be followed by one of as many centroids.
        version = store.entry.build_id, stored.n_centroids, store.codec.last_checksum()
        with self._lock:
            if self._residual is None or self._version != version:
                self._residual, self._version = codec_from(store, stored), version
            return Codec(stored, self._residual)
