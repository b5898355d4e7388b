"""The table of outliers: tokens added lately that are far from every centroid.

In: their positions and embeddings. Out: the same, once there are enough to look at. Leaves to others: which tokens are
outliers (``rows.py``), and what becomes of them (``growth.py``).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.storage.blobs import HALVES, Part, checksum, from_blobs, verified
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.encoded import Outlier
from colbert_sqlite.storage.findings import Findings
from colbert_sqlite.storage.schema import Tables


class Outliers:
    """The outliers of one index. Call all that writes inside ``atomic``."""

    def __init__(self, tables: Tables) -> None:
        self._conn = tables.conn
        self._table = tables.quoted("outliers")
        self._passages = tables.quoted("passages")
        self._part = Part("outliers", tables.index)

    @staticmethod
    def definition(tables: Tables) -> str:
        return f"""CREATE TABLE {tables.quoted("outliers")} (
    passage_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    embedding BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (passage_id, position)
) WITHOUT ROWID"""

    def add(self, passage_id: int, outliers: Iterable[Outlier]) -> None:
        for position, values in outliers:
            embedding = values.astype(HALVES).tobytes()
            self._conn.execute(
                f"INSERT INTO {self._table} VALUES (?, ?, ?, ?)",
                (passage_id, position, embedding, checksum(embedding)),
            )

    def delete(self, passage_id: int) -> None:
        self._conn.execute(f"DELETE FROM {self._table} WHERE passage_id = ?", (passage_id,))

    def count(self) -> int:
        n: int = self._conn.execute(f"SELECT count(*) FROM {self._table}").fetchone()[0]
        return n

    def take(self, codec: StoredCodec) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16]]:
        """Remove all outliers and return them: passage ids and positions int64 [n], embeddings float16 [n, dim].

        :raises IndexCorrupt: if they are damaged
        """
        rows = self._conn.execute(
            f"SELECT embedding, checksum, passage_id, position FROM {self._table} ORDER BY passage_id, position"
        ).fetchall()
        values, offsets = from_blobs(verified(rows, self._part), HALVES, self._part)
        for (*_, passage_id, position), length in zip(rows, np.diff(offsets).tolist(), strict=True):
            if length != codec.dim:
                raise self._part.damaged(f"an embedding has {length} dimensions, not {codec.dim}")
            for name, value in (("passage_id", passage_id), ("position", position)):
                if type(value) is not int or value < 0:
                    raise self._part.damaged(f"{name} is {value!r}")
        self._conn.execute(f"DELETE FROM {self._table}")
        return (
            np.array([row[2] for row in rows], np.int64),
            np.array([row[3] for row in rows], np.int64),
            values.astype(np.float16, copy=False).reshape(-1, codec.dim),
        )

    def check(self, codec: StoredCodec, findings: Findings) -> None:
        """Note passages whose outliers are damaged, and outliers without a passage."""
        rows = self._conn.execute(
            f"SELECT o.passage_id, o.position, o.embedding, o.checksum, p.doclen FROM {self._table} AS o"
            f" LEFT JOIN {self._passages} AS p USING (passage_id)"
        )
        size = codec.dim * HALVES.itemsize
        wrong = {
            passage_id: doclen is not None
            for passage_id, position, blob, stored_checksum, doclen in rows
            if not isinstance(blob, bytes)
            or len(blob) != size
            or checksum(blob) != stored_checksum
            or not isinstance(doclen, int)
            or not isinstance(position, int)
            or not 0 <= position < doclen
        }
        findings.passages.update(passage_id for passage_id, has_passage in wrong.items() if has_passage)
        findings.orphans.update(passage_id for passage_id, has_passage in wrong.items() if not has_passage)
        findings.add("passages with damaged outliers", sorted(wrong, key=str))
