"""How arrays lie in BLOBs: declared little-endian types, so that a file moves between machines.

In: arrays. Out: bytes, and back. Leaves to others: which table the bytes are in, what the numbers mean.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import IndexCorrupt, damaged

FLOATS = np.dtype("<f4")
HALVES = np.dtype("<f2")
DOCLENS = np.dtype("<u4")
GAPS = np.dtype("<u2")
CENTROIDS = np.dtype("i1")
CELLS = np.dtype("<u2")
RESIDUALS = np.dtype("u1")
CODES = {name: np.dtype(name) for name in ("<u2", "<u4")}

PASSAGE_BITS = 40
MAX_PASSAGE_ID = (1 << PASSAGE_BITS) - 1

# Of whichever type a BLOB holds.
AnyArray: TypeAlias = NDArray[Any]

# A gap of this value moves on by as much without naming an id, so that 16 bits are enough for any gap.
_SKIP = 0xFFFF

_HALF = 1 << 31


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an index, which may be damaged."""

    name: str
    index: str

    def damaged(self, detail: str) -> IndexCorrupt:
        return damaged(self.name, detail, index=self.index)


def codes_dtype(n_centroids: int) -> str:
    """Return the narrowest type for this many centroids that leaves room for a quarter more."""
    return "<u2" if n_centroids + n_centroids // 4 <= 0x10000 else "<u4"


def from_blob(blob: object, dtype: np.dtype[Any], part: Part) -> AnyArray:
    """Return a read-only array over *blob*.

    :raises IndexCorrupt: if it is not a BLOB of whole items
    """
    if not isinstance(blob, bytes):
        raise part.damaged(f"{blob!r} is not a BLOB")
    if len(blob) % dtype.itemsize:
        raise part.damaged(f"a BLOB has {len(blob)} bytes, which {dtype.itemsize} does not divide")
    return np.frombuffer(blob, dtype)


def from_blobs(blobs: Sequence[object], dtype: np.dtype[Any], part: Part) -> tuple[AnyArray, NDArray[np.int64]]:
    """Return one array over *blobs*, one after another, and the offsets int64 [n + 1] where each begins.

    :raises IndexCorrupt: if one of them is not a BLOB of whole items
    """
    try:
        joined = b"".join(blobs)  # type: ignore[arg-type]
    except TypeError:
        raise part.damaged("a value is not a BLOB") from None
    offsets = np.zeros(len(blobs) + 1, np.int64)
    sizes = np.fromiter(map(len, blobs), np.int64, len(blobs))  # type: ignore[arg-type]
    if np.any(sizes % dtype.itemsize):
        size = int(sizes[sizes % dtype.itemsize > 0][0])
        raise part.damaged(f"a BLOB has {size} bytes, which {dtype.itemsize} does not divide")
    np.cumsum(sizes // dtype.itemsize, out=offsets[1:])
    return np.frombuffer(joined, dtype), offsets


def checksum(*blobs: bytes) -> int:
    """Return the CRC-32 of *blobs*, one after another, less 2**31: SQLite keeps it in four bytes."""
    crc = 0
    for blob in blobs:
        crc = zlib.crc32(blob, crc)
    return crc - _HALF


def row_checksum(values: Iterable[object]) -> int:
    """Return the checksum of a row of any values."""
    plain = [value.hex() if isinstance(value, bytes) else value for value in values]
    return checksum(json.dumps(plain, ensure_ascii=True).encode())


def verified(rows: Sequence[tuple[Any, ...]], part: Part) -> list[Any]:
    """Return the BLOBs of rows (BLOB, checksum).

    :raises IndexCorrupt: if a checksum is not that of its BLOB
    """
    blobs, checks, *_ = zip(*rows, strict=True) if rows else ((), ())
    try:
        # A search checks thousands: no loop in Python.
        sound = list(map(zlib.crc32, blobs)) == list(map(_HALF.__add__, checks))
    except TypeError:
        raise part.damaged("a value is not a BLOB, or its checksum not a number") from None
    if not sound:
        raise part.damaged("a checksum differs")
    return list(blobs)


def pack_ids(ids: NDArray[np.int64], ends: NDArray[np.int64]) -> list[bytes]:
    """Return lists of rising, distinct ids as 16-bit gaps. The gap of each first id is 0.

    That is half the size of 32-bit ids, and decoding stays one cumulative sum.

    :param ids: int64 [n], list after list; no list is empty
    :param ends: int64 [n_lists], where in *ids* each list ends
    """
    gaps = np.diff(ids, prepend=0)
    gaps[np.append(0, ends[:-1])] = 0
    if gaps.max(initial=0) >= _SKIP:
        # A remainder of 0 can only follow a skip, so it is no other first id.
        skips = gaps // _SKIP
        packed_ends = np.cumsum(skips + 1)
        packed = np.full(packed_ends[-1], _SKIP, GAPS)
        packed[packed_ends - 1] = gaps % _SKIP
        ends = packed_ends[ends - 1]
    else:
        packed = gaps.astype(GAPS)
    data, cuts = packed.tobytes(), (ends * GAPS.itemsize).tolist()
    return [data[start:end] for start, end in zip([0, *cuts[:-1]], cuts, strict=True)]


def unpack_ids(
    firsts: NDArray[np.int64], blobs: Sequence[object], part: Part
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids of packed lists, one list after another, and the length of each: int64, int64 [n].

    :param firsts: int64 [n], the first id of each list
    :raises IndexCorrupt: if a list is empty or not made of 16-bit gaps
    """
    gaps, offsets = from_blobs(blobs, GAPS, part)
    lengths = np.diff(offsets)
    if not lengths.all():
        raise part.damaged("a segment has 0 bytes")
    starts = offsets[:-1]
    sums = np.cumsum(gaps, dtype=np.int64)
    ids = sums + np.repeat(firsts - sums[starts], lengths)
    named = gaps != _SKIP
    if not named.all():
        ids, lengths = ids[named], np.add.reduceat(named, starts, dtype=np.int64)
    return ids, lengths
