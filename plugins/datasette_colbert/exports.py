"""Hits for programs.

In: the hits of a page. Out: dicts for JSON, and CSV. Leaves to others: searching, the shapes of JSON (compat.py).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from datasette import Request, Response

from datasette_colbert.urls import row_url

if TYPE_CHECKING:
    from datasette.app import Datasette

    from colbert_sqlite import Hit
    from colbert_sqlite.serving import SqlValue
    from datasette_colbert.compat import Json

CSV_COLUMNS = ("rank", "score", "normalized_score", "stale", "passage")


def hit_json(datasette: Datasette, request: Request, database: str, table: str, hit: Hit) -> Json:
    """Return a hit for JSON."""
    return {
        "rank": hit.rank,
        "score": hit.score,
        "normalized_score": hit.normalized_score,
        "pk": list(hit.pk) if isinstance(hit.pk, tuple) else hit.pk,
        "url": row_url(datasette, database, table, hit.pk),
        "passage": hit.passage.text,
        "stale": hit.stale,
        "row": _requested_columns(request, hit),
    }


def hits_csv(request: Request, hits: Sequence[Hit]) -> Response:
    """Return hits as CSV, best first."""
    out = io.StringIO(newline="")
    rows = [(hit, _requested_columns(request, hit)) for hit in hits]
    columns = [*rows[0][1]] if rows else []
    writer = csv.writer(out)
    # A column of the table that has one of these names keeps it.
    writer.writerow([*(f"colbert_{name}" if name in columns else name for name in CSV_COLUMNS), *columns])
    for hit, row in rows:
        values = (hit.rank, hit.score, hit.normalized_score, hit.stale, hit.passage.text)
        writer.writerow([*values, *(row[column] for column in columns)])
    return Response(out.getvalue(), content_type="text/csv; charset=utf-8")


def _requested_columns(request: Request, hit: Hit) -> dict[str, SqlValue]:
    """The columns that ``_col`` and ``_nocol`` leave, as on Datasette's pages."""
    only, without = request.args.getlist("_col"), request.args.getlist("_nocol")
    return {
        column: value for column, value in hit.row.items() if (not only or column in only) and column not in without
    }
