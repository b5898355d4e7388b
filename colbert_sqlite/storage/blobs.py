"""How arrays lie in BLOBs: declared little-endian types, so that a file moves between machines.

In: arrays. Out: bytes, and back. Leaves to others: which table the bytes are in, what the numbers mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import IndexCorrupt

FLOATS = np.dtype("<f4")
GAPS = np.dtype("<u2")
CENTROIDS = np.dtype("i1")
CODES = {name: np.dtype(name) for name in ("<u2", "<u4")}

# A gap of this value moves on by as much without naming an id, so that 16 bits are enough for any gap.
_SKIP = 0xFFFF


def codes_dtype(n_centroids: int) -> str:
    """Return the narrowest type for this many centroids that leaves room for twice as many."""
    return "<u2" if 2 * n_centroids <= 0x10000 else "<u4"


def from_blob(blob: object, dtype: np.dtype[np.generic], what: str) -> NDArray[np.generic]:
    """Return a read-only array over *blob*.

    :raises IndexCorrupt: if the length is no multiple of the item size
    """
    if not isinstance(blob, bytes) or len(blob) % dtype.itemsize:
        raise IndexCorrupt(f"{what} is not a BLOB of {dtype.itemsize}-byte items")
    return np.frombuffer(blob, dtype)


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


def unpack_ids(blobs: list[bytes]) -> list[NDArray[np.int64]]:
    """Return the ids of each packed list.

    :raises IndexCorrupt: if a list is not made of 16-bit gaps
    """
    lists = []
    for blob in blobs:
        gaps = from_blob(blob, GAPS, "an inverted list")
        positions = np.cumsum(gaps, dtype=np.int64)
        lists.append(positions[gaps != _SKIP])
    return lists
