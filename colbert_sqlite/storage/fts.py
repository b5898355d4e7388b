"""The table's own full-text index, an FTS5 table with external content. Nothing here writes.

In: a source table, words. Out: passages of the rows that have them, with the score FTS5 gives the row. Leaves to
others: what ColBERT thinks of these.
"""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import SourceError
from colbert_sqlite.storage.connection import file_of
from colbert_sqlite.storage.schema import key_columns, qualified, quote_identifier
from colbert_sqlite.storage.source import Source
from colbert_sqlite.storage.store import Store

_NAME = r"""("(?:[^"]|"")*"|'(?:[^']|'')*'|\[[^\]]*\]|`(?:[^`]|``)*`|[^\s,()]+)"""
_OPTION = re.compile(rf"(?<![\w\"'\]`])(content|content_rowid|detail)\s*=\s*{_NAME}", re.IGNORECASE)
_USING = re.compile(r"\bUSING\s+(fts[345])\b", re.IGNORECASE)
# More words change little, and FTS5 refuses expressions of too many.
MAX_WORDS = 500


@dataclass(frozen=True, slots=True)
class FullText:
    """An FTS5 table, the column of the source table that its rowids are, and whether it can find phrases."""

    table: str
    rowid: str
    phrases: bool

    @classmethod
    def of(cls, conn: sqlite3.Connection, source: Source) -> FullText:
        """Return the FTS5 table whose content is *source*; of several, that with most of its indexed columns.

        :raises SourceError: if there is no such table
        """
        candidates, has_older = [], False
        indexed = [*([source.heading] if source.heading else []), *source.columns]
        names = {column.lower() for column in indexed}
        statements = "SELECT name, sql FROM main.sqlite_master WHERE sql LIKE 'create virtual table%' ORDER BY name"
        for name, sql in conn.execute(statements):
            using = _USING.search(sql)
            options = {option.lower(): _unquoted(value) for option, value in _OPTION.findall(sql)}
            if using is None or options.get("content", "").lower() != source.table.lower():
                continue
            if using[1].lower() != "fts5":
                has_older = True
                continue
            candidates.append((-len(_columns(conn, name) & names), name, options))
        rowid = source.rowid(conn)
        if candidates:
            _, name, options = min(candidates, key=lambda one: one[:2])
            column = options.get("content_rowid") or rowid
            if column is not None:
                return cls(name, quote_identifier(column), options.get("detail", "full").lower() == "full")
        if rowid is None:
            raise SourceError(
                f"table {source.table!r} has no rowids, which FTS5 needs: search it with mode colbert, or make it a "
                "table that is not WITHOUT ROWID"
            )
        lacks, replace = ("only an FTS4 index", ["--replace"]) if has_older else ("no FTS5 index", [])
        words = [file_of(conn) or "DATABASE", source.table, *indexed, "--create-triggers", *replace]
        raise SourceError(
            f"table {source.table!r} has {lacks}: make one with: sqlite-utils enable-fts {shlex.join(words)}"
        )

    def search(
        self, store: Store, source: Source, query: str, limit: int, allowed: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the passages of the *limit* rows that answer *query* best, and the score of the row of each.

        :param query: any text; rows with any of its words are found
        :param allowed: int64: only rows of these passages are looked at
        :return: int64 and float64 [n], higher scores first; rows that are not indexed are left out
        """
        words = match_any(query, phrases=self.phrases)
        if not words:
            return np.empty(0, np.int64), np.empty(0)
        ours = [quote_identifier(key) for key in key_columns(store.entry.key_columns)]
        theirs = [quote_identifier(key) for key in source.keys]
        of_row = " AND ".join(f"p.{our} = s.{their}" for our, their in zip(ours, theirs, strict=True))
        passages, table = store.table("passages"), f"{qualified(source.table)} AS s"
        # With a plus, as FTS5 would else look for the words again for every rowid of the list.
        conditions = []
        if source.where is not None:
            conditions.append(f"+rowid IN (SELECT {self.rowid} FROM {source.from_where()})")
        if allowed is not None:
            conditions.append(
                f"+rowid IN (SELECT s.{self.rowid} FROM json_each(:_colbert_allowed) AS ids CROSS JOIN {passages} AS p"
                f" ON p.passage_id = ids.value JOIN {table} ON {of_row})"
            )
        only = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        params = {**source.params, "_colbert_words": words}
        params["_colbert_allowed"] = json.dumps([] if allowed is None else allowed.tolist())
        best_rows = f"SELECT rowid AS id, rank FROM {qualified(self.table)}(:_colbert_words){only} ORDER BY rank, rowid"
        n_rows = limit
        while True:
            rows = self._rows(
                store.conn,
                f"SELECT best.id, -best.rank, p.passage_id FROM ({best_rows} LIMIT {n_rows}) AS best"
                f" LEFT JOIN {table} ON s.{self.rowid} = best.id"
                f" LEFT JOIN {passages} AS p ON {of_row} AND p.doclen > 0"
                " ORDER BY best.rank, best.id, p.passage_id",
                params,
            )
            indexed = [row for row in rows if row[2] is not None]
            kept = dict.fromkeys(row[0] for row in indexed)
            # Some of the rows are not indexed yet, or have no text.
            if len(kept) >= limit or len({row[0] for row in rows}) < n_rows:
                break
            n_rows *= 4
        chosen_rows = {*[*kept][:limit]}
        chosen = [(passage_id, score) for row_id, score, passage_id in indexed if row_id in chosen_rows]
        return np.array([row[0] for row in chosen], np.int64), np.array([row[1] for row in chosen], np.float64)

    def _rows(self, conn: sqlite3.Connection, sql: str, params: Mapping[str, object]) -> list[Any]:
        try:
            return conn.execute(sql, params).fetchall()
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "interrupted" in str(error):
                raise
            raise SourceError(
                f"the FTS5 table {self.table!r} can't be searched: {error}; use mode colbert, or create it again"
            ) from None


def _columns(conn: sqlite3.Connection, table: str) -> set[str]:
    try:
        return {row[0].lower() for row in conn.execute("SELECT name FROM pragma_table_info(?, 'main')", (table,))}
    except sqlite3.OperationalError:
        # It can't be opened, as for want of its tokenizer: searching it says why, if there is no other.
        return set()


def match_any(text: str, *, phrases: bool = True) -> str:
    """Return an FTS5 expression that finds rows with any word of *text*, whatever characters it has; empty if none.

    What stands between spaces is one string to FTS5, so that its own tokenizer cuts it: "time-sharing" becomes a
    phrase.

    :param phrases: if not, such a string becomes words
    """
    text = text.replace("\0", " ")
    words = dict.fromkeys(text.split() if phrases else re.findall(r"[^\W_]+", text))
    return " OR ".join('"' + word.replace('"', '""') + '"' for word in [*words][:MAX_WORDS])


def _unquoted(name: str) -> str:
    if name[0] in "\"'`" and len(name) > 1:
        return name[1:-1].replace(name[0] * 2, name[0])
    return name[1:-1] if name[0] == "[" else name
