"""The entries of this plugin in Datasette's menus of tables, rows and databases.

In: a request to one of these pages. Out: links. Leaves to others: who may see what (access.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from datasette import Request

from datasette_colbert.access import visible_indexes, visible_indexes_of_table
from datasette_colbert.compat import Actor
from datasette_colbert.known import all_indexes
from datasette_colbert.urls import index_url, manage_page_url, manage_url

if TYPE_CHECKING:
    from datasette.app import Datasette

    from colbert_sqlite.serving import RegisteredIndex

Link = dict[str, str]


async def table_links(datasette: Datasette, request: Request, actor: Actor, database: str, table: str) -> list[Link]:
    """Return the entries of a table's menu."""
    indexes = await visible_indexes_of_table(datasette, actor, database, table)
    links = [
        _link(
            index_url(datasette, database, index.name),
            _label("Search with ColBERT", index, indexes),
            "Find rows by what they mean, and see which words answer.",
        )
        for index in indexes
    ]
    if not indexes and await _could_be_indexed(datasette, database, table):
        if await manage_url(datasette, request, database):
            url = manage_page_url(datasette, database, "create", table=table)
            links.append(_link(url, "Create a ColBERT index", "Make the rows of this table searchable by meaning."))
    return links


async def row_links(datasette: Datasette, request: Request, actor: Actor, database: str, table: str) -> list[Link]:
    """Return the entries of a row's menu."""
    indexes = await visible_indexes_of_table(datasette, actor, database, table)
    return [
        _link(
            index_url(datasette, database, index.name, "similar", request.url_vars["pks"]),
            _label("Similar rows", index, indexes),
            "The rows of this table that are most like this one.",
        )
        for index in indexes
    ]


async def database_links(datasette: Datasette, request: Request, actor: Actor, database: str) -> list[Link]:
    """Return the entries of a database's menu."""
    links = []
    if await visible_indexes(datasette, actor, database):
        links.append(_link(index_url(datasette, database), "Search with ColBERT", "Find rows by what they mean."))
    if url := await manage_url(datasette, request, database):
        links.append(_link(url, "Manage ColBERT indexes", "Create, sync, rebuild and drop them."))
    return links


async def _could_be_indexed(datasette: Datasette, database: str, table: str) -> bool:
    db = datasette.databases[database]
    if not db.is_mutable or table in await db.hidden_table_names():
        return False
    # An index that is being built, or isn't served, is one too.
    return all(index.table.lower() != table.lower() for index in await all_indexes(datasette, database))


def _label(label: str, index: RegisteredIndex, indexes: Sequence[RegisteredIndex]) -> str:
    return label if len(indexes) == 1 else f"{label}: {index.name}"


def _link(href: str, label: str, description: str) -> Link:
    # Only 1.0 shows descriptions.
    return {"href": href, "label": label, "description": description}
