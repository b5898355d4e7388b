"""Damage that checksums do not give away: what a file made with intent may hold.

In: a database with damaged tables of ours. Out: the same, every checksum that of the damaged values.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from colbert_sqlite.storage.blobs import checksum, row_checksum
from colbert_sqlite.storage.schema import REGISTRY, qualified, quote_identifier, table_name

# What the checksum of each table covers.
_COVERED = {
    "codes": ("codes",),
    "residuals": ("residuals",),
    "centroids": ("centroids", "cells"),
    "ivf": ("passage_ids",),
    "outliers": ("embedding",),
}


def make_older(conn: sqlite3.Connection, index: str) -> None:
    """Give an index format 0: another version, and tables that this release can't read."""
    conn.execute(f"UPDATE {qualified(REGISTRY)} SET schema_version = 0 WHERE name = ?", (index,))
    conn.execute(f"DROP TABLE {qualified(table_name(index, 'codec'))}")
    conn.execute(f"ALTER TABLE {qualified(table_name(index, 'ivf'))} RENAME COLUMN segment TO centroid")
    conn.commit()


def forge_checksums(conn: sqlite3.Connection, index: str, *, building: bool = False) -> None:
    """Give every row of an index, and of the registry, the checksum of what it holds."""
    for part, columns in _COVERED.items():
        name = table_name(index, part, building=building)
        keys = [key for (key,) in conn.execute("SELECT name FROM pragma_table_info(?, 'main') WHERE pk", (name,))]
        _forge(conn, qualified(name), keys, columns)
    _forge_rows(conn, qualified(table_name(index, "codec", building=building)), ["id"], without=["id"])
    _forge_rows(conn, qualified(REGISTRY), ["name", "state"], without=[])


def _forge(conn: sqlite3.Connection, table: str, keys: list[str], columns: Iterable[str]) -> None:
    key_list, column_list = _quoted(keys), _quoted(columns)
    equals = " AND ".join(f"{quote_identifier(key)} IS ?" for key in keys)
    for row in conn.execute(f"SELECT {column_list}, {key_list} FROM {table}").fetchall():
        blobs, key = row[: -len(keys)], row[-len(keys) :]
        # A value that is no BLOB has no checksum; that of its bytes is as near as one gets.
        forged = checksum(*(blob if isinstance(blob, bytes) else str(blob).encode() for blob in blobs))
        conn.execute(f"UPDATE {table} SET checksum = ? WHERE {equals}", (forged, *key))


def _forge_rows(conn: sqlite3.Connection, table: str, keys: list[str], without: list[str]) -> None:
    cursor = conn.execute(f"SELECT * FROM {table}")
    columns = [column[0] for column in cursor.description]
    equals = " AND ".join(f"{quote_identifier(key)} IS ?" for key in keys)
    for values in cursor.fetchall():
        row = dict(zip(columns, values, strict=True))
        covered = [value for name, value in row.items() if name not in {"checksum", *without}]
        conn.execute(f"UPDATE {table} SET checksum = ? WHERE {equals}", (row_checksum(covered), *map(row.get, keys)))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(quote_identifier, names))
