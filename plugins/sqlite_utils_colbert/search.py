"""The commands that find rows: search and similar.

In: a query, or the key of a row, on the command line. Out: rows in the format that was asked for. Leaves to others:
the work; each command is one method of :class:`colbert_sqlite.Index`.
"""

from __future__ import annotations

import shlex
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import click

from colbert_sqlite import IndexSettings, SearchSettings
from colbert_sqlite.settings import Fusion, Mode
from sqlite_utils_colbert.options import (
    ColbertCommand,
    db_argument,
    fusion_options,
    index_argument,
    model_options,
    moved_model_option,
    plaid_options,
    primary_key,
    refuse_fusion_without_hybrid,
    setting_option,
    silent_option,
    valid_utf8,
    where_options,
)
from sqlite_utils_colbert.output import (
    Row,
    fit,
    output_options,
    print_rows,
    print_table,
    refuse_two_formats,
)
from sqlite_utils_colbert.progress import ProgressDisplay
from sqlite_utils_colbert.statement import select_of_search

if TYPE_CHECKING:
    from colbert_sqlite import Hit, Index

TITLE_COLUMNS = ("title", "name")  # what Datasette takes for the label of a row


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@click.argument("query", callback=valid_utf8)
@click.option("-k", "--limit", "k", type=int, default=10, show_default=True, help="Number of rows")
@where_options("Search only the rows that meet this condition")
@setting_option(SearchSettings, "mode", type=click.Choice(get_args(Mode)), default="colbert", show_default=True)
@fusion_options
@setting_option(SearchSettings, "threshold", type=float)
@click.option(
    "--also",
    multiple=True,
    nargs=2,
    metavar="DB INDEX",
    help="Search this index too and make one ranking of both; may be given again",
)
@click.option("-c", "--column", "columns", multiple=True, help="Column to output; default: the row's title")
@click.option("--passages", is_flag=True, help="Output passages whole, and where they stand in their rows")
@plaid_options
@click.option("--sql", "as_sql", is_flag=True, help="Output the SELECT that finds these rows, and search nothing")
@moved_model_option
@model_options
@click.option("-v", "--verbose", is_flag=True, help="Say which model and backend answered, and how fast")
@output_options
def search(
    db: str,
    index: str,
    query: str,
    k: int,
    where: str | None,
    params: tuple[tuple[str, str], ...],
    mode: Mode,
    fusion: Fusion | None,
    weight: float | None,
    threshold: float | None,
    also: tuple[tuple[str, str], ...],
    columns: tuple[str, ...],
    passages: bool,
    nprobe: int | None,
    ndocs: int | None,
    as_sql: bool,
    output: str | None,
    fmt: str | None,
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
        sqlite-utils colbert search blog.db posts 'bread' --mode hybrid
    """
    from colbert_sqlite import Index, search_all

    refuse_two_formats(output, fmt)
    limits: dict[str, Any] = {"fusion": fusion, "weight": weight, "nprobe": nprobe, "ndocs": ndocs}
    refuse_fusion_without_hybrid([mode], fusion, weight)
    started = time.perf_counter()
    with ExitStack() as stack:
        opened = [stack.enter_context(Index.open(path, name, **options)) for path, name in ((db, index), *also)]
        paths = [db, *(path for path, _ in also)]
        if as_sql:
            printed = {"also": also or None, "passages": passages or None, "fmt": fmt, "table": output}
            unsaid = [name for name, value in {**limits, **printed}.items() if value is not None]
            if unsaid:
                raise click.UsageError(f"--sql prints a SELECT, which can't say --{unsaid[0]}: leave out one of them.")
            settings = SearchSettings.for_k(k, mode=mode, threshold=threshold)
            click.echo(select_of_search(opened[0], query, k, settings, where, asked_columns(opened[0], columns)))
            if params:
                values = shlex.join(word for name, value in params for word in ("-p", name, value))
                click.echo(f"To run it with sqlite-utils query, add: {values}", err=True)
            return
        shown = [Shown(path, one, asked_columns(one, columns)) for path, one in zip(paths, opened, strict=True)]
        limits |= {"where": where, "params": dict(params), "mode": mode, "threshold": threshold}
        hits = search_all(opened, query, k, **limits) if also else opened[0].search(query, k, **limits)
        if verbose:
            seconds, encoder = time.perf_counter() - started, opened[0].encoder
            click.echo(f"Answered by {encoder.name}, {encoder.backend}, in {seconds:.2f} s", err=True)
        print_hits(hits, shown, passages, output, fmt, with_normalized=threshold is not None)


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@click.argument("pk", required=False)
@click.option("-k", "--limit", "k", type=int, default=10, show_default=True, help="Number of rows, for each row")
@click.option("--all", "every", is_flag=True, help="Find the rows like each row of the table")
@click.option("--into", metavar="TABLE", help="Write these to a table, replacing what similar wrote there before")
@where_options("Find only rows that meet this condition; with --all only these have similar ones")
@setting_option(SearchSettings, "threshold", type=float)
@click.option("-c", "--column", "columns", multiple=True, help="Column to output; default: the row's title")
@click.option("--passages", is_flag=True, help="Output passages whole, and where they stand in their rows")
@plaid_options
@silent_option
@output_options
@click.pass_context
def similar(
    ctx: click.Context,
    /,
    db: str,
    index: str,
    pk: str | None,
    k: int,
    every: bool,
    into: str | None,
    where: str | None,
    params: tuple[tuple[str, str], ...],
    threshold: float | None,
    columns: tuple[str, ...],
    passages: bool,
    nprobe: int | None,
    ndocs: int | None,
    silent: bool,
    output: str | None,
    fmt: str | None,
) -> None:
    """Find the rows most like a row

    From what is stored of both, so that no model is loaded. A key of several columns is a JSON array; so is a number in
    a column without a type.

    Examples:

    \b
        sqlite-utils colbert similar blog.db posts 17 -k 3 -t
        sqlite-utils colbert similar blog.db posts --all --into related -k 5
    """
    from colbert_sqlite import Index

    refuse_two_formats(output, fmt)
    if every == (pk is not None):
        raise click.UsageError("Name one row by its primary key, or ask for --all rows, not both.")
    if into and not every:
        raise click.UsageError("--into writes what --all finds: leave out one or add the other.")
    if every and (columns or passages or threshold is not None):
        raise click.UsageError("--all finds keys and scores: leave out --column, --passages and --threshold.")
    narrowed: dict[str, Any] = {"where": where, "params": dict(params), "nprobe": nprobe, "ndocs": ndocs}
    with Index.open(db, index) as opened:
        if pk is not None:
            shown = Shown(db, opened, asked_columns(opened, columns))
            [parameter] = [parameter for parameter in ctx.command.params if parameter.name == "pk"]
            key = primary_key(ctx, parameter, pk)
            hits = opened.similar(key, k, threshold=threshold, **narrowed)
            print_hits(hits, [shown], passages, output, fmt)
            return
        with ProgressDisplay(silent=silent) as progress:
            found = opened.similar_all(k, into=into, progress=progress, **narrowed)
    if into is None:
        print_keys([row for key, ranked in found for row in rows_of_similar(key, ranked)], output, fmt)
    elif not silent:
        n_rows = sum(len(ranked) for _, ranked in found)
        click.echo(f"Table {into}: {n_rows:,} rows like {len(found):,} rows", err=True)


class Shown(NamedTuple):
    """An index whose hits are printed: the file as the user called it, and the columns asked for, none for a title."""

    path: str
    opened: Index
    columns: list[str]


def print_hits(
    hits: list[Hit],
    shown: list[Shown],
    passages: bool,
    output: str | None,
    fmt: str | None,
    *,
    with_normalized: bool = False,
) -> None:
    """Print hits of these indexes in the format asked for."""
    if not hits:
        click.echo("Nothing matches.", err=True)
    tell_changes(hits, [one.opened for one in shown])
    stale = any(hit.stale for hit in hits)
    several, files = len(shown) > 1, len({one.opened.database for one in shown}) > 1
    places = {(one.opened.database, one.opened.name): one for one in shown}
    rows = []
    for hit in hits:
        path, opened, columns = places[hit.database, hit.index]
        theirs = {name: hit.row[name] for name in columns or title_column(hit, opened.settings)}
        if several and not columns:
            # In a table of several indexes a title stands under one name.
            theirs = {"title": next(iter(theirs.values()), None)}
        told: Row = {"normalized_score": round(hit.normalized_score, 4) if with_normalized else None}
        told |= {"stale": hit.stale if stale else None, "index": hit.index if several else None}
        told["database"] = path if files else None
        extra = {name: value for name, value in told.items() if value is not None}
        rows.append(row_of_hit(hit, theirs, extra, with_place=passages and not (fmt or output == "table")))
    if fmt or output == "table":
        # Not every other format can have several lines in a cell.
        print_table(fit([row_of_table(row) for row in rows], whole=passages, wrap=fmt is None), fmt)
    else:
        print_rows(rows, output)


def tell_changes(hits: list[Hit], indexes: list[Index]) -> None:
    """Say on stderr that rows have changed since the last sync."""
    if stale := sum(hit.stale for hit in hits):
        click.echo(f"{stale} of these rows changed after they were indexed: sync to score them anew.", err=True)
    elif pending := sum(index.pending_changes or 0 for index in indexes):
        rows = "1 row has" if pending == 1 else f"{pending:,} rows have"
        click.echo(f"{rows} changed since the last sync, and may be missing here.", err=True)


def rows_of_similar(key: Any, ranked: list[tuple[Any, float]]) -> list[Row]:
    return [
        {"pk": key, "rank": rank, "related_pk": other, "score": round(score, 4)}
        for rank, (other, score) in enumerate(ranked, start=1)
    ]


def print_keys(rows: list[Row], output: str | None, fmt: str | None) -> None:
    if fmt or output == "table":
        print_table([{name: joined(value) for name, value in row.items()} for row in rows], fmt)
    else:
        print_rows(rows, output)


def asked_columns(index: Index, columns: tuple[str, ...]) -> list[str]:
    """The names of *columns* as the table of *index* spells them.

    :raises SourceError: if the table has no such column
    """
    return index.spelled(columns) if columns else []


def title_column(hit: Hit, settings: IndexSettings) -> list[str]:
    """The column most like a title, if there is one."""
    names = {name.lower(): name for name in hit.row}
    first_of_several = settings.columns[:1] if len(settings.columns) > 1 else ()
    titles = [*([settings.heading] if settings.heading else []), *TITLE_COLUMNS, *first_of_several]
    return [names[title.lower()] for title in titles if title.lower() in names][:1]


def row_of_hit(hit: Hit, columns: Row, extra: Row, *, with_place: bool) -> Row:
    """A hit as it is printed.

    :param columns: what to print of the source row
    :param extra: what else is told of the hit
    """
    passage: Row = {"passage": hit.passage.text}
    if with_place:
        passage |= {"ordinal": hit.passage.ordinal, "start": hit.passage.start, "end": hit.passage.end}
    ours = {"rank": hit.rank, "score": round(hit.score, 4), "pk": hit.pk, **extra}
    # A column of the table may be called rank, score, pk, stale or passage too.
    theirs = {f"row.{name}" if name.lower() in {*ours, *passage} else name: value for name, value in columns.items()}
    return {**ours, **theirs, **passage}


def row_of_table(row: Row) -> Row:
    # The rows are in order, and sums of reciprocal ranks differ in the fourth digit.
    score = row["score"] if row["score"] >= 0.1 else f"{row['score']:.4f}"
    return {name: joined(value) for name, value in {**row, "score": score}.items() if name != "rank"}


def joined(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value
