"""Inverted lists: the passages that have a token in a centroid.

In: pairs of centroid and passage. Out: segments in the ivf table. Leaves to others: reading for a search
(``postings.py``).

A list is kept in segments of so many ids as fill a page, so that what a changed row has rewritten does not grow with
the lists.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.storage.blobs import checksum, pack_ids, unpack_ids, verified
from colbert_sqlite.storage.schema import Tables

# A segment is named by its centroid and, in so many bits, its first passage id.
PASSAGE_BITS = 40
PASSAGE_MASK = (1 << PASSAGE_BITS) - 1
SEGMENT_IDS = 2000
# Segments changed at once, at most two million ids: deleting a hundredth of all rows concerns nearly every list.
SEGMENTS_AT_ONCE = 1000


class Pairs(NamedTuple):
    """Which passages have a token in which centroids: int64 [n] each."""

    centroids: NDArray[np.int64]
    passage_ids: NDArray[np.int64]

    @classmethod
    def at(cls, places: NDArray[np.int64]) -> Pairs:
        """Return the pairs of :attr:`places`."""
        return cls(places >> PASSAGE_BITS, places & PASSAGE_MASK)

    @classmethod
    def joined(cls, parts: Sequence[Pairs]) -> Pairs:
        """Return all pairs of several."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    @property
    def places(self) -> NDArray[np.int64]:
        """One number for each pair, in the order of the inverted lists; rising and distinct."""
        places = np.sort((self.centroids << PASSAGE_BITS) | self.passage_ids)
        # Ten times as fast as numpy's unique, which hashes whole numbers.
        return places[np.diff(places, prepend=-1) > 0]


class InvertedLists:
    """The inverted lists of one index. Call all that writes inside ``atomic``."""

    def __init__(self, tables: Tables) -> None:
        self._conn = tables.conn
        self._name = tables.index
        self._ivf = tables.quoted("ivf")

    def write(self, pairs: Pairs) -> None:
        """Store the lists of centroids that have none yet."""
        places = pairs.places
        self._write_segments(places, places >> PASSAGE_BITS)

    def clear(self) -> None:
        self._conn.execute(f"DELETE FROM {self._ivf}")

    def change(self, removed: Pairs, added: Pairs) -> None:
        """Remove passages from the inverted lists, and add some whose ids are higher than all before.

        :raises IndexCorrupt: if a list that is concerned is damaged
        """
        minus, plus = removed.places, added.places
        centroids = np.unique(plus >> PASSAGE_BITS)
        # The segment of a removed passage begins at it or before it, and an added one belongs to the last.
        segments = self._segments_before(np.concatenate([minus, (centroids << PASSAGE_BITS) | PASSAGE_MASK]))
        ends = np.append(segments[SEGMENTS_AT_ONCE::SEGMENTS_AT_ONCE], np.iinfo(np.int64).max)
        blocks = np.split(segments, range(SEGMENTS_AT_ONCE, len(segments), SEGMENTS_AT_ONCE))
        for block, gone, come in zip(blocks, _cut(minus, ends), _cut(plus, ends), strict=True):
            self._change_segments(block, gone, come)

    def _change_segments(self, segments: NDArray[np.int64], minus: NDArray[np.int64], plus: NDArray[np.int64]) -> None:
        places, owners = self._read_segments(segments)
        gone = _positions(places, minus)
        places, owners = np.delete(places, gone), np.delete(owners, gone)
        # Those of a centroid without a segment form the first one.
        before = np.append(-1, segments)[np.searchsorted(segments, plus, side="right")]
        joined = np.where(before >> PASSAGE_BITS == plus >> PASSAGE_BITS, before, plus & ~PASSAGE_MASK)
        behind = np.searchsorted(places, plus)
        written = self._write_segments(np.insert(places, behind, plus), np.insert(owners, behind, joined))
        emptied = np.setdiff1d(segments, written, assume_unique=True).tolist()
        self._conn.executemany(f"DELETE FROM {self._ivf} WHERE segment = ?", ((segment,) for segment in emptied))

    def _segments_before(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return, rising, the segments that these places belong to."""
        found = self._conn.execute(
            f"SELECT DISTINCT segment FROM (SELECT value AS place, (SELECT max(segment) FROM {self._ivf}"
            f" WHERE segment <= value) AS segment FROM json_each(?)) WHERE segment >= place & ~{PASSAGE_MASK}",
            (json.dumps(places.tolist()),),
        )
        return np.sort(np.fromiter((row[0] for row in found), np.int64))

    def _read_segments(self, segments: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the places in these segments, rising, and the segment of each."""
        rows = self._conn.execute(
            f"SELECT i.passage_ids, i.checksum FROM json_each(?) AS ids CROSS JOIN {self._ivf} AS i"
            " ON i.segment = ids.value",
            (json.dumps(segments.tolist()),),
        ).fetchall()
        blobs = verified(rows, f"inverted lists of index {self._name!r}")
        places, lengths = unpack_ids(segments, blobs)
        return places, np.repeat(segments, lengths)

    def _write_segments(self, places: NDArray[np.int64], owners: NDArray[np.int64]) -> NDArray[np.int64]:
        """Store rising places, those of equal owners in one segment as far as there is room; return the segments."""
        if not len(places):
            return places
        begins = np.flatnonzero(np.diff(owners, prepend=-1))
        within = np.arange(len(places)) - np.repeat(begins, np.diff(begins, append=len(places)))
        firsts = np.flatnonzero(within % SEGMENT_IDS == 0)
        blobs = pack_ids(places, np.append(firsts[1:], len(places)))
        self._conn.executemany(
            f"REPLACE INTO {self._ivf} VALUES (?, ?, ?)",
            zip(places[firsts].tolist(), blobs, map(checksum, blobs), strict=True),
        )
        return places[firsts]


def _positions(rising: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where in *rising* those of *wanted* are that are there."""
    positions = np.searchsorted(rising, wanted)
    there = positions < len(rising)
    there[there] = rising[positions[there]] == wanted[there]
    return positions[there]


def _cut(rising: NDArray[np.int64], ends: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the parts of *rising* below each of the ends, which rise too."""
    return np.split(rising, np.searchsorted(rising, ends[:-1]))
