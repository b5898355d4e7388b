"""Matrix products of whole numbers, on the widest instructions the processor has. The only ``import numkong``.

In: embeddings, or int8 matrices. Out: int8 matrices, or int32 inner products, exact. Leaves to others: what steps and
products count, and threads (a product runs on the thread that asks for it and releases the GIL).
"""

from __future__ import annotations

from typing import Any

import numkong
import numpy as np
from numpy.typing import NDArray

MAX_INT8 = 127


def whole_numbers(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return rows [n, width] as int8, each in its own steps, of which its largest value is 127; and the steps [n]."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    largest = np.where(largest > 0, largest, 1).astype(np.float32)
    # In this order, since a step of the smallest floats there are is 0.
    values = np.rint(rows / largest * MAX_INT8).astype(np.int8)
    return values, (largest.ravel() / MAX_INT8).astype(np.float32)


def inverse_norms(directions: NDArray[np.int8], lengths: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return factors that make rows of whole numbers [n, width] as long as *lengths*: float32 [n]; zeros stay zeros."""
    squares = np.einsum("ij,ij->i", directions, directions, dtype=np.float32)
    inverse: NDArray[np.float32] = (lengths / np.sqrt(np.maximum(squares, 1))).astype(np.float32)
    return inverse


class Products:
    """Inner products of any rows with the few rows of one query. For one thread: results share one array.

    :param query: int8 [n_query_tokens, width]
    :param n_rows: at most so many rows in one call
    """

    def __init__(self, query: NDArray[np.int8], n_rows: int) -> None:
        self._query = numkong.dots_pack(query, dtype="int8")
        self._out: Any = numkong.zeros((n_rows, len(query)), dtype="int32")
        self._view: NDArray[np.int32] = np.asarray(self._out)

    def of(self, rows: NDArray[np.int8]) -> NDArray[np.int32]:
        """Return int32 [n, n_query_tokens] of int8 [n, width]; the next call overwrites it."""
        n = len(rows)
        numkong.dots_packed(rows, self._query, out=self._out[:n])
        return self._view[:n]
