"""What the pages show, for their templates.

In: what a search found. Out: names a template reads. Leaves to others: searching, wording, markup.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colbert_sqlite.explain import Explanation


@dataclass(frozen=True, slots=True)
class ShownIndex:
    """An index that the actor may search.

    ``rows`` is None where they were not counted, ``pending_changes`` where a sync would have to compare all rows.
    """

    name: str
    table: str
    columns: tuple[str, ...]
    url: str
    table_url: str
    rows: int | None
    pending_changes: int | None


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several links; ``title`` says more of it, ``why_not`` why it can't be chosen."""

    value: str
    label: str
    url: str
    selected: bool
    why_not: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class ShownFilter:
    """A filter that is applied, in words, and the page without it."""

    label: str
    remove_url: str


@dataclass(frozen=True, slots=True)
class ShownHit:
    """A row that was found. ``explanation`` is None where the row changed after it was indexed, or has no query."""

    rank: int
    score: str
    normalized_score: float
    title: str
    url: str
    date: str
    stale: bool
    heading: str
    passage: str
    similar_url: str
    explanation: Explanation | None


@dataclass(frozen=True, slots=True)
class SearchPage:
    """``/{database}/-/colbert/{index}``.

    ``hidden`` are arguments that a form hands on, the mode among them; ``facets`` what Datasette's own
    ``_facet_results.html`` reads, which also wants ``path_with_replaced_args`` in the context, and ``n_faceted`` how
    many rows they count. ``words`` are the texts of the query's words, in the order of ``Explanation.matches``.
    ``examples`` are queries to begin with. ``error`` is a sentence for the reader; ``hits`` is empty then.
    ``milliseconds`` is None without a query.
    """

    index: ShownIndex
    query: str
    mode: str
    modes: tuple[Choice, ...]
    hits: tuple[ShownHit, ...] = ()
    words: tuple[str, ...] = ()
    examples: tuple[Choice, ...] = ()
    error: str = ""
    milliseconds: float | None = None
    filters: tuple[ShownFilter, ...] = ()
    clear_filters_url: str = ""
    filter_columns: tuple[str, ...] = ()
    filter_lookups: tuple[tuple[str, str, bool], ...] = ()
    hidden: tuple[tuple[str, str], ...] = ()
    facet_choices: tuple[Choice, ...] = ()
    facets: list[dict[str, Any]] = field(default_factory=list)
    previous_url: str = ""
    next_url: str = ""
    json_url: str = ""
    csv_url: str = ""
    n_faceted: int = 0
    manage_url: str = ""
    table_search_url: str = ""


@dataclass(frozen=True, slots=True)
class SimilarPage:
    """The rows most like one row, whose ``title`` and page are given."""

    index: ShownIndex
    title: str
    row_url: str
    hits: tuple[ShownHit, ...] = ()
    error: str = ""
    milliseconds: float | None = None
    json_url: str = ""
