"""The commands that keep indexes in step with their tables, and whole: sync, repair and optimize.

In: a database file, names of indexes. Out: what was done, on stderr or as JSON. Leaves to others: the work
(:class:`colbert_sqlite.Index`).
"""

from __future__ import annotations

import shlex
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from colbert_sqlite import ColbertError, ModelOptions, serving
from sqlite_utils_colbert.options import (
    ColbertCommand,
    db_argument,
    index_argument,
    json_option,
    keywords,
    model_options,
    moved_model_option,
    refuse_model_of_several,
    sentence,
    silent_option,
    verbose_option,
)
from sqlite_utils_colbert.output import Row, print_problems, print_rows, print_stages, size
from sqlite_utils_colbert.progress import ProgressDisplay, interruptible

if TYPE_CHECKING:
    from colbert_sqlite import Index


@click.command(cls=ColbertCommand)
@db_argument
@click.argument("indexes", nargs=-1, metavar="[INDEX]...")
@click.option("--full", is_flag=True, help="Compare every row, even where triggers note what changes")
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
    model: str | None,
    options: ModelOptions,
    as_json: bool,
    verbose: bool,
    silent: bool,
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

    if watch and as_json:
        raise click.UsageError("--json is for one sync: leave out --json or --watch.")
    refuse_model_of_several(model, indexes)
    with serving.open_connection(db) as conn:
        if not (indexes or serving.names_in_use(conn)) and not silent:
            click.echo(f"{db} has no index.", err=True)
        syncer = Syncer(
            db, conn, indexes, lambda name: Index.open(conn, name, model=model, **keywords(options)), silent=silent
        )
        with interruptible(ctx, ProgressDisplay(silent=silent)) as progress:
            rows = syncer.sync_all(progress, full=full, verbose=verbose)
        if as_json:
            print_rows(rows)
        if watch:
            syncer.watch(interval)
    if syncer.errors:
        ctx.exit(1)


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@moved_model_option
@model_options
@silent_option
@click.pass_context
def repair(ctx: click.Context, /, db: str, index: str, model: str | None, options: ModelOptions, silent: bool) -> None:
    """Encode again the rows of an index that are damaged, and no others

    What verify finds wrong is removed and made anew; then the index is in step with its table.

    Example:

    \b
        sqlite-utils colbert repair blog.db posts
    """
    from colbert_sqlite import Index

    with Index.open(db, index, model=model, **keywords(options)) as opened:
        with interruptible(ctx, ProgressDisplay(silent=silent)) as progress:
            counts = opened.repair(progress=progress)
        problems = opened.verify()
    if not silent:
        n_encoded = counts.added + counts.updated
        click.echo(f"Index {index}: {n_encoded:,} rows encoded, {counts.deleted:,} removed", err=True)
    print_problems(problems)
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


class Syncer:
    """Syncs indexes of one database, each opened once.

    ``errors`` says by name what was wrong with the indexes that failed last time.

    :param names: the indexes; empty for all, those that are made later too
    """

    def __init__(
        self,
        db: str,
        conn: sqlite3.Connection,
        names: Sequence[str],
        open_index: Callable[[str], Index],
        *,
        silent: bool,
    ) -> None:
        self.errors: dict[str, str] = {}
        self._db, self._conn, self._names, self._open_index = db, conn, names, open_index
        self._silent = silent
        self._opened: dict[str, Index] = {}

    def sync_all(
        self, progress: ProgressDisplay, *, full: bool = False, verbose: bool = False, idle: bool = True
    ) -> list[Row]:
        """Sync each index and return the counts of those that did not fail.

        :param idle: say also which indexes had nothing to do
        """
        rows = []
        for name in dict.fromkeys(self._names) or serving.names_in_use(self._conn):
            # One index fails, because its table is being loaded again, say: the others are synced all the same.
            try:
                if name not in self._opened:
                    self._opened[name] = self._open_index(name)
                index = self._opened[name]
                rows.append(sync_once(index, progress, full=full, verbose=verbose, idle=idle, silent=self._silent))
                self.errors.pop(name, None)
            except (ColbertError, sqlite3.OperationalError) as error:
                problem = sentence(error, self._db)
                if self.errors.get(name) != problem:
                    click.echo(f"Error: {problem}", err=True)
                self.errors[name] = problem
        return rows

    def watch(self, interval: float) -> None:
        """Sync after each change of the database, until Ctrl-C.

        :param interval: seconds between two looks
        """
        if not self._silent:
            click.echo(f"Watching {self._db}. Ctrl-C ends it.", err=True)
        try:
            while True:
                # Read before syncing: what another connection commits meanwhile makes it differ again.
                version = self._data_version()
                self.sync_all(ProgressDisplay(silent=True), idle=False)
                while self._data_version() == version:
                    time.sleep(interval)
        except KeyboardInterrupt:
            if not self._silent:
                click.echo("Stopped watching.", err=True)

    def _data_version(self) -> int:
        [(version,)] = self._conn.execute("PRAGMA data_version")
        return int(version)


def sync_once(index: Index, progress: ProgressDisplay, *, full: bool, verbose: bool, idle: bool, silent: bool) -> Row:
    """Sync one index, say what was done and return its counts."""
    started = time.perf_counter()
    counts = index.sync(full=full, progress=progress)
    seconds = time.perf_counter() - started
    n_changed = counts.added + counts.updated + counts.deleted
    if not silent and (idle or n_changed):
        if verbose and n_changed:
            print_stages(index, seconds=seconds)
        compared = f", {counts.compared:,} rows compared" if counts.compared else ""
        click.echo(
            f"Index {index.name}: {counts.added:,} added, {counts.updated:,} updated, "
            f"{counts.deleted:,} deleted{compared}, {seconds:.2f} s",
            err=True,
        )
        if n_changed and (reason := why_rebuild(index)):
            click.echo(f"Rebuild it when there is time: {reason}.", err=True)
    return {"name": index.name, **counts.to_dict()}


def why_rebuild(index: Index) -> str | None:
    """Return why a rebuild would pay, None if it would not."""
    with index.read() as view:
        return serving.why_rebuild(view)
