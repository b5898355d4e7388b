"""Rows as compressed passages: split, encode, pool, compress.

In: rows of the source table, an encoder, a codec. Out: rows as ``storage`` keeps them. Leaves to others: which rows,
and writing them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.encoders.checks import check_finite
from colbert_sqlite.engine.codec import ResidualCodec
from colbert_sqlite.engine.pooling import pool
from colbert_sqlite.passages import PassageSplitter, PassageText, extract
from colbert_sqlite.progress import BuildReport
from colbert_sqlite.settings import IndexSettings
from colbert_sqlite.storage.encoded import EncodedPassage, EncodedRow, Outlier
from colbert_sqlite.storage.source import Key, SourceRow

# Text of one write transaction: some seconds of encoding on two CPU cores, which is what a kill can cost.
CHUNK_BYTES = 200_000
CHUNK_ROWS = 4096
# Passages encoded at once: at most 65,536 tokens, 32 MB of float32 at 128 dimensions.
_BATCH_PASSAGES = 256
# A token is an outlier if it is farther from its centroid than so many times the mean of the codec's training. On the
# benchmark set 1 of 100 tokens of passages that the codec had not seen is farther than 1.77 times.
OUTLIER_RESIDUAL = 1.77


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

        :param recent: measure also how far their tokens are from the centroids, and which are outliers
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
