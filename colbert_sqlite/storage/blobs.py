"""How arrays lie in BLOBs: declared little-endian types, so that a file moves between machines.

In: arrays. Out: bytes, and back. Leaves to others: which table the bytes are in, what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import IndexCorrupt

FLOATS = np.dtype("<f4")
HALVES = np.dtype("<f2")
DOCLENS = np.dtype("<u4")
GAPS = np.dtype("<u2")
CENTROIDS = np.dtype("i1")
RESIDUALS = np.dtype("u1")
CODES = {name: np.dtype(name) for name in ("<u2", "<u4")}

# A gap of this value moves on by as much without naming an id, so that 16 bits are enough for any gap.
_SKIP = 0xFFFF


def codes_dtype(n_centroids: int) -> str:
    """Return the narrowest type for this many centroids that leaves room for a quarter more."""
    return "<u2" if n_centroids + n_centroids // 4 <= 0x10000 else "<u4"


def from_blob(blob: object, dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """Return a read-only array over *blob*.

    :raises IndexCorrupt: if the length is no multiple of the item size
    """
    if not isinstance(blob, bytes) or len(blob) % dtype.itemsize:
        raise IndexCorrupt(f"{what} is not a BLOB of {dtype.itemsize}-byte items")
    return np.frombuffer(blob, dtype)


def from_blobs(blobs: Sequence[object], dtype: np.dtype[Any], what: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return one array over *blobs*, one after another, and the offsets int64 [n + 1] where each begins.

    :raises IndexCorrupt: if one of them is no BLOB, or its length no multiple of the item size
    """
    damaged = IndexCorrupt(f"{what} are not all BLOBs of {dtype.itemsize}-byte items")
    try:
        joined = b"".join(blobs)  # type: ignore[arg-type]
    except TypeError:
        raise damaged from None
    offsets = np.zeros(len(blobs) + 1, np.int64)
    sizes = np.fromiter(map(len, blobs), np.int64, len(blobs))  # type: ignore[arg-type]
    if np.any(sizes % dtype.itemsize):
        raise damaged
    np.cumsum(sizes // dtype.itemsize, out=offsets[1:])
    return np.frombuffer(joined, dtype), offsets


def pack_ids(ids: NDArray[np.int64]) -> bytes:
    """Return ascending, distinct, positive ids as 16-bit gaps.

    Half the size of 32-bit ids, and decoding stays one cumulative sum.
    """
    gaps = np.diff(ids, prepend=0)
    skips = gaps // _SKIP
    # A remainder of 0 can only follow a skip, so the gap 0 is unambiguous.
    values = np.full(len(ids) + int(skips.sum()), _SKIP, GAPS)
    values[np.cumsum(skips + 1) - 1] = gaps % _SKIP
    return values.tobytes()


def unpack_ids(blobs: Sequence[object]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids of packed lists, one list after another, and the length of each: int64, int64 [n].

    :raises IndexCorrupt: if a list is not made of 16-bit gaps
    """
    gaps, offsets = from_blobs(blobs, GAPS, "inverted lists")
    ends = np.concatenate([[0], np.cumsum(gaps, dtype=np.int64)])
    named = gaps != _SKIP
    ids = ends[1:] - np.repeat(ends[offsets[:-1]], np.diff(offsets))
    lengths = np.diff(np.concatenate([[0], np.cumsum(named)])[offsets])
    return ids[named], lengths
