"""The command that finds rows like a row: similar.

In: the key of a row, or no key for all rows. Out: rows like it, or keys and scores for all. Leaves to others: the work
(:class:`colbert_sqlite.Index`), the look of hits (hits.py).
"""

from __future__ import annotations

from dataclasses import asdict

import click

from colbert_sqlite import Filter
from sqlite_utils_colbert.hits import Origin, columns_option, joined, passages_option, print_hits
from sqlite_utils_colbert.options import (
    ColbertCommand,
    PrimaryKey,
    db_argument,
    filter_options,
    index_argument,
    keywords,
    limit_option,
    ndocs_option,
    nprobe_option,
    primary_key,
    silent_option,
    threshold_option,
)
from sqlite_utils_colbert.output import OutputFormat, Row, output_options, print_rows, print_table
from sqlite_utils_colbert.progress import ProgressDisplay


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@click.argument("pk", required=False, callback=primary_key)
@limit_option(10, "Number of rows, for each row")
@click.option("--all", "every", is_flag=True, help="Find the rows like each row of the table")
@click.option("--into", metavar="TABLE", help="Write these to a table, replacing what similar wrote there before")
@filter_options("Find only rows that meet this condition; with --all only these have similar ones")
@threshold_option
@columns_option
@passages_option
@nprobe_option
@ndocs_option
@silent_option
@output_options
def similar(
    db: str,
    index: str,
    pk: PrimaryKey | None,
    k: int,
    every: bool,
    into: str | None,
    filter: Filter,
    threshold: float | None,
    columns: tuple[str, ...],
    passages: bool,
    nprobe: int | None,
    ndocs: int | None,
    silent: bool,
    output: OutputFormat,
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

    if every == (pk is not None):
        raise click.UsageError("Name one row by its primary key, or ask for --all rows, not both.")
    if into and not every:
        raise click.UsageError("--into writes what --all finds: leave out one or add the other.")
    if every and (columns or passages or threshold is not None):
        raise click.UsageError("--all finds keys and scores: leave out --column, --passages and --threshold.")
    how = {"k": k, "nprobe": nprobe, "ndocs": ndocs, **keywords(filter, "where", "params")}
    with Index.open(db, index) as opened:
        if pk is not None:
            origin = Origin.of(db, opened, columns)
            print_hits(opened.similar(pk, threshold=threshold, **how), [origin], output, passages=passages)
            return
        with ProgressDisplay(silent=silent) as progress:
            rows = opened.similar_all(into=into, progress=progress, **how)
    if into is None:
        print_keys([{**asdict(row), "score": round(row.score, 4)} for row in rows], output)
    elif not silent:
        n_rows = len({row.pk for row in rows})
        click.echo(f"Table {into}: {len(rows):,} rows like {n_rows:,} rows", err=True)


def print_keys(rows: list[Row], output: OutputFormat) -> None:
    if output.is_table:
        print_table([{name: joined(value) for name, value in row.items()} for row in rows], output.fmt)
    else:
        print_rows(rows, output)
