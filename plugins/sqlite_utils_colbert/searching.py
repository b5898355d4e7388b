"""The commands that find rows: search.

In: a query on the command line. Out: rows in the format that was asked for. Leaves to others: the work, which is one
method of :class:`colbert_sqlite.Index`.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from colbert_sqlite import IndexSettings, SearchSettings
from sqlite_utils_colbert.options import (
    ColbertCommand,
    db_argument,
    index_argument,
    model_options,
    moved_model_option,
    setting_option,
    valid_utf8,
    where_options,
)
from sqlite_utils_colbert.output import fit, output_options, print_rows, print_table, refuse_two_formats

if TYPE_CHECKING:
    from colbert_sqlite import Hit

TITLE_COLUMNS = ("title", "name")  # what Datasette takes for the label of a row


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@click.argument("query", callback=valid_utf8)
@click.option("-k", "--limit", "k", type=int, default=10, show_default=True, help="Number of rows")
@where_options("Search only the rows that meet this condition")
@click.option("-c", "--column", "columns", multiple=True, help="Column to output; default: the row's title")
@click.option("--passages", is_flag=True, help="Output passages whole, and where they stand in their rows")
@setting_option(SearchSettings, "nprobe", type=int)
@setting_option(SearchSettings, "ndocs", type=int)
@moved_model_option
@model_options
@click.option("-v", "--verbose", is_flag=True, help="Say which model and backend answered, and how fast")
@output_options
def search(
    db: str,
    index: str,
    query: str,
    k: int,
    params: tuple[tuple[str, str], ...],
    columns: tuple[str, ...],
    passages: bool,
    output: str | None,
    fmt: str | None,
    model: str | None,
    device: str | None,
    dtype: str,
    batch_size: int | None,
    trust_remote_code: bool,
    backend: str,
    verbose: bool,
    **options: Any,
) -> None:
    """Find the rows that answer a query best

    Each comes with its score (higher is better), primary key, title and best passage.

    Examples:

    \b
        sqlite-utils colbert search blog.db posts 'bread that stays flat' -t
        sqlite-utils colbert search blog.db posts 'bread that stays flat' \\
          --where 'created >= :since' -p since 2021 -c title -c created
    """
    from colbert_sqlite import Index

    refuse_two_formats(output, fmt)
    started = time.perf_counter()
    with Index.open(
        db,
        index,
        model=model,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
        backend=backend,
    ) as opened:
        asked = spelled_as_in_table(db, opened.settings.table, columns)
        hits = opened.search(query, k, params=dict(params), **options)
        if verbose:
            seconds, encoder = time.perf_counter() - started, opened.encoder
            click.echo(f"Answered by {encoder.name}, {encoder.backend}, in {seconds:.2f} s", err=True)
        shown = asked or (title_column(hits[0], opened.settings) if hits else [])
    if not hits:
        click.echo("Nothing matches.", err=True)
    if stale := sum(hit.stale for hit in hits):
        click.echo(f"{stale} of these rows changed after they were indexed: sync to score them anew.", err=True)
    if fmt or output == "table":
        rows = [row_of_table(hit, shown, with_stale=stale > 0) for hit in hits]
        # Not every other format can have several lines in a cell.
        print_table(fit(rows, whole=passages, wrap=fmt is None), fmt)
    else:
        print_rows([row_of_hit(hit, shown, with_place=passages, with_stale=stale > 0) for hit in hits], output)


def spelled_as_in_table(db: str, table: str, columns: tuple[str, ...]) -> list[str]:
    """The names of *columns* as the schema spells them.

    :raises SourceError: if the table has no such column
    """
    if not columns:
        return []
    from colbert_sqlite.storage.connection import connect
    from colbert_sqlite.storage.source import Source

    conn, _ = connect(db)
    with closing(conn):
        return list(Source.inspect(conn, table, columns).columns)


def title_column(hit: Hit, settings: IndexSettings) -> list[str]:
    """The column most like a title, if there is one."""
    names = {name.lower(): name for name in hit.row}
    first_of_several = settings.columns[:1] if len(settings.columns) > 1 else ()
    titles = [*([settings.heading] if settings.heading else []), *TITLE_COLUMNS, *first_of_several]
    return [names[title.lower()] for title in titles if title.lower() in names][:1]


def row_of_hit(hit: Hit, columns: list[str], *, with_place: bool, with_stale: bool) -> dict[str, Any]:
    passage: dict[str, Any] = {"passage": hit.passage.text}
    if with_place:
        passage |= {"ordinal": hit.passage.ordinal, "start": hit.passage.start, "end": hit.passage.end}
    ours = {"rank": hit.rank, "score": round(hit.score, 4), "pk": hit.pk}
    if with_stale:
        ours["stale"] = hit.stale
    # A column of the table may be called rank, score, pk, stale or passage too.
    theirs = {f"row.{name}" if name.lower() in {*ours, *passage} else name: hit.row[name] for name in columns}
    return {**ours, **theirs, **passage}


def row_of_table(hit: Hit, columns: list[str], *, with_stale: bool) -> dict[str, Any]:
    row = row_of_hit(hit, columns, with_place=False, with_stale=with_stale)
    del row["rank"]  # the rows are in order
    return {**row, "pk": ", ".join(map(str, hit.pk)) if isinstance(hit.pk, tuple) else hit.pk}
