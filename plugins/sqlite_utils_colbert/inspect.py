"""The commands that look at indexes and change nothing: info, list and verify.

In: a database file, the name of an index. Out: facts and problems on stdout. Leaves to others: finding them
(:class:`colbert_sqlite.Index`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from sqlite_utils_colbert.options import ColbertCommand, db_argument, index_argument, json_option
from sqlite_utils_colbert.output import Row, print_facts, print_problems, print_rows, print_table, size

if TYPE_CHECKING:
    from colbert_sqlite import IndexSummary

LIST_COLUMNS = ("name", "table", "columns", "model", "nbits", "rows", "passages", "tokens", "state")


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
        facts = opened.info().to_dict()
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

    indexes = list_indexes(db)
    if as_json:
        print_rows([index.to_dict() for index in indexes])
    elif indexes:
        print_table([row_of(index) for index in indexes])
        for index in indexes:
            if index.problem:
                click.echo(index.problem, err=True)
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
    print_problems(problems)
    if problems:
        ctx.exit(1)
    click.echo(f"{index} is sound.", err=True)


def row_of(index: IndexSummary) -> Row:
    """Return a row of the table of indexes.

    An index that this release cannot read has a name and a state only.
    """
    if index.state == "unreadable":
        return {**dict.fromkeys(LIST_COLUMNS), "name": index.name, "state": index.state, "size": None}
    cells: Row = {name: getattr(index, name) for name in LIST_COLUMNS}
    return {**cells, "columns": ", ".join(index.columns), "size": size(index.bytes)}
