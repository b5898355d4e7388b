"""What the commands print: rows as JSON, newline-delimited JSON, CSV, TSV or a table; facts; times.

In: dicts with the same keys, their values as SQLite has them. Out: text on stdout, times on stderr. Leaves to others:
which columns, in which order.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import click
from tabulate import tabulate, tabulate_formats

from colbert_sqlite import serving
from sqlite_utils_colbert.options import grouped

if TYPE_CHECKING:
    from colbert_sqlite import BuildReport, Encoder, Index

Row = dict[str, object]
OutputName = Literal["json", "nl", "csv", "tsv", "table"]

WIDTH_WITHOUT_TERMINAL = 120
MAX_LINES = 3
MIN_LAST_WIDTH = 20
GAP = 2  # tabulate leaves it between columns, and makes a column that much wider than its header


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How rows are printed. ``fmt`` is the look of a table, as tabulate calls it."""

    name: OutputName = "json"
    fmt: str | None = None

    @property
    def is_table(self) -> bool:
        return self.name == "table"

    @classmethod
    def of(cls, output: OutputName | None, fmt: str | None) -> OutputFormat:
        """Return the format that options choose; of several the last one.

        :raises click.UsageError: if there is a look of a table and another format
        """
        if fmt and output not in (None, "table"):
            raise click.UsageError(f"--fmt is the format of a table: leave out --fmt or --{output}.")
        return cls("table" if fmt else output or "json", fmt)


# The command gets them as ``output``.
output_options = grouped(
    "output",
    OutputFormat.of,
    click.option("--nl", "output", flag_value="nl", help="Output newline-delimited JSON"),
    click.option("--csv", "output", flag_value="csv", help="Output CSV"),
    click.option("--tsv", "output", flag_value="tsv", help="Output TSV"),
    click.option("-t", "--table", "output", flag_value="table", help="Output as a table"),
    click.option("--fmt", type=click.Choice(tabulate_formats), metavar="FORMAT", help="Table format: github, psql …"),
)


def size(n_bytes: float) -> str:
    """Return *n_bytes* as people say it: 950 bytes, 1.2 MB."""
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def print_rows(rows: Sequence[Row], output: OutputFormat | None = None) -> None:
    """Print *rows* in a format that is not a table; by default as a JSON array, one row a line."""
    match output.name if output else "json":
        case "csv" | "tsv" as name:
            lines = _delimited(rows, name)
        case "json" | "nl" as name:
            lines = _json(rows, one_a_line=name == "nl")
        case name:
            raise ValueError(f"rows are not printed as {name}")
    for line in lines:
        click.echo(line)


def print_table(rows: Sequence[Row], fmt: str | None = None, *, err: bool = False) -> None:
    """Print *rows* as a table; their cells are short already."""
    if not rows:
        return
    numeric = [all(isinstance(row[key], (int, float, type(None))) for row in rows) for key in rows[0]]
    table = tabulate(
        [[_cell(value) for value in row.values()] for row in rows],
        headers=list(rows[0]),
        tablefmt=fmt or "simple",
        colalign=["right" if column else "left" for column in numeric],
        # A text key such as 007 or 1e5 must not be read as a number.
        disable_numparse=True,
    )
    click.echo(table, err=err)


def terminal_width() -> int:
    return shutil.get_terminal_size((WIDTH_WITHOUT_TERMINAL, 24)).columns


def fit(rows: Sequence[Row], *, whole: bool, wrap: bool) -> list[Row]:
    """Return *rows* with their text cut, so that a table of them is as wide as the terminal.

    :param whole: cut nothing off the last column, which is as wide as the others leave it
    :param wrap: break the lines; if not, cells have one line, as long as those would be together
    """
    if not rows:
        return []
    *names, last = rows[0]
    max_width = terminal_width() // (len(names) + 1)
    cut = _wrapped if wrap else _shortened
    cells = [{name: cut(row[name], max_width, MAX_LINES) for name in names} for row in rows]
    taken = sum(max(len(name) + GAP, *(_width(row[name]) for row in cells)) + GAP for name in names)
    left = max(terminal_width() - taken, MIN_LAST_WIDTH)
    lines = None if whole else MAX_LINES
    return [{**short, last: cut(row[last], left, lines)} for row, short in zip(rows, cells, strict=True)]


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values below each other; the parts of a dict are indented.

    None and empty dicts are left out.
    """
    lines: list[tuple[str, str]] = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [(name, "")] if value else []
            lines += [(f"  {part}", _fact(name, n)) for part, n in value.items()]
        elif value is not None:
            lines.append((name, _fact(name, value)))
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(f"{name.replace('_', ' '):{width}}  {text}".rstrip())


def print_problems(problems: Sequence[str]) -> None:
    for problem in problems:
        click.echo(problem)


def stages_of(report: BuildReport, seconds: float) -> dict[str, serving.Stage]:
    """Return the stages of a build that took *seconds*, then the rest of it, then all of it."""
    stages = dict(report.stages)
    stages["other"] = serving.Stage(seconds - sum(stage.seconds for stage in stages.values()))
    now = serving.memory()
    stages["in all"] = serving.Stage(seconds, now.anonymous, now.peak)
    return stages


def print_stages(index: Index, *, seconds: float) -> None:
    """Say on stderr where the time and the memory of a build of *seconds* went."""
    report = index.build_report
    assert report is not None, "it was just built"
    rows: list[Row] = [
        {
            "stage": name,
            "seconds": stage.seconds,
            "share": f"{stage.seconds / seconds:.0%}",
            "memory": "-" if stage.anonymous is None else size(stage.anonymous),
            "peak": "-" if stage.peak is None else size(stage.peak),
        }
        for name, stage in stages_of(report, seconds).items()
    ]
    print_table(rows, err=True)
    if report.n_tokens:
        rate = f"{report.n_tokens / seconds:,.0f} a second in all"
        click.echo(f"{report.n_tokens:,} tokens encoded by {index.load_encoder().backend}, {rate}", err=True)


def print_backend(encoder: Encoder, *, seconds: float) -> None:
    """Say on stderr which model answered."""
    click.echo(f"Answered by {encoder.name}, {encoder.backend}, in {seconds:.2f} s", err=True)


def _json(rows: Sequence[Row], *, one_a_line: bool) -> Iterator[str]:
    texts = [json.dumps(serving.json_value(row), ensure_ascii=False) for row in rows]
    if one_a_line:
        yield from texts
    else:
        yield "[" + ",\n ".join(texts) + "]"


def _delimited(rows: Sequence[Row], name: str) -> Iterator[str]:
    if not rows:
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, dialect="excel" if name == "csv" else "excel-tab", lineterminator="\n")
    for values in (list(rows[0]), *(row.values() for row in rows)):
        writer.writerow([_flat(value) for value in values])
    yield buffer.getvalue().removesuffix("\n")


def _flat(value: object) -> object:
    if isinstance(value, bytes):
        return _base64(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (tuple, list)) else value


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return str(value)


def _fact(name: str, value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "drift":
        return f"{value:+.0%}"
    if isinstance(value, (int, float)) and name in ("bytes", "bytes_by_part", "bytes_reclaimable"):
        return size(value)
    return f"{value:,}" if isinstance(value, int) else _cell(value)


def _wrapped(value: object, width: int, lines: int | None) -> object:
    if not isinstance(value, str):
        return value
    return "\n".join(textwrap.wrap(" ".join(value.split()), width, max_lines=lines, placeholder="…"))


def _shortened(value: object, width: int, lines: int | None) -> object:
    if not isinstance(value, str):
        return value
    return textwrap.shorten(value, width * lines if lines else len(value) + 1, placeholder="…")


def _width(value: object) -> int:
    return max(map(len, _cell(value).split("\n")))
