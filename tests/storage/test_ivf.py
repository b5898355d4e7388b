"""Inverted lists in segments, against a plain dict of sets."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_sqlite.errors import IndexCorrupt
from colbert_sqlite.storage import ivf
from colbert_sqlite.storage.blobs import PASSAGE_BITS
from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.ivf import PASSAGE_MASK, Pairs
from colbert_sqlite.storage.postings import StoredPostings
from colbert_sqlite.storage.store import Store
from tests.storage.test_store import N_CENTROIDS, codec_of, new_store, with_codec

Lists = dict[int, set[int]]

GAPS = st.one_of(st.integers(1, 5), st.sampled_from([0xFFFE, 0xFFFF, 0x10000, 3 * 0xFFFF]), st.integers(1, 1 << 21))
CENTROIDS = st.sets(st.one_of(st.integers(0, 3), st.integers(0, N_CENTROIDS - 1)), min_size=1, max_size=12)
# New passages, each by how far its id is above the one before and the centroids of its tokens.
ADDED = st.lists(st.tuples(GAPS, CENTROIDS), max_size=12)
# Which of the passages there are go, by their places in order.
REMOVED = st.one_of(st.just("all"), st.just("none"), st.sets(st.integers(0, 40)), st.just("first half"))


@pytest.fixture(autouse=True, scope="module")
def small_segments() -> Iterator[None]:
    """Segments of three ids, so that a few passages fill several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ivf, "SEGMENT_IDS", 3)
        patch.setattr(ivf, "SEGMENTS_AT_ONCE", 2)
        yield


def empty_store() -> Store:
    return with_codec(new_store(sqlite3.connect(":memory:", isolation_level=None)))


def pairs_of(passages: dict[int, set[int]]) -> Pairs:
    """Pairs of passages and their centroids."""
    pairs = [(centroid, passage_id) for passage_id, centroids in passages.items() for centroid in centroids]
    return Pairs(*np.array(pairs, np.int64).reshape(-1, 2).T)


def expected_lists(passages: dict[int, set[int]]) -> Lists:
    found: Lists = defaultdict(set)
    for passage_id, centroids in passages.items():
        for centroid in centroids:
            found[centroid].add(passage_id)
    return dict(found)


def read_lists(store: Store) -> Lists:
    """What a search reads, of all centroids at once."""
    listed, offsets = StoredPostings(store, codec_of(store)).inverted_lists(np.arange(N_CENTROIDS))
    parts = {i: listed[offsets[i] : offsets[i + 1]].tolist() for i in range(N_CENTROIDS)}
    assert all(part == sorted(set(part)) for part in parts.values())
    return {centroid: set(part) for centroid, part in parts.items() if part}


def check_segments(store: Store) -> None:
    """Each segment is named by its centroid and its first id, and they follow one another without overlap."""
    end = -1
    for segment, blob in store.conn.execute(f"SELECT segment, passage_ids FROM {store.table('ivf')} ORDER BY segment"):
        assert segment > end
        gaps = np.frombuffer(blob, "<u2").astype(np.int64)
        assert np.count_nonzero(gaps != 0xFFFF) <= ivf.SEGMENT_IDS
        end = segment + int(gaps.sum())
        assert end >> PASSAGE_BITS == segment >> PASSAGE_BITS, "a segment does not run into the next centroid"


def chosen(removed: str | set[int], passages: dict[int, set[int]]) -> dict[int, set[int]]:
    ids = sorted(passages)
    if isinstance(removed, str):
        ids = {"all": ids, "none": [], "first half": ids[: len(ids) // 2]}[removed]
    else:
        ids = [ids[place] for place in removed if place < len(ids)]
    return {passage_id: passages[passage_id] for passage_id in ids}


@settings(max_examples=150)
@given(ADDED, st.lists(st.tuples(REMOVED, ADDED), max_size=5), st.integers(1, 1 << 36))
def test_lists_hold_what_was_added_and_not_removed(
    first: list[tuple[int, set[int]]], changes: list[tuple[str | set[int], list[tuple[int, set[int]]]]], last_id: int
) -> None:
    store = empty_store()
    passages: dict[int, set[int]] = {}
    for i, (removed, added) in enumerate([("none", first), *changes]):
        gone, new = chosen(removed, passages), {}
        for gap, centroids in added:
            last_id += gap
            new[last_id] = centroids
        with atomic(store.conn):
            if i == 0:
                store.ivf.write(pairs_of(new))
            else:
                store.ivf.change(pairs_of(gone), pairs_of(new))
        passages = {passage_id: of for passage_id, of in passages.items() if passage_id not in gone} | new
        check_segments(store)
        assert read_lists(store) == expected_lists(passages)


@given(ADDED, st.lists(st.integers(0, N_CENTROIDS - 1), unique=True))
def test_a_snapshot_reads_any_centroids_in_any_order(added: list[tuple[int, set[int]]], wanted: list[int]) -> None:
    store = empty_store()
    passages = {
        int(passage_id): centroids
        for passage_id, (_, centroids) in zip(np.cumsum([gap for gap, _ in added]), added, strict=True)
    }
    with atomic(store.conn):
        store.ivf.write(pairs_of(passages))
    listed, offsets = StoredPostings(store, codec_of(store)).inverted_lists(np.array(wanted, np.int64))
    expected = [sorted(expected_lists(passages).get(centroid, [])) for centroid in wanted]
    assert [listed[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)] == expected


def test_a_change_rewrites_the_segments_concerned_and_no_others() -> None:
    store = empty_store()
    with atomic(store.conn):
        store.ivf.write(pairs_of({passage_id: {1, 2} for passage_id in range(1, 13)}))
    ivf = store.table("ivf")
    # A marker that reading would trip over: these segments are not read.
    store.conn.execute(f"UPDATE {ivf} SET checksum = 0 WHERE segment & ? != 4", (PASSAGE_MASK,))
    untouched = f"SELECT * FROM {ivf} WHERE checksum = 0"
    before = store.conn.execute(untouched).fetchall()
    with atomic(store.conn):
        store.ivf.change(pairs_of({5: {1, 2}}), pairs_of({}))
    assert store.conn.execute(untouched).fetchall() == before
    with pytest.raises(IndexCorrupt, match="inverted lists of index 'posts' are damaged"), atomic(store.conn):
        store.ivf.change(pairs_of({2: {1}}), pairs_of({}))


def test_a_list_without_passages_leaves_no_segment() -> None:
    store = empty_store()
    passages = {passage_id: {0, N_CENTROIDS - 1} for passage_id in range(1, 9)}
    with atomic(store.conn):
        store.ivf.write(pairs_of(passages))
        store.ivf.change(pairs_of(passages), pairs_of({}))
    assert store.conn.execute(f"SELECT count(*) FROM {store.table('ivf')}").fetchone() == (0,)


def test_the_highest_passage_id_stays_in_its_own_list() -> None:
    store, highest = empty_store(), PASSAGE_MASK
    with atomic(store.conn):
        store.ivf.change(pairs_of({}), pairs_of({highest - 70_000: {0, 1}, highest: {0, 1}}))
    check_segments(store)
    assert read_lists(store) == {0: {highest - 70_000, highest}, 1: {highest - 70_000, highest}}
    with atomic(store.conn):
        store.ivf.change(pairs_of({highest: {0}}), pairs_of({}))
    assert read_lists(store) == {0: {highest - 70_000}, 1: {highest - 70_000, highest}}


def test_passages_come_and_go_by_the_hundred() -> None:
    generator = np.random.default_rng(0)
    store = empty_store()
    passages: dict[int, set[int]] = {}
    last_id = 0
    for _ in range(12):
        gone = {i: passages[i] for i in passages if generator.random() < 0.4}
        new = {}
        for _ in range(300):
            last_id += int(generator.integers(1, 200_000))
            new[last_id] = set(generator.integers(0, N_CENTROIDS, 6).tolist())
        with atomic(store.conn):
            store.ivf.change(pairs_of(gone), pairs_of(new))
        passages = {i: of for i, of in passages.items() if i not in gone} | new
        check_segments(store)
        assert read_lists(store) == expected_lists(passages)
