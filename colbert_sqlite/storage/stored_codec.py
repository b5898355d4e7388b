"""The codec of an index as it is stored: one row, and blocks of centroids.

In: what training gives. Out: the same, checked. Leaves to others: what a codec does (``engine/codec.py``).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import IndexCorrupt
from colbert_sqlite.settings import NBITS
from colbert_sqlite.storage.blobs import (
    CELLS,
    CENTROIDS,
    CODES,
    FLOATS,
    checksum,
    codes_dtype,
    from_blob,
    from_blobs,
    row_checksum,
)
from colbert_sqlite.storage.schema import Tables

CENTROIDS_PER_BLOCK = 1024

# What a leaf page of a table holds beside the BLOB of its only row: page header, cell pointer, cell and record
# headers (https://sqlite.org/fileformat2.html), and the few bytes some builds reserve at the end of each page.
_PAGE_OVERHEAD = 64
# Far beyond what is trained, and few enough for any memory.
_MOST_CENTROIDS = 1 << 20
# Larger weights of residuals, and smaller ones, come from damage: products with them would overflow.
_LARGEST_WEIGHT = 1e6


@dataclass(frozen=True, slots=True)
class StoredCodec:
    """The codec of an index as it is stored, without its centroids, and how far the token stream has come.

    :param n_trained: how many of the centroids were trained, the first ones; the others came with later rows
    :param trained_tokens: how many tokens the index had then
    :param recent_tokens: tokens added lately, the older ones counting less; ``recent_residual`` is the sum of their
        mean absolute residuals
    """

    nbits: int
    dim: int
    n_centroids: int
    bucket_cutoffs: NDArray[np.float32]
    bucket_weights: NDArray[np.float32]
    avg_residual: float
    scale_step: float
    codes_dtype: str
    block_tokens: int
    stream_tokens: int
    n_trained: int
    trained_tokens: int
    recent_tokens: float
    recent_residual: float

    @property
    def bytes_per_token(self) -> int:
        return _bytes_per_token(self.dim, self.nbits)

    def block_bytes(self, block: int) -> int:
        """How long a block of the token stream should be; only the last may be shorter than the others."""
        tokens = self.block_tokens
        return self.bytes_per_token * (self.stream_tokens % tokens if block == self.stream_tokens // tokens else tokens)

    @property
    def row(self) -> tuple[Any, ...]:
        """The values of its columns, in the order of the table, without id and checksum."""
        values = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return tuple(value.astype(FLOATS).tobytes() if isinstance(value, np.ndarray) else value for value in values)


class CodecTables:
    """Row and centroids of one codec."""

    def __init__(self, tables: Tables) -> None:
        self._conn = tables.conn
        self._name = tables.index
        self._codec = tables.quoted("codec")
        self._centroids = tables.quoted("centroids")

    def write(
        self,
        *,
        nbits: int,
        centroids: NDArray[np.int8],
        cells: NDArray[np.uint16],
        bucket_cutoffs: NDArray[np.float32],
        bucket_weights: NDArray[np.float32],
        avg_residual: float,
        scale_step: float,
        trained_tokens: int,
    ) -> None:
        """Store a trained codec; *centroids* int8 [n_centroids, dim] are directions of any length."""
        n_centroids, dim = centroids.shape
        (page_size,) = self._conn.execute("PRAGMA page_size").fetchone()
        self.write_row(
            StoredCodec(
                nbits=nbits,
                dim=dim,
                n_centroids=n_centroids,
                bucket_cutoffs=bucket_cutoffs,
                bucket_weights=bucket_weights,
                avg_residual=avg_residual,
                scale_step=scale_step,
                codes_dtype=codes_dtype(n_centroids),
                block_tokens=max(1, (page_size - _PAGE_OVERHEAD) // _bytes_per_token(dim, nbits)),
                stream_tokens=0,
                n_trained=n_centroids,
                trained_tokens=trained_tokens,
                recent_tokens=0.0,
                recent_residual=0.0,
            )
        )
        self.write_centroids(centroids, cells, 0)

    def write_row(self, codec: StoredCodec) -> None:
        values = (1, *codec.row, row_checksum(codec.row))
        self._conn.execute(f"REPLACE INTO {self._codec} VALUES ({', '.join('?' * len(values))})", values)

    def write_centroids(self, centroids: NDArray[np.int8], cells: NDArray[np.uint16], first: int) -> None:
        """Store the blocks of all centroids from number *first* on, the start of a block."""
        rows = []
        for begin in range(first, len(centroids), CENTROIDS_PER_BLOCK):
            block = slice(begin, begin + CENTROIDS_PER_BLOCK)
            blobs = centroids[block].astype(CENTROIDS).tobytes(), cells[block].astype(CELLS).tobytes()
            rows.append((begin // CENTROIDS_PER_BLOCK, *blobs, checksum(*blobs)))
        self._conn.executemany(f"REPLACE INTO {self._centroids} VALUES (?, ?, ?, ?)", rows)

    def add_centroids(self, codec: StoredCodec, centroids: NDArray[np.int8], cells: NDArray[np.uint16]) -> StoredCodec:
        """Store *centroids*, of which the first ``codec.n_centroids`` are stored already. Call inside ``atomic``."""
        first = codec.n_centroids // CENTROIDS_PER_BLOCK * CENTROIDS_PER_BLOCK
        self.write_centroids(centroids, cells, first)
        codec = dataclasses.replace(codec, n_centroids=len(centroids))
        self.write_row(codec)
        return codec

    def read(self, dim: int) -> StoredCodec | None:
        """Return the codec; None while a build has not trained it yet.

        :raises IndexCorrupt: if it is damaged or sizes contradict each other
        """
        columns = ", ".join(field.name for field in dataclasses.fields(StoredCodec))
        row = self._conn.execute(f"SELECT {columns}, checksum FROM {self._codec}").fetchone()
        if row is None:
            return None
        *values, found = row
        name = self._name
        if found != row_checksum(values):
            raise IndexCorrupt(f"the codec of index {name!r} is damaged, its checksum differs: rebuild the index")
        fields = dict(zip((field.name for field in dataclasses.fields(StoredCodec)), values, strict=True))
        for part in ("bucket_cutoffs", "bucket_weights"):
            fields[part] = from_blob(fields[part], FLOATS, f"{part} of {name!r}").astype(np.float32)
        codec = StoredCodec(**fields)
        sizes: list[object] = [codec.nbits, codec.dim, codec.n_centroids, codec.n_trained]
        sizes += [codec.block_tokens, codec.stream_tokens, codec.trained_tokens]
        figures: list[object] = [codec.avg_residual, codec.scale_step, codec.recent_tokens, codec.recent_residual]
        sound = (
            all(type(n) is int for n in sizes)
            and all(isinstance(figure, float) and 0 <= figure < float("inf") for figure in figures)
            and codec.nbits in NBITS
            and codec.dim == dim > 0
            and 0 < codec.n_trained <= codec.n_centroids <= _MOST_CENTROIDS
            and len(codec.bucket_weights) == len(codec.bucket_cutoffs) + 1 == 1 << codec.nbits
            # Residuals of unit vectors; written so that NaN is refused too.
            and 0 <= (largest_weight := float(np.abs(codec.bucket_weights).max())) < _LARGEST_WEIGHT
            and (largest_weight == 0 or largest_weight > 1 / _LARGEST_WEIGHT)
            and 0 < codec.scale_step < _LARGEST_WEIGHT
            and codec.avg_residual < _LARGEST_WEIGHT
            and codec.codes_dtype in CODES
            and codec.n_centroids <= 1 << 8 * CODES[codec.codes_dtype].itemsize
            and 0 < codec.block_tokens <= 1 << 16
            and 0 <= codec.stream_tokens < 1 << 40
            and codec.trained_tokens >= 0
        )
        if not sound:
            raise IndexCorrupt(f"the codec of index {name!r} contradicts itself: rebuild the index")
        return codec

    def last_checksum(self) -> object:
        """Return what tells these centroids from as many others: growing ends with another last block."""
        sql = f"SELECT checksum FROM {self._centroids} ORDER BY block DESC LIMIT 1"
        return self._conn.execute(sql).fetchone()

    def read_centroids(self, codec: StoredCodec) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
        """Return int8 centroid directions [n_centroids, dim], not yet normalized, and their cells uint16 [n_centroids].

        :raises IndexCorrupt: if they are damaged, or not as many as the codec says
        """
        what = f"centroids of index {self._name!r}"
        rows = self._conn.execute(f"SELECT centroids, cells, checksum FROM {self._centroids} ORDER BY block").fetchall()
        directions, _ = from_blobs([row[0] for row in rows], CENTROIDS, what)
        cells, _ = from_blobs([row[1] for row in rows], CELLS, what)
        if (
            any(checksum(*blobs) != found for *blobs, found in rows)
            or directions.size != codec.n_centroids * codec.dim
            or len(cells) != codec.n_centroids
        ):
            raise IndexCorrupt(f"the {what} are damaged: rebuild the index")
        return (
            directions.astype(np.int8, copy=False).reshape(codec.n_centroids, codec.dim),
            cells.astype(np.uint16, copy=False),
        )


def _bytes_per_token(dim: int, nbits: int) -> int:
    """A byte of scale, and the packed buckets."""
    return 1 + -(-dim * nbits // 8)
