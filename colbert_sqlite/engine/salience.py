"""The centroids of a text that tell it apart from others.

In: how often each centroid occurs in a text, and in how many passages. Out: the centroids that say most about it.
Leaves to others: searching with these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def salient_centroids(
    counts: NDArray[np.int64], list_lengths: NDArray[np.int64], n_passages: int, n: int
) -> NDArray[np.int64]:
    """Return the *n* of a text's centroids that say most about it.

    A centroid is to tokens what a word is to a bag of words. It says more if it occurs more often in the text, and if
    fewer passages have it.

    :param counts: int64 [n_centroids], how often each occurs in the text
    :param list_lengths: int64 [n_centroids], in how many passages of the index
    :param n_passages: in the whole index
    :return: int64 positions, the one that says most first

    tf·idf with the logarithm of both: Spärck Jones 1972; Salton and Buckley 1988.
    """
    rarity = np.log(n_passages + 1) - np.log(np.maximum(list_lengths, 1))
    return np.argsort(-(1 + np.log(counts)) * rarity, kind="stable")[:n]
