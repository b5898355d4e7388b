"""Arrays in BLOBs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from colbert_sqlite.errors import IndexCorrupt
from colbert_sqlite.storage.blobs import CODES, Part, checksum, codes_dtype, from_blob, pack_ids, unpack_ids, verified

PART = Part("codes", "x")
LISTS = Part("inverted lists", "x")
# Few enough gaps of 16 bits between the ids of one list.
IDS = st.lists(st.one_of(st.integers(1, 300), st.integers(1, 1 << 22)), unique=True, min_size=1, max_size=50).map(
    sorted
)


def packed(lists: list[list[int]]) -> tuple[NDArray[np.int64], list[bytes]]:
    """The first id of each list, and its BLOB."""
    firsts = np.array([ids[0] for ids in lists], np.int64)
    ids = np.array([i for ids in lists for i in ids], np.int64)
    return firsts, pack_ids(ids, np.cumsum([len(ids) for ids in lists], dtype=np.int64))


@given(st.lists(IDS, min_size=1, max_size=5))
def test_packed_ids_come_back(lists: list[list[int]]) -> None:
    ids, lengths = unpack_ids(*packed(lists), LISTS)
    assert ids.tolist() == sum(lists, [])
    assert lengths.tolist() == [len(one) for one in lists]


@pytest.mark.parametrize("gap", [0xFFFE, 0xFFFF, 0x10000, 2 * 0xFFFF, 2 * 0xFFFF + 1])
def test_gaps_around_the_skip_value_come_back(gap: int) -> None:
    ids = [gap, 2 * gap, 2 * gap + 1]
    assert unpack_ids(*packed([ids]), LISTS)[0].tolist() == ids


def test_near_ids_take_two_bytes_each() -> None:
    assert [len(blob) for blob in packed([[*range(1, 1001)], [7]])[1]] == [2000, 2]


def test_a_checksum_is_that_of_all_blobs_together_and_fits_four_bytes() -> None:
    assert checksum(b"ab", b"c") == checksum(b"abc") == 0x352441C2 - 2**31
    assert checksum(b"") == -(2**31)


@pytest.mark.parametrize("row", [(b"abc", 0), ("abc", 0x352441C2 - 2**31), (b"abc", None), (b"abc", "x"), (None, 0)])
def test_a_blob_of_another_checksum_is_damaged(row: tuple[object, object]) -> None:
    assert verified([(b"abc", 0x352441C2 - 2**31)], PART) == [b"abc"]
    with pytest.raises(
        IndexCorrupt, match="the codes of index 'x' are damaged: (a checksum differs|a value is not a BLOB)"
    ):
        verified([row], PART)


def test_codes_take_two_bytes_until_there_is_no_room_to_grow() -> None:
    assert [codes_dtype(n) for n in (1, 52429, 52430, 65536)] == ["<u2", "<u2", "<u4", "<u4"]


@pytest.mark.parametrize("blob", [b"abc", None, "text", 7])
def test_a_blob_that_is_no_array_is_corrupt(blob: object) -> None:
    with pytest.raises(IndexCorrupt) as caught:
        from_blob(blob, CODES["<u2"], PART)
    detail = "a BLOB has 3 bytes, which 2 does not divide" if blob == b"abc" else f"{blob!r} is not a BLOB"
    assert str(caught.value) == f"the codes of index 'x' are damaged: {detail}; run verify, then repair"
