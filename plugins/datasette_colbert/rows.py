"""Rows of the user's tables: which row a path names, and a title for it.

In: the path of a row, a row's values. Out: its primary key, a title, a date. Leaves to others: who may see the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from datasette import NotFound

from colbert_sqlite.serving import PrimaryKey, SqlValue, quote_identifier
from datasette_colbert.compat import key_values, table_setting

if TYPE_CHECKING:
    from datasette.app import Datasette

_ISO_DATE = re.compile(r"(\d{4}-\d\d-\d\d)([T ]\d\d:\d\d.*)?$")
_DATE_NAMES = ("publish", "date", "created", "posted", "added", "updated")


async def row_at_path(
    datasette: Datasette, database: str, table: str, path: str
) -> tuple[PrimaryKey, dict[str, SqlValue]]:
    """Return the primary key in a row's path, as the values that the columns hold, and the row.

    :raises datasette.NotFound: if there is no such row
    """
    values = key_values(path)
    columns = await datasette.databases[database].primary_keys(table)
    if not columns or len(columns) != len(values):
        raise NotFound(f"Record not found: {path}")
    where = " and ".join(f"{quote_identifier(column)} = :p{i}" for i, column in enumerate(columns))
    # A path is text: the affinity of the columns makes numbers of what are numbers.
    result = await datasette.databases[database].execute(
        f"select * from {quote_identifier(table)} where {where}", {f"p{i}": value for i, value in enumerate(values)}
    )
    if not result.rows:
        raise NotFound(f"Record not found: {path}")
    row = dict(result.rows[0])
    key = tuple(row[column] for column in columns)
    return key if len(key) > 1 else key[0], row


async def label_column(datasette: Datasette, database: str, table: str, heading: str | None) -> str | None:
    """Return the column whose text is a row's title: the configured one, *heading*, or the one Datasette takes."""
    configured: str | None = table_setting(datasette, database, table, "label_column")
    label: str | None = configured or heading or await datasette.databases[database].label_column_for_table(table)
    return label


def title_of_row(row: Mapping[str, SqlValue], label: str | None, pk: PrimaryKey) -> str:
    """Return the text of the label column, or the primary key where there is none."""
    value = row.get(label) if label else None
    if isinstance(value, (str, int, float)) and str(value).strip():
        return str(value)
    return ", ".join(map(str, pk)) if isinstance(pk, tuple) else str(pk)


def date_of_row(row: Mapping[str, SqlValue]) -> str:
    """Return the day in a row's first date, those columns first whose names are about publishing."""
    dates = {
        column: match[1]
        for column, value in row.items()
        if isinstance(value, str) and len(value) < 40 and (match := _ISO_DATE.match(value))
    }
    for name in _DATE_NAMES:
        for column, day in dates.items():
            if name in column.lower():
                return day
    return next(iter(dates.values()), "")
