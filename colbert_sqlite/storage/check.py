"""Does what is stored agree with itself?

In: the tables of one index. Out: sentences, one per problem found. Leaves to others: repairing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.errors import ColbertError
from colbert_sqlite.storage.blobs import CODES, unpack_ids
from colbert_sqlite.storage.connection import lenient_text
from colbert_sqlite.storage.schema import key_columns, quote_identifier
from colbert_sqlite.storage.source import Key, Source
from colbert_sqlite.storage.store import Store, StoredCodec

_SHOWN = 5


def check(store: Store, source: Source | None) -> list[str]:
    """Return a sentence per problem; none when the index is sound.

    *source*, if given, is compared too: rows not indexed, rows that are gone, rows of another text.
    """
    try:
        codec = store.read_codec()
    except ColbertError as error:
        return [str(error)]
    if codec is None:
        return ["there is no codec"]
    with lenient_text(store.conn):
        problems = _check_passages(store, codec)
        # The rest reads numbers and codes that must be right for that.
        problems += [] if problems else [*_check_residuals(store, codec), *_check_lists(store, codec)]
    if source is not None:
        if missing := store.missing_keys(source, _SHOWN + 1):
            problems.append(f"rows not indexed: {_some(missing)}")
        if vanished := store.vanished_keys(source):
            problems.append(f"indexed rows that are gone: {_some(vanished)}")
        if changed := _changed_keys(store, source):
            problems.append(f"rows that were changed after they were indexed: {_some(changed)}")
    return problems


def _changed_keys(store: Store, source: Source) -> list[Key]:
    changed = (
        row.key
        for row in source.iter_rows(store.conn)
        if (indexed := store.content_hash(row.key)) is not None and indexed != row.content_hash
    )
    return list(islice(changed, _SHOWN + 1))


def _check_passages(store: Store, codec: StoredCodec) -> list[str]:
    problems = []
    itemsize = CODES[codec.codes_dtype].itemsize
    conn, passages, codes = store.conn, store.table("passages"), store.table("codes")
    wrong = conn.execute(
        f"SELECT p.passage_id FROM {passages} AS p LEFT JOIN {codes} AS c USING (passage_id)"
        " WHERE typeof(p.doclen) != 'integer' OR p.doclen < 0 OR CASE WHEN p.doclen = 0 THEN c.codes IS NOT NULL ELSE"
        " coalesce(typeof(c.codes) != 'blob' OR length(c.codes) != p.doclen * ?, TRUE) END",
        (itemsize,),
    ).fetchall()
    if wrong:
        problems.append(f"passages whose codes do not have the length of the passage: {_some(wrong)}")
    if orphans := conn.execute(
        f"SELECT passage_id FROM {codes} WHERE passage_id NOT IN (SELECT passage_id FROM {passages})"
    ).fetchall():
        problems.append(f"codes without a passage: {_some(orphans)}")
    keys = ", ".join(map(quote_identifier, key_columns(store.entry.key_columns)))
    if gaps := conn.execute(
        f"SELECT {keys} FROM {passages} GROUP BY {keys}"
        " HAVING min(ordinal) != 0 OR max(ordinal) != count(*) - 1 OR count(DISTINCT content_hash) != 1"
    ).fetchall():
        problems.append(f"rows whose passages are not numbered from 0 or differ in content hash: {_some(gaps)}")
    if spans := conn.execute(
        f'SELECT passage_id FROM {passages} WHERE start < 0 OR "end" < start OR length(content_hash) != 16'
        " OR typeof(start) != 'integer' OR typeof(\"end\") != 'integer' OR typeof(residual_start) != 'integer'"
        " OR typeof(ordinal) != 'integer' OR typeof(content_hash) != 'blob'"
    ).fetchall():
        problems.append(f"passages with impossible offsets or hashes: {_some(spans)}")
    if not wrong:
        n_centroids = len(codec.centroids)
        far = [ids[np.repeat(np.arange(len(ids)), n)[c >= n_centroids]] for ids, n, c in store.iter_codes(codec)]
        if beyond := np.unique(np.concatenate([np.empty(0, np.int64), *far])).tolist():
            problems.append(f"passages with codes beyond the {n_centroids} centroids: {_some(beyond)}")
    return problems


def _check_residuals(store: Store, codec: StoredCodec) -> list[str]:
    problems = []
    size = codec.block_tokens * codec.bytes_per_token
    last, tail = divmod(codec.stream_tokens * codec.bytes_per_token, size)
    conn, residuals, passages = store.conn, store.table("residuals"), store.table("passages")
    if broken := conn.execute(
        f"SELECT block FROM {residuals} WHERE typeof(residuals) != 'blob'"
        " OR length(residuals) != CASE WHEN block = ?1 THEN ?2 ELSE ?3 END OR block > ?1 OR block < 0",
        (last, tail, size),
    ).fetchall():
        problems.append(f"blocks of residuals of the wrong length: {_some(broken)}")
    placed = conn.execute(f"SELECT passage_id, residual_start, doclen FROM {passages} ORDER BY passage_id")
    blocks = {block for (block,) in conn.execute(f"SELECT block FROM {residuals}")}
    end = 0
    misplaced, lost = [], []
    for passage_id, start, doclen in placed:
        if start < end or start + doclen > codec.stream_tokens:
            misplaced.append(passage_id)
        elif doclen:
            first, final = start // codec.block_tokens, (start + doclen - 1) // codec.block_tokens
            if any(block not in blocks for block in range(first, final + 1)):
                lost.append(passage_id)
        end = max(end, start + doclen)
    if misplaced:
        problems.append(f"passages whose residuals overlap or lie beyond the end: {_some(misplaced)}")
    if lost:
        problems.append(f"passages whose residuals are missing: {_some(lost)}")
    return problems


def _check_lists(store: Store, codec: StoredCodec) -> list[str]:
    from_codes = [np.empty(0, np.int64)]
    n_centroids = len(codec.centroids)
    try:
        for passage_ids, doclens, codes in store.iter_codes(codec):
            owners = np.repeat(passage_ids, doclens)
            from_codes.append(np.unique(owners * n_centroids + np.minimum(codes, n_centroids - 1)))
        rows = store.conn.execute(f"SELECT centroid, passage_ids FROM {store.table('ivf')}").fetchall()
        ids, lengths = unpack_ids([row[1] for row in rows])
    except ColbertError as error:
        return [str(error)]
    found = ids * n_centroids + np.repeat(np.array([row[0] for row in rows], np.int64), lengths)
    expected = np.concatenate([np.empty(0, np.int64), *from_codes])
    problems = []
    if len(missing := np.setdiff1d(expected, found)):
        problems.append(f"passages missing from inverted lists: {_some(_owners(missing, n_centroids))}")
    if len(surplus := np.setdiff1d(found, expected)) or len(found) != len(expected):
        problems.append(f"inverted lists name passages they should not: {_some(_owners(surplus, n_centroids))}")
    return problems


def _owners(pairs: NDArray[np.int64], n_centroids: int) -> list[int]:
    owners: list[int] = np.unique(pairs // n_centroids).tolist()
    return owners


def _some(found: Sequence[object]) -> str:
    shown = ", ".join(str(item[0] if isinstance(item, tuple) and len(item) == 1 else item) for item in found[:_SHOWN])
    return shown + (", …" if len(found) > _SHOWN else "")
