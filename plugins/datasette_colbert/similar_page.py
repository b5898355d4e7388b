"""The page of the rows most like one row, and its JSON.

In: a request. Out: a response. Leaves to others: who may see what (access.py), comparing rows (service.py).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from datasette import Request, Response

from colbert_sqlite import SourceError
from datasette_colbert.access import Target, requested_index
from datasette_colbert.compat import rows_response
from datasette_colbert.context import SimilarPage, page_hits, page_index
from datasette_colbert.exports import hit_json
from datasette_colbert.responses import Failure, error_response, failure_of, html_response, wants_json
from datasette_colbert.rows import label_column, row_at_path, title_of_row
from datasette_colbert.service import SearchResult, service_of
from datasette_colbert.settings import settings_for
from datasette_colbert.urls import json_url, row_url, similar_url

if TYPE_CHECKING:
    from datasette.app import Datasette

    from colbert_sqlite.serving import PrimaryKey

logger = logging.getLogger("colbert_sqlite")


async def similar(datasette: Datasette, request: Request) -> Response:
    """``/{database}/-/colbert/{index}/similar/{pks}``: the rows most like one."""
    target = await requested_index(datasette, request)
    database, index = target.database, target.index
    pk, row = await row_at_path(datasette, database, index.table, request.url_vars["pks"])
    result = await _similar(datasette, target, pk)
    failure = result if isinstance(result, Failure) else None
    if wants_json(request):
        if isinstance(result, Failure):
            return error_response(datasette, result)
        rows = [hit_json(datasette, request, database, result.facts.table, hit) for hit in result.hits]
        return rows_response(datasette, request, {"database": database, "index": index.name, "pk": pk}, rows)
    facts = None if isinstance(result, Failure) else result.facts
    label = await label_column(datasette, database, index.table, facts.heading if facts else None)
    page = SimilarPage(
        index=page_index(datasette, database, index, facts),
        title=title_of_row(row, label, pk),
        row_url=row_url(datasette, database, index.table, pk),
        hits=() if isinstance(result, Failure) else page_hits(datasette, target, result, label),
        error=failure.for_people if failure else "",
        milliseconds=None if isinstance(result, Failure) else result.milliseconds,
        json_url=json_url(similar_url(datasette, database, index.name, pk), request),
    )
    context = {"database": database, "page": page}
    return await html_response(datasette, request, "colbert_similar.html", context, failure)


async def _similar(datasette: Datasette, target: Target, pk: PrimaryKey) -> SearchResult | Failure:
    database, index = target.database, target.index
    k = settings_for(datasette, database, index.table).page_size
    try:
        return await service_of(datasette).similar(database, index.name, pk, k)
    except SourceError as error:
        logger.info("similar rows: %s", error)
        return Failure("this row is not in the index: it is empty, or was not there at the last sync", 404)
    except Exception as error:
        return failure_of(error, database, index.name)
