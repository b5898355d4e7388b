"""Rows as the tables take them.

In: what encoding and compressing a row gives. Out: the same, with names. Leaves to others: both sides of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.storage.source import Key


class Outlier(NamedTuple):
    """A token far from every centroid: its position in its passage, and its embedding float16 [dim]."""

    position: int
    embedding: NDArray[np.float16]


class EncodedPassage(NamedTuple):
    """A compressed passage: ``codes`` uint32 [doclen], ``residuals`` uint8 [doclen, bytes_per_token]."""

    start: int
    end: int
    codes: NDArray[np.uint32]
    residuals: NDArray[np.uint8]
    outliers: Sequence[Outlier] = ()


class EncodedRow(NamedTuple):
    """One source row, compressed; no passages when it has no text.

    ``residual`` is the sum of the mean absolute residuals of its tokens.
    """

    key: Key
    content_hash: bytes
    passages: list[EncodedPassage]
    residual: float = 0.0

    @property
    def n_tokens(self) -> int:
        return sum(len(passage.codes) for passage in self.passages)
