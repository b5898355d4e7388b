"""The command that puts rows in order without an index: rerank.

In: the rows of a SELECT, or JSON on stdin. Out: the same rows, best first. Leaves to others: the scores
(:func:`colbert_sqlite.rerank`).
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from colbert_sqlite import ModelOptions, serving
from sqlite_utils_colbert.options import (
    ColbertCommand,
    backend_verbose_option,
    model_options,
    named_model_option,
    param_option,
)
from sqlite_utils_colbert.output import OutputFormat, Row, fit, output_options, print_backend, print_rows, print_table

if TYPE_CHECKING:
    from colbert_sqlite import Encoder

STDIN = "-"
OURS = ("rank", "score")
SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)
COMMENTS = re.compile(r"\A(\s+|--[^\n]*(\n|\Z)|/\*.*?(\*/|\Z))*", re.DOTALL)


@click.command(cls=ColbertCommand)
@click.argument("db", type=click.Path(allow_dash=True))
@click.argument("sql")
@click.argument("query", required=False, metavar="QUERY")
@click.option("-c", "--column", "columns", multiple=True, help="Column to rank by; default: all that hold text")
@click.option("-k", "--limit", "k", type=click.IntRange(min=1), help="Number of rows to output; default: all")
@param_option("SQL")
@click.option(
    "--attach",
    multiple=True,
    type=(str, click.Path(exists=True, dir_okay=False)),
    metavar="ALIAS PATH",
    help="Another database file that SQL reads, as alias.table",
)
@named_model_option
@model_options
@backend_verbose_option
@output_options
def rerank(
    db: str,
    sql: str,
    query: str | None,
    columns: tuple[str, ...],
    k: int | None,
    params: tuple[tuple[str, str], ...],
    attach: tuple[tuple[str, str], ...],
    model: str | None,
    options: ModelOptions,
    verbose: bool,
    output: OutputFormat,
) -> None:
    """Put the rows of a SELECT in order by a query, without an index

    SQL is any SELECT; a LIMIT keeps it quick, as every row is encoded. Where DB is - the rows are read from stdin, as
    JSON lines or a JSON array, and SQL is left out: colbert rerank - QUERY.

    Each row comes with its rank and score (higher is better); a row without text comes last, with no score.

    Examples:

    \b
        sqlite-utils colbert rerank blog.db \\
          "select id, title, body from posts where body like '%coffee%'" \\
          'does an espresso in the afternoon ruin slumber?' -k 3
        sqlite-utils search blog.db posts 'coffee' --nl | \\
          sqlite-utils colbert rerank - 'trouble sleeping' -c title -c body
    """
    if db == STDIN:
        if query is not None or params or attach:
            raise click.UsageError("With - the rows come from stdin, and there is no SQL: colbert rerank - QUERY.")
        query = sql
        rows = rows_of_json(sys.stdin.buffer.read())
    elif query is None:
        raise click.UsageError("Missing argument 'QUERY'. For rows from stdin: colbert rerank - QUERY.")
    else:
        rows = rows_of_select(db, sql, dict(params), attach)
    started = time.perf_counter()
    ranked: list[Row] = []
    if rows:
        ranked, encoder = ranked_rows(rows, columns, query, model, options)
        if verbose:
            print_backend(encoder, seconds=time.perf_counter() - started)
    else:
        click.echo("There are no rows to rank.", err=True)
    print_ranked(ranked[:k], output)


def print_ranked(rows: Sequence[Row], output: OutputFormat) -> None:
    if output.is_table:
        print_table(fit([flat(row) for row in rows], whole=False, wrap=output.fmt is None), output.fmt)
    else:
        print_rows([flat(row) for row in rows] if output.name in ("csv", "tsv") else rows, output)


def ranked_rows(
    rows: Sequence[Row], columns: Sequence[str], query: str, model: str | None, options: ModelOptions
) -> tuple[list[Row], Encoder]:
    """Return *rows* by score, with rank and score in front, and the encoder behind the scores."""
    names = columns_to_rank_by(rows, columns)
    documents = [[text_of(row.get(name)) for name in names] for row in rows]
    scores, encoder = serving.rerank_rows(query, documents, model, options)
    best = sorted(range(len(rows)), key=lambda position: (-scores[position], position))
    # The rows of another search have a rank and a score of their own.
    printed = unique([*OURS, *(f"row.{name}" if name.lower() in OURS else name for name in rows[0])])
    ranked: list[Row] = [
        dict(zip(printed, (rank, rounded(scores[position]), *rows[position].values()), strict=True))
        for rank, position in enumerate(best, start=1)
    ]
    return ranked, encoder


def rounded(score: float) -> float | None:
    return round(score, 4) if math.isfinite(score) else None


def columns_to_rank_by(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Return *columns* as the rows write their names, or all columns that hold text.

    :raises ValueError: if there is no such column, or no text
    """
    names = list(rows[0])
    choice = ", ".join(names) or "none"
    if not columns:
        with_text = [name for name in names if any(isinstance(row[name], str) for row in rows)]
        if not with_text:
            raise ValueError(f"no column holds text; name the one to rank by with -c: there are {choice}")
        return with_text
    by_name = {name.lower(): name for name in names} | {name: name for name in names}
    for name in columns:
        if name not in by_name and name.lower() not in by_name:
            raise ValueError(f"no column {name!r}: there are {choice}")
    return [by_name[name if name in by_name else name.lower()] for name in columns]


def text_of(value: object) -> str | bytes | None:
    """Return a value as text; numbers, lists and dicts as JSON."""
    if value is None or isinstance(value, (str, bytes)):
        return value
    return json.dumps(value, ensure_ascii=False)


def flat(row: Row) -> Row:
    """Return *row* with its lists and dicts as JSON."""
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
        for name, value in row.items()
    }


def rows_of_select(db: str, sql: str, params: Mapping[str, str], attached: Sequence[tuple[str, str]]) -> list[Row]:
    """Return the rows of *sql*, which can't write.

    It has the SQL functions of sqlite-utils and its plugins.

    :param attached: aliases and paths of other files that it reads
    :raises SourceError: if one of the files is not a database that can be read
    :raises ValueError: if it is not one SELECT, or a parameter has no value
    """
    from sqlite_utils import Database

    refuse_other_statements(sql)
    # Database() calls every plugin, which puts functions on the connection.
    with serving.open_read_only(db, attached, prepare=Database) as conn:
        try:
            cursor = conn.execute(sql, params)
            names = unique([column[0] for column in cursor.description])
            return [dict(zip(names, row, strict=True)) for row in cursor]
        except (sqlite3.Warning, sqlite3.ProgrammingError) as error:
            if "one statement" in str(error):
                raise ValueError("SQL must be one SELECT, and there are several statements") from None
            if "has no name" in str(error):
                raise ValueError("SQL has a ? for a value: write :name and give its value with -p NAME VALUE") from None
            raise ValueError(f"{str(error).rstrip('.')}: give each :name in SQL its value with -p NAME VALUE") from None
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):
                raise
            raise ValueError("SQL must be a SELECT, and this one writes") from None


def refuse_other_statements(sql: str) -> None:
    """Make sure that *sql* begins as a SELECT does.

    :raises ValueError: if it does not
    """
    if not re.match(r"(select|with|values)\b", COMMENTS.sub("", sql), re.IGNORECASE):
        raise ValueError(f"SQL must be a SELECT, not {sql.strip()[:40]!r}")


def unique(names: Sequence[str]) -> list[str]:
    """Return *names*, repeated ones with a number: a join may have two columns called id."""
    result: list[str] = []
    for name in names:
        number = 1
        numbered = name
        while numbered in result:
            number += 1
            numbered = f"{name}_{number}"
        result.append(numbered)
    return result


def rows_of_json(text: bytes) -> list[Row]:
    """Return the objects of a JSON array, or of lines of JSON, all with the same keys.

    :raises ValueError: if they are something else
    """
    decoded = text.decode("utf-8-sig", errors="replace")
    objects = items_of_array(decoded) if decoded.lstrip().startswith("[") else items_of_lines(decoded)
    rows = []
    for origin, value in objects:
        if not isinstance(value, dict):
            raise ValueError(f'{origin} of stdin is not a JSON object, like {{"title": …}}: {json.dumps(value)[:40]}')
        rows.append(value)
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]


def items_of_array(text: str) -> list[tuple[str, object]]:
    """Return the items of a JSON array, each with what an error calls it."""
    try:
        items = parse_json(text)
    except ValueError as error:
        raise ValueError(f"stdin is not JSON: {error}") from None
    assert isinstance(items, list), "it begins with a bracket"
    return [(f"item {number}", item) for number, item in enumerate(items, start=1)]


def items_of_lines(text: str) -> list[tuple[str, object]]:
    """Return the value of each line that is not empty, with what an error calls it."""
    items = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                items.append((f"line {number}", parse_json(line)))
            except ValueError as error:
                raise ValueError(f"line {number} of stdin is not JSON: {error}; print rows with --nl") from None
    return items


def parse_json(text: str) -> object:
    """Return what JSON says, in values that can be printed as JSON again.

    Halves of surrogate pairs become question marks.

    :raises ValueError: if it is not JSON, or nested more deeply than Python follows
    """
    try:
        value: object = json.loads(text, parse_float=finite, parse_constant=finite)
        if SURROGATE.search(text):
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def finite(number: str) -> float:
    if not math.isfinite(float(number)):
        raise ValueError(f"{number} is not a number that JSON can hold")
    return float(number)
