"""Rows as JSON, newline-delimited JSON, CSV, TSV or a table.

In: dicts with the same keys, values as SQLite gives them. Out: text on stdout. Leaves to others: which columns, in
which order.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click
from tabulate import tabulate, tabulate_formats

Row = dict[str, Any]
Command = TypeVar("Command", bound=Callable[..., Any])

WIDTH_WITHOUT_TERMINAL = 120
LINES = 3
NARROWEST = 20
GAP = 2  # tabulate leaves it between columns, and makes a column that much wider than its header


def output_options(command: Command) -> Command:
    """The options that choose a format, handed to the command as ``output`` and ``fmt``."""
    for option in (
        click.option(
            "--fmt", type=click.Choice(tabulate_formats), metavar="FORMAT", help="Table format: github, psql …"
        ),
        click.option("-t", "--table", "output", flag_value="table", help="Output as a table"),
        click.option("--tsv", "output", flag_value="tsv", help="Output TSV"),
        click.option("--csv", "output", flag_value="csv", help="Output CSV"),
        click.option("--nl", "output", flag_value="nl", help="Output newline-delimited JSON"),
    ):
        command = option(command)
    return command


def refuse_two_formats(output: str | None, fmt: str | None) -> None:
    """Make sure that a table format goes with a table; of two other formats the last one wins.

    :raises click.UsageError: if it does not
    """
    if fmt and output not in (None, "table"):
        raise click.UsageError(f"--fmt is the format of a table: leave out --fmt or --{output}.")


def size(n_bytes: float) -> str:
    """*n_bytes* as people say it: 950 bytes, 1.2 MB."""
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def print_rows(rows: Sequence[Row], output: str | None) -> None:
    """Print *rows* as ``nl``, ``csv``, ``tsv`` or, by default, as a JSON array with one row a line."""
    for line in _delimited(rows, output) if output in ("csv", "tsv") else _json(rows, lines=output == "nl"):
        click.echo(line)


def print_table(rows: Sequence[Row], fmt: str | None = None, *, err: bool = False) -> None:
    """Print *rows*, whose cells are already as short as they should be, as a table."""
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
    """*rows* with their text cut to a few lines, so that a table of them is as wide as the terminal.

    :param whole: cut nothing off the last column, which is as wide as the others leave it
    :param wrap: break the lines; if not, cells have one line, as long as those would be together
    """
    if not rows:
        return []
    *names, last = rows[0]
    widest = terminal_width() // (len(names) + 1)
    cut = _wrapped if wrap else _shortened
    cells = [{name: cut(row[name], widest, LINES) for name in names} for row in rows]
    taken = sum(max(len(name) + GAP, *(_width(row[name]) for row in cells)) + GAP for name in names)
    left = max(terminal_width() - taken, NARROWEST)
    return [
        {**short, last: cut(row[last], left, None if whole else LINES)} for row, short in zip(rows, cells, strict=True)
    ]


def _wrapped(value: Any, width: int, lines: int | None) -> Any:
    if not isinstance(value, str):
        return value
    return "\n".join(textwrap.wrap(" ".join(value.split()), width, max_lines=lines, placeholder="…"))


def _shortened(value: Any, width: int, lines: int | None) -> Any:
    if not isinstance(value, str):
        return value
    return textwrap.shorten(value, width * lines if lines else len(value) + 1, placeholder="…")


def _width(value: Any) -> int:
    return max(map(len, _cell(value).split("\n")))


def print_facts(facts: Row) -> None:
    """Print names and values below each other, without None and empty dicts; the parts of a dict are indented."""
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


def _fact(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if name == "drift":
        return f"{value:+.0%}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("bytes", "bytes_by_part", "bytes_reclaimable"):
        return size(value)
    return f"{value:,}" if isinstance(value, int) else _cell(value)


def _json(rows: Sequence[Row], *, lines: bool) -> Iterator[str]:
    texts = [json.dumps(row, ensure_ascii=False, default=blob_in_json) for row in rows]
    if lines:
        yield from texts
    else:
        yield "[" + ",\n ".join(texts) + "]"


def _delimited(rows: Sequence[Row], output: str) -> Iterator[str]:
    if not rows:
        return
    buffer = io.StringIO()
    writer = csv.writer(buffer, dialect="excel" if output == "csv" else "excel-tab", lineterminator="\n")
    for values in (list(rows[0]), *(row.values() for row in rows)):
        writer.writerow([_flat(value) for value in values])
    yield buffer.getvalue().removesuffix("\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return str(value)


def _flat(value: Any) -> Any:
    if isinstance(value, bytes):
        return _encoded(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (tuple, list)) else value


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def blob_in_json(value: Any) -> dict[str, Any]:
    """What sqlite-utils makes of a BLOB in JSON, for ``json.dumps(default=…)``."""
    if not isinstance(value, bytes):
        raise TypeError(f"a {type(value).__name__} has no place in JSON")
    return {"$base64": True, "encoded": _encoded(value)}
