"""How far a build is, on stderr.

In: the Progress events of a build. Out: a bar with rate and time left on a terminal, a line for each stage elsewhere.
Leaves to others: what to say once the work is done.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from sqlite_utils_colbert.output import terminal_width

if TYPE_CHECKING:
    from tqdm import tqdm

    from colbert_sqlite import Progress

EXIT_INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended
# The stages of one step each, and those that count rows.
LABELS = {
    "train": "Training the codec",
    "write": "Writing the inverted lists",
    "wait": "Another process is writing this index: waiting until it is done",
}
COUNTED = {"encode": "Encoding", "compare": "Comparing", "similar": "Finding rows like"}


class ProgressDisplay:
    """Shows each event it is called with.

    ``n_done`` of ``n_rows`` rows are encoded; both are 0 before the first event.
    """

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent
        self.n_done = self.n_rows = 0
        self._stage: str | None = None
        self._bar: tqdm | None = None

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def __call__(self, progress: Progress) -> None:
        if progress.stage == "encode":
            self.n_done, self.n_rows = progress.done, progress.total
        if progress.stage != self._stage:
            self._close()
            self._open(progress)
            self._stage = progress.stage
        if self._bar is not None:
            self._bar.update(progress.done - self._bar.n)

    def _open(self, progress: Progress) -> None:
        if self.silent:
            return
        if progress.stage in LABELS:
            click.echo(LABELS[progress.stage], err=True)
        elif not sys.stderr.isatty():
            if progress.done < progress.total:
                n_rows = progress.total - progress.done
                click.echo(f"{COUNTED[progress.stage]} {n_rows:,} row{'' if n_rows == 1 else 's'}", err=True)
        else:
            from tqdm import tqdm

            # Rows of an earlier, interrupted run must not count in the rate.
            self._bar = tqdm(
                desc=COUNTED[progress.stage],
                total=progress.total,
                initial=progress.done,
                unit=" rows",
                # tqdm itself shows nothing on a terminal that does not know its size.
                ncols=terminal_width(),
                nrows=24,
            )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def interruptible(ctx: click.Context, display: ProgressDisplay) -> Iterator[ProgressDisplay]:
    """Show the progress of a build; after Ctrl-C, say what need not be done again."""
    try:
        with display:
            yield display
    except KeyboardInterrupt:
        rows = f"{display.n_done:,} of {display.n_rows:,} rows are done" if display.n_rows else "no row is done yet"
        click.echo(f"Interrupted: {rows}. Run the same command again to go on.", err=True)
        ctx.exit(EXIT_INTERRUPTED)
