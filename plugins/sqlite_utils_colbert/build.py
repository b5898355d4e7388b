"""The commands that make an index, follow its table and look after it: index, sync, info, verify and the others.

In: words of a shell. Out: facts on stdout, progress and everything else on stderr. Leaves to others: the work; each
command is one method of :class:`colbert_sqlite.Index`.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from colbert_sqlite import ColbertError, IndexNotFound, IndexSettings
from colbert_sqlite.settings import NBITS, Html
from colbert_sqlite.timing import Stage, memory
from sqlite_utils_colbert.options import (
    ColbertCommand,
    ColbertGroup,
    db_argument,
    index_argument,
    json_option,
    model_options,
    moved_model_option,
    named_model_option,
    sentence,
    setting_option,
    silent_option,
    verbose_option,
    where_options,
)
from sqlite_utils_colbert.output import print_facts, print_rows, print_table, size
from sqlite_utils_colbert.progress import ProgressDisplay

if TYPE_CHECKING:
    from colbert_sqlite import Index

EXIT_INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended


@click.command(cls=ColbertCommand)
@db_argument
@click.argument("table")
@click.argument("columns", nargs=-1, required=True, metavar="COLUMN...")
@click.option("--name", help="Name of the index; default: the table's")
@named_model_option
@setting_option(IndexSettings, "nbits", type=click.Choice([str(n) for n in NBITS]), default="4", show_default=True)
@where_options("Index only the rows that meet this condition")
@setting_option(IndexSettings, "heading", metavar="COLUMN")
@setting_option(IndexSettings, "html", type=click.Choice(get_args(Html)), default="auto", show_default=True)
@setting_option(IndexSettings, "max_tokens", type=int)
@setting_option(IndexSettings, "pool_factor", type=int, default=1, show_default=True)
@model_options
@click.option(
    "--triggers/--no-triggers",
    default=True,
    show_default=True,
    help="Let triggers on the table note which rows change; without them sync compares every row",
)
@click.option("--replace", is_flag=True, help="Replace the index of this name, which is in use until then")
@verbose_option
@silent_option
@click.pass_context
def index(
    ctx: click.Context,
    /,
    db: str,
    table: str,
    columns: tuple[str, ...],
    nbits: str,
    params: tuple[tuple[str, str], ...],
    verbose: bool,
    silent: bool,
    **options: Any,
) -> None:
    """Create an index of one or more columns of a table

    Interrupted, it goes on where it stopped when the same command is run again.

    Example:

    \b
        sqlite-utils colbert index blog.db posts body --heading title
    """
    from colbert_sqlite import Index

    started = time.perf_counter()
    with interruptible(ctx, ProgressDisplay(silent=silent)) as progress:
        made = Index.create(db, table, columns, nbits=int(nbits), params=dict(params), progress=progress, **options)
    seconds = time.perf_counter() - started
    with made:
        if verbose:
            print_stages(made, seconds=seconds)
        if not silent:
            summarize(made, seconds=seconds)
            if made.counts["passages"]:
                search = [*ctx.command_path.split()[:-1], "search", db, made.name]
                click.echo(f"Search it: {shlex.join(search)} 'your question' -t", err=True)


@click.command(cls=ColbertCommand)
@db_argument
@click.argument("indexes", nargs=-1, metavar="[INDEX]...")
@click.option("--full", is_flag=True, help="Compare every row, even where triggers have noted what changed")
@click.option("--watch", is_flag=True, help="Keep on until Ctrl-C, syncing whenever the database changes")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    help="Seconds between two looks with --watch",
)
@moved_model_option
@model_options
@json_option
@verbose_option
@silent_option
@click.pass_context
def sync(
    ctx: click.Context,
    /,
    db: str,
    indexes: tuple[str, ...],
    full: bool,
    watch: bool,
    interval: float,
    as_json: bool,
    verbose: bool,
    silent: bool,
    **options: Any,
) -> None:
    """Bring indexes in step with their tables, all of them when none is named

    Triggers note which rows change, so that only these are looked at. Every row is compared where there are none, or
    where they were lost with a table that was dropped or transformed; only rows whose text changed are encoded. Where
    more rows are new than indexed, or a small index has doubled, it is rebuilt.

    Examples:

    \b
        sqlite-utils colbert sync blog.db
        sqlite-utils colbert sync blog.db posts --watch
    """
    from colbert_sqlite import Index
    from colbert_sqlite.catalogue import registered_names
    from colbert_sqlite.storage.connection import connect

    if watch and as_json:
        raise click.UsageError("--json is for one sync: leave out --json or --watch.")
    if options["model"] and len(indexes) != 1:
        raise click.UsageError("--model goes with one INDEX.")
    conn, _ = connect(db)
    with closing(conn):
        if not (indexes or registered_names(conn)) and not silent:
            click.echo(f"{db} has no index.", err=True)
        opened: dict[str, Index] = {}
        failed: dict[str, str] = {}

        def sync_all(progress: ProgressDisplay, **how: Any) -> list[dict[str, Any]]:
            done = []
            for name in dict.fromkeys(indexes) or registered_names(conn):
                # One that can't be synced, because its table is being loaded again, say, keeps no other from it.
                try:
                    if name not in opened:
                        opened[name] = Index.open(conn, name, **options)
                    done.append(sync_once(opened[name], progress, silent=silent, **how))
                    failed.pop(name, None)
                except (ColbertError, sqlite3.OperationalError) as error:
                    if failed.get(name) != (problem := sentence(error, db)):
                        click.echo(f"Error: {problem}", err=True)
                    failed[name] = problem
            return done

        try:
            with interruptible(ctx, ProgressDisplay(silent=silent)) as progress:
                done = sync_all(progress, full=full, verbose=verbose)
            if as_json:
                print_rows(done, None)
            if watch and not silent:
                click.echo(f"Watching {db}. Ctrl-C ends it.", err=True)
            while watch:
                # Read before syncing: what another connection commits meanwhile makes it differ again.
                version = conn.execute("PRAGMA data_version").fetchone()
                sync_all(ProgressDisplay(silent=True), full=False, verbose=False, idle=False)
                while conn.execute("PRAGMA data_version").fetchone() == version:
                    time.sleep(interval)
        except KeyboardInterrupt:
            if not silent:
                click.echo("Stopped watching.", err=True)
        if failed:
            ctx.exit(1)


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@moved_model_option
@model_options
@silent_option
@click.pass_context
def repair(ctx: click.Context, /, db: str, index: str, silent: bool, **options: Any) -> None:
    """Encode again the rows of an index that are damaged, and no others

    What verify finds wrong is removed and made anew; then the index is in step with its table.

    Example:

    \b
        sqlite-utils colbert repair blog.db posts
    """
    from colbert_sqlite import Index

    with Index.open(db, index, **options) as opened:
        with interruptible(ctx, ProgressDisplay(silent=silent)) as progress:
            counts = opened.repair(progress=progress)
        problems = opened.verify()
    if not silent:
        n_encoded = counts["added"] + counts["updated"]
        click.echo(f"Index {index}: {n_encoded:,} rows encoded, {counts['deleted']:,} removed", err=True)
    for problem in problems:
        click.echo(problem)
    if problems:
        ctx.exit(1)


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@silent_option
def optimize(db: str, index: str, silent: bool) -> None:
    """Close the gaps that deleted and updated rows leave in an index

    Nothing is encoded. The file keeps the space for reuse; sqlite-utils vacuum makes it smaller.

    Example:

    \b
        sqlite-utils colbert optimize blog.db posts
    """
    from colbert_sqlite import Index

    with Index.open(db, index) as opened:
        freed = opened.optimize(progress=ProgressDisplay(silent=silent))
    if not silent:
        click.echo(f"{size(freed)} made free. To shrink the file: sqlite-utils vacuum {shlex.quote(db)}", err=True)


@click.command(cls=ColbertCommand)
@db_argument
@click.argument("indexes", nargs=-1, metavar="[INDEX]...")
@moved_model_option
@model_options
@silent_option
@click.pass_context
def upgrade(ctx: click.Context, /, db: str, indexes: tuple[str, ...], silent: bool, **options: Any) -> None:
    """Bring indexes that an earlier release made to the format of this one, all of them when none is named

    Example:

    \b
        sqlite-utils colbert upgrade blog.db
    """
    from colbert_sqlite import upgrade as upgrade_index
    from colbert_sqlite.catalogue import registered_names

    names = indexes or registered_names(db)
    if options["model"] and len(indexes) != 1:
        raise click.UsageError("--model goes with one INDEX.")
    if not names and not silent:
        click.echo(f"{db} has no index.", err=True)
    for name in names:
        with interruptible(ctx, ProgressDisplay(silent=silent)) as progress:
            was_old = upgrade_index(db, name, progress=progress, **options)
        if not silent:
            click.echo(f"Index {name}: {'upgraded' if was_old else 'nothing to do'}", err=True)


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@json_option
def info(db: str, index: str, as_json: bool) -> None:
    """Show what an index is made of and how big it is

    Example:

    \b
        sqlite-utils colbert info blog.db posts
    """
    from colbert_sqlite import Index

    with Index.open(db, index) as opened:
        facts = opened.info()
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        if facts["pending_changes"] is None:
            facts["pending_changes"] = "unknown: the next sync compares every row"
        print_facts(facts)


@click.command(name="list", cls=ColbertCommand)
@db_argument
@json_option
def list_(db: str, as_json: bool) -> None:
    """List the indexes of a database

    Example:

    \b
        sqlite-utils colbert list blog.db
    """
    from colbert_sqlite import list_indexes

    known = list_indexes(db)
    if as_json:
        print_rows(known, None)
    elif known:
        print_table([row_of_list(facts) for facts in known])
        for facts in known:
            if "problem" in facts:
                click.echo(facts["problem"], err=True)
    else:
        click.echo(f"{db} has no index.", err=True)


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@click.pass_context
def verify(ctx: click.Context, /, db: str, index: str) -> None:
    """Check an index: print its problems, one a line

    The exit code is 1 if there are any.

    Example:

    \b
        sqlite-utils colbert verify blog.db posts
    """
    from colbert_sqlite import Index

    with Index.open(db, index) as opened:
        problems = opened.verify()
    for problem in problems:
        click.echo(problem)
    if problems:
        ctx.exit(1)
    click.echo(f"{index} is sound.", err=True)


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
    from colbert_sqlite.catalogue import drop as drop_index

    try:
        drop_index(db, index)
    except IndexNotFound:
        if not ignore:
            raise
    else:
        click.echo(f"Dropped. The file keeps the space for reuse; to shrink it: sqlite-utils vacuum {db}", err=True)


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@moved_model_option
@model_options
@verbose_option
@silent_option
@click.pass_context
def rebuild(ctx: click.Context, /, db: str, index: str, verbose: bool, silent: bool, **options: Any) -> None:
    """Build an index anew from its table as it is now

    Its settings stay the same, and it is in use until the new one is complete. Interrupted, it goes on where it stopped
    when the same command is run again.

    Example:

    \b
        sqlite-utils colbert rebuild blog.db posts
    """
    from colbert_sqlite import Index

    started = time.perf_counter()
    with Index.open(db, index, **options) as opened:
        with interruptible(ctx, ProgressDisplay(silent=silent)) as progress:
            opened.rebuild(progress=progress)
        seconds = time.perf_counter() - started
        if verbose:
            print_stages(opened, seconds=seconds)
        if not silent:
            summarize(opened, seconds=seconds)


@click.group(cls=ColbertGroup, invoke_without_command=True)
@json_option
@click.pass_context
def models(ctx: click.Context, /, as_json: bool) -> None:
    """List the models that have a short name, or export a model

    The --model of an index may also be any folder, or any repository on the hub, that holds a ColBERT model.

    Example:

    \b
        sqlite-utils colbert models
    """
    if ctx.invoked_subcommand:
        return
    from colbert_sqlite.encoders import known_models

    known = known_models()
    if as_json:
        print_rows([dataclasses.asdict(model) for model in known], None)
        return
    print_table(
        [
            {
                "model": model.alias,
                "dim": model.dim,
                "parameters": f"{model.parameters / 1e6:.1f} M" if model.parameters else "",
                "size": f"{model.megabytes} MB" if model.megabytes else "",
                "on this machine": "yes" if model.on_this_machine else "no",
                "from": model.source,
            }
            for model in known
        ]
    )


@models.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--int8", is_flag=True, help="Keep the weights in eight bits: smaller and faster, and a little worse")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model")
def export(name: str, folder: Path, int8: bool, trust_remote_code: bool) -> None:
    """Write a model to a new folder that runs without torch

    On another machine, pip install 'colbert-sqlite[onnx]' is then enough to search and to index with --model FOLDER. An
    index made with NAME can be searched with FOLDER, and the other way round. An int8 export gives other embeddings, so
    that it is a model of its own, for indexes made with it.

    Example:

    \b
        sqlite-utils colbert models export minilm minilm-onnx
    """
    from colbert_sqlite.encoders import export_model

    export_model(name, folder, int8=int8, trust_remote_code=trust_remote_code)
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    click.echo(f"Wrote {name} to {folder}, {megabytes:.0f} MB. Use it: --model {shlex.quote(str(folder))}", err=True)


@contextmanager
def interruptible(ctx: click.Context, display: ProgressDisplay) -> Iterator[ProgressDisplay]:
    """Show the progress of a build; after Ctrl-C, say what is done and need not be done again."""
    try:
        with display:
            yield display
    except KeyboardInterrupt:
        rows = f"{display.n_done:,} of {display.n_rows:,} rows are done" if display.n_rows else "no row is done yet"
        click.echo(f"Interrupted: {rows}. Run the same command again to go on.", err=True)
        ctx.exit(EXIT_INTERRUPTED)


def sync_once(
    index: Index, progress: ProgressDisplay, *, full: bool, silent: bool, verbose: bool, idle: bool = True
) -> dict[str, Any]:
    """Sync one index and say what was done, unless that is nothing and not to be told when *idle*."""
    started = time.perf_counter()
    counts = index.sync(full=full, progress=progress)
    seconds = time.perf_counter() - started
    n_changed = counts["added"] + counts["updated"] + counts["deleted"]
    if not silent and (idle or n_changed):
        if verbose and n_changed:
            print_stages(index, seconds=seconds)
        compared = f", {counts['compared']:,} rows compared" if counts["compared"] else ""
        click.echo(
            f"Index {index.name}: {counts['added']:,} added, {counts['updated']:,} updated, "
            f"{counts['deleted']:,} deleted{compared}, {seconds:.2f} s",
            err=True,
        )
        if n_changed and (reason := index.why_rebuild()):
            click.echo(f"Rebuild it when there is time: {reason}.", err=True)
    return {"name": index.name, **counts}


def print_stages(index: Index, *, seconds: float) -> None:
    """Say where the time and the memory of a build of *seconds* went."""
    report = index.build_report
    assert report is not None, "it was just built"
    stages = dict(report.stages)
    stages["other"] = Stage(seconds - sum(stage.seconds for stage in stages.values()))
    now = memory()
    stages["in all"] = Stage(seconds, now.anonymous, now.peak)
    print_table(
        [
            {
                "stage": name,
                "seconds": stage.seconds,
                "share": f"{stage.seconds / seconds:.0%}",
                "memory": "-" if stage.anonymous is None else size(stage.anonymous),
                "peak": "-" if stage.peak is None else size(stage.peak),
            }
            for name, stage in stages.items()
        ],
        err=True,
    )
    if report.n_tokens:
        rate = f"{report.n_tokens / seconds:,.0f} a second in all"
        click.echo(f"{report.n_tokens:,} tokens encoded by {index.encoder.backend}, {rate}", err=True)


def summarize(index: Index, *, seconds: float) -> None:
    """Say what is in an index that was just built."""
    facts = index.info()
    if not facts["rows"]:
        click.echo("No row was indexed: the table is empty, or none meets the condition.", err=True)
    without = f" ({facts['rows_without_text']:,} without text)" if facts["rows_without_text"] else ""
    click.echo(
        f"Index {index.name}: {facts['rows']:,} rows{without}, {facts['passages']:,} passages, "
        f"{facts['tokens']:,} tokens, {size(facts['bytes'])}, {seconds:.1f} s",
        err=True,
    )


def row_of_list(facts: dict[str, Any]) -> dict[str, Any]:
    """A row of the table of indexes; of one that this version can't read, only name and state are known."""
    names = ("name", "table", "columns", "model", "nbits", "rows", "passages", "tokens", "state")
    return {
        **{name: facts.get(name) for name in names},
        "columns": ", ".join(facts.get("columns", ())),
        "size": size(facts["bytes"]) if "bytes" in facts else None,
    }
