"""Does what is stored agree with itself, and with its table?

In: the tables of one index. Out: :class:`Findings`: a sentence per problem, and what repairing has to make anew. Leaves
to others: encoding rows again, and what to say of the model.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.build import centroid_ranges, pairs_of
from colbert_sqlite.errors import ColbertError, IndexCorrupt
from colbert_sqlite.storage import triggers
from colbert_sqlite.storage.blobs import CODES, HALVES, checksum, unpack_ids, verified
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.connection import lenient_text
from colbert_sqlite.storage.ivf import PASSAGE_MASK, Pairs
from colbert_sqlite.storage.schema import key_columns, quote_identifier
from colbert_sqlite.storage.source import Key, Source
from colbert_sqlite.storage.store import Store

_SHOWN = 5


@dataclass(slots=True)
class Findings:
    """What is wrong with an index.

    :param problems: a sentence each
    :param codec: whether the codec can't be read, so that nothing else can be judged or repaired
    :param passages: ids of passages that can't be trusted
    :param rows: keys of rows whose passages don't add up
    :param blocks: numbers of blocks of residuals that are damaged
    :param orphans: ids that tables name and no passage has
    :param lists: whether the inverted lists differ from the codes
    """

    problems: list[str] = field(default_factory=list)
    codec: bool = False
    passages: set[int] = field(default_factory=set)
    rows: list[Key] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    orphans: set[int] = field(default_factory=set)
    lists: bool = False

    @property
    def damaged(self) -> bool:
        """Whether something that is stored has to be made anew, rather than brought in step."""
        return bool(self.codec or self.passages or self.rows or self.blocks or self.orphans or self.lists)

    def add(self, problem: str, found: Iterable[Any]) -> bool:
        """Note a problem and the first of what it concerns, if it concerns anything."""
        first = list(islice(found, _SHOWN + 1))
        if first:
            self.problems.append(f"{problem}: {_some(first)}")
        return bool(first)


def check(store: Store, source: Source | None) -> Findings:
    """Return what is wrong with an index, nothing when it is sound.

    *source*, if given, is compared too: rows not indexed, rows that are gone, rows of another text, each unless the
    queue names it; and the triggers.
    """
    found = Findings()
    if missing := store.missing_parts():
        found.codec = missing != ["queue"]
        way_out = "rebuild the index" if found.codec else "sync makes it anew and compares every row"
        found.problems.append(f"tables are missing ({', '.join(missing)}): {way_out}")
        return found
    try:
        codec = store.codec.load()
        store.codec.centroids(codec)
    except ColbertError as error:
        found.problems.append(str(error))
        found.codec = True
        return found
    with lenient_text(store.conn):
        _check_passages(store, codec, found)
        _check_residuals(store, codec, found)
        _check_outliers(store, codec, found)
        _check_lists(store, codec, found)
    if source is not None:
        _check_source(store, source, found)
    return found


def _check_source(store: Store, source: Source, found: Findings) -> None:
    if triggers.installed(store.conn, store.entry.name) != store.expected_triggers(source):
        found.problems.append("the triggers on the table are not those they should be: sync puts them back")
    queued = store.is_queued
    null_keys = source.count_null_keys(store.conn)
    if null_keys:
        found.problems.append(f"rows whose key is NULL, which can't be indexed: {null_keys:,}")
    found.add("rows not indexed", (key for key in store.missing_keys(source) if not queued(key)))
    found.add("indexed rows that are gone", (key for key in store.vanished_keys(source) if not queued(key)))
    found.add(
        "rows that were changed after they were indexed",
        (
            row.key
            for row in source.iter_rows(store.conn)
            if (indexed := store.content_hash(row.key)) is not None
            and indexed != row.content_hash
            and not queued(row.key)
        ),
    )


def _check_passages(store: Store, codec: StoredCodec, found: Findings) -> None:
    conn, passages, codes = store.conn, store.table("passages"), store.table("codes")
    spans = conn.execute(
        f'SELECT passage_id FROM {passages} WHERE start < 0 OR "end" < start OR length(content_hash) != 16'
        " OR typeof(start) != 'integer' OR typeof(\"end\") != 'integer' OR typeof(residual_start) != 'integer'"
        " OR typeof(ordinal) != 'integer' OR typeof(content_hash) != 'blob'"
        " OR typeof(doclen) != 'integer' OR doclen < 0 OR passage_id <= 0"
        f" OR passage_id > {PASSAGE_MASK}"
    ).fetchall()
    found.passages.update(passage_id for (passage_id,) in spans)
    found.add("passages with impossible offsets, lengths or hashes", spans)
    dtype = CODES[codec.codes_dtype]
    wrong, damaged, beyond = [], [], []
    rows = conn.execute(
        f"SELECT p.passage_id, p.doclen, c.codes, c.checksum FROM {passages} AS p LEFT JOIN {codes} AS c"
        " USING (passage_id) ORDER BY passage_id"
    )
    for passage_id, doclen, blob, check in rows:
        if doclen == 0 and blob is None:
            continue
        if not isinstance(blob, bytes) or not isinstance(doclen, int) or len(blob) != doclen * dtype.itemsize:
            wrong.append(passage_id)
        elif checksum(blob) != check:
            damaged.append(passage_id)
        elif doclen and np.frombuffer(blob, dtype).max() >= codec.n_centroids:
            beyond.append(passage_id)
    found.passages.update(wrong, damaged, beyond)
    found.add("passages whose codes do not have the length of the passage", wrong)
    found.add("passages whose codes have another checksum", damaged)
    found.add(f"passages with codes beyond the {codec.n_centroids} centroids", beyond)
    _check_orphans(store, "codes", found)
    keys = ", ".join(map(quote_identifier, key_columns(store.entry.key_columns)))
    gaps = conn.execute(
        f"SELECT {keys} FROM {passages} GROUP BY {keys}"
        " HAVING min(ordinal) != 0 OR max(ordinal) != count(*) - 1 OR count(DISTINCT content_hash) != 1"
    ).fetchall()
    found.rows += gaps
    found.add("rows whose passages are not numbered from 0 or differ in content hash", gaps)


def _check_orphans(store: Store, part: str, found: Findings) -> None:
    orphans = store.conn.execute(
        f"SELECT DISTINCT passage_id FROM {store.table(part)}"
        f" WHERE passage_id NOT IN (SELECT passage_id FROM {store.table('passages')})"
    ).fetchall()
    found.orphans.update(passage_id for (passage_id,) in orphans)
    found.add(f"{part} without a passage", orphans)


def _check_residuals(store: Store, codec: StoredCodec, found: Findings) -> None:
    conn, residuals = store.conn, store.table("residuals")
    last = codec.stream_tokens // codec.block_tokens
    sound, wrong, damaged = set(), [], []
    for block, blob, check in conn.execute(f"SELECT block, residuals, checksum FROM {residuals} ORDER BY block"):
        if not 0 <= block <= last or not isinstance(blob, bytes) or len(blob) != codec.block_bytes(block):
            wrong.append(block)
        elif checksum(blob) != check:
            damaged.append(block)
        else:
            sound.add(block)
    found.blocks += [*wrong, *damaged]
    found.add("blocks of residuals of the wrong length", wrong)
    found.add("blocks of residuals that have another checksum", damaged)
    if codec.stream_tokens % codec.block_tokens and last not in {*sound, *found.blocks}:
        # It may hold no passage any more, but the next one will begin in it.
        found.blocks.append(last)
        found.problems.append(f"the last block of residuals is missing: {last}")
    ends: list[tuple[int, int]] = []
    misplaced, lost = [], []
    places = conn.execute(
        f"SELECT passage_id, residual_start, doclen FROM {store.table('passages')} ORDER BY passage_id"
    )
    for passage_id, start, doclen in places:
        if passage_id in found.passages:
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
    found.passages.update(misplaced, lost)
    found.add("passages whose residuals overlap or lie beyond the end", misplaced)
    found.add("passages whose residuals are missing", lost)


def _check_outliers(store: Store, codec: StoredCodec, found: Findings) -> None:
    rows = store.conn.execute(
        f"SELECT o.passage_id, o.position, o.embedding, o.checksum, p.doclen FROM {store.table('outliers')} AS o"
        f" LEFT JOIN {store.table('passages')} AS p USING (passage_id)"
    )
    size = codec.dim * HALVES.itemsize
    wrong = {
        passage_id: doclen is not None
        for passage_id, position, blob, check, doclen in rows
        if not isinstance(blob, bytes)
        or len(blob) != size
        or checksum(blob) != check
        or not isinstance(doclen, int)
        or not isinstance(position, int)
        or not 0 <= position < doclen
    }
    found.passages.update(passage_id for passage_id, known in wrong.items() if known)
    found.orphans.update(passage_id for passage_id, known in wrong.items() if not known)
    found.add("passages with damaged outliers", sorted(wrong, key=str))


def _check_lists(store: Store, codec: StoredCodec, found: Findings) -> None:
    dtype = CODES[codec.codes_dtype]
    from_codes = [np.empty(0, np.int64)]
    # Those that can't be trusted will be made anew, with other ids.
    cursor = store.conn.execute(f"SELECT passage_id, codes FROM {store.table('codes')} ORDER BY passage_id")
    distrusted = found.passages | found.orphans
    while batch := cursor.fetchmany(4096):
        trusted = [row for row in batch if row[0] not in distrusted]
        codes = np.frombuffer(b"".join(blob for _, blob in trusted), dtype)
        lengths = [len(blob) // dtype.itemsize for _, blob in trusted]
        owners = np.repeat(np.array([passage_id for passage_id, _ in trusted], np.int64), lengths)
        from_codes.append(Pairs(codes.astype(np.int64), owners).places)
    expected = np.sort(np.concatenate(from_codes))
    try:
        rows = store.conn.execute(
            f"SELECT passage_ids, checksum, segment FROM {store.table('ivf')} ORDER BY segment"
        ).fetchall()
        blobs = verified(rows, f"inverted lists of index {store.entry.name!r}")
        places, _ = unpack_ids(np.array([row[2] for row in rows], np.int64), blobs)
    except (ColbertError, sqlite3.Error) as error:
        found.problems.append(str(error))
        found.lists = True
        return
    # Outliers may name passages by something else than a number.
    untrusted = [passage_id for passage_id in (*found.passages, *found.orphans) if type(passage_id) is int]
    places = places[~np.isin(places & PASSAGE_MASK, np.array(untrusted, np.int64))]
    missing = found.add(
        "passages missing from inverted lists", _owners(np.setdiff1d(expected, places, assume_unique=True))
    )
    surplus = np.setdiff1d(places, expected, assume_unique=True)
    unknown = f"SELECT value FROM json_each(?) WHERE value NOT IN (SELECT passage_id FROM {store.table('passages')})"
    found.orphans.update(row[0] for row in store.conn.execute(unknown, (json.dumps(_owners(surplus)),)))
    if len(places) != len(expected) and not len(surplus) and not missing:
        surplus = places[np.flatnonzero(np.diff(places, prepend=-1) <= 0)]
    found.lists = found.add("inverted lists name passages they should not", _owners(surplus)) or missing


def _owners(places: NDArray[np.int64]) -> list[int]:
    owners: list[int] = np.unique(places & PASSAGE_MASK).tolist()
    return owners


def _some(found: Sequence[object]) -> str:
    shown = ", ".join(str(item[0] if isinstance(item, tuple) and len(item) == 1 else item) for item in found[:_SHOWN])
    return shown + (", …" if len(found) > _SHOWN else "")


def repair(store: Store, found: Findings) -> None:
    """Remove what is damaged, queue the rows it belonged to, and make the inverted lists anew if need be.

    Call inside ``atomic``; a full sync then encodes those rows again.

    :raises IndexCorrupt: if the codec is lost: only a rebuild helps then
    """
    if found.codec:
        raise IndexCorrupt(f"{found.problems[0]}; repair can't help")
    # What has lost its row may have been the last passage of the row before it, which then looks complete.
    lost = {passage_id for passage_id in found.orphans if type(passage_id) is int and passage_id > 0} | store.strays(
        found.rows
    )
    rows = {*store.keys_of(found.passages.union(passage_id - 1 for passage_id in lost)), *found.rows}
    store.enqueue(rows)
    store.forget(rows, found.passages | found.orphans)
    codec = store.codec.load()
    store.stream.blank(codec, found.blocks)
    if found.lists or rows or found.orphans or found.passages:
        store.lists.clear()
        for first, end in centroid_ranges(codec):
            store.lists.write(pairs_of(store.iter_codes(codec), first, end))
    store.update_entry()
