"""The token stream: packed residuals of all passages, one after another, in blocks of one page each.

In: residuals of passages, in the order of their ids. Out: the same. Leaves to others: where in the stream a passage
begins (the table of passages says so).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.storage.blobs import Part, checksum, verified
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.findings import Findings
from colbert_sqlite.storage.passages import Passages
from colbert_sqlite.storage.schema import Tables

# Passages moved in one transaction when the stream is made dense.
_COMPACTED_AT_ONCE = 1000


class Residuals:
    """The token stream of one index. Call all that writes inside ``atomic``."""

    def __init__(self, tables: Tables, passages: Passages) -> None:
        self._conn = tables.conn
        self._table = tables.quoted("residuals")
        self._passages = passages
        self.part = Part("residuals", tables.index)

    @staticmethod
    def definition(tables: Tables) -> str:
        return f"""CREATE TABLE {tables.quoted("residuals")} (
    block INTEGER PRIMARY KEY,
    residuals BLOB NOT NULL,
    checksum INTEGER NOT NULL
)"""

    # Blocks.

    def blobs(self, blocks: Sequence[int]) -> list[tuple[Any, Any, int]]:
        """Return residuals, checksum and number of these blocks as stored, in this order; missing ones left out."""
        return self._conn.execute(
            f"SELECT r.residuals, r.checksum, r.block FROM json_each(?) AS ids CROSS JOIN {self._table} AS r"
            " ON r.block = ids.value",
            (json.dumps([*blocks]),),
        ).fetchall()

    def _read_blocks(self, codec: StoredCodec, blocks: Sequence[int]) -> bytes:
        """Return the bytes of these blocks, each as long as it should be.

        :raises IndexCorrupt: if one is missing or damaged
        """
        rows = self.blobs(blocks)
        if missing := set(blocks) - {block for *_, block in rows}:
            raise self.part.damaged(f"block {min(missing)} is missing")
        blobs = verified(rows, self.part)
        for block, blob in zip(blocks, blobs, strict=True):
            if len(blob) != codec.block_bytes(block):
                raise self.part.damaged(f"block {block} has {len(blob)} bytes, not {codec.block_bytes(block)}")
        return b"".join(blobs)

    def _write_blocks(self, codec: StoredCodec, first: int, data: bytes) -> None:
        size = codec.block_tokens * codec.bytes_per_token
        pieces = (data[start : start + size] for start in range(0, len(data), size))
        self._conn.executemany(
            f"REPLACE INTO {self._table} VALUES (?, ?, ?)",
            ((first + i, piece, checksum(piece)) for i, piece in enumerate(pieces)),
        )

    def _delete_blocks(self, first: int, end: int) -> None:
        self._conn.execute(f"DELETE FROM {self._table} WHERE block >= ? AND block < ?", (first, end))

    # Tokens.

    def append(self, codec: StoredCodec, data: bytes) -> None:
        """Store tokens behind the last one."""
        size = codec.block_tokens * codec.bytes_per_token
        block, offset = divmod(codec.stream_tokens * codec.bytes_per_token, size)
        if offset:
            data = self._read_blocks(codec, [block]) + data
        self._write_blocks(codec, block, data)

    def overwrite(self, codec: StoredCodec, tokens: NDArray[np.int64], residuals: NDArray[np.uint8]) -> None:
        """Replace the residuals of some tokens, named by their positions in the stream."""
        first, last = int(tokens.min()) // codec.block_tokens, int(tokens.max()) // codec.block_tokens
        data = np.frombuffer(self._read_blocks(codec, range(first, last + 1)), np.uint8)
        rows = data.reshape(-1, codec.bytes_per_token).copy()
        rows[tokens - first * codec.block_tokens] = residuals
        self._write_blocks(codec, first, rows.tobytes())

    def free(self, codec: StoredCodec, passage_id: int, start: int, doclen: int) -> None:
        """Remove the blocks that this passage reaches into, and no other.

        :raises IndexCorrupt: if its tokens overlap with those of its neighbors
        """
        if not doclen:
            return
        before, after = self._passages.neighbors(passage_id, codec.stream_tokens)
        self._check_span(passage_id, before, start, doclen, after)
        # Only blocks of its own: those of its neighbors go with them.
        first = max(start // codec.block_tokens, -(-before // codec.block_tokens))
        end = min(-(-(start + doclen) // codec.block_tokens), after // codec.block_tokens)
        self._delete_blocks(first, end)

    def _check_span(self, passage_id: int, before: Any, start: Any, doclen: Any, after: Any) -> None:
        values = before, start, doclen, after
        if not all(type(value) is int for value in values) or doclen < 0 or not before <= start <= after - doclen:
            detail = f"passage {passage_id} has {doclen!r} tokens from {start!r} on, between {before!r} and {after!r}"
            raise self.part.damaged(detail)

    # Making the stream dense.

    def compact(self, codec: StoredCodec, after: int, end: int) -> tuple[int, int] | None:
        """Move the residuals of some passages to where those before them end, so that no space is left between.

        To be called first with 0 and 0, then with what was returned, until that is None.

        :param after: id of the last passage moved, *end* the position in the stream where its tokens end
        :raises IndexCorrupt: if residuals are damaged
        """
        spans = self._passages.spans_after(after, _COMPACTED_AT_ONCE)
        if not spans:
            return None
        moves = []
        target = end
        for passage_id, start, doclen in spans:
            self._check_span(passage_id, target, start, doclen, codec.stream_tokens)
            if start > target:
                moves.append((target, passage_id))
            target += doclen
        last_id = spans[-1][0]
        if moves:
            pieces = [self._read_tokens(codec, start, doclen) for _, start, doclen in spans]
            self._passages.move(moves)
            self._write_tokens(codec, end, b"".join(pieces))
            ahead = next((start for _, start, _ in self._passages.spans_after(last_id, 1)), codec.stream_tokens)
            self._delete_blocks(-(-target // codec.block_tokens), ahead // codec.block_tokens)
        return last_id, target

    def _read_tokens(self, codec: StoredCodec, start: int, n: int) -> bytes:
        if not n:
            return b""
        first, last = start // codec.block_tokens, (start + n - 1) // codec.block_tokens
        skipped = (start - first * codec.block_tokens) * codec.bytes_per_token
        data = self._read_blocks(codec, range(first, last + 1))
        return data[skipped : skipped + n * codec.bytes_per_token]

    def _write_tokens(self, codec: StoredCodec, start: int, data: bytes) -> None:
        """Write tokens into blocks, and keep what else is in the first and the last of these."""
        first, skipped = divmod(start, codec.block_tokens)
        last, kept_from = divmod(start + len(data) // codec.bytes_per_token, codec.block_tokens)
        head = self._read_blocks(codec, [first])[: skipped * codec.bytes_per_token] if skipped else b""
        tail = b""
        if kept_from and codec.block_bytes(last) > kept_from * codec.bytes_per_token:
            whole = self._read_blocks(codec, [last]) if self.blobs([last]) else bytes(codec.block_bytes(last))
            tail = whole[kept_from * codec.bytes_per_token :]
        self._write_blocks(codec, first, head + data + tail)

    def end_at(self, codec: StoredCodec, end: int) -> None:
        """Cut off what is behind *end*."""
        last, tokens = divmod(end, codec.block_tokens)
        kept = self._read_blocks(codec, [last])[: tokens * codec.bytes_per_token] if tokens else b""
        self._conn.execute(f"DELETE FROM {self._table} WHERE block >= ?", (last,))
        self._write_blocks(codec, last, kept)

    def reclaimable_bytes(self, codec: StoredCodec) -> int:
        """Return how much space removed passages still take."""
        (n_blocks,) = self._conn.execute(f"SELECT count(*) FROM {self._table}").fetchone()
        partial = codec.stream_tokens % codec.block_tokens
        held = n_blocks * codec.block_tokens - (codec.block_tokens - partial if partial else 0)
        n: int = max(0, held - self._passages.count_tokens()) * codec.bytes_per_token
        return n

    # Checking and repairing.

    def check(self, codec: StoredCodec, findings: Findings) -> None:
        """Note blocks that are damaged, and passages without residuals of their own."""
        sound = self._check_blocks(codec, findings)
        self._check_spans(codec, sound, findings)

    def _check_blocks(self, codec: StoredCodec, findings: Findings) -> set[int]:
        """Return the numbers of the blocks that are sound."""
        last = codec.stream_tokens // codec.block_tokens
        sound, wrong, differ = set(), [], []
        sql = f"SELECT block, residuals, checksum FROM {self._table} ORDER BY block"
        for block, blob, stored_checksum in self._conn.execute(sql):
            if not 0 <= block <= last or not isinstance(blob, bytes) or len(blob) != codec.block_bytes(block):
                wrong.append(block)
            elif checksum(blob) != stored_checksum:
                differ.append(block)
            else:
                sound.add(block)
        findings.blocks += [*wrong, *differ]
        findings.add("blocks of residuals of the wrong length", wrong)
        findings.add("blocks of residuals that have another checksum", differ)
        if codec.stream_tokens % codec.block_tokens and last not in {*sound, *findings.blocks}:
            # It may hold no passage any more, but the next one will begin in it.
            findings.blocks.append(last)
            findings.problems.append(f"the last block of residuals is missing: {last}")
        return sound

    def _check_spans(self, codec: StoredCodec, sound: set[int], findings: Findings) -> None:
        ends: list[tuple[int, int]] = []
        misplaced, lost = [], []
        for passage_id, start, doclen in self._passages.all_spans():
            if passage_id in findings.passages:
                continue
            if start < 0 or start + doclen > codec.stream_tokens:
                misplaced.append(passage_id)
                continue
            if ends and start < ends[-1][1]:
                # One that overlaps with two is itself wrong. Of two that overlap, either may be.
                misplaced.append(passage_id)
                if len(ends) < 2 or start >= ends[-2][1]:
                    misplaced.append(ends.pop()[0])
                continue
            if doclen:
                first, final = start // codec.block_tokens, (start + doclen - 1) // codec.block_tokens
                if any(block not in sound for block in range(first, final + 1)):
                    lost.append(passage_id)
            ends = [*ends[-1:], (passage_id, start + doclen)]
        findings.passages.update(misplaced, lost)
        findings.add("passages whose residuals overlap or lie beyond the end", misplaced)
        findings.add("passages whose residuals are missing", lost)

    def blank(self, codec: StoredCodec, blocks: Iterable[int]) -> None:
        """Remove damaged blocks, in which no passage is any more. The last one becomes zeros."""
        for block in blocks:
            self._delete_blocks(block, block + 1)
            if block == codec.stream_tokens // codec.block_tokens:
                self._write_blocks(codec, block, bytes(codec.block_bytes(block)))
