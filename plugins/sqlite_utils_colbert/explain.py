"""The command that shows why a row answers a query: explain.

In: a row and a query. Out: the row's passage with the words that answer the query marked, and what each word of the
query adds to the score. Leaves to others: the work (:class:`colbert_sqlite.Index`).
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

import click

from colbert_sqlite import ModelOptions
from sqlite_utils_colbert.options import (
    ColbertCommand,
    PrimaryKey,
    db_argument,
    index_argument,
    keywords,
    model_options,
    moved_model_option,
    pk_argument,
    query_argument,
)
from sqlite_utils_colbert.output import Row, print_table

if TYPE_CHECKING:
    from colbert_sqlite import Explanation


class Style(TypedDict, total=False):
    """Arguments of click.style."""

    fg: str
    bg: str
    bold: bool
    underline: bool


MAX_BAR = 20
# Legible on dark and on light: either the terminal's own colors, or both of a pair.
STYLES: dict[int, Style] = {
    1: {"underline": True},
    2: {"underline": True, "bold": True},
    3: {"fg": "black", "bg": "yellow"},
    4: {"fg": "black", "bg": "yellow", "bold": True, "underline": True},
}
# What a row holds must not steer the terminal.
REPLACEMENTS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"} | {ord("\r"): " "}
STARS = {1: "*", 2: "*", 3: "**", 4: "**"}


@click.command(cls=ColbertCommand)
@db_argument
@index_argument
@pk_argument
@query_argument
@click.option("--ordinal", type=int, help="Which passage of the row, from 0; default: its best one")
@click.option("--json", "output", flag_value="json", help="Output JSON")
@click.option("--html", "output", flag_value="html", help="Output HTML to put into a page")
@click.option("--color/--no-color", default=None, help="Colors or none; default: on a terminal, unless NO_COLOR is set")
@moved_model_option
@model_options
def explain(
    db: str,
    index: str,
    pk: PrimaryKey,
    query: str,
    ordinal: int | None,
    output: str | None,
    color: bool | None,
    model: str | None,
    options: ModelOptions,
) -> None:
    """Show why a row answers a query as it does

    The passage is shown with the words that answer the query marked, and below it what each word of the query met
    there, how similar the two are and what that adds to the score. A key of several columns is a JSON array.

    Examples:

    \b
        sqlite-utils colbert explain blog.db posts 17 'bread that stays flat'
        sqlite-utils colbert explain tils.db entries '["baking", "bread"]' 'flat bread' --html > why.html
    """
    from colbert_sqlite import Index

    with Index.open(db, index, model=model, **keywords(options)) as opened:
        explanation = opened.explain(query, pk, ordinal=ordinal)
    if output == "json":
        click.echo(json.dumps(rounded(explanation.to_dict()), ensure_ascii=False, indent=2))
    elif output == "html":
        click.echo(explanation.to_html(), nl=False)
    else:
        print_explanation(explanation, color=wants_color(color))


def wants_color(color: bool | None) -> bool:
    """Return whether to use colors.

    *color* decides. Without it a terminal gets colors if it has them and NO_COLOR is not set (https://no-color.org).
    """
    if color is not None:
        return color
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_explanation(explanation: Explanation, *, color: bool) -> None:
    marked = colored if color else starred
    if explanation.heading:
        click.echo(marked_text(explanation, marked, in_heading=True) + "\n", color=color)
    click.echo(marked_text(explanation, marked, in_heading=False) + "\n", color=color)
    # A word of one token that met itself adds 1.
    full_bar = max([1.0, *(match.contribution for match in explanation.matches)])
    rows: list[Row] = [
        {
            "query": match.text.translate(REPLACEMENTS),
            "passage": match.met_text.translate(REPLACEMENTS),
            "similarity": match.similarity,
            "score": match.contribution,
            "": "█" * round(MAX_BAR * match.contribution / full_bar),
        }
        for match in explanation.matches
    ]
    print_table(rows)
    counts = Counter(match.text for match in explanation.special)
    names = " ".join(name if n == 1 else f"{n}×{name}" for name, n in counts.items())
    share = f", {explanation.special_score:.2f} of it from special tokens ({names})" if names else ""
    click.echo(f"\nScore {explanation.score:.2f}{share}; normalized {explanation.normalized_score:.2f}")


def marked_text(explanation: Explanation, marked: Callable[[str, int], str], *, in_heading: bool) -> str:
    return "".join(
        text.translate(REPLACEMENTS) if word is None else marked(text.translate(REPLACEMENTS), word.heat)
        for text, word in explanation.pieces(in_heading=in_heading)
    )


def colored(text: str, heat: int) -> str:
    return click.style(text, **STYLES[heat])


def starred(text: str, heat: int) -> str:
    return f"{STARS[heat]}{text}{STARS[heat]}"


def rounded(value: object) -> object:
    """Return nested lists and dicts with their floats rounded as the scores of a search are."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, (list, tuple)) else value
