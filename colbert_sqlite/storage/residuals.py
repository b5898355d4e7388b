"""The token stream: packed residuals of all passages, one after another, in blocks of one page each.

In: bytes of passages, in the order of their ids. Out: the same. Leaves to others: where in the stream a passage begins
(the passages table says so), and reading for a search (``postings.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import IndexCorrupt
from colbert_sqlite.storage.blobs import checksum, verified
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.schema import Tables

# Passages moved in one transaction when the stream is made dense.
_COMPACTED_AT_ONCE = 1000


class TokenStream:
    """Blocks of one token stream. Call all that writes inside ``atomic``."""

    def __init__(self, tables: Tables) -> None:
        self._conn = tables.conn
        self._name = tables.index
        self._residuals = tables.quoted("residuals")
        self._passages = tables.quoted("passages")

    def append(self, codec: StoredCodec, data: bytes) -> None:
        size = codec.block_tokens * codec.bytes_per_token
        block, offset = divmod(codec.stream_tokens * codec.bytes_per_token, size)
        if offset:
            data = self._read_blocks(codec, [block]) + data
        self._write_blocks(codec, block, data)

    def _read_blocks(self, codec: StoredCodec, blocks: Iterable[int]) -> bytes:
        """Return the bytes of these blocks of the stream, each as long as it should be.

        :raises IndexCorrupt: if one is missing or damaged
        """
        what, blocks = f"residuals of index {self._name!r}", list(blocks)
        rows = self._conn.execute(
            f"SELECT r.residuals, r.checksum FROM json_each(?) AS ids CROSS JOIN {self._residuals} AS r"
            " ON r.block = ids.value",
            (json.dumps(blocks),),
        ).fetchall()
        found = verified(rows, what)
        if list(map(len, found)) != [codec.block_bytes(block) for block in blocks]:
            raise IndexCorrupt(f"{what} are damaged: run verify, then repair")
        return b"".join(found)

    def _write_blocks(self, codec: StoredCodec, first: int, data: bytes) -> None:
        size = codec.block_tokens * codec.bytes_per_token
        pieces = (data[start : start + size] for start in range(0, len(data), size))
        self._conn.executemany(
            f"REPLACE INTO {self._residuals} VALUES (?, ?, ?)",
            ((first + i, piece, checksum(piece)) for i, piece in enumerate(pieces)),
        )

    def free(self, codec: StoredCodec, passage_id: int, start: int, doclen: int) -> None:
        """Remove the blocks that this passage reaches into, and no other.

        :raises IndexCorrupt: if its place contradicts those of its neighbors
        """
        if not doclen:
            return
        # Ids and stream positions grow together, so the neighbors by id are the neighbors in the stream.
        (before,) = self._conn.execute(
            f"SELECT residual_start + doclen FROM {self._passages} WHERE passage_id < ?"
            " AND doclen > 0 ORDER BY passage_id DESC LIMIT 1",
            (passage_id,),
        ).fetchone() or (0,)
        (after,) = self._conn.execute(
            f"SELECT residual_start FROM {self._passages} WHERE passage_id > ? AND doclen > 0"
            " ORDER BY passage_id LIMIT 1",
            (passage_id,),
        ).fetchone() or (codec.stream_tokens,)
        self._check_places(before, start, doclen, after)
        # Its own at most, whatever the places of its neighbors: others were removed with those they belonged to.
        first_free = max(start // codec.block_tokens, -(-before // codec.block_tokens))
        end_free = min(-(-(start + doclen) // codec.block_tokens), after // codec.block_tokens)
        self._conn.execute(f"DELETE FROM {self._residuals} WHERE block >= ? AND block < ?", (first_free, end_free))

    def _check_places(self, before: int, start: int, doclen: int, after: int) -> None:
        places = before, start, doclen, after
        if not all(type(place) is int for place in places) or doclen < 0 or not before <= start <= after - doclen:
            raise IndexCorrupt(f"the residuals of index {self._name!r} overlap: run verify, then repair")

    def overwrite(self, codec: StoredCodec, tokens: NDArray[np.int64], residuals: NDArray[np.uint8]) -> None:
        first, last = int(tokens.min()) // codec.block_tokens, int(tokens.max()) // codec.block_tokens
        data = np.frombuffer(self._read_blocks(codec, range(first, last + 1)), np.uint8)
        rows = data.reshape(-1, codec.bytes_per_token).copy()
        rows[tokens - first * codec.block_tokens] = residuals
        self._write_blocks(codec, first, rows.tobytes())

    def compact(self, codec: StoredCodec, after: int, end: int) -> tuple[int, int] | None:
        """Move the residuals of some passages to where those before them end, so that no space is left between.

        To be called first with 0 and 0, then with what was returned, until that is None.

        :param after: id of the last passage moved, *end* the place in the stream where its tokens end
        :raises IndexCorrupt: if residuals are damaged
        """
        places = self._conn.execute(
            f"SELECT passage_id, residual_start, doclen FROM {self._passages} WHERE passage_id > ?"
            " ORDER BY passage_id LIMIT ?",
            (after, _COMPACTED_AT_ONCE),
        ).fetchall()
        if not places:
            return None
        moved = []
        target = end
        for passage_id, start, doclen in places:
            self._check_places(target, start, doclen, codec.stream_tokens)
            if start > target:
                moved.append((target, passage_id))
            target += doclen
        if moved:
            pieces = [self._read_tokens(codec, start, doclen) for _, start, doclen in places]
            self._conn.executemany(f"UPDATE {self._passages} SET residual_start = ? WHERE passage_id = ?", moved)
            self._write_tokens(codec, end, b"".join(pieces))
            (ahead,) = self._conn.execute(
                f"SELECT residual_start FROM {self._passages} WHERE passage_id > ? ORDER BY passage_id LIMIT 1",
                (places[-1][0],),
            ).fetchone() or (codec.stream_tokens,)
            self._conn.execute(
                f"DELETE FROM {self._residuals} WHERE block >= ? AND block < ?",
                (-(-target // codec.block_tokens), ahead // codec.block_tokens),
            )
        return places[-1][0], target

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
            known = self._conn.execute(f"SELECT 1 FROM {self._residuals} WHERE block = ?", (last,)).fetchone()
            whole = self._read_blocks(codec, [last]) if known else bytes(codec.block_bytes(last))
            tail = whole[kept_from * codec.bytes_per_token :]
        self._write_blocks(codec, first, head + data + tail)

    def end_at(self, codec: StoredCodec, end: int) -> None:
        """Cut off what is behind *end*."""
        last, tokens = divmod(end, codec.block_tokens)
        kept = self._read_blocks(codec, [last])[: tokens * codec.bytes_per_token] if tokens else b""
        self._conn.execute(f"DELETE FROM {self._residuals} WHERE block >= ?", (last,))
        self._write_blocks(codec, last, kept)

    def dead_tokens(self, codec: StoredCodec) -> int:
        """Return for how many tokens of removed passages there still is space in the stream."""
        n_blocks: int = self._conn.execute(f"SELECT count(*) FROM {self._residuals}").fetchone()[0]
        n_live: int = self._conn.execute(f"SELECT coalesce(sum(doclen), 0) FROM {self._passages}").fetchone()[0]
        partial = codec.stream_tokens % codec.block_tokens
        held = n_blocks * codec.block_tokens - (codec.block_tokens - partial if partial else 0)
        return max(0, held - n_live)

    def blank(self, codec: StoredCodec, blocks: Iterable[int]) -> None:
        """Replace damaged blocks of residuals, in which no passage is any more, by zeros. Call inside ``atomic``."""
        for block in blocks:
            self._conn.execute(f"DELETE FROM {self._residuals} WHERE block = ?", (block,))
            if block == codec.stream_tokens // codec.block_tokens:
                self._write_blocks(codec, block, bytes(codec.block_bytes(block)))
