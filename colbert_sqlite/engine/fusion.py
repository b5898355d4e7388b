"""Several rankings become one.

In: rankings of ids, or their scores. Out: one score for each id. Leaves to others: what the ids are, and sorting.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Id = TypeVar("Id", bound=Hashable)

# Keeps the first ranks from outweighing all others. Its value matters little: Cormack et al. 2009.
RANK_OFFSET = 60


def reciprocal_rank_fusion(rankings: Sequence[Sequence[Id]], weights: Sequence[float] | None = None) -> dict[Id, float]:
    """Return, for each id, the sum of ``weight / (60 + rank)`` over the rankings it is in, ranks from 1.

    :param rankings: ids best first, each at most once in a ranking
    :param weights: one for each ranking; default: 1

    Cormack, Clarke, Büttcher, SIGIR 2009.
    """
    scores: dict[Id, float] = {}
    for ranking, weight in zip(rankings, weights or [1.0] * len(rankings), strict=True):
        for rank, id_ in enumerate(ranking, start=1):
            scores[id_] = scores.get(id_, 0.0) + weight / (RANK_OFFSET + rank)
    return scores


def weighted_sum(scored: Sequence[Mapping[Id, float]], weights: Sequence[float]) -> dict[Id, float]:
    """Return the weighted sum of scores, each kind stretched to the range from 0 to 1.

    An id that one kind lacks has 0 there.

    :param scored: a score of each id, higher is better
    """
    sums: dict[Id, float] = {}
    for scores, weight in zip(scored, weights, strict=True):
        lowest = min(scores.values(), default=0.0)
        span = max(scores.values(), default=0.0) - lowest
        for id_, score in scores.items():
            # All alike, or a single one: as good as it gets.
            sums[id_] = sums.get(id_, 0.0) + weight * ((score - lowest) / span if span else 1.0)
    return sums
