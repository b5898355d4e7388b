"""Keeps an index in step with its table.

In: an index whose table has changed. Out: the index as a fresh build would make it. Leaves to others: noticing
changes (``storage/triggers.py``), waiting for another writer, adding centroids (``growth.py``).

Whatever may differ has its key in the queue first, put there by triggers or by comparing; then the queue is drained.
Rows are encoded outside of any transaction. The one that stores a row looks at it again: a row that has changed
meanwhile stays in the queue. Killed at any moment, the next sync goes on with what is queued.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from colbert_sqlite import growth
from colbert_sqlite.build import build
from colbert_sqlite.codec import CodecCache
from colbert_sqlite.model import Model
from colbert_sqlite.progress import BuildReport, Progress, ProgressCallback, SyncResult
from colbert_sqlite.rows import CHUNK_BYTES, CHUNK_ROWS, RowEncoder, chunks
from colbert_sqlite.storage import triggers
from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.encoded import EncodedRow
from colbert_sqlite.storage.source import Key, Source, SourceRow
from colbert_sqlite.storage.store import Store

# Text of rows compared at once.
_COMPARED_BYTES = 4_000_000
# A row that changes again and again while it is encoded stays in the queue after so many attempts.
_MAX_PASSES = 3
# So many new rows, if there are no more in the index, are not added one by one: all are encoded again.
MIN_NEW_ROWS = 50
# From so many rows on it pays to load the model in the way that encodes fastest rather than that starts fastest.
_MANY_ROWS = 1000
# Sync itself trains an outgrown codec anew if the index has so many tokens. Fewer are all scored, whatever the
# centroids. More take longer than a quarter of a minute: that is left to whoever has the time.
MIN_RETRAINED_TOKENS = 1 << 11
MAX_RETRAINED_TOKENS = 1 << 18


def sync(
    store: Store,
    source: Source,
    model: Model,
    codecs: CodecCache,
    progress: ProgressCallback,
    report: BuildReport,
    *,
    full: bool = False,
) -> SyncResult:
    """Bring an index in step with its table.

    :param model: loaded only if there is something to encode
    :param full: compare every row, even where triggers have queued what changed
    :raises IndexNotFound: if the index was dropped meanwhile
    :raises IndexCorrupt: if what has to change is damaged
    """
    running = _Sync(store, source, model, codecs, progress, report)
    running.prepare(full)
    if running.most_is_new():
        running.train_anew()
    running.drain()
    if running.is_outgrown():
        running.train_anew()
        running.drain()
    return running.result


class _Sync:
    """One sync in progress: what it works on, and what it has done."""

    def __init__(
        self,
        store: Store,
        source: Source,
        model: Model,
        codecs: CodecCache,
        progress: ProgressCallback,
        report: BuildReport,
    ) -> None:
        self.store = store
        self.source = source
        self.model = model
        self.codecs = codecs
        self.progress = progress
        self.report = report
        self.result = SyncResult()
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
        expected = store.expected_triggers(self.source)
        if not store.queue.exists():
            with self._changing() as store:
                store.queue.create()
                store.update_entry(queue_complete=False)
        if triggers.installed(conn, store.entry.name) != expected:
            # They come before comparing, so that what changes meanwhile is queued.
            with self._changing() as store:
                triggers.install(conn, store.entry.name, expected)
                store.update_entry(queue_complete=False)
        if full or not store.entry.queue_complete:
            self._compare()
            if expected and not store.entry.queue_complete:
                with self._changing() as store:
                    store.update_entry(queue_complete=True)
            return
        _, all_replacements_seen = self.source.replaced_through(conn)
        if not all_replacements_seen or not self.source.depends_on_row_alone(conn):
            with self.report.step("compare"):
                self.result += SyncResult(compared=self.source.count(conn))
                self._enqueue([*store.passages.missing_keys(self.source), *store.passages.vanished_keys(self.source)])

    def _compare(self) -> None:
        n_rows = self.source.count(self.store.conn)
        after: Key | None = None
        n_compared = 0
        self.progress(Progress("compare", 0, n_rows))
        while chunk := self._next_rows(after):
            after = chunk[-1].key
            with self.report.step("compare"):
                self._enqueue(
                    [row.key for row in chunk if self.store.passages.content_hash(row.key) != row.content_hash]
                )
            n_compared += len(chunk)
            self.progress(Progress("compare", n_compared, max(n_compared, n_rows)))
        with self.report.step("compare"):
            self._enqueue(self.store.passages.vanished_keys(self.source))
        self.result += SyncResult(compared=n_compared)

    def _next_rows(self, after: Key | None) -> list[SourceRow]:
        # The generators end here, and with them the SELECT: left open it would keep other writers from committing.
        with self.report.step("read"):
            return next(chunks(self.source.iter_rows(self.store.conn, after), _COMPARED_BYTES), [])

    def _enqueue(self, keys: list[Key]) -> None:
        if keys:
            with self._changing() as store:
                store.queue.add(keys)

    def most_is_new(self) -> bool:
        """Return whether more rows are to be encoded than not; if so, count what the queue will change.

        Then all of them are, with a codec that is trained on them: it costs twice as much at most.
        """
        store = self.store
        n_queued = store.queue.count()
        # In this order: counting rows costs what the index costs.
        if n_queued < MIN_NEW_ROWS or n_queued < (n_rows := store.passages.counts().rows):
            return False
        changes = self._queued_changes()
        n_new = changes.added + changes.updated
        if n_new < max(MIN_NEW_ROWS, n_rows) or self.source.count_null_keys(store.conn):
            return False
        self.result += changes
        return True

    def _queued_changes(self) -> SyncResult:
        """Return how many rows the queue will add, update and delete."""
        counts: Counter[str] = Counter()
        after: Key | None = None
        while keys := self.store.queue.keys(after, CHUNK_ROWS):
            after = keys[-1]
            for key in keys:
                row, indexed = self.source.read_row(self.store.conn, key), self.store.passages.content_hash(key)
                counts[_change(row, indexed)] += 1
        return SyncResult(counts["added"], counts["updated"], counts["deleted"])

    def is_outgrown(self) -> bool:
        """Return whether the codec is outgrown and so little is indexed that training it anew is soon done."""
        store = self.store
        if not (self.result.added or self.result.updated or store.is_being_built()):
            return False
        codec = store.codec.load()
        outgrown_from = growth.OUTGROWN * codec.trained_tokens
        # No count where it is plain: the stream holds what is indexed, and gaps.
        if codec.stream_tokens < outgrown_from or outgrown_from > MAX_RETRAINED_TOKENS:
            return False
        n_tokens = store.passages.counts().tokens
        pays = MIN_RETRAINED_TOKENS <= n_tokens <= MAX_RETRAINED_TOKENS or codec.trained_tokens == 0
        return pays and growth.is_outgrown(codec, n_tokens) and not self.source.count_null_keys(store.conn)

    def train_anew(self) -> None:
        """Build the index again, with the same settings."""
        entry = self.store.entry
        with self.report.step("load"):
            encoder = self.model.load(many=True)
        self.store = build(
            self.store.conn, entry.name, self.source, entry.settings, encoder, self.progress, self.report, replace=True
        )

    def drain(self) -> None:
        """Bring up every row whose key is queued."""
        self.n_queued = self.store.queue.count()
        if not self.n_queued:
            return
        n_done = 0
        for _ in range(_MAX_PASSES):
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
        while keys := self.store.queue.keys(after, CHUNK_ROWS):
            after = keys[-1]
            for key in keys:
                row = self.source.read_row(self.store.conn, key)
                stale = row is not None and self.store.passages.content_hash(key) != row.content_hash
                batch.append((key, row if stale else None))
                size += row.n_bytes if row is not None and stale else 0
                if size >= CHUNK_BYTES or len(batch) == CHUNK_ROWS:
                    yield batch
                    batch, size = [], 0
        if batch:
            yield batch

    def _bring_up(self, batch: list[tuple[Key, SourceRow | None]]) -> int:
        """Store some rows as they are now; return how many have changed meanwhile and stay in the queue."""
        encoded = self._encode([(key, row) for key, row in batch if row is not None])
        counts: Counter[str] = Counter()
        with self.report.step("write"), self._changing() as store:
            gone: list[Key] = []
            new: list[EncodedRow] = []
            done: list[Key] = []
            for key, _ in batch:
                row, indexed = self.source.read_row(store.conn, key), store.passages.content_hash(key)
                change, ready = _change(row, indexed), encoded.get(key)
                if row is not None and change != "unchanged":
                    if ready is None or ready.content_hash != row.content_hash:
                        continue
                    new.append(ready)
                if change != "unchanged":
                    # Even what is not indexed may have passages left, in a file that was damaged.
                    gone.append(key)
                done.append(key)
                counts[change] += 1
            if gone or new:
                removed = store.delete(gone)
                store.ivf.change(removed, store.append(new, recent=True))
                store.update_entry()
            store.queue.remove(done)
        self.result += SyncResult(counts["added"], counts["updated"], counts["deleted"])
        if encoded and self.store.outliers.count() >= growth.OUTLIERS_AT_ONCE:
            with self.report.step("train"), self._changing() as store:
                growth.grow(store, self.codecs.load(store))
        return len(batch) - len(done)

    def _encode(self, rows: list[tuple[Key, SourceRow]]) -> dict[Key, EncodedRow]:
        if not rows:
            return {}
        if self._rows is None:
            with self.report.step("load"):
                encoder = self.model.load(many=self.n_queued >= _MANY_ROWS)
            self._rows = RowEncoder(encoder, self.store.entry.settings, self.report)
            self.progress(Progress("encode", 0, self.n_queued))
        codec = self.codecs.load(self.store).residual
        with self.report.step("read"):
            split = [self._rows.split(row) for _, row in rows]
        encoded = self._rows.encode(split, codec, recent=True)
        # By the key in the queue: the table may have an equal one, 1.0 for 1.
        return {key: row for (key, _), row in zip(rows, encoded, strict=True)}


def _change(row: SourceRow | None, indexed: bytes | None) -> str:
    """Return what became of a row: ``added``, ``updated``, ``deleted`` or ``unchanged``.

    :param indexed: the content hash it was indexed with; None if it is not indexed
    """
    if row is None:
        return "unchanged" if indexed is None else "deleted"
    if row.content_hash == indexed:
        return "unchanged"
    return "added" if indexed is None else "updated"
