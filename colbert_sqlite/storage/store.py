"""The tables of one index: a room for each, and what concerns several of them.

In: the name of an index, rows to add, keys to delete. Out: rows in all tables. Leaves to others: each table, building
an index (``swap.py``), transactions that span several calls (``connection.atomic``).
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from colbert_sqlite.errors import BuildInterrupted, IndexCorrupt, IndexNotFound
from colbert_sqlite.storage import triggers
from colbert_sqlite.storage.blobs import MAX_PASSAGE_ID
from colbert_sqlite.storage.codec import CodecTables
from colbert_sqlite.storage.codes import Codes
from colbert_sqlite.storage.encoded import EncodedRow
from colbert_sqlite.storage.ivf import InvertedLists, Pairs
from colbert_sqlite.storage.outliers import Outliers
from colbert_sqlite.storage.passages import PassageRow, Passages
from colbert_sqlite.storage.queue import Queue
from colbert_sqlite.storage.registry import Entry, now, read_entry, read_if_possible, registered, write_entry
from colbert_sqlite.storage.residuals import Residuals
from colbert_sqlite.storage.schema import PARTS, Tables, quote_identifier, table_exists
from colbert_sqlite.storage.source import Key, Source

# Tokens that count as added lately: beyond so many, the older ones count half as much.
RECENT_TOKENS = 1 << 17


class Store:
    """The tables of one index: the ones in use, or the ones of a build in progress."""

    def __init__(self, conn: sqlite3.Connection, entry: Entry) -> None:
        self.conn = conn
        self.entry = entry
        building = entry.state == "building"
        self.tables = Tables(conn, entry.name, building, entry.key_columns, entry.key_types, entry.dim)
        self.passages = Passages(self.tables)
        self.codes = Codes(self.tables)
        self.residuals = Residuals(self.tables, self.passages)
        self.ivf = InvertedLists(self.tables)
        self.codec = CodecTables(self.tables)
        self.outliers = Outliers(self.tables)
        self.queue = Queue(self.tables)

    @classmethod
    def open(cls, conn: sqlite3.Connection, name: str) -> Store:
        """Return the index in use.

        :raises IndexNotFound: if there is no index of that name, or only one whose build never ended
        """
        entry = read_entry(conn, name)
        if entry is not None:
            return cls(conn, entry)
        names = sorted({registration.name for registration in registered(conn)})
        if name.lower() in map(str.lower, names):
            raise IndexNotFound(
                f"index {name!r} is not complete: its first build is running, or was interrupted; to finish it, "
                "repeat the command that started it"
            )
        has = f"it has {', '.join(names)}" if names else "it has none: make one with sqlite-utils colbert index"
        raise IndexNotFound(f"no index {name!r} in this database; {has}")

    def table(self, part: str) -> str:
        """Return the quoted name of one table of this index."""
        return self.tables.quoted(part)

    # The registry.

    def check_ready(self) -> Store:
        """Return the index as it is now, inside a write transaction; it must still be the one that was opened.

        :raises IndexNotFound: if it was dropped
        :raises BuildInterrupted: if it was rebuilt
        """
        store = Store.open(self.conn, self.entry.name)
        if store.entry.build_id != self.entry.build_id:
            raise BuildInterrupted(f"index {self.entry.name!r} was rebuilt meanwhile: run this command again")
        return store

    def is_being_built(self) -> bool:
        """Return whether there is an unfinished build beside this index, of the same settings."""
        unfinished = read_if_possible(self.conn, self.entry.name, "building")
        return unfinished is not None and unfinished.settings == self.entry.settings

    def update_entry(self, *, queue_complete: bool | None = None) -> None:
        """Note a change of the index, and whether its queue is complete from now on. Call inside ``atomic``."""
        complete = self.entry.queue_complete if queue_complete is None else queue_complete
        generation = self.entry.generation + 1
        self.entry = dataclasses.replace(self.entry, generation=generation, updated=now(), queue_complete=complete)
        write_entry(self.conn, self.entry)

    def expected_triggers(self, source: Source) -> dict[str, str]:
        """Return names and statements of the triggers this index should have on its table."""
        return triggers.expected(self.conn, self.entry.name, source) if self.entry.settings.triggers else {}

    # Rows in all tables.

    def append(self, rows: Sequence[EncodedRow], *, recent: bool = False) -> Pairs:
        """Add rows that are not indexed yet, and return what is to be added to the inverted lists.

        Call inside ``atomic``.

        :param recent: count their tokens as added lately
        """
        codec = self.codec.load()
        passage_id, position = codec.next_passage_id, codec.stream_tokens
        residuals: list[bytes] = []
        pairs: list[Pairs] = []
        for row in rows:
            if passage_id + max(1, len(row.passages)) > MAX_PASSAGE_ID + 1:
                raise IndexCorrupt(f"index {self.entry.name!r} has no passage ids left: drop the index, then create it")
            if not row.passages:
                self.passages.add(passage_id, PassageRow(row.key, 0, 0, 0, row.content_hash), 0, position)
                passage_id += 1
            for ordinal, passage in enumerate(row.passages):
                doclen = len(passage.codes)
                span = PassageRow(row.key, ordinal, passage.start, passage.end, row.content_hash)
                self.passages.add(passage_id, span, doclen, position)
                self.codes.write(codec, passage_id, passage.codes)
                self.outliers.add(passage_id, passage.outliers)
                residuals.append(passage.residuals.tobytes())
                pairs.append(Pairs.of(passage_id, passage.codes))
                passage_id, position = passage_id + 1, position + doclen
        self.residuals.append(codec, b"".join(residuals))
        changes: dict[str, Any] = {"next_passage_id": passage_id, "stream_tokens": position}
        if recent:
            n_recent = codec.recent_tokens + sum(row.n_tokens for row in rows)
            residual = codec.recent_residual + sum(row.residual for row in rows)
            share = 0.5 if n_recent > RECENT_TOKENS else 1.0
            changes |= {"recent_tokens": share * n_recent, "recent_residual": share * residual}
        self.codec.update(dataclasses.replace(codec, **changes))
        return Pairs.joined(pairs)

    def delete(self, keys: Iterable[Key]) -> Pairs:
        """Remove rows, and return what is to be removed from the inverted lists. Call inside ``atomic``.

        :raises IndexCorrupt: if codes of them are damaged
        """
        codec = self.codec.load()
        pairs: list[Pairs] = []
        for key in keys:
            for passage_id, start, doclen in self.passages.of_row(key):
                if doclen:
                    pairs.append(Pairs.of(passage_id, self.codes.read(codec, passage_id)))
                self.residuals.free(codec, passage_id, start, doclen)
                self.forget([passage_id])
        return Pairs.joined(pairs)

    def forget(self, passage_ids: Iterable[int]) -> None:
        """Remove passages, unread, from all tables but inverted lists and residuals. Call inside ``atomic``."""
        for passage_id in passage_ids:
            self.passages.delete(passage_id)
            self.codes.delete(passage_id)
            self.outliers.delete(passage_id)

    # All tables.

    def missing_parts(self) -> list[str]:
        """Return the parts whose tables are not there."""
        return [part for part in PARTS if not table_exists(self.conn, self.tables.name(part))]

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of each table's pages, its automatic indexes included.

        Where SQLite was compiled without ``dbstat``, the bytes of the values alone.
        """
        return {part: self._bytes_of(part) for part in PARTS}

    def _bytes_of(self, part: str) -> int:
        name = self.tables.name(part)
        try:
            # In an aggregate, pageno is the number of pages; pgsize overflows at 4 GB.
            (size,) = self.conn.execute(
                "SELECT sum(pageno) * (SELECT page_size FROM pragma_page_size) FROM dbstat WHERE aggregate = TRUE"
                " AND name IN (SELECT name FROM main.sqlite_master WHERE tbl_name = ?)",
                (name,),
            ).fetchone()
        except sqlite3.OperationalError:
            columns = [row[1] for row in self.conn.execute("SELECT * FROM pragma_table_info(?, 'main')", (name,))]
            lengths = " + ".join(f"coalesce(length(CAST({quote_identifier(c)} AS BLOB)), 0)" for c in columns)
            (size,) = self.conn.execute(f"SELECT sum({lengths}) FROM {self.table(part)}").fetchone()
        return size or 0
