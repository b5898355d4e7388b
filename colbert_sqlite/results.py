"""What a search gives back.

In: ranked passages joined to their rows. Out: hits. Leaves to others: ranking, reading rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Passage:
    """A span of one row's extracted text.

    ``text`` is ``extracted[start:end]``, in characters; ``ordinal`` counts the passages of the row from 0.
    """

    text: str
    start: int
    end: int
    ordinal: int


@dataclass(frozen=True, slots=True)
class Hit:
    """One row that a search found.

    ``rank`` counts from 1. ``score`` is what the hits are ranked by, higher is better: the MaxSim of the row's best
    passage, or in mode hybrid what both rankings together give the row. ``normalized_score`` is that MaxSim divided by
    the number of query tokens, from 0 to 1, for thresholds. ``pk`` is the value of a single-column primary key, or the
    tuple of a compound one. ``row`` has every column of the source row as it is now. ``index`` is the name of the
    index, ``database`` the path of its file, empty for one in memory. ``stale`` says that the row was changed after it
    was indexed: its score is that of its earlier text.
    """

    rank: int
    score: float
    normalized_score: float
    pk: Any
    row: dict[str, Any]
    passage: Passage
    index: str
    database: str
    stale: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the hit as nested dicts."""
        return asdict(self)
