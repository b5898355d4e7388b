"""Inverted lists: the passages that have a token in a centroid.

In: pairs of centroid and passage. Out: segments of lists. Leaves to others: where the pairs come from (``codes.py``).

A list is kept in segments of so many ids as fill a page, so that what a changed row has rewritten does not grow with
the lists.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import ColbertError
from colbert_sqlite.storage.blobs import (
    CODES,
    GAPS,
    MAX_PASSAGE_ID,
    PASSAGE_BITS,
    AnyArray,
    Part,
    checksum,
    pack_ids,
    unpack_ids,
    verified,
)
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.findings import Findings
from colbert_sqlite.storage.schema import Tables

# A segment is named by its centroid and, in so many bits, its first passage id.
PASSAGE_MASK = MAX_PASSAGE_ID
SEGMENT_IDS = 2000
# Segments changed at once, at most two million ids: deleting a hundredth of all rows concerns nearly every list.
SEGMENTS_AT_ONCE = 1000
# Pairs of centroid and passage sorted at once, 8 bytes each.
_PAIRS_IN_MEMORY = 1 << 23


class Pairs(NamedTuple):
    """Which passages have a token in which centroids: int64 [n] each."""

    centroids: NDArray[np.int64]
    passage_ids: NDArray[np.int64]

    @classmethod
    def of(cls, passage_id: int, codes: NDArray[np.integer]) -> Pairs:
        """Return the pairs of one passage."""
        distinct = np.unique(codes).astype(np.int64)
        return cls(distinct, np.full(len(distinct), passage_id, np.int64))

    @classmethod
    def from_numbers(cls, numbers: NDArray[np.int64]) -> Pairs:
        """Return the pairs of :attr:`numbers`."""
        return cls(numbers >> PASSAGE_BITS, numbers & PASSAGE_MASK)

    @classmethod
    def joined(cls, parts: Sequence[Pairs]) -> Pairs:
        """Return all pairs of several."""
        empty = np.empty(0, np.int64)
        return cls(*(np.concatenate(column) for column in zip(cls(empty, empty), *parts, strict=True)))

    @property
    def numbers(self) -> NDArray[np.int64]:
        """One number for each pair, in the order of the inverted lists; rising and distinct."""
        numbers = np.sort((self.centroids << PASSAGE_BITS) | self.passage_ids)
        # Ten times as fast as numpy's unique, which hashes whole numbers.
        return numbers[np.diff(numbers, prepend=-1) > 0]


def centroid_ranges(codec: StoredCodec) -> Iterator[tuple[int, int]]:
    """Yield ranges of centroids whose inverted lists are made at once, as many as memory allows."""
    step = -(-codec.n_centroids // -(-max(1, codec.stream_tokens) // _PAIRS_IN_MEMORY))
    return ((first, first + step) for first in range(0, codec.n_centroids, step))


def pairs_of(batches: Iterable[tuple[NDArray[np.int64], NDArray[np.int64], AnyArray]], first: int, end: int) -> Pairs:
    """Return which passages have a token in which centroid of [first, end).

    :param batches: passage ids, doclens and codes, as ``Codes.batches`` yields them
    """
    numbers = [np.empty(0, np.int64)]
    for passage_ids, doclens, codes in batches:
        inside = (codes >= first) & (codes < end)
        owners = np.repeat(passage_ids, doclens)[inside]
        numbers.append(Pairs(codes[inside].astype(np.int64), owners).numbers)
    return Pairs.from_numbers(np.concatenate(numbers))


class InvertedLists:
    """The inverted lists of one index. Call all that writes inside ``atomic``."""

    def __init__(self, tables: Tables) -> None:
        self._conn = tables.conn
        self._table = tables.quoted("ivf")
        self._codes = tables.quoted("codes")
        self._part = Part("inverted lists", tables.index)

    @staticmethod
    def definition(tables: Tables) -> str:
        return f"""CREATE TABLE {tables.quoted("ivf")} (
    segment INTEGER PRIMARY KEY,
    passage_ids BLOB NOT NULL,
    checksum INTEGER NOT NULL
)"""

    # Writing.

    def write(self, pairs: Pairs) -> None:
        """Store the lists of centroids that have no list yet."""
        numbers = pairs.numbers
        self._write_segments(numbers, numbers >> PASSAGE_BITS)

    def clear(self) -> None:
        self._conn.execute(f"DELETE FROM {self._table}")

    def change(self, removed: Pairs, added: Pairs) -> None:
        """Remove passages from the inverted lists, and add some whose ids are higher than all before.

        :raises IndexCorrupt: if a list that is concerned is damaged
        """
        minus, plus = removed.numbers, added.numbers
        centroids = np.unique(plus >> PASSAGE_BITS)
        # The segment of a removed passage begins at it or before it, and an added one belongs to the last.
        segments = self._segments_before(np.concatenate([minus, (centroids << PASSAGE_BITS) | PASSAGE_MASK]))
        ends = np.append(segments[SEGMENTS_AT_ONCE::SEGMENTS_AT_ONCE], np.iinfo(np.int64).max)
        blocks = np.split(segments, range(SEGMENTS_AT_ONCE, len(segments), SEGMENTS_AT_ONCE))
        for block, gone, come in zip(blocks, _cut(minus, ends), _cut(plus, ends), strict=True):
            self._change_segments(block, gone, come)

    def _change_segments(self, segments: NDArray[np.int64], minus: NDArray[np.int64], plus: NDArray[np.int64]) -> None:
        numbers, owners = self._read_segments(segments)
        gone = _positions(numbers, minus)
        numbers, owners = np.delete(numbers, gone), np.delete(owners, gone)
        # Those of a centroid without a segment form the first one.
        before = np.append(-1, segments)[np.searchsorted(segments, plus, side="right")]
        joined = np.where(before >> PASSAGE_BITS == plus >> PASSAGE_BITS, before, plus & ~PASSAGE_MASK)
        behind = np.searchsorted(numbers, plus)
        written = self._write_segments(np.insert(numbers, behind, plus), np.insert(owners, behind, joined))
        emptied = np.setdiff1d(segments, written, assume_unique=True).tolist()
        self._conn.executemany(f"DELETE FROM {self._table} WHERE segment = ?", ((segment,) for segment in emptied))

    def _segments_before(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return, rising, the segments that these numbers belong to."""
        rows = self._conn.execute(
            f"SELECT DISTINCT segment FROM (SELECT value AS number, (SELECT max(segment) FROM {self._table}"
            f" WHERE segment <= value) AS segment FROM json_each(?)) WHERE segment >= number & ~{PASSAGE_MASK}",
            (json.dumps(numbers.tolist()),),
        )
        return np.sort(np.fromiter((row[0] for row in rows), np.int64))

    def _read_segments(self, segments: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers in these segments, rising, and the segment of each."""
        rows = self._conn.execute(
            f"SELECT i.passage_ids, i.checksum FROM json_each(?) AS ids CROSS JOIN {self._table} AS i"
            " ON i.segment = ids.value",
            (json.dumps(segments.tolist()),),
        ).fetchall()
        numbers, lengths = unpack_ids(segments, verified(rows, self._part), self._part)
        return numbers, np.repeat(segments, lengths)

    def _write_segments(self, numbers: NDArray[np.int64], owners: NDArray[np.int64]) -> NDArray[np.int64]:
        """Store rising numbers, those of equal owners in one segment as far as there is room; return the segments."""
        if not len(numbers):
            return numbers
        begins = np.flatnonzero(np.diff(owners, prepend=-1))
        within = np.arange(len(numbers)) - np.repeat(begins, np.diff(begins, append=len(numbers)))
        firsts = np.flatnonzero(within % SEGMENT_IDS == 0)
        blobs = pack_ids(numbers, np.append(firsts[1:], len(numbers)))
        self._conn.executemany(
            f"REPLACE INTO {self._table} VALUES (?, ?, ?)",
            zip(numbers[firsts].tolist(), blobs, map(checksum, blobs), strict=True),
        )
        return numbers[firsts]

    # Searching.

    def lists(self, centroid_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ids of the passages with a token in each of these centroids, list after list, and offsets [n + 1].

        :raises IndexCorrupt: if a list is damaged
        """
        rows = self._segments_of("i.passage_ids, i.checksum, i.segment, ids.key", centroid_ids)
        segments = np.fromiter((row[2] for row in rows), np.int64, len(rows))
        ids, lengths = unpack_ids(segments & PASSAGE_MASK, verified(rows, self._part), self._part)
        offsets = np.zeros(len(centroid_ids) + 1, np.int64)
        # A long list is more than one segment.
        np.add.at(offsets, np.fromiter((row[3] + 1 for row in rows), np.int64, len(rows)), lengths)
        return ids, np.cumsum(offsets)

    def lengths(self, centroid_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many passages have a token in each of these centroids, or slightly more; nothing is unpacked."""
        rows = self._segments_of("ids.key, length(i.passage_ids)", centroid_ids)
        lengths = np.zeros(len(centroid_ids), np.int64)
        positions, n_bytes = np.array(rows, np.int64).reshape(-1, 2).T
        np.add.at(lengths, positions, n_bytes // GAPS.itemsize)
        return lengths

    def _segments_of(self, columns: str, centroid_ids: NDArray[np.int64]) -> list[tuple[Any, ...]]:
        return self._conn.execute(
            f"SELECT {columns} FROM json_each(?) AS ids CROSS JOIN {self._table} AS i"
            f" ON i.segment BETWEEN ids.value << {PASSAGE_BITS} AND (ids.value << {PASSAGE_BITS}) | {PASSAGE_MASK}",
            (json.dumps(centroid_ids.tolist()),),
        ).fetchall()

    # Checking.

    def check(self, codec: StoredCodec, findings: Findings) -> set[int]:
        """Compare the lists with the codes; return ids of passages that the lists name and should not.

        Passages of *findings* are left out: they will be made anew, with other ids.
        """
        try:
            rows = self._conn.execute(
                f"SELECT passage_ids, checksum, segment FROM {self._table} ORDER BY segment"
            ).fetchall()
            segments = np.array([row[2] for row in rows], np.int64)
            numbers, _ = unpack_ids(segments, verified(rows, self._part), self._part)
        except (ColbertError, sqlite3.Error) as error:
            findings.problems.append(str(error))
            findings.lists = True
            return set()
        expected = self._expected_numbers(codec, findings)
        # Outliers may name passages by something else than a number.
        untrusted = [id_ for id_ in (*findings.passages, *findings.orphans) if type(id_) is int]
        numbers = numbers[~np.isin(numbers & PASSAGE_MASK, np.array(untrusted, np.int64))]
        missing = _owners(np.setdiff1d(expected, numbers, assume_unique=True))
        surplus = np.setdiff1d(numbers, expected, assume_unique=True)
        strangers = _owners(surplus)
        if len(numbers) != len(expected) and not strangers and not missing:
            surplus = numbers[np.flatnonzero(np.diff(numbers, prepend=-1) <= 0)]
        findings.lists = findings.add("passages missing from inverted lists", missing)
        findings.lists |= findings.add("inverted lists name passages they should not", _owners(surplus))
        return set(strangers)

    def _expected_numbers(self, codec: StoredCodec, findings: Findings) -> NDArray[np.int64]:
        """Return the numbers that the codes of passages give which can be trusted."""
        dtype = CODES[codec.codes_dtype]
        numbers = [np.empty(0, np.int64)]
        untrusted = findings.passages | findings.orphans
        cursor = self._conn.execute(f"SELECT passage_id, codes FROM {self._codes} ORDER BY passage_id")
        while batch := cursor.fetchmany(4096):
            trusted = [row for row in batch if row[0] not in untrusted]
            codes = np.frombuffer(b"".join(blob for _, blob in trusted), dtype)
            lengths = [len(blob) // dtype.itemsize for _, blob in trusted]
            owners = np.repeat(np.array([passage_id for passage_id, _ in trusted], np.int64), lengths)
            numbers.append(Pairs(codes.astype(np.int64), owners).numbers)
        return np.sort(np.concatenate(numbers))


def _owners(numbers: NDArray[np.int64]) -> list[int]:
    owners: list[int] = np.unique(numbers & PASSAGE_MASK).tolist()
    return owners


def _positions(rising: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where in *rising* those of *values* are that are there."""
    positions = np.searchsorted(rising, values)
    there = positions < len(rising)
    there[there] = rising[positions[there]] == values[there]
    return positions[there]


def _cut(rising: NDArray[np.int64], ends: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the parts of *rising* below each of the ends, which rise too."""
    return np.split(rising, np.searchsorted(rising, ends[:-1]))
