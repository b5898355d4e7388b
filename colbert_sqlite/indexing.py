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
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.encoders.queries import check_finite
from colbert_sqlite.engine.codec import ResidualCodec, n_centroids_for
from colbert_sqlite.engine.pooling import clustering, pool
from colbert_sqlite.errors import IndexCorrupt
from colbert_sqlite.passages import PassageSplitter, PassageText, extract
from colbert_sqlite.settings import IndexSettings
from colbert_sqlite.storage.connection import atomic, plain_rows
from colbert_sqlite.storage.lists import Pairs
from colbert_sqlite.storage.scratch import Scratch, remove_scratch, scratch_path
from colbert_sqlite.storage.source import Key, Source, SourceRow
from colbert_sqlite.storage.store import EncodedPassage, EncodedRow, Outlier, Store
from colbert_sqlite.storage.stored_codec import StoredCodec
from colbert_sqlite.storage.writer import only_writer
from colbert_sqlite.timing import BuildReport

# Text of one write transaction: some seconds of encoding on two CPU cores, which is what a kill can cost.
CHUNK_BYTES = 200_000
CHUNK_ROWS = 4096
# Passages encoded at once: at most 65,536 tokens, 32 MB of float32 at 128 dimensions.
_BATCH_PASSAGES = 256
# Sampled tokens per centroid, and in all; the cap keeps the sample at 256 MB of float16 at 128 dimensions.
_SAMPLE_PER_CENTROID = 32
_SAMPLE_TOKENS = 1 << 20
_SAMPLE_ROWS = 1 << 17
_SAMPLE_PASSAGES = 512
# Pairs of centroid and passage sorted at once, 8 bytes each.
_PAIRS_IN_MEMORY = 1 << 23
# A token farther from its centroid than so many times the mean when the codec was trained, is an outlier. On the
# benchmark set 1 of 100 tokens of passages that the codec had not seen is farther than 1.77 times.
OUTLIER_RESIDUAL = 1.77


class Progress(NamedTuple):
    """Where a build or a sync is.

    ``stage`` is "encode", "compare" or "similar" (counted in rows), "train" or "write" (one step each), or "wait", for
    another process that writes the same index.
    """

    stage: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


class SplitRow(NamedTuple):
    """A row and the passages that its text is cut into."""

    key: Key
    content_hash: bytes
    passages: list[PassageText]


class RowEncoder:
    """Makes rows into compressed passages, with the model and the settings of one index."""

    def __init__(self, encoder: Encoder, settings: IndexSettings, report: BuildReport) -> None:
        assert settings.max_tokens is not None
        self._encoder = encoder
        self._settings = settings
        self._max_tokens = settings.max_tokens
        self._report = report
        self._splitter = PassageSplitter(encoder.tokenizer, settings.max_tokens, encoder.n_special_tokens)

    def split(self, row: SourceRow) -> SplitRow:
        extracted = extract(row.values, row.heading, html=self._settings.html, max_tokens=self._max_tokens)
        return SplitRow(row.key, row.content_hash, self._splitter.split(extracted))

    def embed(self, rows: Sequence[SplitRow]) -> Iterator[list[NDArray[np.float16]]]:
        """Yield the embeddings of all passages in order, a bounded number of them at a time.

        In half precision, which is all that a build keeps of its sample: a row is then compressed to the same codes
        and residuals whenever that is done.
        """
        texts = [passage.text for row in rows for passage in row.passages]
        for first in range(0, len(texts), _BATCH_PASSAGES):
            with self._report.step("encode"):
                batch = self._encoder.encode_passages(texts[first : first + _BATCH_PASSAGES])
            self._report.n_tokens += sum(map(len, batch))
            check_finite(self._encoder, batch)
            if self._settings.pool_factor > 1:
                with self._report.step("pool"):
                    batch = [pool(embedding, self._settings.pool_factor) for embedding in batch]
            yield [embedding.astype(np.float16) for embedding in batch]

    def encode(self, rows: Sequence[SplitRow], codec: ResidualCodec, *, recent: bool = False) -> list[EncodedRow]:
        """Return the rows compressed.

        :param recent: note also how far their tokens are from the centroids, and which are outliers
        """
        doclens: list[int] = []
        codes = [np.empty(0, np.uint32)]
        residuals = [np.empty((0, codec.bytes_per_token), np.uint8)]
        means = [np.empty(0, np.float32)]
        outliers: dict[int, NDArray[np.float16]] = {}
        n_tokens = 0
        for batch in self.embed(rows):
            doclens += map(len, batch)
            embeddings = np.concatenate(batch)
            with self._report.step("compress"):
                batch_codes, batch_residuals = codec.compress(embeddings)
                if recent:
                    means.append(codec.mean_residuals(embeddings, batch_codes))
                    far = np.flatnonzero(means[-1] > OUTLIER_RESIDUAL * codec.avg_residual)
                    outliers |= {n_tokens + i: embeddings[i] for i in far.tolist()}
            n_tokens += len(embeddings)
            codes.append(batch_codes)
            residuals.append(batch_residuals)
        encoded = assemble(rows, doclens, np.concatenate(codes), np.concatenate(residuals))
        return _with_distances(encoded, np.concatenate(means), outliers) if recent else encoded


def codec_from(store: Store, stored: StoredCodec) -> ResidualCodec:
    """Return the codec of a store.

    :raises IndexCorrupt: if its centroids are damaged
    """
    centroids, cells = store.codec.read_centroids(stored)
    return ResidualCodec(
        nbits=stored.nbits,
        centroids=centroids,
        bucket_cutoffs=stored.bucket_cutoffs,
        bucket_weights=stored.bucket_weights,
        avg_residual=stored.avg_residual,
        scale_step=stored.scale_step,
        cells=cells,
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
        return store.publish(source)


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
        self.rows = RowEncoder(encoder, self.settings, report)
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
            encoded = assemble(rows, doclens, *codec.compress(sample[: sum(doclens)]))
        assert codec.scale_step is not None and codec.cells is not None, "a codec of our own training has them"
        # Ties are broken by passage id: in the order of the table, as far as that can be had.
        encoded.sort(key=lambda row: keys.get(row.key, self.n_rows))
        with self.report.step("write"), atomic(self.store.conn):
            self.store.check_build(self.build_id)
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
        codec = codec_from(self.store, self._read_codec())
        conn = self.store.conn
        after: Key | None = None
        self.n_done = self.store.counts()["rows"]
        while chunk := next(self.report.steps("read", chunks(self.source.iter_rows(conn, after))), None):
            after = chunk[-1].key
            self._bring_up(chunk, codec)
        # Rows may have gone meanwhile, or come behind the last key read.
        with self.report.step("read"), atomic(conn):
            self.store.check_build(self.build_id)
            self.store.delete(self.store.vanished_keys(self.source))
        before: list[Key] = []
        while (keys := self.store.missing_keys(self.source, CHUNK_ROWS)) and keys != before:
            rows = (row for key in keys if (row := self.source.read_row(conn, key)))
            for chunk in self.report.steps("read", chunks(rows)):
                self._bring_up(chunk, codec)
            before = keys

    def invert(self) -> None:
        """Write the inverted lists, some centroids at a time where there are too many pairs for memory."""
        self.progress(Progress("write", 0, 1))
        codec = self._read_codec()
        for first, end in centroid_ranges(codec):
            with self.report.step("invert"):
                pairs = pairs_of(self.store.iter_codes(codec), first, end)
                with atomic(self.store.conn):
                    self.store.check_build(self.build_id)
                    if first == 0:
                        self.store.lists.clear()
                    self.store.lists.write(pairs)
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
            split = [self.rows.split(row) for row in stale]
        if not stale:
            return
        encoded = self.rows.encode(split, codec)
        with self.report.step("write"), atomic(self.store.conn):
            self.store.check_build(self.build_id)
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
        """Return keys in random order, as many as could be needed, and their places in the order of the table."""
        n = min(self.n_rows, _SAMPLE_ROWS)
        rank = np.full(self.n_rows, -1, np.int64)
        rank[np.random.default_rng(self.settings.seed).permutation(self.n_rows)[:n]] = np.arange(n)
        drawn: list[tuple[Key, int]] = [((), 0)] * n
        for place, key in enumerate(self.source.iter_keys(self.store.conn)):
            if place < self.n_rows and rank[place] >= 0:
                drawn[rank[place]] = key, place
        return {key: place for key, place in drawn if key}


def chunks(rows: Iterable[SourceRow], n_bytes: int | None = None) -> Iterator[list[SourceRow]]:
    """Yield consecutive rows in lists of about as much text each, by default what one transaction takes."""
    chunk: list[SourceRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += row.n_bytes
        if size >= (n_bytes or CHUNK_BYTES) or len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def assemble(
    rows: Sequence[SplitRow], doclens: Sequence[int], codes: NDArray[np.uint32], residuals: NDArray[np.uint8]
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


def _with_distances(
    rows: Iterable[EncodedRow], means: NDArray[np.float32], outliers: dict[int, NDArray[np.float16]]
) -> list[EncodedRow]:
    """Give each row how far its tokens are from the centroids, and its outliers, by the number of the token."""
    end = 0
    complete = []
    for row in rows:
        begin = end
        passages = []
        for passage in row.passages:
            start, end = end, end + len(passage.codes)
            mine = [Outlier(i - start, outliers[i]) for i in range(start, end) if i in outliers]
            passages.append(passage._replace(outliers=mine))
        complete.append(row._replace(passages=passages, residual=float(means[begin:end].sum())))
    return complete


def centroid_ranges(codec: StoredCodec) -> Iterator[tuple[int, int]]:
    """Yield ranges of centroids whose inverted lists are made at once, as many as memory allows."""
    step = -(-codec.n_centroids // -(-max(1, codec.stream_tokens) // _PAIRS_IN_MEMORY))
    return ((first, first + step) for first in range(0, codec.n_centroids, step))


def pairs_of(
    batches: Iterable[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]], first: int, end: int
) -> Pairs:
    """Return which passages have a token in which centroid of [first, end)."""
    places = [np.empty(0, np.int64)]
    for passage_ids, doclens, codes in batches:
        inside = (codes >= first) & (codes < end)
        owners = np.repeat(passage_ids, doclens)[inside]
        places.append(Pairs(codes[inside].astype(np.int64), owners).places)
    return Pairs.at(np.concatenate(places))


@contextmanager
def writing(conn: sqlite3.Connection, name: str, progress: ProgressCallback | None) -> Iterator[None]:
    """Be the only one who writes an index."""
    report = progress or no_progress
    with plain_rows(conn), only_writer(conn, name, lambda: report(Progress("wait", 0, 1))):
        yield


def no_progress(_: object) -> None:
    """Tell nobody."""
