"""The registry: one row per index in use, and one per build in progress.

In: names, settings. Out: :class:`Entry`. Leaves to others: the tables of an index, but for dropping them.
"""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

from colbert_sqlite.errors import IndexCorrupt, IndexExists, SchemaVersionError, damaged
from colbert_sqlite.settings import IndexSettings
from colbert_sqlite.storage import triggers
from colbert_sqlite.storage.blobs import row_checksum
from colbert_sqlite.storage.connection import lenient_text
from colbert_sqlite.storage.schema import (
    BUILT_PARTS,
    REGISTRY,
    SCHEMA_VERSION,
    qualified,
    table_exists,
    table_name,
)

_REGISTRY = qualified(REGISTRY)

CREATE_REGISTRY = f"""
CREATE TABLE IF NOT EXISTS {qualified(REGISTRY)} (
    name TEXT NOT NULL COLLATE NOCASE,
    state TEXT NOT NULL CHECK (state IN ('ready', 'building')),
    schema_version INTEGER NOT NULL,
    source_table TEXT NOT NULL,
    key_columns TEXT NOT NULL,
    settings TEXT NOT NULL,
    model TEXT NOT NULL,
    model_fingerprint TEXT NOT NULL,
    dim INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    build_id TEXT NOT NULL,
    created TEXT NOT NULL,
    updated TEXT NOT NULL,
    queue_complete INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (name, state)
)
"""

_WHOLE_NUMBERS = {"schema_version", "dim", "generation", "queue_complete"}
# They become part of statements.
_KEY_TYPE = re.compile("(|INTEGER|TEXT|REAL|NUMERIC)( COLLATE (NOCASE|RTRIM))?")
# Far beyond any of them, and far from what overflows.
_MAX_NUMBER = 1 << 48


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the registry."""

    name: str
    state: str
    schema_version: int
    source_table: str
    key_columns: tuple[str, ...]
    key_types: tuple[str, ...]
    settings: IndexSettings
    model: str
    model_fingerprint: str
    dim: int
    generation: int
    build_id: str
    created: str
    updated: str
    queue_complete: bool
    """Whether the queue names every row that differs from what is indexed: triggers saw all there was to see."""

    @property
    def row(self) -> tuple[Any, ...]:
        """The values of its columns, in the order of the table, without the checksum."""
        keys = json.dumps([*zip(self.key_columns, self.key_types, strict=True)])
        return (
            self.name,
            self.state,
            self.schema_version,
            self.source_table,
            keys,
            self.settings.to_json(),
            self.model,
            self.model_fingerprint,
            self.dim,
            self.generation,
            self.build_id,
            self.created,
            self.updated,
            int(self.queue_complete),
        )


def has_registry(conn: sqlite3.Connection) -> bool:
    return table_exists(conn, REGISTRY)


class RegisteredIndex(NamedTuple):
    """An index or an unfinished build as the registry names it, whatever its format.

    ``state`` is "ready" or "building", ``table`` the name of the source table.
    """

    name: str
    state: str
    table: str


def registered(conn: sqlite3.Connection) -> list[RegisteredIndex]:
    """Return every index, and every build in progress, of any version."""
    if not has_registry(conn):
        return []
    cursor = conn.execute(f"SELECT name, state, source_table FROM {_REGISTRY} ORDER BY name, state DESC")
    rows = [RegisteredIndex(*row) for row in cursor]
    if not all(isinstance(row.name, str) for row in rows):
        raise IndexCorrupt(f"the table {REGISTRY} has a row whose name is not text: delete that row")
    return rows


def read_entry(conn: sqlite3.Connection, name: str, state: str = "ready") -> Entry | None:
    """Return the registry's row of the index in use, or of the one being built; None if there is none.

    :raises SchemaVersionError: if another version of the format wrote it
    :raises IndexCorrupt: if it can't be read
    """
    row = _row(conn, name, state)
    if row is None:
        return None
    version = row["schema_version"]
    if version != SCHEMA_VERSION:
        way_out = (
            f"upgrade it with: sqlite-utils colbert upgrade DATABASE {shlex.quote(row['name'])}"
            if is_older(version)
            else "install the release that made it, or drop the index, then create it"
        )
        raise SchemaVersionError(
            f"index {row['name']!r} has schema version {version}, this release reads {SCHEMA_VERSION}: {way_out}"
        )
    return _entry(row, checked=True)


def _row(conn: sqlite3.Connection, name: str, state: str) -> dict[str, Any] | None:
    """Return the registry's row of one index as it is."""
    if not has_registry(conn):
        return None
    with lenient_text(conn):
        cursor = conn.execute(f"SELECT * FROM {_REGISTRY} WHERE name = ? AND state = ?", (name, state))
        row = cursor.fetchone()
    return None if row is None else dict(zip([column[0] for column in cursor.description], row, strict=True))


def _entry(row: dict[str, Any], *, checked: bool) -> Entry:
    """Return the entry that a row stands for.

    :param checked: compare it with its checksum
    :raises IndexCorrupt: if it can't be read
    """
    name = row["name"]
    try:
        stored_checksum = row.pop("checksum")
        if checked and stored_checksum != row_checksum(row.values()):
            raise ValueError("its checksum differs")
        return entry_of(row)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged("registry entry", str(error), index=name) from None


def is_older(version: object) -> bool:
    """Whether a format is older than the one that this release writes."""
    return type(version) is int and version < SCHEMA_VERSION


def entry_of(row: dict[str, Any]) -> Entry:
    """Return the entry that a row stands for; the file may come from anywhere.

    :raises ValueError: or another error, if the row can't be an entry
    """
    for column, value in row.items():
        if column in _WHOLE_NUMBERS:
            if type(value) is not int or not 0 <= value < _MAX_NUMBER:
                raise ValueError(f"{column} is {value!r}")
        elif not isinstance(value, str):
            raise ValueError(f"{column} is not text")
    names, types = zip(*json.loads(row["key_columns"]), strict=True)
    settings = IndexSettings.from_json(row["settings"])
    if settings.max_tokens is None:
        raise ValueError("max_tokens is null")
    names_fit = all(isinstance(name, str) and "\0" not in name for name in names)
    if not names_fit or not all(map(_KEY_TYPE.fullmatch, types)):
        raise ValueError(f"key_columns is {row['key_columns']}")
    # What JSON may escape and SQL can't take: surrogates.
    "".join((*names, *types, settings.to_json())).encode()
    row |= {"key_columns": names, "key_types": types, "settings": settings}
    return Entry(**{**row, "queue_complete": bool(row["queue_complete"])})


def read_outdated(conn: sqlite3.Connection, name: str) -> Entry | None:
    """Return the entry of an index in use whose format is older than this release's; None if there is no such index.

    :raises IndexCorrupt: if it can't be read
    """
    row = _row(conn, name, "ready")
    return _entry(row, checked=False) if row and is_older(row["schema_version"]) else None


def write_entry(conn: sqlite3.Connection, entry: Entry) -> None:
    values = (*entry.row, row_checksum(entry.row))
    conn.execute(f"REPLACE INTO {_REGISTRY} VALUES ({', '.join('?' * len(values))})", values)


def read_if_possible(conn: sqlite3.Connection, name: str, state: str) -> Entry | None:
    """Return an entry that is about to be replaced; None also for one of another version, or damaged."""
    try:
        return read_entry(conn, name, state)
    except (SchemaVersionError, IndexCorrupt):
        return None


def refuse_to_replace(conn: sqlite3.Connection, name: str, replace: bool) -> None:
    """Make sure that an index in use is replaced only if *replace* is set.

    :raises IndexExists: if an index of that name exists and *replace* is not set
    """
    if not replace and any(e.name.lower() == name.lower() and e.state == "ready" for e in registered(conn)):
        raise IndexExists(
            f"index {name!r} exists already: rebuild it, replace it with replace=True (--replace), or use another name"
        )


def delete_entry(conn: sqlite3.Connection, name: str, state: str) -> None:
    conn.execute(f"DELETE FROM {_REGISTRY} WHERE name = ? AND state = ?", (name, state))


def drop_index(conn: sqlite3.Connection, name: str, state: str) -> None:
    """Remove the tables of an index, or of its build, and their registry entry. Call inside ``atomic``.

    With the last of the two go triggers and queue, with the last of all indexes the registry.
    """
    for part in BUILT_PARTS:
        conn.execute(f"DROP TABLE IF EXISTS {qualified(table_name(name, part, building=state == 'building'))}")
    delete_entry(conn, name, state)
    if not conn.execute(f"SELECT 1 FROM {_REGISTRY} WHERE name = ?", (name,)).fetchone():
        triggers.remove(conn, name)
        conn.execute(f"DROP TABLE IF EXISTS {qualified(table_name(name, 'queue'))}")
    if not conn.execute(f"SELECT 1 FROM {_REGISTRY} LIMIT 1").fetchone():
        conn.execute(f"DROP TABLE {_REGISTRY}")


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
