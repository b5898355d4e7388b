"""A search as the SELECT that finds the same rows.

In: a search. Out: SQL that calls ``colbert_search()``, for sqlite-utils, Datasette and any connection that has our
functions. Leaves to others: running it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colbert_sqlite import Index, SearchSettings


def select_of_search(
    index: Index, query: str, k: int, settings: SearchSettings, where: str | None, columns: list[str]
) -> str:
    """A SELECT of the rows that the search finds, best first; parameters of *where* stay parameters.

    :raises ValueError: if keys may be BLOBs, which JSON has no place for
    """
    from colbert_sqlite.storage.schema import quote_identifier

    if index.has_blob_keys():
        raise ValueError(f"table {index.settings.table!r} has BLOBs for keys, which this SQL can't name")
    table, keys = quote_identifier(index.settings.table), [quote_identifier(key) for key in index.key_columns]
    # Not what the table itself is called.
    hits = "hits" if index.settings.table.lower() != "hits" else "found"
    arguments = [literal(index.name), literal(query), str(k)]
    if settings.mode != "colbert" or where is not None:
        arguments.append(literal(settings.mode))
    if where is not None:
        key = keys[0] if len(keys) == 1 else f"json_array({', '.join(keys)})"
        arguments.append(f"(\n  select json_group_array({key}) from {table} where {where}\n)")
    shown = ", ".join(f"{table}.{quote_identifier(column)}" for column in columns) or f"{table}.*"
    # Not ->>, which SQLite has since 3.38.
    paths = ["$.pk"] if len(keys) == 1 else [f"$.pk[{i}]" for i in range(len(keys))]
    values = [f"json_extract({hits}.value, '{path}')" for path in paths]
    of_row = " and ".join(f"{table}.{key} = {value}" for key, value in zip(keys, values, strict=True))
    least = ""
    if settings.threshold is not None:
        least = f"where json_extract({hits}.value, '$.normalized_score') >= {settings.threshold}\n"
    return (
        f"select {shown}, json_extract({hits}.value, '$.score') as score\n"
        f"from json_each(colbert_search({', '.join(arguments)})) as {hits}\n"
        f"join {table} on {of_row}\n{least}order by {hits}.key"
    )


def literal(text: str) -> str:
    """*text* as a SQL string."""
    return "'" + text.replace("'", "''") + "'"
