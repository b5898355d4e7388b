"""A read view of one index at one generation: token data by passage id, read when a query needs it.

In: passage and centroid ids. Out: arrays (the ``Postings`` of ``engine/plaid.py``). Leaves to others: the read
transaction around a whole search (``connection.reading``), scoring.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import IndexCorrupt
from colbert_sqlite.memory import keep_freed_memory
from colbert_sqlite.storage.blobs import CODES, GAPS, RESIDUALS, from_blobs, unpack_ids, verified
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.connection import data_version
from colbert_sqlite.storage.ivf import PASSAGE_BITS, PASSAGE_MASK
from colbert_sqlite.storage.store import Store

# What one query reads and frees the next one needs: without this a search took up to a third longer.
MEGABYTES_KEPT = 24


class Checked:
    """Which codes and residuals have been compared with their checksums since the database last changed.

    Comparing is a fifth of the time of a search: what one search has found sound the next one need not doubt, as long
    as nobody has committed anything.
    """

    # One byte each; ids beyond are compared every time.
    LARGEST_ID = 1 << 26

    def __init__(self) -> None:
        self._version: object = None
        self._known: dict[str, NDArray[np.bool_]] = {}

    def as_of(self, store: Store) -> None:
        """Forget everything unless the database is as it was."""
        version = store.entry.build_id, store.entry.generation, data_version(store.conn)
        if version != self._version:
            self._version, self._known = version, {}

    def sound(self, part: str, ids: NDArray[np.int64], rows: Sequence[tuple[Any, ...]], what: str) -> list[Any]:
        """Return the BLOBs of rows (BLOB, checksum) of these ids.

        :raises IndexCorrupt: if a checksum is not that of its BLOB
        """
        if ids.min(initial=0) < 0:
            raise IndexCorrupt(f"{what} are damaged: run verify, then repair")
        known = self._known.get(part, np.empty(0, bool))
        new = ids >= len(known)
        new[~new] = ~known[ids[~new]]
        if new.all():
            blobs = verified(rows, what)
        else:
            verified([rows[i] for i in np.flatnonzero(new).tolist()], what)
            blobs = [row[0] for row in rows]
        top = int(ids.max(initial=-1)) + 1
        if top <= self.LARGEST_ID and new.any():
            if top > len(known):
                known = np.concatenate([known, np.zeros(top + top // 8 - len(known), bool)])
            known[ids] = True
            self._known[part] = known
        return blobs


class Snapshot:
    """Codes, inverted lists and residuals of one index, straight from its tables.

    :param checked: what earlier snapshots of this connection have compared with its checksums
    """

    def __init__(self, store: Store, codec: StoredCodec, checked: Checked | None = None) -> None:
        keep_freed_memory(MEGABYTES_KEPT)
        self._checked = checked or Checked()
        self._checked.as_of(store)
        self._conn: sqlite3.Connection = store.conn
        self._name = store.entry.name
        self._codec = codec
        self._passages = store.table("passages")
        self._codes = store.table("codes")
        self._residuals = store.table("residuals")
        self._ivf = store.table("ivf")

    def has_at_most(self, n: int) -> bool:
        """Return whether no more than *n* passages have tokens."""
        sql = f"SELECT count(*) FROM (SELECT 1 FROM {self._codes} LIMIT ?)"
        return bool(self._conn.execute(sql, (n + 1,)).fetchone()[0] <= n)

    def count(self) -> int:
        """Return how many passages have tokens."""
        n: int = self._conn.execute(f"SELECT count(*) FROM {self._codes}").fetchone()[0]
        return n

    def all_passage_ids(self) -> NDArray[np.int64]:
        """Return the sorted ids of the passages with at least one token."""
        cursor = self._conn.execute(f"SELECT passage_id FROM {self._codes} ORDER BY passage_id")
        return np.fromiter((row[0] for row in cursor), np.int64)

    def inverted_lists(self, centroid_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ids of the passages with a token in each of these centroids, list after list, and offsets [n + 1].

        :raises IndexCorrupt: if a list is damaged
        """
        rows = self._conn.execute(
            f"SELECT i.passage_ids, i.checksum, i.segment, ids.key FROM json_each(?) AS ids CROSS JOIN {self._ivf} AS i"
            f" ON i.segment BETWEEN ids.value << {PASSAGE_BITS} AND (ids.value << {PASSAGE_BITS}) | {PASSAGE_MASK}",
            (json.dumps(centroid_ids.tolist()),),
        ).fetchall()
        segments = np.fromiter((row[2] for row in rows), np.int64, len(rows))
        listed, lengths = unpack_ids(segments & PASSAGE_MASK, verified(rows, f"inverted lists of index {self._name!r}"))
        offsets = np.zeros(len(centroid_ids) + 1, np.int64)
        # A long list is more than one segment.
        np.add.at(offsets, np.fromiter((row[3] + 1 for row in rows), np.int64, len(rows)), lengths)
        return listed, np.cumsum(offsets)

    def list_lengths(self, centroid_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many passages have a token in each of these centroids, or slightly more; nothing is unpacked."""
        rows = self._conn.execute(
            f"SELECT ids.key, length(i.passage_ids) FROM json_each(?) AS ids CROSS JOIN {self._ivf} AS i"
            f" ON i.segment BETWEEN ids.value << {PASSAGE_BITS} AND (ids.value << {PASSAGE_BITS}) | {PASSAGE_MASK}",
            (json.dumps(centroid_ids.tolist()),),
        ).fetchall()
        lengths = np.zeros(len(centroid_ids), np.int64)
        places, n_bytes = np.array(rows, np.int64).reshape(-1, 2).T
        np.add.at(lengths, places, n_bytes // GAPS.itemsize)
        return lengths

    def codes(
        self, passage_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint16] | NDArray[np.uint32], NDArray[np.int64]]:
        """Return the codes of these passages, concatenated in this order, and offsets [n + 1].

        :raises IndexCorrupt: if a passage has no codes, or a list of codes has a broken length
        """
        # CROSS JOIN keeps the order of the list: SQLite never swaps its sides.
        rows = self._conn.execute(
            f"SELECT c.codes, c.checksum FROM json_each(?) AS ids CROSS JOIN {self._codes} AS c"
            " ON c.passage_id = ids.value",
            (json.dumps(passage_ids.tolist()),),
        ).fetchall()
        if len(rows) != len(passage_ids):
            raise IndexCorrupt(f"index {self._name!r} has passages without codes: run verify, then repair")
        dtype, what = CODES[self._codec.codes_dtype], f"codes of index {self._name!r}"
        codes, offsets = from_blobs(self._checked.sound("codes", passage_ids, rows, what), dtype, what)
        return codes.astype(dtype.newbyteorder("="), copy=False), offsets

    def residuals(
        self, passage_ids: NDArray[np.int64], doclens: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return rows of packed residuals [n, bytes_per_token] and where in them each passage starts.

        The rows are the blocks of the token stream that these passages touch, whole.

        :param doclens: int64 [n], the numbers of codes that were read of these passages
        :raises IndexCorrupt: if passages have other doclens, or blocks are missing or have a broken length
        """
        places = self._conn.execute(
            "SELECT p.residual_start, p.doclen FROM json_each(?) AS ids"
            f" CROSS JOIN {self._passages} AS p ON p.passage_id = ids.value",
            (json.dumps(passage_ids.tolist()),),
        ).fetchall()
        damaged = IndexCorrupt(f"the residuals of index {self._name!r} are damaged: run verify, then repair")
        width, per_block, end = self._codec.bytes_per_token, self._codec.block_tokens, self._codec.stream_tokens
        if len(places) != len(passage_ids) or not all(type(n) is int for place in places for n in place):
            raise damaged
        if not places:
            return np.empty((0, width), np.uint8), np.empty(0, np.int64)
        try:
            first, stored_doclens = np.array(places, np.int64).T
        except OverflowError:
            raise damaged from None
        if np.any(stored_doclens != doclens) or np.any(first < 0) or np.any(first > end - doclens):
            raise damaged
        first_blocks, last_blocks = first // per_block, (first + doclens - 1) // per_block
        n_blocks = np.where(doclens, last_blocks - first_blocks + 1, 0)
        within = np.arange(n_blocks.sum()) - np.repeat(np.cumsum(n_blocks) - n_blocks, n_blocks)
        blocks = np.unique(np.repeat(first_blocks, n_blocks) + within)
        rows = self._conn.execute(
            f"SELECT r.residuals, r.checksum FROM json_each(?) AS ids CROSS JOIN {self._residuals} AS r"
            " ON r.block = ids.value",
            (json.dumps(blocks.tolist()),),
        ).fetchall()
        what = f"residuals of index {self._name!r}"
        if len(rows) != len(blocks):
            raise damaged
        tokens, offsets = from_blobs(self._checked.sound("residuals", blocks, rows, what), RESIDUALS, what)
        # Only the last block of the stream may be shorter, and it is the last of the sorted blocks.
        lengths = np.where(blocks == end // per_block, end % per_block, per_block) * width
        if np.any(np.diff(offsets) != lengths):
            raise damaged
        starts = np.searchsorted(blocks, first_blocks) * per_block + first % per_block
        return tokens.reshape(-1, width), starts
