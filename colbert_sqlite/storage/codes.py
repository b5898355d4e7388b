"""The table of codes: the centroid of each token of a passage.

In: codes of passages. Out: the same, checked. Leaves to others: what a centroid is (``codec.py``), and which passages
have a token in it (``ivf.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.storage.blobs import CODES, AnyArray, Part, checksum, from_blob, from_blobs, verified
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.findings import Findings
from colbert_sqlite.storage.schema import Tables

# Passages read at once when all are read.
_BATCH_PASSAGES = 4096


class Codes:
    """The codes of one index. Call all that writes inside ``atomic``."""

    def __init__(self, tables: Tables) -> None:
        self._conn = tables.conn
        self._table = tables.quoted("codes")
        self._passages = tables.quoted("passages")
        self.part = Part("codes", tables.index)

    @staticmethod
    def definition(tables: Tables) -> str:
        return f"""CREATE TABLE {tables.quoted("codes")} (
    passage_id INTEGER PRIMARY KEY,
    codes BLOB NOT NULL,
    checksum INTEGER NOT NULL
)"""

    def write(self, codec: StoredCodec, passage_id: int, codes: NDArray[np.integer]) -> None:
        """Store the codes of a passage, and remove those it had."""
        blob = codes.astype(CODES[codec.codes_dtype]).tobytes()
        self._conn.execute(f"REPLACE INTO {self._table} VALUES (?, ?, ?)", (passage_id, blob, checksum(blob)))

    def delete(self, passage_id: int) -> None:
        self._conn.execute(f"DELETE FROM {self._table} WHERE passage_id = ?", (passage_id,))

    def read(self, codec: StoredCodec, passage_id: int) -> NDArray[np.integer]:
        """Return the codes of a passage.

        :raises IndexCorrupt: if they are missing or damaged
        """
        rows = self.blobs(np.array([passage_id]))
        if not rows:
            raise self.part.damaged(f"those of passage {passage_id} are missing")
        return from_blob(verified(rows, self.part)[0], CODES[codec.codes_dtype], self.part)

    def blobs(self, passage_ids: NDArray[np.int64]) -> list[tuple[Any, Any]]:
        """Return codes and checksum of these passages as stored, in this order; passages without codes left out."""
        # CROSS JOIN keeps the order of the list: SQLite never swaps its sides.
        return self._conn.execute(
            f"SELECT c.codes, c.checksum FROM json_each(?) AS ids CROSS JOIN {self._table} AS c"
            " ON c.passage_id = ids.value",
            (json.dumps(passage_ids.tolist()),),
        ).fetchall()

    def batches(self, codec: StoredCodec) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], AnyArray]]:
        """Yield (passage ids, doclens, codes) of all passages, a bounded number of tokens at a time.

        :raises IndexCorrupt: if codes are damaged
        """
        cursor = self._conn.execute(f"SELECT codes, checksum, passage_id FROM {self._table} ORDER BY passage_id")
        while batch := cursor.fetchmany(_BATCH_PASSAGES):
            codes, offsets = from_blobs(verified(batch, self.part), CODES[codec.codes_dtype], self.part)
            yield np.array([row[2] for row in batch], np.int64), np.diff(offsets), codes

    def has_at_most(self, n: int) -> bool:
        """Return whether no more than *n* passages have tokens, at a cost that does not grow with the index."""
        sql = f"SELECT count(*) FROM (SELECT 1 FROM {self._table} LIMIT ?)"
        return bool(self._conn.execute(sql, (n + 1,)).fetchone()[0] <= n)

    def count(self) -> int:
        """Return how many passages have tokens."""
        n: int = self._conn.execute(f"SELECT count(*) FROM {self._table}").fetchone()[0]
        return n

    def passage_ids(self) -> NDArray[np.int64]:
        """Return the sorted ids of the passages that have tokens."""
        cursor = self._conn.execute(f"SELECT passage_id FROM {self._table} ORDER BY passage_id")
        return np.fromiter((row[0] for row in cursor), np.int64)

    def check(self, codec: StoredCodec, findings: Findings) -> None:
        """Note passages whose codes are missing, damaged or impossible, and codes without a passage."""
        dtype = CODES[codec.codes_dtype]
        wrong, differ, beyond = [], [], []
        rows = self._conn.execute(
            f"SELECT p.passage_id, p.doclen, c.codes, c.checksum FROM {self._passages} AS p"
            f" LEFT JOIN {self._table} AS c USING (passage_id) ORDER BY passage_id"
        )
        for passage_id, doclen, blob, stored_checksum in rows:
            if doclen == 0 and blob is None:
                continue
            if not isinstance(blob, bytes) or not isinstance(doclen, int) or len(blob) != doclen * dtype.itemsize:
                wrong.append(passage_id)
            elif checksum(blob) != stored_checksum:
                differ.append(passage_id)
            elif doclen and np.frombuffer(blob, dtype).max() >= codec.n_centroids:
                beyond.append(passage_id)
        findings.passages.update(wrong, differ, beyond)
        findings.add("passages whose codes do not have the length of the passage", wrong)
        findings.add("passages whose codes have another checksum", differ)
        findings.add(f"passages with codes beyond the {codec.n_centroids} centroids", beyond)
        orphans = self._conn.execute(
            f"SELECT passage_id FROM {self._table} WHERE passage_id NOT IN (SELECT passage_id FROM {self._passages})"
        ).fetchall()
        findings.orphans.update(passage_id for (passage_id,) in orphans)
        findings.add("codes without a passage", orphans)
