"""Keeps an index in step with its table: sync, the growth of its codec, repair.

In: an index whose table has changed, or whose data are damaged. Out: the index as a fresh build with the same codec
would make it. Leaves to others: noticing changes (triggers, ``storage/schema.py``), waiting for another writer.

Whatever may differ has its key in the queue first, put there by triggers or by comparing; then the queue is drained.
Rows are encoded outside of any transaction. The one that stores a row looks at it again: a row that has changed
meanwhile stays in the queue. Killed at any moment, the next sync goes on with what is queued.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from colbert_sqlite.build import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    Progress,
    ProgressCallback,
    RowEncoder,
    build,
    centroid_ranges,
    chunks,
    pairs_of,
)
from colbert_sqlite.encoders import Encoder
from colbert_sqlite.engine import kmeans
from colbert_sqlite.engine.codec import ResidualCodec, to_directions
from colbert_sqlite.errors import IndexCorrupt
from colbert_sqlite.progress import BuildReport
from colbert_sqlite.storage import triggers
from colbert_sqlite.storage.blobs import CODES
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.source import Key, Source, SourceRow
from colbert_sqlite.storage.store import EncodedRow, Store
from colbert_sqlite.verify import Findings

# Text of rows compared at once.
_COMPARED_BYTES = 4_000_000
# A row that changes again and again while it is encoded stays in the queue after so many attempts.
_PASSES = 3
# As many rows as this, and as there are already, are not added one by one.
FEWEST_NEW = 50
# From so many rows on it pays to load the model in the way that encodes fastest rather than that starts fastest.
_MANY_ROWS = 1000

# Outliers are looked at when there are so many: half a megabyte at 128 dimensions.
OUTLIERS_AT_ONCE = 2048
# New centroids looked for among them, and what one has to do to be kept: serve so many, which is half of what a trained
# centroid serves, and halve their squared distance. One that serves few costs every query and helps nobody.
_OUTLIERS_PER_CENTROID = 32
_FEWEST_SERVED = 16
_LARGEST_ERROR = 0.5
# The codec may grow by a quarter. More says that the texts are others: train anew.
_GROWTH = 0.25

# With so many times the tokens it was trained for, a codec has too few centroids: on the benchmark set recall@10 is
# 0.82 in place of 0.87 then (tests/benchmarks/drift.py).
OUTGROWN = 2
# Up to so many tokens, a quarter of a minute of encoding, sync trains an outgrown codec anew unasked; and from so many
# on, fewer being all scored whatever the centroids. Beyond, that is left to whoever has the time.
RETRAINED_UP_TO = 1 << 18
RETRAINED_FROM = 1 << 11


def sync(
    store: Store,
    source: Source,
    load: Callable[[bool], Encoder],
    codec_of: Callable[[Store], ResidualCodec],
    progress: ProgressCallback,
    report: BuildReport,
    *,
    full: bool = False,
) -> dict[str, int]:
    """Bring an index in step with its table, and return how many rows were added, updated, deleted and compared.

    :param load: gives the model; told whether there is much to encode. Not called when there is nothing
    :param codec_of: gives the codec of the store as it is now
    :param full: compare every row, even where triggers have noted what changed
    :raises IndexNotFound: if the index was dropped meanwhile
    :raises IndexCorrupt: if what has to change is damaged
    """
    running = _Sync(store, source, load, codec_of, progress, report)
    running.prepare(full)
    if running.most_is_new():
        running.train_anew()
    running.drain()
    if running.is_outgrown():
        running.train_anew()
        running.drain()
    return running.counts


def is_outgrown(codec: StoredCodec, n_tokens: int) -> bool:
    """Return whether an index has far more tokens than its codec was trained for."""
    return n_tokens >= OUTGROWN * max(1, codec.trained_tokens)


class _Sync:
    def __init__(
        self,
        store: Store,
        source: Source,
        load: Callable[[bool], Encoder],
        codec_of: Callable[[Store], ResidualCodec],
        progress: ProgressCallback,
        report: BuildReport,
    ) -> None:
        self.store = store
        self.source = source
        self.load = load
        self.codec_of = codec_of
        self.progress = progress
        self.report = report
        self.counts = {"added": 0, "updated": 0, "deleted": 0, "compared": 0}
        self.n_queued = 0
        self._rows: RowEncoder | None = None

    @contextmanager
    def _changing(self) -> Iterator[Store]:
        """One transaction on the index, which is still the one that was opened."""
        with atomic(self.store.conn):
            self.store = self.store.check_ready()
            yield self.store

    def prepare(self, full: bool) -> None:
        """See to it that the queue names every row that differs."""
        store, conn = self.store, self.store.conn
        wanted = store.expected_triggers(self.source)
        if not store.has_queue():
            with self._changing() as store:
                store.create_queue()
                store.update_entry(queue_complete=False)
        if triggers.installed(conn, store.entry.name) != wanted:
            # They come before comparing, so that what changes meanwhile is queued.
            with self._changing() as store:
                triggers.install(conn, store.entry.name, wanted)
                store.update_entry(queue_complete=False)
        if full or not store.entry.queue_complete:
            self._compare()
            if wanted and not store.entry.queue_complete:
                with self._changing() as store:
                    store.update_entry(queue_complete=True)
            return
        _, all_replacements_seen = self.source.replaced_through(conn)
        if not all_replacements_seen or not self.source.depends_on_row_alone(conn):
            with self.report.step("compare"):
                self.counts["compared"] = self.source.count(conn)
                self._enqueue([*store.missing_keys(self.source), *store.vanished_keys(self.source)])

    def _compare(self) -> None:
        n_rows = self.source.count(self.store.conn)
        after: Key | None = None
        n_compared = 0
        self.progress(Progress("compare", 0, n_rows))
        while chunk := self._next_rows(after):
            after = chunk[-1].key
            with self.report.step("compare"):
                self._enqueue([row.key for row in chunk if self.store.content_hash(row.key) != row.content_hash])
            n_compared += len(chunk)
            self.progress(Progress("compare", n_compared, max(n_compared, n_rows)))
        with self.report.step("compare"):
            self._enqueue(self.store.vanished_keys(self.source))
        self.counts["compared"] = n_compared

    def _next_rows(self, after: Key | None) -> list[SourceRow]:
        # The generators end here, and with them the SELECT: left open it would keep other writers from committing.
        with self.report.step("read"):
            return next(chunks(self.source.iter_rows(self.store.conn, after), _COMPARED_BYTES), [])

    def _enqueue(self, keys: list[Key]) -> None:
        if keys:
            with self._changing() as store:
                store.enqueue(keys)

    def most_is_new(self) -> bool:
        """Count what the queue will change, if it is long, and return whether more rows are to be encoded than not.

        Then all of them are, with a codec that is trained on them: it costs twice as much at most.
        """
        store, conn = self.store, self.store.conn
        n_queued = store.queue_length()
        # In this order: counting rows costs what the index costs.
        if n_queued < FEWEST_NEW or n_queued < (n_rows := store.counts()["rows"]):
            return False
        counts = dict(self.counts)
        after: Key | None = None
        while keys := store.queued(after, CHUNK_ROWS):
            after = keys[-1]
            for key in keys:
                row, indexed = self.source.read_row(conn, key), store.content_hash(key)
                if row is None:
                    counts["deleted"] += indexed is not None
                elif row.content_hash != indexed:
                    counts["added" if indexed is None else "updated"] += 1
        n_new = counts["added"] + counts["updated"]
        if n_new < max(FEWEST_NEW, n_rows) or self.source.count_null_keys(conn):
            return False
        self.counts = counts
        return True

    def is_outgrown(self) -> bool:
        """Return whether the codec is outgrown and so little is indexed that training it anew is soon done."""
        store = self.store
        changed = self.counts["added"] + self.counts["updated"]
        if not (changed or store.is_being_built()):
            return False
        codec = store.codec.load()
        # No count where it is plain: the stream holds what is indexed, and gaps.
        if codec.stream_tokens < OUTGROWN * codec.trained_tokens or OUTGROWN * codec.trained_tokens > RETRAINED_UP_TO:
            return False
        n_tokens = store.counts()["tokens"]
        worth_it = RETRAINED_FROM <= n_tokens <= RETRAINED_UP_TO or codec.trained_tokens == 0
        return worth_it and is_outgrown(codec, n_tokens) and not self.source.count_null_keys(store.conn)

    def train_anew(self) -> None:
        """Build the index again, with the same settings."""
        entry = self.store.entry
        with self.report.step("load"):
            encoder = self.load(True)
        self.store = build(
            self.store.conn, entry.name, self.source, entry.settings, encoder, self.progress, self.report, replace=True
        )

    def drain(self) -> None:
        """Bring up every row whose key is queued."""
        self.n_queued = self.store.queue_length()
        if not self.n_queued:
            return
        n_done = 0
        for _ in range(_PASSES):
            n_left = 0
            for batch in self._batches():
                n_left += self._bring_up(batch)
                n_done += len(batch)
                self.progress(Progress("encode", min(n_done, self.n_queued), self.n_queued))
            if not n_left:
                break

    def _batches(self) -> Iterator[list[tuple[Key, SourceRow | None]]]:
        """Yield queued keys, each with its row if that is to be encoded, as many as one transaction takes."""
        batch: list[tuple[Key, SourceRow | None]] = []
        size = 0
        after: Key | None = None
        while keys := self.store.queued(after, CHUNK_ROWS):
            after = keys[-1]
            for key in keys:
                row = self.source.read_row(self.store.conn, key)
                stale = row is not None and self.store.content_hash(key) != row.content_hash
                batch.append((key, row if stale else None))
                size += row.n_bytes if row is not None and stale else 0
                if size >= CHUNK_BYTES or len(batch) == CHUNK_ROWS:
                    yield batch
                    batch, size = [], 0
        if batch:
            yield batch

    def _bring_up(self, batch: list[tuple[Key, SourceRow | None]]) -> int:
        """Store some rows as they are now; return how many have changed meanwhile and stay in the queue."""
        codec, encoded = self._encode([(key, row) for key, row in batch if row is not None])
        conn = self.store.conn
        counts = dict(self.counts)
        with self.report.step("write"), self._changing() as store:
            gone: list[Key] = []
            new: list[EncodedRow] = []
            done: list[Key] = []
            for key, _ in batch:
                row, indexed = self.source.read_row(conn, key), store.content_hash(key)
                content_hash = None if row is None else row.content_hash
                ready = encoded.get(key)
                if content_hash != indexed:
                    if content_hash is None:
                        counts["deleted"] += 1
                    elif ready is None or ready.content_hash != content_hash:
                        continue
                    else:
                        counts["added" if indexed is None else "updated"] += 1
                        new.append(ready)
                    # Even what is not indexed may have passages left, in a file that was damaged.
                    gone.append(key)
                done.append(key)
            if gone or new:
                removed = store.delete(gone)
                store.lists.change(removed, store.append(new, recent=True))
                store.update_entry()
            store.dequeue(done)
        self.counts = counts
        if codec is not None and store.count_outliers() >= OUTLIERS_AT_ONCE:
            with self.report.step("train"), self._changing() as store:
                _grow(store, codec)
        return len(batch) - len(done)

    def _encode(self, rows: list[tuple[Key, SourceRow]]) -> tuple[ResidualCodec | None, dict[Key, EncodedRow]]:
        if not rows:
            return None, {}
        if self._rows is None:
            with self.report.step("load"):
                encoder = self.load(self.n_queued >= _MANY_ROWS)
            self._rows = RowEncoder(encoder, self.store.entry.settings, self.report)
            self.progress(Progress("encode", 0, self.n_queued))
        codec = self.codec_of(self.store)
        with self.report.step("read"):
            split = [self._rows.split(row) for _, row in rows]
        encoded = self._rows.encode(split, codec, recent=True)
        # By the key that is queued, which may be spelled otherwise than in the table.
        return codec, {key: row for (key, _), row in zip(rows, encoded, strict=True)}


def _grow(store: Store, codec: ResidualCodec) -> None:
    """Add the centroids that outliers have earned, and code these anew. Call inside ``atomic``."""
    stored = store.codec.load()
    assert codec.cells is not None and codec.scale_step is not None
    passage_ids, positions, embeddings = store.take_outliers(stored)
    room = int((1 + _GROWTH) * stored.n_trained)
    room = min(room, 1 << 8 * CODES[stored.codes_dtype].itemsize) - stored.n_centroids
    if room <= 0:
        return
    values = embeddings.astype(np.float32)
    n_new = len(values) // _OUTLIERS_PER_CENTROID
    centers = kmeans.train(values, np.arange(len(values)), n_new, store.entry.settings.seed)
    codes, _ = codec.compress(embeddings)
    before = codec.mean_residuals(embeddings, codes)
    nearest, similarities = kmeans.nearest(values, centers)
    # Of unit vectors, the squared distance is 2 - 2 cos.
    errors_before = np.square(values - codec.vectors_of(codes)).sum(axis=1)
    n_served = np.bincount(nearest, minlength=len(centers))
    share = np.bincount(nearest, 2 - 2 * similarities, len(centers)) / np.maximum(
        np.bincount(nearest, errors_before, len(centers)), 1e-12
    )
    earned = np.flatnonzero((n_served >= _FEWEST_SERVED) & (share <= _LARGEST_ERROR))
    earned = earned[np.argsort(-n_served[earned], kind="stable")][:room]
    if not len(earned):
        return
    added = to_directions(centers[earned])
    cells = np.concatenate([codec.cells, codec.cells[codec.compress(centers[earned])[0]]])
    grown = dataclasses.replace(codec, centroids=np.concatenate([codec.directions, added]), cells=cells)
    codes, residuals = grown.compress(embeddings)
    better = codes >= stored.n_centroids
    less = float((before[better] - grown.mean_residuals(embeddings[better], codes[better])).sum())
    stored = store.codec.add_centroids(stored, grown.directions, cells)
    store.recode(passage_ids[better], positions[better], codes[better], residuals[better], less_residual=less)
    store.update_entry()


def repair(store: Store, found: Findings) -> None:
    """Remove what is damaged, queue the rows it belonged to, and make the inverted lists anew if need be.

    Call inside ``atomic``; a full sync then encodes those rows again.

    :raises IndexCorrupt: if the codec is lost: only a rebuild helps then
    """
    if found.codec:
        raise IndexCorrupt(f"{found.problems[0]}; repair can't help")
    # What has lost its row may have been the last passage of the row before it, which then looks complete.
    lost = {passage_id for passage_id in found.orphans if type(passage_id) is int and passage_id > 0} | store.strays(
        found.rows
    )
    rows = {*store.keys_of(found.passages.union(passage_id - 1 for passage_id in lost)), *found.rows}
    store.enqueue(rows)
    store.forget(rows, found.passages | found.orphans)
    codec = store.codec.load()
    store.stream.blank(codec, found.blocks)
    if found.lists or rows or found.orphans or found.passages:
        store.lists.clear()
        for first, end in centroid_ranges(codec):
            store.lists.write(pairs_of(store.iter_codes(codec), first, end))
    store.update_entry()


def compact(store: Store) -> None:
    """Leave no space between the residuals of passages, some at a time; each time is a transaction."""
    place: tuple[int, int] | None = (0, 0)
    while place is not None:
        with atomic(store.conn):
            store = store.check_ready()
            place = store.compact(*place)
            store.update_entry()
