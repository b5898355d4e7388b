"""The codec of an index: its only row, and its centroids.

In: a trained codec. Out: the same, checked. Leaves to others: what a codec does (``engine/codec.py``).
"""

from __future__ import annotations

import dataclasses
import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.settings import NBITS
from colbert_sqlite.storage.blobs import (
    CELLS,
    CENTROIDS,
    CODES,
    FLOATS,
    MAX_PASSAGE_ID,
    Part,
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
_MAX_CENTROIDS = 1 << 20
_MAX_BLOCK_TOKENS = 1 << 16
_MAX_STREAM_TOKENS = 1 << 40
# Larger weights of residuals, and smaller ones, come from damage: products with them would overflow.
_MAX_WEIGHT = 1e6


@dataclass(frozen=True, slots=True)
class StoredCodec:
    """The codec of an index as it is stored, without its centroids, and how far the token stream has come.

    :param next_passage_id: higher than every id that a passage ever had
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
    next_passage_id: int
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
    """Row and centroids of the codec of one index. Call all that writes inside ``atomic``."""

    def __init__(self, tables: Tables) -> None:
        self._conn = tables.conn
        self._tables = tables
        self._codec = tables.quoted("codec")
        self._centroids = tables.quoted("centroids")
        self._part = Part("codec", tables.index)
        self._centroids_part = Part("centroids", tables.index)

    @staticmethod
    def definitions(tables: Tables) -> list[str]:
        return [
            f"""CREATE TABLE {tables.quoted("centroids")} (
    block INTEGER PRIMARY KEY,
    centroids BLOB NOT NULL,
    cells BLOB NOT NULL,
    checksum INTEGER NOT NULL
)""",
            f"""CREATE TABLE {tables.quoted("codec")} (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    nbits INTEGER NOT NULL,
    dim INTEGER NOT NULL,
    n_centroids INTEGER NOT NULL,
    bucket_cutoffs BLOB NOT NULL,
    bucket_weights BLOB NOT NULL,
    avg_residual REAL NOT NULL,
    scale_step REAL NOT NULL,
    codes_dtype TEXT NOT NULL,
    block_tokens INTEGER NOT NULL,
    stream_tokens INTEGER NOT NULL,
    next_passage_id INTEGER NOT NULL,
    n_trained INTEGER NOT NULL,
    trained_tokens INTEGER NOT NULL,
    recent_tokens REAL NOT NULL,
    recent_residual REAL NOT NULL,
    checksum INTEGER NOT NULL
)""",
        ]

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
        self.update(
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
                next_passage_id=_next_passage_id(self._tables),
                n_trained=n_centroids,
                trained_tokens=trained_tokens,
                recent_tokens=0.0,
                recent_residual=0.0,
            )
        )
        self._write_centroids(centroids, cells, 0)

    def update(self, codec: StoredCodec) -> None:
        """Store the row."""
        values = (1, *codec.row, row_checksum(codec.row))
        self._conn.execute(f"REPLACE INTO {self._codec} VALUES ({', '.join('?' * len(values))})", values)

    def _write_centroids(self, centroids: NDArray[np.int8], cells: NDArray[np.uint16], first: int) -> None:
        """Store the blocks of all centroids from number *first* on, the start of a block."""
        rows = []
        for begin in range(first, len(centroids), CENTROIDS_PER_BLOCK):
            block = slice(begin, begin + CENTROIDS_PER_BLOCK)
            blobs = centroids[block].astype(CENTROIDS).tobytes(), cells[block].astype(CELLS).tobytes()
            rows.append((begin // CENTROIDS_PER_BLOCK, *blobs, checksum(*blobs)))
        self._conn.executemany(f"REPLACE INTO {self._centroids} VALUES (?, ?, ?, ?)", rows)

    def add_centroids(self, codec: StoredCodec, centroids: NDArray[np.int8], cells: NDArray[np.uint16]) -> StoredCodec:
        """Store *centroids*, of which the first ``codec.n_centroids`` are stored already."""
        first = codec.n_centroids // CENTROIDS_PER_BLOCK * CENTROIDS_PER_BLOCK
        self._write_centroids(centroids, cells, first)
        codec = dataclasses.replace(codec, n_centroids=len(centroids))
        self.update(codec)
        return codec

    def exists(self) -> bool:
        """Return whether there is a codec. A build has no codec before its training."""
        return self._conn.execute(f"SELECT 1 FROM {self._codec}").fetchone() is not None

    def load(self) -> StoredCodec:
        """Return the codec without its centroids.

        :raises IndexCorrupt: if it is missing or damaged
        """
        names = [field.name for field in dataclasses.fields(StoredCodec)]
        row = self._conn.execute(f"SELECT {', '.join(names)}, checksum FROM {self._codec}").fetchone()
        if row is None:
            raise self._part.damaged("its row is missing")
        *values, stored_checksum = row
        if stored_checksum != row_checksum(values):
            raise self._part.damaged("its checksum differs")
        codec = StoredCodec(**dict(zip(names, values, strict=True)))
        if fault := next(_type_faults(codec), None):
            raise self._part.damaged(fault)
        codec = dataclasses.replace(
            codec,
            bucket_cutoffs=from_blob(codec.bucket_cutoffs, FLOATS, self._part).astype(np.float32),
            bucket_weights=from_blob(codec.bucket_weights, FLOATS, self._part).astype(np.float32),
        )
        if fault := next(_faults(codec, self._tables.dim), None):
            raise self._part.damaged(fault)
        return codec

    def last_checksum(self) -> object:
        """Return the checksum of the last block of centroids, which every growth changes."""
        sql = f"SELECT checksum FROM {self._centroids} ORDER BY block DESC LIMIT 1"
        return self._conn.execute(sql).fetchone()

    def centroids(self, codec: StoredCodec) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
        """Return int8 centroid directions [n_centroids, dim], not yet normalized, and their cells uint16 [n_centroids].

        :raises IndexCorrupt: if they are damaged
        """
        rows = self._conn.execute(f"SELECT centroids, cells, checksum FROM {self._centroids} ORDER BY block").fetchall()
        part = self._centroids_part
        directions, _ = from_blobs([row[0] for row in rows], CENTROIDS, part)
        cells, _ = from_blobs([row[1] for row in rows], CELLS, part)
        for block, (*blobs, stored_checksum) in enumerate(rows):
            if checksum(*blobs) != stored_checksum:
                raise part.damaged(f"the checksum of block {block} differs")
        n, dim = codec.n_centroids, codec.dim
        if directions.size != n * dim or len(cells) != n:
            detail = f"{directions.size / dim:g} of them and {len(cells)} cells, not {n}"
            raise part.damaged(detail)
        return directions.astype(np.int8, copy=False).reshape(n, dim), cells.astype(np.uint16, copy=False)


def _type_faults(codec: StoredCodec) -> Iterator[str]:
    """Yield what is wrong with the types of the fields: the file may come from anywhere."""
    for field in dataclasses.fields(codec):
        value: object = getattr(codec, field.name)
        sound = {
            "int": type(value) is int,
            "float": isinstance(value, float) and 0 <= value < math.inf,
            "str": isinstance(value, str),
            "NDArray[np.float32]": isinstance(value, bytes) and len(value) % FLOATS.itemsize == 0,
        }
        if not sound[str(field.type)]:
            yield f"{field.name} is {value!r}"


def _faults(codec: StoredCodec, dim: int) -> Iterator[str]:
    """Yield what is wrong with the values of the fields."""
    n_buckets = 1 << codec.nbits if codec.nbits in NBITS else 0
    max_codes = 1 << 8 * CODES[codec.codes_dtype].itemsize if codec.codes_dtype in CODES else 0
    sound = {
        "nbits": n_buckets > 0,
        "dim": codec.dim == dim > 0,
        "codes_dtype": max_codes > 0,
        "n_centroids": 0 < codec.n_centroids <= min(_MAX_CENTROIDS, max_codes),
        "n_trained": 0 < codec.n_trained <= codec.n_centroids,
        "scale_step": 0 < codec.scale_step < _MAX_WEIGHT,
        "avg_residual": codec.avg_residual < _MAX_WEIGHT,
        "block_tokens": 0 < codec.block_tokens <= _MAX_BLOCK_TOKENS,
        "stream_tokens": 0 <= codec.stream_tokens < _MAX_STREAM_TOKENS,
        "next_passage_id": 0 < codec.next_passage_id <= MAX_PASSAGE_ID + 1,
        "trained_tokens": codec.trained_tokens >= 0,
    }
    yield from (f"{name} is {getattr(codec, name)!r}" for name, is_sound in sound.items() if not is_sound)
    for name, n in (("bucket_cutoffs", n_buckets - 1), ("bucket_weights", n_buckets)):
        if len(getattr(codec, name)) != n:
            yield f"{name} has {len(getattr(codec, name))} values, not {n}"
    # Residuals of unit vectors. NaN compares with nothing.
    largest = float(np.abs(codec.bucket_weights).max(initial=0))
    if not (largest == 0 or 1 / _MAX_WEIGHT < largest < _MAX_WEIGHT):
        yield f"bucket_weights has {largest:g}"


def _bytes_per_token(dim: int, nbits: int) -> int:
    """A byte of scale, and the packed buckets."""
    return 1 + -(-dim * nbits // 8)


def _next_passage_id(build: Tables) -> int:
    """Return an id that no passage of the index in use has ever had. A build goes on from there.

    If its codec is lost, the passages that are left say so.
    """
    in_use = dataclasses.replace(build, building=False)
    for part, value in (("codec", "next_passage_id"), ("passages", "max(passage_id) + 1")):
        try:
            row = build.conn.execute(f"SELECT {value} FROM {in_use.quoted(part)}").fetchone()
        except sqlite3.OperationalError as error:
            if not str(error).startswith("no such "):
                raise
            # There is no index yet, or one of another format.
            continue
        if row is not None and type(row[0]) is int and 0 < row[0] <= MAX_PASSAGE_ID + 1:
            passage_id: int = row[0]
            return passage_id
    return 1
