"""Datasette's page of a row, with links to the rows most like it.

In: a request to the page of a row. Out: HTML for it. Leaves to others: who may see what (access.py), comparing rows
(service.py), markup (templates).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datasette import Request

from datasette_colbert.access import Target, visible_indexes_of_table
from datasette_colbert.compat import is_answered_by_datasette
from datasette_colbert.context import PageHit, page_hits
from datasette_colbert.responses import failure_of
from datasette_colbert.rows import label_column, row_at_path
from datasette_colbert.service import Busy, TookTooLong, service_of
from datasette_colbert.settings import settings_for
from datasette_colbert.urls import index_url

if TYPE_CHECKING:
    from datasette.app import Datasette

# The page of a row must not wait for something beside it.
MAX_SECONDS = 1.0


async def top_of_row(datasette: Datasette, request: Request, database: str, table: str) -> str | None:
    """Return links to the rows most like the one on the page; None where the row is in no index."""
    n_rows = settings_for(datasette, database, table).similar_rows
    indexes = await visible_indexes_of_table(datasette, request.actor, database, table) if n_rows else []
    if not indexes:
        return None
    target, path = Target(database, indexes[0]), request.url_vars["pks"]
    hits: Sequence[PageHit] = ()
    try:
        hits = await _similar_rows(datasette, target, path, n_rows)
    except (asyncio.TimeoutError, Busy, TookTooLong):
        pass
    except Exception as error:
        if not is_answered_by_datasette(error):
            # Says in the log what is wrong with the index: the page of a row does without.
            failure_of(error, database, target.index.name)
        return None
    context = {"hits": hits, "more_url": index_url(datasette, database, target.index.name, "similar", path)}
    return str(await datasette.render_template("_colbert_row.html", context, request=request))


async def _similar_rows(datasette: Datasette, target: Target, path: str, n_rows: int) -> Sequence[PageHit]:
    database, index = target.database, target.index
    pk, _ = await row_at_path(datasette, database, index.table, path)
    similar = service_of(datasette).similar(database, index.name, pk, n_rows)
    result = await asyncio.wait_for(similar, MAX_SECONDS)
    label = await label_column(datasette, database, index.table, result.facts.heading)
    return page_hits(datasette, target, result, label)
