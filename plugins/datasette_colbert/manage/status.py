"""How the indexes of a database are.

In: a connection that reads. Out: a status for each index, also for those that are not finished or can't be read. Leaves
to others: who may see them, changing them (work.py), pages.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from colbert_sqlite import ColbertError, serving

if TYPE_CHECKING:
    from colbert_sqlite import IndexSummary
    from colbert_sqlite.serving import RegisteredIndex


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
    with serving.one_state(conn):
        by_name: dict[str, dict[str, tuple[RegisteredIndex, IndexSummary]]] = {}
        for registered, summary in zip(serving.registered_indexes(conn), list_indexes(conn), strict=True):
            # The table's name may be damaged, and then nobody can tell who may see the index.
            if isinstance(registered.table, str):
                by_name.setdefault(registered.name.lower(), {})[registered.state] = registered, summary
        return [_status(conn, **by_state) for by_state in by_name.values()]


def _status(
    conn: sqlite3.Connection,
    ready: tuple[RegisteredIndex, IndexSummary] | None = None,
    building: tuple[RegisteredIndex, IndexSummary] | None = None,
) -> Status:
    pair = ready or building
    assert pair is not None
    registered, summary = pair
    build = building[1] if building else None
    status = Status(
        name=registered.name,
        table=registered.table,
        state="ready" if ready else "unfinished",
        columns=summary.columns,
        heading=summary.heading or "",
        model=summary.model,
        bytes=summary.bytes,
        rows_built=build.rows if build else None,
    )
    if summary.problem is not None:
        return replace(status, state="unreadable", problem=summary.problem)
    if ready is None:
        return status
    pending_changes, why_rebuild, problem = _prospects(conn, registered.name)
    return replace(
        status,
        rows=summary.rows,
        passages=summary.passages,
        tokens=summary.tokens,
        bytes=summary.bytes + (build.bytes if build else 0),
        pending_changes=pending_changes,
        why_rebuild=why_rebuild,
        problem=problem,
    )


def _prospects(conn: sqlite3.Connection, name: str) -> tuple[int | None, str, str]:
    """The number of pending changes, why a rebuild would pay, and the problem of an index in use."""
    from colbert_sqlite import Index

    try:
        with Index.open(conn, name).read() as view:
            return serving.pending_changes(view), serving.why_rebuild(view) or "", ""
    except ColbertError as error:
        return None, "", str(error)
