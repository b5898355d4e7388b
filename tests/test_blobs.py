"""Arrays in BLOBs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_sqlite.errors import IndexCorrupt
from colbert_sqlite.storage.blobs import CODES, codes_dtype, from_blob, pack_ids, unpack_ids

IDS = st.lists(st.one_of(st.integers(1, 300), st.integers(1, 1 << 22)), unique=True, max_size=50).map(sorted)


@given(st.lists(IDS, max_size=5))
def test_packed_ids_come_back(lists: list[list[int]]) -> None:
    ids, lengths = unpack_ids([pack_ids(np.array(ids, np.int64)) for ids in lists])
    assert ids.tolist() == sum(lists, [])
    assert lengths.tolist() == [len(one) for one in lists]


@pytest.mark.parametrize("gap", [0xFFFE, 0xFFFF, 0x10000, 2 * 0xFFFF, 2 * 0xFFFF + 1])
def test_gaps_around_the_skip_value_come_back(gap: int) -> None:
    ids = [gap, 2 * gap, 2 * gap + 1]
    assert unpack_ids([pack_ids(np.array(ids, np.int64))])[0].tolist() == ids


def test_near_ids_take_two_bytes_each() -> None:
    assert len(pack_ids(np.arange(1, 1001, dtype=np.int64))) == 2000


def test_codes_take_two_bytes_until_there_is_no_room_to_grow() -> None:
    assert [codes_dtype(n) for n in (1, 52429, 52430, 65536)] == ["<u2", "<u2", "<u4", "<u4"]


@pytest.mark.parametrize("blob", [b"abc", None, "text", 7])
def test_a_blob_that_is_no_array_is_corrupt(blob: object) -> None:
    with pytest.raises(IndexCorrupt, match="codes of 'x' is not a BLOB of 2-byte items"):
        from_blob(blob, CODES["<u2"], "codes of 'x'")
