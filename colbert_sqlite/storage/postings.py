"""What a search reads of one index at one generation, when it needs it.

In: passage and centroid ids. Out: arrays (the ``Postings`` of ``engine/postings.py``). Leaves to others: the read
transaction around a whole search (``connection.reading``), scoring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.memory import keep_freed_memory
from colbert_sqlite.storage.blobs import CODES, RESIDUALS, Part, from_blobs, verified
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.connection import data_version
from colbert_sqlite.storage.store import Store

# What one query reads and frees the next one needs: without this a search took up to a third longer.
MEGABYTES_KEPT = 24


class Checked:
    """Which codes and residuals have been compared with their checksums since the database last changed.

    Comparing takes a fifth of the time of a search. The next search need not compare again what the last one compared,
    as long as nobody has committed anything.
    """

    # One byte each; ids beyond are compared every time.
    MAX_ID = 1 << 26

    def __init__(self) -> None:
        self._version: object = None
        self._sound: dict[str, NDArray[np.bool_]] = {}

    def as_of(self, store: Store) -> None:
        """Forget everything unless the database is as it was."""
        version = store.entry.build_id, store.entry.generation, data_version(store.conn)
        if version != self._version:
            self._version, self._sound = version, {}

    def blobs(self, ids: NDArray[np.int64], rows: Sequence[tuple[Any, ...]], part: Part) -> list[Any]:
        """Return the BLOBs of rows (BLOB, checksum) of these ids.

        :raises IndexCorrupt: if a checksum is not that of its BLOB
        """
        if ids.min(initial=0) < 0:
            raise part.damaged(f"an id is {ids.min()}")
        sound = self._sound.get(part.name, np.empty(0, bool))
        new = ids >= len(sound)
        new[~new] = ~sound[ids[~new]]
        if new.all():
            blobs = verified(rows, part)
        else:
            verified([rows[i] for i in np.flatnonzero(new).tolist()], part)
            blobs = [row[0] for row in rows]
        top = int(ids.max(initial=-1)) + 1
        if top <= self.MAX_ID and new.any():
            if top > len(sound):
                sound = np.concatenate([sound, np.zeros(top + top // 8 - len(sound), bool)])
            sound[ids] = True
            self._sound[part.name] = sound
        return blobs


class StoredPostings:
    """Codes, inverted lists and residuals of one index, straight from its tables.

    :param checked: what earlier searches of this connection have compared with its checksums
    """

    def __init__(self, store: Store, codec: StoredCodec, checked: Checked | None = None) -> None:
        keep_freed_memory(MEGABYTES_KEPT)
        self._checked = checked or Checked()
        self._checked.as_of(store)
        self._store = store
        self._codec = codec

    def has_at_most(self, n: int) -> bool:
        return self._store.codes.has_at_most(n)

    def count(self) -> int:
        """Return how many passages have tokens."""
        return self._store.codes.count()

    def all_passage_ids(self) -> NDArray[np.int64]:
        return self._store.codes.passage_ids()

    def inverted_lists(self, centroid_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self._store.ivf.lists(centroid_ids)

    def list_lengths(self, centroid_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._store.ivf.lengths(centroid_ids)

    def codes(
        self, passage_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint16] | NDArray[np.uint32], NDArray[np.int64]]:
        """Return the codes of these passages, concatenated in this order, and offsets [n + 1].

        :raises IndexCorrupt: if a passage has no codes, or a list of codes has a broken length
        """
        part, dtype = self._store.codes.part, CODES[self._codec.codes_dtype]
        rows = self._store.codes.blobs(passage_ids)
        if len(rows) != len(passage_ids):
            raise part.damaged(f"those of {len(passage_ids) - len(rows)} passages are missing")
        codes, offsets = from_blobs(self._checked.blobs(passage_ids, rows, part), dtype, part)
        return codes.astype(dtype.newbyteorder("="), copy=False), offsets

    def residuals(
        self, passage_ids: NDArray[np.int64], doclens: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return rows of packed residuals [n, bytes_per_token] and where in them each passage starts.

        The rows are the blocks of the token stream that these passages touch, whole.

        :param doclens: int64 [n], the numbers of codes that were read of these passages
        :raises IndexCorrupt: if passages have other doclens, or blocks are missing or have a broken length
        """
        width, per_block, end = self._codec.bytes_per_token, self._codec.block_tokens, self._codec.stream_tokens
        if not len(passage_ids):
            return np.empty((0, width), np.uint8), np.empty(0, np.int64)
        first = self._first_tokens(passage_ids, doclens)
        first_blocks, last_blocks = first // per_block, (first + doclens - 1) // per_block
        n_blocks = np.where(doclens, last_blocks - first_blocks + 1, 0)
        within = np.arange(n_blocks.sum()) - np.repeat(np.cumsum(n_blocks) - n_blocks, n_blocks)
        blocks = np.unique(np.repeat(first_blocks, n_blocks) + within)
        part = self._store.residuals.part
        rows = self._store.residuals.blobs(blocks.tolist())
        if len(rows) != len(blocks):
            raise part.damaged(f"{len(blocks) - len(rows)} blocks are missing")
        tokens, offsets = from_blobs(self._checked.blobs(blocks, rows, part), RESIDUALS, part)
        # Only the last block of the stream may be shorter, and it is the last of the sorted blocks.
        lengths = np.where(blocks == end // per_block, end % per_block, per_block) * width
        if np.any(np.diff(offsets) != lengths):
            block = int(np.argmax(np.diff(offsets) != lengths))
            raise part.damaged(f"block {blocks[block]} has {np.diff(offsets)[block]} bytes, not {lengths[block]}")
        starts = np.searchsorted(blocks, first_blocks) * per_block + first % per_block
        return tokens.reshape(-1, width), starts

    def _first_tokens(self, passage_ids: NDArray[np.int64], doclens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where in the token stream each of these passages begins: int64 [n].

        :raises IndexCorrupt: if one is missing, has another doclen, or lies beyond the end
        """
        part, spans = self._store.residuals.part, self._store.passages.spans(passage_ids)
        if len(spans) != len(passage_ids):
            raise part.damaged(f"{len(passage_ids) - len(spans)} passages are missing")
        try:
            sound = all(type(n) is int for span in spans for n in span)
            first, stored_doclens = np.array(spans if sound else [], np.int64).reshape(-1, 2).T
        except OverflowError:
            sound = False
        end = self._codec.stream_tokens
        if not sound or np.any(stored_doclens != doclens) or np.any(first < 0) or np.any(first > end - doclens):
            raise part.damaged("residual_start or doclen of a passage is out of range")
        return first
