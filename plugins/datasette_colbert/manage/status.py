"""How the indexes of a database are.

In: a connection that reads. Out: a status for each index, also for those that are not finished or can't be read. Leaves
to others: who may see them, changing them (jobs.py), pages.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from colbert_sqlite.errors import ColbertError

# The least that can be known of an index: name and table.
Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An index. Counts are those of the index in use, 0 where there is none; ``bytes`` of its build too.

    ``rows_built`` is how far a build got that is not finished, of an index that has none in use or is rebuilt; None
    where there is no such build. ``pending_changes`` is None where a sync would compare all rows. ``why_rebuild`` is
    why a rebuild would pay, ``problem`` why the index can't be used, or synced; both may be empty.
    """

    name: str
    table: str
    state: Literal["ready", "unfinished", "unreadable"]
    columns: tuple[str, ...] = ()
    heading: str = ""
    model: str = ""
    rows: int = 0
    passages: int = 0
    tokens: int = 0
    bytes: int = 0
    rows_built: int | None = None
    pending_changes: int | None = None
    why_rebuild: str = ""
    problem: str = ""


def statuses(conn: sqlite3.Connection) -> list[Status]:
    """Return the status of every index of a known table, by name."""
    from colbert_sqlite.catalogue import list_indexes, registered_sources
    from colbert_sqlite.storage.connection import reading

    # Read from one state: the index may be dropped meanwhile.
    with reading(conn):
        parts: dict[str, dict[str, tuple[str, str, Facts]]] = {}
        for (name, state, table), facts in zip(registered_sources(conn), list_indexes(conn), strict=True):
            # Of what table it is may be damaged, and then nobody can tell who may see the index.
            if isinstance(table, str):
                parts.setdefault(name.lower(), {})[state] = name, table, facts
        return [_status(conn, **by_state) for by_state in parts.values()]


def _status(
    conn: sqlite3.Connection,
    ready: tuple[str, str, Facts] | None = None,
    building: tuple[str, str, Facts] | None = None,
) -> Status:
    known = ready or building
    assert known is not None
    name, table, facts = known
    begun = building[2] if building else {}
    common: dict[str, Any] = {"name": name, "table": table, "rows_built": begun.get("rows", 0) if building else None}
    if "problem" in facts:
        return Status(**common, state="unreadable", problem=facts["problem"])
    common |= {"columns": tuple(facts["columns"]), "heading": facts["heading"] or "", "model": facts["model"]}
    if ready is None:
        return Status(**common, state="unfinished", bytes=facts["bytes"])
    return Status(
        **common,
        **_prospects(conn, name),
        state="ready",
        rows=facts["rows"],
        passages=facts["passages"],
        tokens=facts["tokens"],
        bytes=facts["bytes"] + begun.get("bytes", 0),
    )


def _prospects(conn: sqlite3.Connection, name: str) -> dict[str, Any]:
    """What there is to do about an index in use."""
    from colbert_sqlite.index import Index

    index = Index.open(conn, name)
    try:
        return {"pending_changes": index.pending_changes, "why_rebuild": index.why_rebuild() or ""}
    except ColbertError as error:
        return {"problem": str(error)}
