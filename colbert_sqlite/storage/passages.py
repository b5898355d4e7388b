"""The table of passages: which span of which row each is, and where its tokens are.

In: passages of rows, keys, conditions. Out: passage ids, keys, spans. Leaves to others: tokens (``codes.py``,
``residuals.py``).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.progress import IndexCounts
from colbert_sqlite.storage.blobs import MAX_PASSAGE_ID, Part
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.findings import Findings
from colbert_sqlite.storage.schema import Tables, key_columns, quote_identifier
from colbert_sqlite.storage.source import Key, Source

_HASH_BYTES = 16


class PassageRow(NamedTuple):
    """Where a passage comes from."""

    key: Key
    ordinal: int
    start: int
    end: int
    content_hash: bytes


class Passages:
    """The passages of one index. Call all that writes inside ``atomic``."""

    def __init__(self, tables: Tables) -> None:
        self._conn = tables.conn
        self._tables = tables
        self._table = tables.quoted("passages")
        self._keys = tables.key_list
        self._key_equals = tables.key_equals
        self._part = Part("passages", tables.index)

    @staticmethod
    def definition(tables: Tables) -> str:
        return f"""CREATE TABLE {tables.quoted("passages")} (
    passage_id INTEGER PRIMARY KEY,
    {tables.key_definitions},
    ordinal INTEGER NOT NULL,
    start INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    doclen INTEGER NOT NULL,
    residual_start INTEGER NOT NULL,
    content_hash BLOB NOT NULL,
    UNIQUE ({tables.key_list}, ordinal)
)"""

    # Writing.

    def add(self, passage_id: int, row: PassageRow, doclen: int, residual_start: int) -> None:
        values = (passage_id, *row.key, row.ordinal, row.start, row.end, doclen, residual_start, row.content_hash)
        self._conn.execute(f"INSERT INTO {self._table} VALUES ({', '.join('?' * len(values))})", values)

    def delete(self, passage_id: int) -> None:
        self._conn.execute(f"DELETE FROM {self._table} WHERE passage_id = ?", (passage_id,))

    def move(self, moves: Iterable[tuple[int, int]]) -> None:
        """Change where in the token stream passages begin: pairs of the new position and the passage id."""
        self._conn.executemany(f"UPDATE {self._table} SET residual_start = ? WHERE passage_id = ?", moves)

    # Rows of the source.

    def content_hash(self, key: Key) -> bytes | None:
        """Return the content hash a row was indexed with; None if it is not indexed."""
        sql = f"SELECT content_hash FROM {self._table} WHERE {self._key_equals} AND ordinal = 0"
        row = self._conn.execute(sql, key).fetchone()
        return None if row is None else row[0]

    def missing_keys(self, source: Source, limit: int = -1) -> list[Key]:
        """Return keys of source rows that are not indexed, at most *limit* of them if it is not negative."""
        keys = ", ".join(map(quote_identifier, source.keys))
        indexed = f"SELECT {self._keys} FROM {self._table} WHERE ordinal = 0"
        sql = (
            f"SELECT * FROM (SELECT {keys} FROM {source.from_where(source.has_key)})"
            f" WHERE ({source.compared_keys}) NOT IN ({indexed}) LIMIT {limit}"
        )
        return self._conn.execute(sql, dict(source.params)).fetchall()

    def vanished_keys(self, source: Source) -> list[Key]:
        """Return the keys of indexed rows that are gone from the source or left its condition."""
        keys = ", ".join(map(quote_identifier, source.keys))
        sql = (
            f"SELECT {self._keys} FROM {self._table} WHERE ordinal = 0 EXCEPT SELECT {keys} FROM {source.from_where()}"
        )
        return self._conn.execute(sql, dict(source.params)).fetchall()

    def keys(self, passage_ids: NDArray[np.int64] | None) -> list[Key]:
        """Return the keys of the rows of these passages, or of all rows with text, in the order they were indexed."""
        only = "" if passage_ids is None else " AND passage_id IN (SELECT value FROM json_each(?))"
        return self._conn.execute(
            f"SELECT {self._keys} FROM {self._table} WHERE doclen > 0{only}"
            f" GROUP BY {self._keys} ORDER BY min(passage_id)",
            () if passage_ids is None else (json.dumps(passage_ids.tolist()),),
        ).fetchall()

    def keys_of(self, passage_ids: Iterable[int]) -> list[Key]:
        """Return the keys of the rows that these passages belong to, whatever their ids are."""
        sql = f"SELECT DISTINCT {self._keys} FROM {self._table} WHERE passage_id = ?"
        return [row for passage_id in passage_ids for row in self._conn.execute(sql, (passage_id,))]

    # Passages of rows.

    def rows(self, passage_ids: Sequence[int]) -> dict[int, PassageRow]:
        """Return where these passages come from.

        :raises IndexCorrupt: if their offsets are no numbers
        """
        rows = self._conn.execute(
            f'SELECT passage_id, ordinal, start, "end", content_hash, {self._keys} FROM {self._table}'
            " WHERE passage_id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(passage_ids)),),
        ).fetchall()
        for passage_id, *offsets in (row[:4] for row in rows):
            for name, value in zip(("ordinal", "start", "end"), offsets, strict=True):
                if type(value) is not int or value < 0:
                    raise self._part.damaged(f"{name} of passage {passage_id} is {value!r}")
        return {row[0]: PassageRow(tuple(row[5:]), row[1], row[2], row[3], row[4]) for row in rows}

    def ids_where(self, source: Source) -> NDArray[np.int64]:
        """Return the sorted ids of the passages whose row meets the condition of *source*."""
        names = [(quote_identifier(key), quote_identifier(f"key {i}")) for i, key in enumerate(source.keys)]
        ours = map(quote_identifier, key_columns(self._tables.keys))
        # In FROM the condition sees no column of ours, which it might otherwise take for one of its own.
        sql = (
            f"SELECT passage_id FROM (SELECT {', '.join(f'{key} AS {alias}' for key, alias in names)}"
            f" FROM {source.from_where()}) AS matching JOIN {self._table} AS p"
            f" ON {' AND '.join(f'p.{key} = matching.{alias}' for key, (_, alias) in zip(ours, names, strict=True))}"
            " WHERE p.doclen > 0 ORDER BY passage_id"
        )
        return np.fromiter((row[0] for row in self._conn.execute(sql, dict(source.params))), np.int64)

    def ids_of(self, keys: Iterable[Key]) -> NDArray[np.int64]:
        """Return the sorted ids of the passages of these rows.

        :raises ValueError: if a key is nothing that SQLite can store
        """
        sql = f"SELECT passage_id FROM {self._table} WHERE doclen > 0 AND {self._key_equals}"
        ids: set[int] = set()
        for key in keys:
            try:
                ids.update(row[0] for row in self._conn.execute(sql, key))
            except (OverflowError, sqlite3.InterfaceError, sqlite3.ProgrammingError) as error:
                raise ValueError(f"{key!r} can't be a key: {error}") from None
        return np.array(sorted(ids), np.int64)

    def of_row(self, key: Key) -> list[tuple[int, int, int]]:
        """Return id, position in the token stream and doclen of each passage of a row, those without tokens too."""
        sql = f"SELECT passage_id, residual_start, doclen FROM {self._table} WHERE {self._key_equals}"
        return self._conn.execute(sql, key).fetchall()

    def strays(self, keys: Iterable[Key]) -> set[int]:
        """Return ids of passages of these rows that are neither the first of a row nor follow one of the same row."""
        sql = f"SELECT passage_id, ordinal FROM {self._table} WHERE {self._key_equals}"
        strays: set[int] = set()
        for key in keys:
            ordinals = dict(self._conn.execute(sql, key).fetchall())
            strays.update(passage_id for passage_id, n in ordinals.items() if n != 0 and passage_id - 1 not in ordinals)
        return strays

    # The token stream.

    def spans(self, passage_ids: NDArray[np.int64]) -> list[tuple[Any, Any]]:
        """Return position in the token stream and doclen of these passages, in this order; ids without one left out."""
        # CROSS JOIN keeps the order of the list: SQLite never swaps its sides.
        return self._conn.execute(
            "SELECT p.residual_start, p.doclen FROM json_each(?) AS ids"
            f" CROSS JOIN {self._table} AS p ON p.passage_id = ids.value",
            (json.dumps(passage_ids.tolist()),),
        ).fetchall()

    def spans_after(self, passage_id: int, limit: int) -> list[tuple[int, int, int]]:
        """Return id, position in the token stream and doclen of the passages behind one, at most *limit* of them."""
        return self._conn.execute(
            f"SELECT passage_id, residual_start, doclen FROM {self._table} WHERE passage_id > ?"
            " ORDER BY passage_id LIMIT ?",
            (passage_id, limit),
        ).fetchall()

    def neighbors(self, passage_id: int, stream_tokens: int) -> tuple[Any, Any]:
        """Return where the tokens before a passage end, and where those behind it begin.

        Ids and positions in the token stream grow together, so the neighbors by id are the neighbors in the stream.
        """
        (before,) = self._conn.execute(
            f"SELECT residual_start + doclen FROM {self._table} WHERE passage_id < ?"
            " AND doclen > 0 ORDER BY passage_id DESC LIMIT 1",
            (passage_id,),
        ).fetchone() or (0,)
        (after,) = self._conn.execute(
            f"SELECT residual_start FROM {self._table} WHERE passage_id > ? AND doclen > 0 ORDER BY passage_id LIMIT 1",
            (passage_id,),
        ).fetchone() or (stream_tokens,)
        return before, after

    # Counts.

    def count_rows(self, passage_ids: NDArray[np.int64] | None) -> int:
        """Return how many rows these passages, or all of them, come from."""
        if passage_ids is None:
            sql = f"SELECT count(*) FROM {self._table} WHERE ordinal = 0 AND doclen > 0"
            n: int = self._conn.execute(sql).fetchone()[0]
            return n
        sql = (
            f"SELECT count(*) FROM (SELECT DISTINCT {self._keys} FROM {self._table}"
            " WHERE passage_id IN (SELECT value FROM json_each(?)))"
        )
        (n,) = self._conn.execute(sql, (json.dumps(passage_ids.tolist()),)).fetchone()
        return n

    def count_tokens(self) -> int:
        n: int = self._conn.execute(f"SELECT coalesce(sum(doclen), 0) FROM {self._table}").fetchone()[0]
        return n

    def counts(self) -> IndexCounts:
        """Return how much is indexed.

        :raises IndexCorrupt: if doclens are no numbers
        """
        row = self._conn.execute(
            "SELECT count(*) FILTER (WHERE ordinal = 0), count(*) FILTER (WHERE doclen = 0),"
            f" count(*) FILTER (WHERE doclen > 0), coalesce(sum(doclen), 0) FROM {self._table}"
        ).fetchone()
        if type(row[-1]) is not int or row[-1] < 0:
            raise self._part.damaged(f"the sum of doclen is {row[-1]!r}")
        return IndexCounts(*row)

    # Checking.

    def check(self, codec: StoredCodec, findings: Findings) -> None:
        """Note passages that can't be right by themselves."""
        impossible = self._conn.execute(
            f'SELECT passage_id FROM {self._table} WHERE start < 0 OR "end" < start'
            f" OR length(content_hash) != {_HASH_BYTES} OR typeof(content_hash) != 'blob'"
            " OR typeof(start) != 'integer' OR typeof(\"end\") != 'integer' OR typeof(residual_start) != 'integer'"
            " OR typeof(ordinal) != 'integer' OR typeof(doclen) != 'integer' OR doclen < 0"
            " OR passage_id <= 0 OR passage_id >= ?",
            (min(codec.next_passage_id, MAX_PASSAGE_ID + 1),),
        ).fetchall()
        findings.passages.update(passage_id for (passage_id,) in impossible)
        findings.add("passages with impossible ids, offsets, lengths or hashes", impossible)

    def check_rows(self, findings: Findings) -> None:
        """Note rows whose passages don't fit together."""
        gaps = self._conn.execute(
            f"SELECT {self._keys} FROM {self._table} GROUP BY {self._keys}"
            " HAVING min(ordinal) != 0 OR max(ordinal) != count(*) - 1 OR count(DISTINCT content_hash) != 1"
        ).fetchall()
        findings.rows += gaps
        findings.add("rows whose passages are not numbered from 0 or differ in content hash", gaps)

    def all_spans(self) -> Iterator[tuple[int, Any, Any]]:
        """Yield id, position in the token stream and doclen of all passages, in the order of their ids."""
        sql = f"SELECT passage_id, residual_start, doclen FROM {self._table} ORDER BY passage_id"
        yield from self._conn.execute(sql)

    def unknown(self, passage_ids: Iterable[int]) -> set[int]:
        """Return those of these ids that no passage has."""
        sql = f"SELECT value FROM json_each(?) WHERE value NOT IN (SELECT passage_id FROM {self._table})"
        return {row[0] for row in self._conn.execute(sql, (json.dumps([*passage_ids]),))}
