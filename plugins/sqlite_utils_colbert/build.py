"""The commands that make an index, make it anew or remove it: index, rebuild, upgrade and drop.

In: a table and its columns, or the name of an index. Out: an index; progress and a summary on stderr. Leaves to others:
the work (:class:`colbert_sqlite.Index`).
"""

from __future__ import annotations

import shlex
import time
from typing import get_args

import click

from colbert_sqlite import IndexInfo, IndexNotFound, IndexSettings, ModelOptions, serving
from colbert_sqlite.serving import NBITS, Html
from sqlite_utils_colbert.options import (
    ColbertCommand,
    db_argument,
    grouped,
    index_argument,
    keywords,
    model_options,
    moved_model_option,
    named_model_option,
    param_option,
    refuse_model_of_several,
    setting_option,
    silent_option,
    verbose_option,
    where_option,
)
from sqlite_utils_colbert.output import print_stages, size
from sqlite_utils_colbert.progress import ProgressDisplay, interruptible


def index_settings(
    table: str,
    columns: tuple[str, ...],
    nbits: str,
    where: str | None,
    params: tuple[tuple[str, str], ...],
    heading: str | None,
    html: Html,
    max_tokens: int | None,
    pool_factor: int,
    triggers: bool,
) -> IndexSettings:
    """Return the settings of an index whose model is not loaded yet."""
    return IndexSettings(
        table=table,
        columns=columns,
        model="",
        nbits=int(nbits),
        where=where,
        params=dict(params),
        heading=heading,
        html=html,
        max_tokens=max_tokens,
        pool_factor=pool_factor,
        triggers=triggers,
    )


# What index takes from the command line; the model adds the others.
INDEX_FIELDS = "table columns nbits where params heading html max_tokens pool_factor triggers".split()


@click.command(cls=ColbertCommand)
@db_argument
@grouped(
    "settings",
    index_settings,
    click.argument("table"),
    click.argument("columns", nargs=-1, required=True, metavar="COLUMN..."),
    setting_option(IndexSettings, "nbits", type=click.Choice([str(n) for n in NBITS]), default="4", show_default=True),
    where_option("Index only the rows that meet this condition"),
    param_option("--where"),
    setting_option(IndexSettings, "heading", metavar="COLUMN"),
    setting_option(IndexSettings, "html", type=click.Choice(get_args(Html)), default="auto", show_default=True),
    setting_option(IndexSettings, "max_tokens", type=int),
    setting_option(IndexSettings, "pool_factor", type=int, default=1, show_default=True),
    click.option(
        "--triggers/--no-triggers",
        default=True,
        show_default=True,
        help="Let triggers on the table note which rows change; without them sync compares every row",
    ),
)
@click.option("--name", help="Name of the index; default: the table's")
@named_model_option
@model_options
@click.option("--replace", is_flag=True, help="Replace the index of this name, which is in use until then")
@verbose_option
@silent_option
@click.pass_context
def index(
    ctx: click.Context,
    /,
    db: str,
    settings: IndexSettings,
    name: str | None,
    model: str | None,
    options: ModelOptions,
    replace: bool,
    verbose: bool,
    silent: bool,
) -> None:
    """Create an index of one or more columns of a table

    Interrupted, it goes on where it stopped when the same command is run again.

    Example:

    \b
        sqlite-utils colbert index blog.db posts body --heading title
    """
    from colbert_sqlite import Index

    started = time.perf_counter()
    how = {**keywords(settings, *INDEX_FIELDS), **keywords(options)}
    with interruptible(ctx, ProgressDisplay(silent=silent)) as progress:
        opened = Index.create(db, name=name, model=model, replace=replace, progress=progress, **how)
    seconds = time.perf_counter() - started
    with opened:
        if verbose:
            print_stages(opened, seconds=seconds)
        if not silent:
            info = opened.info()
            print_summary(info, seconds=seconds)
            if info.passages:
                search = [*ctx.command_path.split()[:-1], "search", db, opened.name]
                click.echo(f"Search it: {shlex.join(search)} 'your question' -t", err=True)


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@moved_model_option
@model_options
@verbose_option
@silent_option
@click.pass_context
def rebuild(
    ctx: click.Context,
    /,
    db: str,
    index: str,
    model: str | None,
    options: ModelOptions,
    verbose: bool,
    silent: bool,
) -> None:
    """Build an index anew from its table as it is now

    Its settings stay the same, and it is in use until the new one is complete. Interrupted, it goes on where it stopped
    when the same command is run again.

    Example:

    \b
        sqlite-utils colbert rebuild blog.db posts
    """
    from colbert_sqlite import Index

    started = time.perf_counter()
    with Index.open(db, index, model=model, **keywords(options)) as opened:
        with interruptible(ctx, ProgressDisplay(silent=silent)) as progress:
            opened.rebuild(progress=progress)
        seconds = time.perf_counter() - started
        if verbose:
            print_stages(opened, seconds=seconds)
        if not silent:
            print_summary(opened.info(), seconds=seconds)


@click.command(cls=ColbertCommand)
@db_argument
@click.argument("indexes", nargs=-1, metavar="[INDEX]...")
@moved_model_option
@model_options
@silent_option
@click.pass_context
def upgrade(
    ctx: click.Context,
    /,
    db: str,
    indexes: tuple[str, ...],
    model: str | None,
    options: ModelOptions,
    silent: bool,
) -> None:
    """Build indexes anew that an earlier release made in another format, all of them when none is named

    Example:

    \b
        sqlite-utils colbert upgrade blog.db
    """
    from colbert_sqlite import upgrade as upgrade_index

    names = indexes or serving.names_in_use(db)
    refuse_model_of_several(model, indexes)
    if not names and not silent:
        click.echo(f"{db} has no index.", err=True)
    for name in names:
        with interruptible(ctx, ProgressDisplay(silent=silent)) as progress:
            old_format = upgrade_index(db, name, model=model, progress=progress, **keywords(options))
        if not silent:
            done = ": nothing to do" if old_format is None else f" had format {old_format}: built anew"
            click.echo(f"Index {name}{done}", err=True)


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@click.option("--ignore", is_flag=True, help="No error if there is no such index")
def drop(db: str, index: str, ignore: bool) -> None:
    """Delete an index; its table stays as it is

    Example:

    \b
        sqlite-utils colbert drop blog.db posts
    """
    try:
        serving.drop(db, index)
    except IndexNotFound:
        if not ignore:
            raise
    else:
        click.echo(f"Dropped. The file keeps the space for reuse; to shrink it: sqlite-utils vacuum {db}", err=True)


def print_summary(info: IndexInfo, *, seconds: float) -> None:
    """Say on stderr what is in an index that was just built."""
    if not info.rows:
        click.echo("No row was indexed: the table is empty, or no row meets the condition.", err=True)
    without = f" ({info.rows_without_text:,} without text)" if info.rows_without_text else ""
    click.echo(
        f"Index {info.name}: {info.rows:,} rows{without}, {info.passages:,} passages, {info.tokens:,} tokens, "
        f"{size(info.bytes)}, {seconds:.1f} s",
        err=True,
    )
