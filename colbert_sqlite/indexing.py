"""Builds an index: sample, codec, encoded rows, inverted lists, and the moment it goes into use.

In: a source table, settings, an encoder. Out: the tables of an index. Leaves to others: how embeddings are
compressed (``engine``), how tables look (``storage``), what a user calls (``index.py``).

A build writes tables of its own, one short transaction per chunk of rows, and replaces the index in use in
the last one. Killed at any moment, it leaves that index as it was, and the next run goes on from its tables.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.engine.codec import ResidualCodec, n_centroids_for
from colbert_sqlite.engine.pooling import clustering, pool
from colbert_sqlite.errors import IndexCorrupt, ModelError
from colbert_sqlite.passages import PassageSplitter, PassageText, extract
from colbert_sqlite.settings import IndexSettings
from colbert_sqlite.storage.connection import atomic
from colbert_sqlite.storage.scratch import Scratch, remove_scratch, scratch_path
from colbert_sqlite.storage.source import Key, Source, SourceRow
from colbert_sqlite.storage.store import EncodedPassage, EncodedRow, Store, StoredCodec
from colbert_sqlite.timing import BuildReport

# Text of one write transaction: some seconds of encoding on two CPU cores, which is what a kill can cost.
_CHUNK_BYTES = 200_000
_CHUNK_ROWS = 4096
# Passages encoded at once: at most 65,536 tokens, 32 MB of float32 at 128 dimensions.
_BATCH_PASSAGES = 256
# Sampled tokens per centroid, and in all; the cap keeps the sample at 256 MB of float16 at 128 dimensions.
_SAMPLE_PER_CENTROID = 32
_SAMPLE_TOKENS = 1 << 20
_SAMPLE_ROWS = 1 << 17
_SAMPLE_PASSAGES = 512
# Pairs of centroid and passage sorted at once, 8 bytes each.
_PAIRS_IN_MEMORY = 1 << 23
_PASSAGE_BITS = 40


class Progress(NamedTuple):
    """Where a build is. ``stage`` is "encode" (counted in rows), "train" or "write" (one step each)."""

    stage: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


class _SplitRow(NamedTuple):
    key: Key
    content_hash: bytes
    passages: list[PassageText]


def codec_from(stored: StoredCodec) -> ResidualCodec:
    """Return the codec whose parts a store has read."""
    return ResidualCodec(
        nbits=stored.nbits,
        centroids=stored.centroids,
        bucket_cutoffs=stored.bucket_cutoffs,
        bucket_weights=stored.bucket_weights,
        avg_residual=stored.avg_residual,
        scale_step=stored.scale_step,
    )


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
    store = Store.start_build(
        conn, name, source, settings, encoder.fingerprint, encoder.dim, build_id=build_id, replace=replace
    )
    build = _Build(store, source, encoder, build_id, progress, report)
    try:
        build.train()
        build.encode_rows()
        build.invert()
    except sqlite3.OperationalError:
        # Whoever took the build over may have published it, and its tables are gone.
        store.check_build(build_id)
        raise
    with report.step("write"), atomic(conn):
        store.check_build(build_id)
        return store.publish()


class _Build:
    """One build in progress: its tables, and what it needs to fill them."""

    def __init__(
        self,
        store: Store,
        source: Source,
        encoder: Encoder,
        build_id: str,
        progress: ProgressCallback,
        report: BuildReport,
    ) -> None:
        self.store = store
        self.source = source
        self.encoder = encoder
        self.build_id = build_id
        self.progress = progress
        self.report = report
        self.settings = store.entry.settings
        assert self.settings.max_tokens is not None
        self.max_tokens = self.settings.max_tokens
        self.splitter = PassageSplitter(encoder.tokenizer, self.max_tokens, encoder.n_special_tokens)
        self.n_rows = source.count(store.conn)
        self.n_done = 0
        self.n_tokens_estimated = 0

    def train(self) -> None:
        """Train the codec on sampled rows, and keep those rows encoded: nothing is encoded twice."""
        if self.store.read_codec() is not None:
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
            encoded = _assemble(rows, doclens, *codec.compress(sample[: sum(doclens)]))
        assert codec.scale_step is not None, "a codec of our own training has one"
        # Ties are broken by passage id: in the order of the table, as far as that can be had.
        encoded.sort(key=lambda row: keys.get(row.key, self.n_rows))
        with self.report.step("write"), atomic(self.store.conn):
            self.store.check_build(self.build_id)
            self.store.write_codec(
                nbits=codec.nbits,
                centroids=codec.directions,
                bucket_cutoffs=codec.bucket_cutoffs,
                bucket_weights=codec.bucket_weights,
                avg_residual=codec.avg_residual,
                scale_step=codec.scale_step,
            )
            self.store.append(encoded)
        self.progress(Progress("train", 1, 1))

    def encode_rows(self) -> None:
        """Encode every row that is not in the tables as it is now, and remove those that are gone."""
        codec = codec_from(self._read_codec())
        conn = self.store.conn
        after: Key | None = None
        self.n_done = self.store.counts()["rows"]
        while chunk := next(self.report.steps("read", _chunks(self.source.iter_rows(conn, after))), None):
            after = chunk[-1].key
            self._bring_up(chunk, codec)
        # Rows may have gone meanwhile, or come behind the last key read.
        with self.report.step("read"), atomic(conn):
            self.store.check_build(self.build_id)
            self.store.delete(self.store.vanished_keys(self.source))
        before: list[Key] = []
        while (keys := self.store.missing_keys(self.source, _CHUNK_ROWS)) and keys != before:
            rows = (row for key in keys if (row := self.source.read_row(conn, key)))
            for chunk in self.report.steps("read", _chunks(rows)):
                self._bring_up(chunk, codec)
            before = keys

    def invert(self) -> None:
        """Write the inverted lists, some centroids at a time where there are too many pairs for memory."""
        self.progress(Progress("write", 0, 1))
        codec = self._read_codec()
        n_centroids = len(codec.centroids)
        step = -(-n_centroids // -(-max(1, codec.stream_tokens) // _PAIRS_IN_MEMORY))
        for first in range(0, n_centroids, step):
            with self.report.step("invert"):
                lists = _invert(self.store.iter_codes(codec), first, first + step)
                with atomic(self.store.conn):
                    self.store.check_build(self.build_id)
                    if first == 0:
                        self.store.clear_inverted_lists()
                    self.store.write_inverted_lists(lists)
        self.progress(Progress("write", 1, 1))

    def _read_codec(self) -> StoredCodec:
        codec = self.store.read_codec()
        if codec is None:
            # Another builder has begun anew, with other settings.
            self.store.check_build(self.build_id)
            raise IndexCorrupt(f"the build of index {self.store.entry.name!r} has no codec")
        return codec

    def _bring_up(self, rows: list[SourceRow], codec: ResidualCodec) -> None:
        with self.report.step("read"):
            stale = [row for row in rows if self.store.content_hash(row.key) != row.content_hash]
            split = [self._split(row) for row in stale]
        if not stale:
            return
        doclens: list[int] = []
        codes = [np.empty(0, np.uint32)]
        residuals = [np.empty((0, codec.bytes_per_token), np.uint8)]
        for batch in self._embed(split):
            doclens += map(len, batch)
            with self.report.step("compress"):
                batch_codes, batch_residuals = codec.compress(np.concatenate(batch))
            codes.append(batch_codes)
            residuals.append(batch_residuals)
        encoded = _assemble(split, doclens, np.concatenate(codes), np.concatenate(residuals))
        with self.report.step("write"), atomic(self.store.conn):
            self.store.check_build(self.build_id)
            self.store.delete(row.key for row in encoded)
            self.store.append(encoded)
        self.n_done += len(stale)
        self.progress(Progress("encode", self.n_done, max(self.n_done, self.n_rows)))

    def _sample(
        self, keys: Iterable[Key], scratch: Scratch
    ) -> tuple[list[_SplitRow], list[NDArray[np.float16]], list[NDArray[np.float16]]]:
        """Encode rows in random order until there are enough tokens to train on.

        Returned are rows, the embeddings of all their passages, and those of a part of rows too long to keep.
        """
        rows: list[_SplitRow] = []
        embeddings: list[NDArray[np.float16]] = []
        more: list[NDArray[np.float16]] = []
        n_seen = n_tokens = n_estimated = 0
        self.progress(Progress("encode", 0, self.n_rows))
        drawn = (row for key in keys if (row := self.source.read_row(self.store.conn, key)))
        for chunk in self.report.steps("read", _chunks(drawn)):
            with self.report.step("read"):
                split = [self._split(row) for row in chunk]
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

    def _embed_rows(self, rows: Sequence[_SplitRow], scratch: Scratch) -> list[list[NDArray[np.float16]]]:
        """Return the embeddings of the passages of each row, of the first so many where there are too many."""
        kept = {row.content_hash: scratch.get(row.content_hash) for row in rows}
        new = [row._replace(passages=row.passages[:_SAMPLE_PASSAGES]) for row in rows if kept[row.content_hash] is None]
        computed = iter([e.astype(np.float16) for batch in self._embed(new) for e in batch])
        for row in new:
            kept[row.content_hash] = [next(computed) for _ in row.passages]
        scratch.put([(row.content_hash, kept[row.content_hash] or []) for row in new])
        return [kept[row.content_hash] or [] for row in rows]

    def _random_keys(self) -> dict[Key, int]:
        """Return keys in random order, as many as could be needed, and their places in the order of the table."""
        n = min(self.n_rows, _SAMPLE_ROWS)
        rank = np.full(self.n_rows, -1, np.int64)
        rank[np.random.default_rng(self.settings.seed).permutation(self.n_rows)[:n]] = np.arange(n)
        drawn: list[tuple[Key, int]] = [((), 0)] * n
        for place, key in enumerate(self.source.iter_keys(self.store.conn)):
            if place < self.n_rows and rank[place] >= 0:
                drawn[rank[place]] = key, place
        return {key: place for key, place in drawn if key}

    def _split(self, row: SourceRow) -> _SplitRow:
        extracted = extract(row.values, row.heading, html=self.settings.html, max_tokens=self.max_tokens)
        return _SplitRow(row.key, row.content_hash, self.splitter.split(extracted))

    def _embed(self, rows: Sequence[_SplitRow]) -> Iterator[list[NDArray[np.float32]]]:
        """Yield the embeddings of all passages in order, a bounded number of them at a time."""
        texts = [passage.text for row in rows for passage in row.passages]
        for first in range(0, len(texts), _BATCH_PASSAGES):
            with self.report.step("encode"):
                batch = self.encoder.encode_passages(texts[first : first + _BATCH_PASSAGES])
            self.report.n_tokens += sum(map(len, batch))
            if not all(np.isfinite(embedding).all() for embedding in batch):
                raise ModelError(
                    f"model {self.encoder.name!r} gives embeddings that are no numbers: its files are damaged, or it "
                    "needs --dtype float32"
                )
            if self.settings.pool_factor > 1:
                with self.report.step("pool"):
                    batch = [pool(embedding, self.settings.pool_factor) for embedding in batch]
            yield batch


def _chunks(rows: Iterable[SourceRow]) -> Iterator[list[SourceRow]]:
    """Yield consecutive rows in lists of about as much text each."""
    chunk: list[SourceRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += sum(len(value.raw or b"") for value in row.values)
        if size >= _CHUNK_BYTES or len(chunk) == _CHUNK_ROWS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _assemble(
    rows: Sequence[_SplitRow], doclens: Sequence[int], codes: NDArray[np.uint32], residuals: NDArray[np.uint8]
) -> list[EncodedRow]:
    """Give the tokens of all passages, in order, back to the rows they come from."""
    end = 0
    remaining = iter(doclens)
    encoded = []
    for row in rows:
        passages = []
        for passage in row.passages:
            start, end = end, end + next(remaining)
            if end > start:
                passages.append(EncodedPassage(passage.start, passage.end, codes[start:end], residuals[start:end]))
        encoded.append(EncodedRow(row.key, row.content_hash, passages))
    return encoded


def _invert(
    batches: Iterable[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]], first: int, end: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Return each centroid of [first, end) that has passages, with their ascending, distinct ids."""
    pairs = [np.empty(0, np.int64)]
    for passage_ids, doclens, codes in batches:
        inside = (codes >= first) & (codes < end)
        owners = np.repeat(passage_ids, doclens)[inside]
        pairs.append(np.unique((codes[inside].astype(np.int64) << _PASSAGE_BITS) | owners))
    joined = np.sort(np.concatenate(pairs))
    centroids = joined >> _PASSAGE_BITS
    starts = np.flatnonzero(np.diff(centroids, prepend=-1))
    lists = np.split(joined & ((1 << _PASSAGE_BITS) - 1), starts[1:])
    return zip(centroids[starts].tolist(), lists[: len(starts)], strict=True)
