"""What our ``table.html``, ``_table.html`` and ``row.html`` read beside what Datasette's own have.

In: a request to the page of a table or a row. Out: names for its templates. Leaves to others: what they stand for
(table_page.py, row_page.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from datasette import Request
from markupsafe import Markup

from datasette_colbert.compat import Json, is_1_0
from datasette_colbert.row_page import top_of_row
from datasette_colbert.table_page import search_of, top_of_table

if TYPE_CHECKING:
    from datasette.app import Datasette


def template_vars(
    datasette: Datasette, request: Request | None, view_name: str | None, database: str | None, table: str | None
) -> Json:
    """Return the names for a page of a table or a row; empty for any other page."""
    if request is None or database is None or table is None or view_name not in ("table", "row"):
        return {}
    names: Json = {}
    search = search_of(request)
    if view_name == "table" and search is not None:
        names["colbert_scored"] = search.scored
        if search.best_first:
            # Else the page would show, and its form would hand on, that it is sorted by the key, or as configured.
            names |= {"sort": None, "sort_desc": None, "human_description_en": search.description}
    if not is_1_0(datasette):
        # 1.0 has hooks for these.
        top = top_of_table if view_name == "table" else top_of_row
        names["colbert_top"] = _markup_of(lambda: top(datasette, request, database, table))
    return names


def _markup_of(html: Callable[[], Awaitable[str | None]]) -> Callable[[], Awaitable[Markup]]:
    async def markup() -> Markup:
        return Markup(await html() or "")

    return markup
