"""Results: the frozen objects that the methods of an index return.

In: numbers, keys, texts. Out: objects with ``to_dict()``, whose value ``json.dumps`` takes. Leaves to others: computing
their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from colbert_sqlite.values import json_value


class Result:
    """A frozen dataclass that prints as JSON."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as ``json.dumps`` takes them: tuples as lists, a BLOB as sqlite-utils writes it."""
        return dict(json_value(asdict(self)))  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class Passage(Result):
    """A span of one row's extracted text.

    ``text`` is ``extracted[start:end]``, in characters; ``ordinal`` counts the passages of the row from 0.
    """

    text: str
    start: int
    end: int
    ordinal: int


@dataclass(frozen=True, slots=True)
class Hit(Result):
    """One row of the answer to a query.

    ``rank`` counts from 1. Hits are ranked by ``score``, higher is better: the MaxSim of the row's best passage, in
    mode hybrid the fused score of both rankings. ``normalized_score`` is that MaxSim divided by the number of query
    tokens, from 0 to 1, for thresholds. ``pk`` is the value of a single-column primary key, or the tuple of a compound
    one. ``row`` has every column of the source row as it is now. ``index`` is the name of the index, ``database`` the
    path of its file, empty for one in memory. ``stale`` is true if the row changed after it was indexed: its score is
    that of its earlier text.
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


@dataclass(frozen=True, slots=True)
class Similar(Result):
    """One row that ``similar_all`` ranks as like another.

    ``rank`` counts from 1 for each ``pk``. ``score`` is the mean similarity of the most salient tokens of ``pk`` in
    ``related_pk``.
    """

    pk: Any
    rank: int
    related_pk: Any
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSummary(Result):
    """One index of a database, or one unfinished build.

    ``problem`` says why an index in state "unreadable" can't be read; only its name is set beside. ``bytes`` counts all
    pages of its tables.
    """

    name: str
    state: Literal["ready", "building", "unreadable"]
    table: str = ""
    columns: tuple[str, ...] = ()
    heading: str | None = None
    model: str = ""
    dim: int = 0
    nbits: int = 0
    rows: int = 0
    rows_without_text: int = 0
    passages: int = 0
    tokens: int = 0
    bytes: int = 0
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the known fields as ``json.dumps`` takes them; ``problem`` only if there is one."""
        values = Result.to_dict(self)
        if self.state == "unreadable":
            return {name: values[name] for name in ("name", "state", "problem")}
        del values["problem"]
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexInfo(IndexSummary):
    """Settings, counts and sizes of one index.

    :param backend: library, number type and device that run the model
    :param pending_changes: number of rows that the next sync looks at; None if it must compare all rows
    :param drift: mean residual of recent tokens divided by that of the first ones, less 1; None without recent tokens
    :param why_rebuild: why a rebuild pays; None if it does not
    :param generation: grows with each change of the index
    :param bytes_by_part: bytes of the pages of each table
    :param bytes_reclaimable: bytes of residuals of deleted passages, which ``optimize`` frees
    :param bytes_per_token: bytes of all tables for each token; None in an index without tokens
    """

    where: str | None
    params: Mapping[str, object] = field(default_factory=dict)
    html: str
    max_tokens: int | None
    pool_factor: int
    key_columns: tuple[str, ...]
    model_fingerprint: str
    backend: str
    triggers: bool
    pending_changes: int | None
    n_centroids: int
    n_centroids_added: int
    drift: float | None
    why_rebuild: str | None
    generation: int
    schema_version: int
    created: str
    updated: str
    bytes_by_part: Mapping[str, int] = field(default_factory=dict)
    bytes_reclaimable: int
    bytes_per_token: float | None
