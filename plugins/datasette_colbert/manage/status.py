"""How the indexes of a database are.

In: a connection that reads. Out: a status for each index, also for those that are not finished or can't be read. Leaves
to others: who may see them, changing them (work.py), pages.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from colbert_sqlite import ColbertError
from datasette_colbert.core import one_state, registered_indexes

# Name and table of an index, and what ``list_indexes`` says of it.
_ListedIndex = tuple[str, str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An index. Counts are those of the index in use, 0 where there is none; ``bytes`` of its build too.

    ``rows_built`` is how far an unfinished build is, of an index that is not in use yet or is rebuilt; None where there
    is no such build. ``pending_changes`` is None where a sync would compare all rows. ``why_rebuild`` is why a rebuild
    would pay, ``problem`` why the index can't be used, or synced; both may be empty.
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
    """Return the status of every index whose table's name can be read, by name."""
    from colbert_sqlite import list_indexes

    # From one state: the index may be dropped meanwhile.
    with one_state(conn):
        parts: dict[str, dict[str, _ListedIndex]] = {}
        for (name, state, table), facts in zip(registered_indexes(conn), list_indexes(conn), strict=True):
            # The table's name may be damaged, and then nobody can tell who may see the index.
            if isinstance(table, str):
                parts.setdefault(name.lower(), {})[state] = name, table, facts
        return [_status(conn, **by_state) for by_state in parts.values()]


def _status(
    conn: sqlite3.Connection, ready: _ListedIndex | None = None, building: _ListedIndex | None = None
) -> Status:
    listed = ready or building
    assert listed is not None
    name, table, facts = listed
    build: Mapping[str, Any] = building[2] if building else {}
    common: dict[str, Any] = {"name": name, "table": table, "rows_built": build.get("rows", 0) if building else None}
    if "problem" in facts:
        return Status(**common, state="unreadable", problem=facts["problem"])
    common |= {"columns": tuple(facts["columns"]), "heading": facts["heading"] or "", "model": facts["model"]}
    if ready is None:
        return Status(**common, state="unfinished", bytes=facts["bytes"])
    pending_changes, why_rebuild, problem = _prospects(conn, name)
    return Status(
        **common,
        pending_changes=pending_changes,
        why_rebuild=why_rebuild,
        problem=problem,
        state="ready",
        rows=facts["rows"],
        passages=facts["passages"],
        tokens=facts["tokens"],
        bytes=facts["bytes"] + build.get("bytes", 0),
    )


def _prospects(conn: sqlite3.Connection, name: str) -> tuple[int | None, str, str]:
    """The number of pending changes, why a rebuild would pay, and the problem of an index in use."""
    from colbert_sqlite import Index

    index = Index.open(conn, name)
    try:
        return index.pending_changes, index.why_rebuild() or "", ""
    except ColbertError as error:
        return None, "", str(error)
