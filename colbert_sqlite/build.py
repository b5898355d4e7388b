"""Builds an index: sample, codec, encoded rows, inverted lists, and the moment it goes into use.

In: a source table, settings, an encoder. Out: the tables of an index. Leaves to others: how embeddings are
compressed (``engine``), how tables look (``storage``), what a user calls (``index.py``).

A build writes tables of its own, one short transaction per chunk of rows, and replaces the index in use in
the last one. Killed at any moment, it leaves that index as it was, and the next run goes on from its tables.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.codec import load_codec
from colbert_sqlite.encoders import Encoder
from colbert_sqlite.engine.codec import ResidualCodec, n_centroids_for
from colbert_sqlite.engine.pooling import clustering
from colbert_sqlite.errors import IndexCorrupt
from colbert_sqlite.progress import BuildReport, Progress, ProgressCallback
from colbert_sqlite.rows import CHUNK_ROWS, RowEncoder, SplitRow, assemble, chunks
from colbert_sqlite.settings import IndexSettings
from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.ivf import centroid_ranges, pairs_of
from colbert_sqlite.storage.scratch import Scratch, remove_scratch, scratch_path
from colbert_sqlite.storage.source import Key, Source, SourceRow
from colbert_sqlite.storage.store import Store
from colbert_sqlite.storage.swap import begin_build, check_build, publish

# Sampled tokens per centroid, and in all; the cap keeps the sample at 256 MB of float16 at 128 dimensions.
_SAMPLE_PER_CENTROID = 32
_SAMPLE_TOKENS = 1 << 20
_SAMPLE_ROWS = 1 << 17
_SAMPLE_PASSAGES = 512


def build(
    conn: sqlite3.Connection,
    name: str,
    source: Source,
    settings: IndexSettings,
    encoder: Encoder,
    progress: ProgressCallback,
    report: BuildReport,
    *,
    replace: bool,
) -> Store:
    """Build index *name*, or finish an interrupted build of equal settings, and put it in use.

    :param report: gets the time and memory of each stage
    :raises IndexExists: if there is an index of that name and *replace* is not set
    :raises BuildInterrupted: if another process takes over the build meanwhile
    :raises ModelError: if the model gives embeddings that are no numbers
    :raises MissingDependency: if tokens are to be pooled and scipy is not installed
    :raises SourceError: if rows have no key to be referred to
    """
    source.refuse_null_keys(conn)
    if settings.pool_factor > 1:
        clustering()
    build_id = secrets.token_hex(8)
    store = begin_build(
        conn, name, source, settings, encoder.fingerprint, encoder.dim, build_id=build_id, replace=replace
    )
    build = _Build(store, source, encoder, progress, report)
    try:
        build.train()
        build.encode_rows()
        build.invert()
    except (sqlite3.OperationalError, IndexCorrupt):
        # Whoever took the build over may have published it, and its tables are gone, or have begun anew.
        check_build(store)
        raise
    with report.step("write"), atomic(conn):
        check_build(store)
        return publish(store, source)


class _Build:
    """One build in progress: its tables, and what it needs to fill them."""

    def __init__(
        self,
        store: Store,
        source: Source,
        encoder: Encoder,
        progress: ProgressCallback,
        report: BuildReport,
    ) -> None:
        self.store = store
        self.source = source
        self.encoder = encoder
        self.progress = progress
        self.report = report
        self.settings = store.entry.settings
        self.rows = RowEncoder(encoder, self.settings, report)
        self.n_rows = source.count(store.conn)
        self.n_done = 0
        self.n_tokens_estimated = 0

    def train(self) -> None:
        """Train the codec on sampled rows, and keep those rows encoded: nothing is encoded twice."""
        if self.store.codec.exists():
            # An earlier run may have ended between storing the codec and this.
            if (path := scratch_path(self.store.conn, self.store.entry.name)) is not None:
                remove_scratch(path)
            return
        settings = f"{self.settings.to_json()} {self.encoder.fingerprint}"
        scratch = Scratch(self.store.conn, self.store.entry.name, settings, self.encoder.dim)
        try:
            self._train(scratch)
            scratch.remove()
        finally:
            scratch.close()

    def _train(self, scratch: Scratch) -> None:
        with self.report.step("read"):
            keys = self._random_keys()
        rows, embeddings, more = self._sample(keys, scratch)
        self.progress(Progress("train", 0, 1))
        # A table without a word of text is an index too; any direction serves it as a centroid.
        whole = embeddings or more
        sample = np.concatenate([*embeddings, *more]) if whole else np.eye(1, self.encoder.dim, dtype=np.float16)
        with self.report.step("train"):
            codec = ResidualCodec.train(
                sample,
                nbits=self.settings.nbits,
                n_centroids=self._n_centroids(self.n_tokens_estimated),
                seed=self.settings.seed,
            )
        doclens = [len(e) for e in embeddings]
        with self.report.step("compress"):
            encoded = assemble(rows, doclens, *codec.compress(sample[: sum(doclens)]))
        assert codec.scale_step is not None and codec.cells is not None, "a codec of our own training has them"
        # Ties are broken by passage id: in the order of the table, as far as that can be had.
        encoded.sort(key=lambda row: keys.get(row.key, self.n_rows))
        with self.report.step("write"), atomic(self.store.conn):
            check_build(self.store)
            self.store.codec.write(
                nbits=codec.nbits,
                centroids=codec.directions,
                cells=codec.cells,
                bucket_cutoffs=codec.bucket_cutoffs,
                bucket_weights=codec.bucket_weights,
                avg_residual=codec.avg_residual,
                scale_step=codec.scale_step,
                trained_tokens=self.n_tokens_estimated,
            )
            self.store.append(encoded)
        self.progress(Progress("train", 1, 1))

    def encode_rows(self) -> None:
        """Encode every row that is not in the tables as it is now, and remove those that are gone."""
        codec = load_codec(self.store).residual
        conn = self.store.conn
        after: Key | None = None
        self.n_done = self.store.passages.counts().rows
        while chunk := next(self.report.steps("read", chunks(self.source.iter_rows(conn, after))), None):
            after = chunk[-1].key
            self._bring_up(chunk, codec)
        # Rows may have gone meanwhile, or come behind the last key read.
        with self.report.step("read"), atomic(conn):
            check_build(self.store)
            self.store.delete(self.store.passages.vanished_keys(self.source))
        before: list[Key] = []
        while (keys := self.store.passages.missing_keys(self.source, CHUNK_ROWS)) and keys != before:
            rows = (row for key in keys if (row := self.source.read_row(conn, key)))
            for chunk in self.report.steps("read", chunks(rows)):
                self._bring_up(chunk, codec)
            before = keys

    def invert(self) -> None:
        """Write the inverted lists, some centroids at a time where there are too many pairs for memory."""
        self.progress(Progress("write", 0, 1))
        codec = self.store.codec.load()
        for first, end in centroid_ranges(codec):
            with self.report.step("invert"):
                pairs = pairs_of(self.store.codes.batches(codec), first, end)
                with atomic(self.store.conn):
                    check_build(self.store)
                    if first == 0:
                        self.store.ivf.clear()
                    self.store.ivf.write(pairs)
        self.progress(Progress("write", 1, 1))

    def _bring_up(self, rows: list[SourceRow], codec: ResidualCodec) -> None:
        with self.report.step("read"):
            stale = [row for row in rows if self.store.passages.content_hash(row.key) != row.content_hash]
            split = [self.rows.split(row) for row in stale]
        if not stale:
            return
        encoded = self.rows.encode(split, codec)
        with self.report.step("write"), atomic(self.store.conn):
            check_build(self.store)
            self.store.delete(row.key for row in encoded)
            self.store.append(encoded)
        self.n_done += len(stale)
        self.progress(Progress("encode", self.n_done, max(self.n_done, self.n_rows)))

    def _sample(
        self, keys: Iterable[Key], scratch: Scratch
    ) -> tuple[list[SplitRow], list[NDArray[np.float16]], list[NDArray[np.float16]]]:
        """Encode rows in random order until there are enough tokens to train on.

        Returned are rows, the embeddings of all their passages, and those of a part of rows too long to keep.
        """
        rows: list[SplitRow] = []
        embeddings: list[NDArray[np.float16]] = []
        more: list[NDArray[np.float16]] = []
        n_seen = n_tokens = n_estimated = 0
        self.progress(Progress("encode", 0, self.n_rows))
        drawn = (row for key in keys if (row := self.source.read_row(self.store.conn, key)))
        for chunk in self.report.steps("read", chunks(drawn)):
            with self.report.step("read"):
                split = [self.rows.split(row) for row in chunk]
            for done, passages in zip(split, self._embed_rows(split, scratch), strict=True):
                n_seen += 1
                n_tokens += sum(map(len, passages))
                n_estimated += sum(map(len, passages)) * len(done.passages) // max(1, len(passages))
                if len(passages) == len(done.passages):
                    rows.append(done)
                    embeddings += passages
                else:
                    more += passages
            self.progress(Progress("encode", len(rows), max(len(rows), self.n_rows)))
            n_centroids = self._n_centroids(n_estimated * self.n_rows // n_seen)
            if n_tokens >= min(_SAMPLE_TOKENS, _SAMPLE_PER_CENTROID * n_centroids):
                break
        self.n_tokens_estimated = n_estimated * self.n_rows // max(1, n_seen)
        return rows, embeddings, more

    def _n_centroids(self, n_tokens: int) -> int:
        return n_centroids_for(max(1, n_tokens), self.encoder.dim, self.settings.nbits)

    def _embed_rows(self, rows: Sequence[SplitRow], scratch: Scratch) -> list[list[NDArray[np.float16]]]:
        """Return the embeddings of the passages of each row, of the first so many where there are too many."""
        kept = {row.content_hash: scratch.get(row.content_hash) for row in rows}
        new = [row._replace(passages=row.passages[:_SAMPLE_PASSAGES]) for row in rows if kept[row.content_hash] is None]
        computed = iter([e for batch in self.rows.embed(new) for e in batch])
        for row in new:
            kept[row.content_hash] = [next(computed) for _ in row.passages]
        scratch.put([(row.content_hash, kept[row.content_hash] or []) for row in new])
        return [kept[row.content_hash] or [] for row in rows]

    def _random_keys(self) -> dict[Key, int]:
        """Return keys in random order, as many as could be needed, and their positions in the order of the table."""
        n = min(self.n_rows, _SAMPLE_ROWS)
        rank = np.full(self.n_rows, -1, np.int64)
        rank[np.random.default_rng(self.settings.seed).permutation(self.n_rows)[:n]] = np.arange(n)
        drawn: list[tuple[Key, int]] = [((), 0)] * n
        for position, key in enumerate(self.source.iter_keys(self.store.conn)):
            if position < self.n_rows and rank[position] >= 0:
                drawn[rank[position]] = key, position
        return {key: position for key, position in drawn if key}
