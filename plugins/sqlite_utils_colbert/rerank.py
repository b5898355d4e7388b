"""The command that puts rows in order without an index: rerank.

In: the rows of a SELECT, or JSON on stdin. Out: the same rows, best first. Leaves to others: the work, which is
:mod:`colbert_sqlite.reranking`.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from sqlite_utils_colbert.options import ColbertCommand, model_options, named_model_option, param_option
from sqlite_utils_colbert.output import Row, fit, output_options, print_rows, print_table, refuse_two_formats

if TYPE_CHECKING:
    from colbert_sqlite.encoders import Encoder
    from colbert_sqlite.passages import RawValue

STDIN = "-"
OURS = ("rank", "score")
# Loading torch takes seconds longer than starting onnxruntime; from about here on torch, where it is faster, pays.
FOR_SPEED_CHARACTERS = 150_000
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
@click.option("-v", "--verbose", is_flag=True, help="Say which model and backend answered, and how fast")
@output_options
def rerank(
    db: str,
    sql: str,
    query: str | None,
    columns: tuple[str, ...],
    k: int | None,
    params: tuple[tuple[str, str], ...],
    attach: tuple[tuple[str, str], ...],
    verbose: bool,
    output: str | None,
    fmt: str | None,
    **options: Any,
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
    refuse_two_formats(output, fmt)
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
    ranked, encoder = in_order(rows, columns, query, options) if rows else ([], None)
    if verbose and encoder is not None:
        seconds = time.perf_counter() - started
        click.echo(f"Answered by {encoder.name}, {encoder.backend}, in {seconds:.2f} s", err=True)
    if not rows:
        click.echo("There are no rows to rank.", err=True)
    if fmt or output == "table":
        print_table(fit([flat(row) for row in ranked[:k]], whole=False, wrap=fmt is None), fmt)
    else:
        print_rows([flat(row) for row in ranked[:k]] if output in ("csv", "tsv") else ranked[:k], output)


def in_order(
    rows: list[Row], columns: tuple[str, ...], query: str, options: dict[str, Any]
) -> tuple[list[Row], Encoder]:
    """*rows* by score, with rank and score in front, and the encoder that gave the scores."""
    from colbert_sqlite.encoders import cached_encoder
    from colbert_sqlite.encoders.queries import check_queries
    from colbert_sqlite.reranking import score_documents

    check_queries([query])
    names = columns_to_rank_by(rows, columns)
    documents = [[raw_value(row.get(name)) for name in names] for row in rows]
    n_characters = sum(len(value.raw or b"") for document in documents for value in document)
    encoder = cached_encoder(indexing=n_characters > FOR_SPEED_CHARACTERS, **options)
    scores = [score for score, _ in score_documents(encoder, query, documents)]
    best = sorted(range(len(rows)), key=lambda position: (-scores[position], position))
    # The rows of another search have a rank and a score of their own.
    printed = unique(["rank", "score", *(f"row.{name}" if name.lower() in OURS else name for name in rows[0])])
    ranked = [
        dict(zip(printed, (rank, rounded(scores[at]), *rows[at].values()), strict=True))
        for rank, at in enumerate(best, start=1)
    ]
    return ranked, encoder


def rounded(score: float) -> float | None:
    return round(score, 4) if math.isfinite(score) else None


def columns_to_rank_by(rows: list[Row], asked: tuple[str, ...]) -> list[str]:
    """The names of the columns *asked* for as the rows spell them, or of all that hold text.

    :raises ValueError: if there are none
    """
    names = list(rows[0])
    found = ", ".join(names) or "none"
    if not asked:
        chosen = [name for name in names if any(isinstance(row[name], str) for row in rows)]
        if not chosen:
            raise ValueError(f"no column holds text; name the one to rank by with -c: there are {found}")
        return chosen
    spelled = {name.lower(): name for name in names} | {name: name for name in names}
    for name in asked:
        if name not in spelled and name.lower() not in spelled:
            raise ValueError(f"no column {name!r}: there are {found}")
    return [spelled[name if name in spelled else name.lower()] for name in asked]


def raw_value(value: Any) -> RawValue:
    from colbert_sqlite.passages import RawValue
    from colbert_sqlite.reranking import text_value

    if value is None:
        return RawValue("null", None)
    if isinstance(value, bytes):
        return RawValue("blob", value)
    return text_value(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def flat(row: Row) -> Row:
    """*row* with lists and dicts, which JSON rows may hold, as JSON."""
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
        for name, value in row.items()
    }


def rows_of_select(db: str, sql: str, params: dict[str, str], others: tuple[tuple[str, str], ...]) -> list[Row]:
    """The rows of *sql*, which can't write, with the SQL functions of sqlite-utils and its plugins.

    :param others: aliases and paths of other files that it reads
    :raises SourceError: if one of the files is no database that can be read
    :raises ValueError: if it is no single SELECT, or a parameter has no value
    """
    from sqlite_utils import Database

    from colbert_sqlite.storage.connection import attach, connect, lenient_text, refuse_writes

    first_word = sql[COMMENTS.match(sql).end() :].split(maxsplit=1)[:1]  # type: ignore[union-attr]
    if not first_word or not re.match(r"(select|with|values)\b", first_word[0], re.IGNORECASE):
        raise ValueError(f"SQL must be a SELECT, not {sql.strip()[:40]!r}")
    conn, _ = connect(db)
    with closing(conn):
        for alias, path in others:
            attach(conn, path, alias)
        Database(conn)  # registers what plugins bring
        refuse_writes(conn)
        try:
            with lenient_text(conn):
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


def unique(names: list[str]) -> list[str]:
    """*names*, those that were there before with a number: a join may have two columns called id."""
    found: list[str] = []
    for name in names:
        number = 1
        spelled = name
        while spelled in found:
            number += 1
            spelled = f"{name}_{number}"
        found.append(spelled)
    return found


def rows_of_json(text: bytes) -> list[Row]:
    """The objects of a JSON array, or of lines of JSON, all with the same keys.

    :raises ValueError: if they are something else
    """
    decoded = text.decode("utf-8-sig", errors="replace")
    if decoded.lstrip().startswith("["):
        try:
            objects = parsed(decoded)
        except ValueError as error:
            raise ValueError(f"stdin is no JSON: {error}") from None
        places = [f"item {number}" for number in range(1, len(objects) + 1)]
    else:
        lines = [(number, line) for number, line in enumerate(decoded.split("\n"), start=1) if line.strip()]
        places = [f"line {number}" for number, _ in lines]
        objects = []
        for number, line in lines:
            try:
                objects.append(parsed(line))
            except ValueError as error:
                raise ValueError(f"line {number} of stdin is no JSON: {error}; print rows with --nl") from None
    for place, found in zip(places, objects, strict=True):
        if not isinstance(found, dict):
            raise ValueError(f'{place} of stdin is no JSON object, like {{"title": …}}: {json.dumps(found)[:40]}')
    keys = dict.fromkeys(key for found in objects for key in found)
    return [{key: found.get(key) for key in keys} for found in objects]


def parsed(text: str) -> Any:
    """What JSON says, in values that can be printed as JSON again; halves of surrogate pairs become question marks.

    :raises ValueError: if it is no JSON, or nested more deeply than Python follows
    """
    try:
        found = json.loads(text, parse_float=finite, parse_constant=finite)
        if SURROGATE.search(text):
            found = json.loads(json.dumps(found, ensure_ascii=False).encode(errors="replace"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return found


def finite(number: str) -> float:
    if not math.isfinite(float(number)):
        raise ValueError(f"{number} is no number that JSON can hold")
    return float(number)
