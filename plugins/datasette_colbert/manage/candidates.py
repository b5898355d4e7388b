"""Which tables can be indexed, and which of their columns to propose.

In: a connection that reads. Out: tables, and the columns of one, with a guess which of them people want to search.
Leaves to others: who may see a table, building (work.py), pages.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, replace

from colbert_sqlite import SourceError, serving
from colbert_sqlite.serving import quote_identifier

SAMPLED_ROWS = 100
EXAMPLE_CHARACTERS = 80
# People search sentences; shorter texts are names, tags and dates.
MIN_CHARACTERS = 40
HEADINGS = ("title", "headline", "heading", "subject", "name")
# Bytes of an index for each character of text, at 128 dimensions and 4 bits: measured 12 for HTML, 15 and 17 for prose.
BYTES_PER_CHARACTER = 15


@dataclass(frozen=True, slots=True)
class Table:
    """A table; ``why_not`` is why it can't be indexed, empty if it can."""

    name: str
    why_not: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column, what its texts are like in the first rows, and whether to propose it.

    ``characters`` is their mean length, 0 if it has no text there. ``sentences`` is the share that has a space in it
    and is no JSON.
    """

    name: str
    type: str
    characters: float
    sentences: float
    example: str
    proposed: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A table that can be indexed. ``heading`` is the column to propose for that, empty if there is none."""

    table: str
    n_rows: int
    columns: tuple[Column, ...]
    heading: str

    @property
    def bytes(self) -> int:
        """About how big the proposed index gets."""
        return round(BYTES_PER_CHARACTER * self.n_rows * sum(c.characters for c in self.columns if c.proposed))


def tables(conn: sqlite3.Connection, names: Iterable[str]) -> list[Table]:
    """Return those of *names* that are ordinary tables of the user's, and whether they can be indexed."""
    kinds = dict(conn.execute("SELECT name, type FROM pragma_table_list WHERE schema = 'main'").fetchall())
    own = [
        name
        for name in names
        if kinds.get(name) == "table" and not name.lower().startswith("sqlite_") and not serving.is_index_table(name)
    ]
    return [Table(name, _why_not(conn, name)) for name in own]


def _why_not(conn: sqlite3.Connection, table: str) -> str:
    try:
        serving.check_source(conn, table)
    except SourceError as error:
        return str(error)
    return ""


def candidate(conn: sqlite3.Connection, table: str) -> Candidate:
    """Return a table with its columns, and which of them to propose.

    :raises SourceError: if it can't be indexed
    """
    table = serving.check_source(conn, table)
    (n_rows,) = conn.execute(f"SELECT count(*) FROM {quote_identifier(table)}").fetchone()
    pairs = conn.execute("SELECT name, type FROM pragma_table_xinfo(?, 'main') WHERE hidden != 1", (table,)).fetchall()
    columns = [_column(conn, table, name, type_) for name, type_ in pairs]
    heading = _heading(columns)
    return Candidate(table, n_rows, tuple(_with_proposals(columns, heading)), heading)


def _column(conn: sqlite3.Connection, table: str, name: str, type_: str) -> Column:
    column = quote_identifier(name)
    characters, sentences, example = conn.execute(
        f"SELECT avg(length({column})), avg(instr(trim({column}), ' ') > 0 AND NOT json_valid({column})),"
        f" substr({column}, 1, {EXAMPLE_CHARACTERS + 1})"
        f" FROM (SELECT {column} FROM {quote_identifier(table)} LIMIT {SAMPLED_ROWS})"
        f" WHERE typeof({column}) = 'text' AND trim({column}) != ''"
    ).fetchone()
    return Column(name, type_, characters or 0, sentences or 0, _shortened(example or ""))


def _heading(columns: Iterable[Column]) -> str:
    texts = {column.name.lower(): column.name for column in columns if column.characters}
    return next((texts[name] for name in HEADINGS if name in texts), "")


def _with_proposals(columns: list[Column], heading: str) -> Iterable[Column]:
    """The columns, proposed if they have sentences. Of a text that is there as HTML too, not the HTML."""
    prose = [c for c in columns if c.characters >= MIN_CHARACTERS and c.sentences >= 0.5 and c.name != heading]
    plain = [c for c in prose if not c.name.lower().endswith("html")]
    chosen = plain or prose or [c for c in columns if c.name == heading]
    return (replace(column, proposed=column in chosen) for column in columns)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return f"{text[:EXAMPLE_CHARACTERS].rstrip()}…" if len(text) > EXAMPLE_CHARACTERS else text
