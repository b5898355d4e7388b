"""Matrix products of whole numbers, on the widest instructions the processor has. The only ``import numkong``.

In: int8 matrices. Out: int32 inner products, exact. Leaves to others: turning embeddings into whole numbers, and
threads (a product runs on the thread that asks for it and releases the GIL).
"""

from __future__ import annotations

from typing import Any

import numkong
import numpy as np
from numpy.typing import NDArray


class Products:
    """Inner products of any rows with the few rows of one query, up to so many rows at a time.

    Holds the one array that all its results are written to.

    :param query: int8 [n_query_tokens, width]
    :param n_rows: most rows in one call
    """

    def __init__(self, query: NDArray[np.int8], n_rows: int) -> None:
        self._query = numkong.dots_pack(query, dtype="int8")
        self._out: Any = numkong.zeros((n_rows, len(query)), dtype="int32")
        self._view: NDArray[np.int32] = np.asarray(self._out)

    def of(self, rows: NDArray[np.int8]) -> NDArray[np.int32]:
        """int32 [n, n_query_tokens] of int8 [n, width]; overwritten by the next call."""
        n = len(rows)
        numkong.dots_packed(rows, self._query, out=self._out[:n])
        return self._view[:n]
