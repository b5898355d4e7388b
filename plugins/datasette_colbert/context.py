"""What the templates of the search pages read.

In: indexes, and the results of searches. Out: names a template reads. Leaves to others: searching, wording, markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from datasette_colbert.filters import are_blobs
from datasette_colbert.rows import date_of_row, title_of_row
from datasette_colbert.urls import index_url, row_url, similar_url

if TYPE_CHECKING:
    from datasette.app import Datasette

    from colbert_sqlite import Explanation, Hit
    from colbert_sqlite.serving import RegisteredIndex
    from datasette_colbert.access import Target
    from datasette_colbert.service import IndexFacts, SearchResult


@dataclass(frozen=True, slots=True)
class PageIndex:
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
    selected: bool = False
    why_not: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class PageFilter:
    """A filter of the request, in words, and the page without it."""

    label: str
    remove_url: str


@dataclass(frozen=True, slots=True)
class PageHit:
    """A row that matches. ``explanation`` is None where the row changed after it was indexed, or has no query."""

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

    ``hidden`` are arguments that a form hands on, the mode among them. ``facets`` is what Datasette's own
    ``_facet_results.html`` reads, which needs ``path_with_replaced_args`` in the context too; ``n_faceted`` is how many
    rows they count. ``words`` are the texts of the query's words, in the order of ``Explanation.matches``. ``examples``
    are queries to begin with. ``error`` is a sentence for the reader; ``hits`` is empty then. ``milliseconds`` is None
    without a query.
    """

    index: PageIndex
    query: str
    mode: str
    modes: tuple[Choice, ...]
    hits: tuple[PageHit, ...] = ()
    words: tuple[str, ...] = ()
    examples: tuple[Choice, ...] = ()
    error: str = ""
    milliseconds: float | None = None
    filters: tuple[PageFilter, ...] = ()
    clear_filters_url: str = ""
    filter_columns: tuple[str, ...] = ()
    filter_lookups: tuple[tuple[str, str, bool], ...] = ()
    hidden: tuple[tuple[str, str], ...] = ()
    facet_choices: tuple[Choice, ...] = ()
    facets: Sequence[Mapping[str, object]] = field(default_factory=list)
    previous_url: str = ""
    next_url: str = ""
    json_url: str = ""
    csv_url: str = ""
    n_faceted: int = 0
    manage_url: str = ""
    table_search_url: str = ""


@dataclass(frozen=True, slots=True)
class SimilarPage:
    """The rows most like one row. ``title`` and ``row_url`` are that row's."""

    index: PageIndex
    title: str
    row_url: str
    hits: tuple[PageHit, ...] = ()
    error: str = ""
    milliseconds: float | None = None
    json_url: str = ""


def page_index(datasette: Datasette, database: str, index: RegisteredIndex, facts: IndexFacts | None) -> PageIndex:
    """Return an index for a page; without *facts*, only its names and links."""
    return PageIndex(
        name=index.name,
        table=index.table,
        columns=facts.columns if facts else (),
        url=index_url(datasette, database, index.name),
        table_url=str(datasette.urls.table(database, index.table)),
        rows=facts.rows if facts else None,
        pending_changes=facts.pending_changes if facts else None,
    )


def page_hits(datasette: Datasette, target: Target, result: SearchResult, label: str | None) -> tuple[PageHit, ...]:
    """Return the hits of a result for a page. *label* is the column whose text is a row's title."""
    return tuple(_page_hit(datasette, target, result, hit, label) for hit in result.hits)


def _page_hit(datasette: Datasette, target: Target, result: SearchResult, hit: Hit, label: str | None) -> PageHit:
    database, index = target.database, target.index
    heading = hit.row.get(result.facts.heading) if result.facts.heading else None
    return PageHit(
        rank=hit.rank,
        score=score_text(hit.score, result.mode),
        normalized_score=hit.normalized_score,
        title=title_of_row(hit.row, label, hit.pk),
        url=row_url(datasette, database, index.table, hit.pk),
        date=date_of_row(hit.row),
        stale=hit.stale,
        heading=heading if isinstance(heading, str) else "",
        passage=hit.passage.text,
        # Paths are text: no row page of Datasette has a BLOB in its path either.
        similar_url="" if are_blobs([hit.pk]) else similar_url(datasette, database, index.name, hit.pk),
        explanation=result.explanations.get(hit.rank),
    )


def score_text(score: float, mode: str) -> str:
    """Return a score for people. Reciprocal ranks are small, and close to each other."""
    return f"{score:.{4 if mode == 'hybrid' else 2}f}"
