"""The command that finds rows: search.

In: a query, one or more indexes. Out: their best rows, or the SELECT that finds them. Leaves to others: the search
(:class:`colbert_sqlite.Index`), the look of hits (hits.py).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from colbert_sqlite import Filter, ModelOptions, SearchSettings, serving
from colbert_sqlite.serving import quote_identifier
from sqlite_utils_colbert.hits import Origin, columns_option, passages_option, print_hits
from sqlite_utils_colbert.options import (
    ColbertCommand,
    backend_verbose_option,
    db_argument,
    filter_options,
    fusion_options,
    index_argument,
    keywords,
    limit_option,
    mode_option,
    model_options,
    moved_model_option,
    plaid_options,
    query_argument,
    search_options,
    threshold_option,
)
from sqlite_utils_colbert.output import OutputFormat, output_options, print_backend

if TYPE_CHECKING:
    from colbert_sqlite import Index

# colbert_search() has no arguments for them.
SETTINGS_NOT_IN_SQL = ("fusion", "weight", "nprobe", "ndocs")


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@query_argument
@search_options(limit_option(10, "Number of rows"), mode_option, *fusion_options, threshold_option, *plaid_options)
@filter_options("Search only the rows that meet this condition")
@click.option(
    "--also",
    multiple=True,
    nargs=2,
    metavar="DB INDEX",
    help="Search this index too and make one ranking of both; several are possible",
)
@columns_option
@passages_option
@click.option("--sql", "as_sql", is_flag=True, help="Output the SELECT that finds these rows, and search nothing")
@moved_model_option
@model_options
@backend_verbose_option
@output_options
@click.pass_context
def search(
    ctx: click.Context,
    /,
    db: str,
    index: str,
    query: str,
    settings: SearchSettings,
    filter: Filter,
    also: tuple[tuple[str, str], ...],
    columns: tuple[str, ...],
    passages: bool,
    as_sql: bool,
    model: str | None,
    options: ModelOptions,
    verbose: bool,
    output: OutputFormat,
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

    if as_sql:
        refuse_options_not_in_sql(ctx, output, also=also, passages=passages)
    started = time.perf_counter()
    names = [(db, index), *also]
    with ExitStack() as stack:
        loading = {"model": model, **keywords(options)}
        indexes = [stack.enter_context(Index.open(path, name, **loading)) for path, name in names]
        if as_sql:
            print_select(indexes[0], query, settings, filter, columns)
            return
        origins = [Origin.of(path, opened, columns) for (path, _), opened in zip(names, indexes, strict=True)]
        how = {**keywords(settings), **keywords(filter, "where", "params")}
        hits = search_all(indexes, query, **how) if also else indexes[0].search(query, **how)
        if verbose:
            print_backend(indexes[0].load_encoder(), seconds=time.perf_counter() - started)
        print_hits(hits, origins, output, passages=passages, with_normalized=settings.threshold is not None)


def refuse_options_not_in_sql(
    ctx: click.Context, output: OutputFormat, *, also: Sequence[tuple[str, str]], passages: bool
) -> None:
    """Make sure that a SELECT can say all that the options say.

    :raises click.UsageError: if it cannot
    """
    named = [name for name in SETTINGS_NOT_IN_SQL if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    others = {"also": also, "passages": passages, "fmt": output.fmt, output.name: output.name != "json"}
    named += [name for name, value in others.items() if value]
    if named:
        raise click.UsageError(f"--sql prints a SELECT, which can't say --{named[0]}: leave out one of them.")


def print_select(index: Index, query: str, settings: SearchSettings, filter: Filter, columns: Sequence[str]) -> None:
    """Print the SELECT of a search, and on stderr how to run it."""
    with index.read() as view:
        names = serving.column_names(view, columns)
    click.echo(select_of(index, query, settings, filter.where, names))
    if filter.params:
        values = shlex.join(word for name, value in filter.params.items() for word in ("-p", name, str(value)))
        click.echo(f"To run it with sqlite-utils query, add: {values}", err=True)


def select_of(index: Index, query: str, settings: SearchSettings, where: str | None, columns: Sequence[str]) -> str:
    """Return a SELECT of the rows that the search finds, best first.

    Any connection that has our SQL functions can run it. Parameters of *where* stay parameters.

    :raises ValueError: if keys may be BLOBs, which JSON cannot hold
    """
    with index.read() as view:
        has_blob_keys = serving.has_blob_keys(view)
    if has_blob_keys:
        raise ValueError(f"table {index.settings.table!r} has BLOBs for keys, which this SQL can't name")
    table, keys = quote_identifier(index.settings.table), [quote_identifier(key) for key in index.key_columns]
    # Not the name of the table itself.
    hits = "hits" if index.settings.table.lower() != "hits" else "matches"
    arguments = [literal(index.name), literal(query), str(settings.k)]
    if settings.mode != "colbert" or where is not None:
        arguments.append(literal(settings.mode))
    if where is not None:
        key = keys[0] if len(keys) == 1 else f"json_array({', '.join(keys)})"
        arguments.append(f"(\n  select json_group_array({key}) from {table} where {where}\n)")
    selected = ", ".join(f"{table}.{quote_identifier(column)}" for column in columns) or f"{table}.*"
    # Not ->>, which SQLite has since 3.38.
    paths = ["$.pk"] if len(keys) == 1 else [f"$.pk[{i}]" for i in range(len(keys))]
    values = [f"json_extract({hits}.value, '{path}')" for path in paths]
    of_row = " and ".join(f"{table}.{key} = {value}" for key, value in zip(keys, values, strict=True))
    threshold = ""
    if settings.threshold is not None:
        threshold = f"where json_extract({hits}.value, '$.normalized_score') >= {settings.threshold}\n"
    return (
        f"select {selected}, json_extract({hits}.value, '$.score') as score\n"
        f"from json_each(colbert_search({', '.join(arguments)})) as {hits}\n"
        f"join {table} on {of_row}\n{threshold}order by {hits}.key"
    )


def literal(text: str) -> str:
    """Return *text* as a SQL string."""
    return "'" + text.replace("'", "''") + "'"
