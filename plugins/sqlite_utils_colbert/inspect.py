"""The commands that look at indexes and change nothing: info, list and verify.

In: a database file, the name of an index. Out: facts and problems on stdout. Leaves to others: finding them
(:class:`colbert_sqlite.Index`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import click

from sqlite_utils_colbert.options import ColbertCommand, db_argument, index_argument, json_option
from sqlite_utils_colbert.output import Row, print_facts, print_problems, print_rows, print_table, size

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

    indexes = list_indexes(db)
    if as_json:
        print_rows(indexes)
    elif indexes:
        print_table([row_of_list(facts) for facts in indexes])
        for facts in indexes:
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
    print_problems(problems)
    if problems:
        ctx.exit(1)
    click.echo(f"{index} is sound.", err=True)


def row_of_list(facts: Mapping[str, object]) -> Row:
    """Return a row of the table of indexes.

    An index that this release cannot read has a name and a state only.
    """
    columns, n_bytes = facts.get("columns", ()), facts.get("bytes")
    return {
        **{name: facts.get(name) for name in LIST_COLUMNS},
        "columns": ", ".join(columns) if isinstance(columns, list) else "",
        "size": size(n_bytes) if isinstance(n_bytes, int) else None,
    }
