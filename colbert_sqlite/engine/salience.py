"""Which tokens of a text tell it apart from the others.

In: how often each centroid occurs in a text, and in how many passages. Out: the centroids that say most about it.
Leaves to others: searching with these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LEAST = 1e-3


def salient_centroids(
    counts: NDArray[np.int64], list_lengths: NDArray[np.int64], n_passages: int, n: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which of a text's centroids say most about it, the most telling first, and what each weighs.

    A centroid is to tokens what a word is to a bag of words: it weighs more the more often it occurs in the text, and
    the fewer passages have it.

    :param counts: int64 [n_centroids], how often each occurs in the text
    :param list_lengths: int64 [n_centroids], in how many passages of the index
    :param n_passages: in the whole index
    :return: int64 positions and float32 weights, *n* at most

    tf·idf with the logarithm of both: Spärck Jones 1972; Salton and Buckley 1988.
    """
    rarity = np.log(n_passages + 1) - np.log(np.maximum(list_lengths, 1))
    weights = (1 + np.log(counts)) * rarity
    best = np.argsort(-weights, kind="stable")[:n]
    # Where every passage has it, a centroid still says something.
    return best, np.maximum(weights[best], _LEAST).astype(np.float32)
