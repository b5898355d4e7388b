"""Hits as search, similar and ask show them.

In: hits, and the indexes they are from. Out: rows for a table or for machines, titles, warnings. Leaves to others: how
rows become text (output.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from colbert_sqlite import IndexSettings, serving
from sqlite_utils_colbert.output import OutputFormat, Row, fit, print_rows, print_table

if TYPE_CHECKING:
    from colbert_sqlite import Hit, Index

TITLE_COLUMNS = ("title", "name")  # what Datasette takes for the label of a row
MIN_ROUNDED_SCORE = 0.1

columns_option = click.option(
    "-c", "--column", "columns", multiple=True, help="Column to output; default: the row's title"
)
passages_option = click.option("--passages", is_flag=True, help="Output passages whole, and where they are in the row")


@dataclass(frozen=True, slots=True)
class Origin:
    """An index that hits are from, and the columns of its table to print.

    ``path`` is its file as the user wrote it. Without ``columns`` a row's title is printed.
    """

    path: str
    index: Index
    columns: list[str]

    @classmethod
    def of(cls, path: str, index: Index, columns: Sequence[str]) -> Origin:
        """Return an index and *columns* as its table writes their names.

        :raises SourceError: if the table has no such column
        """
        with index.read() as view:
            return cls(path, index, serving.column_names(view, columns))


def print_hits(
    hits: Sequence[Hit],
    origins: Sequence[Origin],
    output: OutputFormat,
    *,
    passages: bool,
    with_normalized: bool = False,
) -> None:
    """Print hits, and what a reader must know of their indexes.

    :param passages: print passages whole, and their offsets where a machine reads
    :param with_normalized: print normalized scores too
    """
    if not hits:
        click.echo("Nothing matches.", err=True)
    warn_of_changes(hits, [origin.index for origin in origins])
    rows = rows_of_hits(hits, origins, with_normalized=with_normalized, with_offsets=passages and not output.is_table)
    if output.is_table:
        # Few formats have several lines in a cell.
        print_table(fit([cells_of(row) for row in rows], whole=passages, wrap=output.fmt is None), output.fmt)
    else:
        print_rows(rows, output)


def warn_of_changes(hits: Sequence[Hit], indexes: Sequence[Index]) -> None:
    """Say on stderr that rows have changed since the last sync."""
    if stale := sum(hit.stale for hit in hits):
        click.echo(f"{stale} of these rows changed after they were indexed: sync to score them anew.", err=True)
    elif pending := sum(map(pending_changes, indexes)):
        rows = "1 row has" if pending == 1 else f"{pending:,} rows have"
        click.echo(f"{rows} changed since the last sync, and may be missing here.", err=True)


def pending_changes(index: Index) -> int:
    """Return how many rows changed since the last sync, as far as that is known."""
    with index.read() as view:
        return serving.pending_changes(view) or 0


def rows_of_hits(
    hits: Sequence[Hit], origins: Sequence[Origin], *, with_normalized: bool, with_offsets: bool
) -> list[Row]:
    """Return a row for each hit; all rows have the same columns."""
    stale = any(hit.stale for hit in hits)
    several, files = len(origins) > 1, len({origin.index.database for origin in origins}) > 1
    by_name = {(origin.index.database, origin.index.name): origin for origin in origins}
    rows = []
    for hit in hits:
        origin = by_name[hit.database, hit.index]
        title = title_column(hit, origin.index.settings)
        values: Row
        if several and not origin.columns:
            # In a table of several indexes all titles are in one column.
            values = {"title": None if title is None else hit.row[title]}
        else:
            values = {name: hit.row[name] for name in origin.columns or ([] if title is None else [title])}
        extra: Row = {
            "normalized_score": round(hit.normalized_score, 4) if with_normalized else None,
            "stale": hit.stale if stale else None,
            "index": hit.index if several else None,
            "database": origin.path if files else None,
        }
        extra = {name: value for name, value in extra.items() if value is not None}
        rows.append(row_of_hit(hit, values, extra, with_offsets=with_offsets))
    return rows


def title_column(hit: Hit, settings: IndexSettings) -> str | None:
    """Return the column of a row that is most like a title."""
    names = {name.lower(): name for name in hit.row}
    first_of_several = settings.columns[:1] if len(settings.columns) > 1 else ()
    titles = [*([settings.heading] if settings.heading else []), *TITLE_COLUMNS, *first_of_several]
    return next((names[title.lower()] for title in titles if title.lower() in names), None)


def row_of_hit(hit: Hit, values: Row, extra: Row, *, with_offsets: bool) -> Row:
    """Return a hit as it is printed.

    :param values: columns of the source row
    :param extra: more about the hit
    """
    passage: Row = {"passage": hit.passage.text}
    if with_offsets:
        passage |= {"ordinal": hit.passage.ordinal, "start": hit.passage.start, "end": hit.passage.end}
    ours: Row = {"rank": hit.rank, "score": round(hit.score, 4), "pk": hit.pk, **extra}
    # A column of the table may be called rank, score, pk, stale or passage too.
    theirs = {f"row.{name}" if name.lower() in {*ours, *passage} else name: value for name, value in values.items()}
    return {**ours, **theirs, **passage}


def cells_of(row: Row) -> Row:
    """Return a row as a table shows it: in order, so without its rank."""
    score = row["score"]
    if isinstance(score, float) and score < MIN_ROUNDED_SCORE:
        # Sums of reciprocal ranks differ in the fourth digit.
        score = f"{score:.4f}"
    return {name: joined(value) for name, value in {**row, "score": score}.items() if name != "rank"}


def joined(value: object) -> object:
    """Return a key of several columns as one text."""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value
