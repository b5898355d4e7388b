"""What a search reads of an index: inverted lists, codes and residuals, by passage id.

In: passage ids, centroid ids. Out: arrays. Leaves to others: reading them from tables (``storage/``), and checking what
was read (plaid.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.engine.kernels import AnyArray

Codes = NDArray[np.uint16] | NDArray[np.uint32]


class Postings(Protocol):
    """What a search reads of an index, by passage id."""

    def has_at_most(self, n: int) -> bool:
        """Return whether at most *n* passages have tokens, at a cost that does not grow with the index."""

    def all_passage_ids(self) -> NDArray[np.int64]:
        """Return the ids of the passages that have tokens, rising."""

    def inverted_lists(self, centroid_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the passages with a token in each of these centroids.

        :return: int64 passage ids, list after list, and int64 offsets [n + 1]: where each list begins and ends
        """

    def codes(self, passage_ids: NDArray[np.int64]) -> tuple[Codes, NDArray[np.int64]]:
        """Return the codes of these passages.

        :return: unsigned codes, one passage after another in the order of the ids, and int64 offsets [n + 1] into them
        """

    def residuals(
        self, passage_ids: NDArray[np.int64], doclens: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return packed residuals uint8 [n_rows, bytes_per_token] and int64 starts [n].

        Passage i owns the ``doclens[i]`` rows from ``starts[i]`` on. Other rows may lie between passages.

        :param doclens: int64 [n], tokens of each passage, which is the number of its codes
        """


@dataclass(frozen=True, slots=True)
class ArrayPostings:
    """Postings over arrays in memory. Passage i of the arrays has id ``passage_ids[i]``.

    :param passage_ids: int64 [n_passages], rising
    :param token_codes: unsigned [n_tokens]
    :param offsets: int64 [n_passages + 1]
    :param token_residuals: uint8 [n_tokens, bytes_per_token]
    """

    passage_ids: NDArray[np.int64]
    token_codes: AnyArray
    offsets: NDArray[np.int64]
    token_residuals: NDArray[np.uint8]
    _list_offsets: NDArray[np.int64] = field(init=False, repr=False)
    _lists: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        passages = np.repeat(np.arange(len(self.passage_ids)), np.diff(self.offsets))
        n = max(1, len(self.passage_ids))
        centroids, lists = np.divmod(np.unique(self.token_codes.astype(np.int64) * n + passages), n)
        object.__setattr__(self, "_lists", lists)
        object.__setattr__(
            self, "_list_offsets", np.searchsorted(centroids, np.arange(int(self.token_codes.max(initial=0)) + 2))
        )

    def has_at_most(self, n: int) -> bool:
        return int(np.count_nonzero(np.diff(self.offsets))) <= n

    def all_passage_ids(self) -> NDArray[np.int64]:
        return self.passage_ids[np.diff(self.offsets) > 0]

    def inverted_lists(self, centroid_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        n_lists = len(self._list_offsets) - 1
        bounds = [self._list_offsets[[i, i + 1]] if i < n_lists else (0, 0) for i in centroid_ids]
        lists = [self._lists[start:end] for start, end in bounds]
        offsets = np.cumsum([0, *map(len, lists)])
        return self.passage_ids[np.concatenate([*lists, np.empty(0, np.int64)])], offsets

    def codes(self, passage_ids: NDArray[np.int64]) -> tuple[Codes, NDArray[np.int64]]:
        positions = np.searchsorted(self.passage_ids, passage_ids)
        parts = [self.token_codes[self.offsets[i] : self.offsets[i + 1]] for i in positions]
        return np.concatenate([self.token_codes[:0], *parts]), np.cumsum([0, *map(len, parts)])

    def residuals(
        self, passage_ids: NDArray[np.int64], doclens: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return self.token_residuals, self.offsets[np.searchsorted(self.passage_ids, passage_ids)]
