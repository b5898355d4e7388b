"""Does what is stored agree with itself, and with its table? And if not, what of it is made anew?

In: the tables of one index, and its source. Out: :class:`Findings`, then an index that a full sync makes whole. Leaves
to others: what a table says of itself (its own file in ``storage``), encoding rows again (``sync.py``).
"""

from __future__ import annotations

from colbert_sqlite.errors import ColbertError, IndexCorrupt
from colbert_sqlite.storage import triggers
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.connection import lenient_text
from colbert_sqlite.storage.findings import Findings
from colbert_sqlite.storage.ivf import centroid_ranges, pairs_of
from colbert_sqlite.storage.source import Source
from colbert_sqlite.storage.store import Store


def verify(store: Store, source: Source | None) -> Findings:
    """Return what is wrong with an index, nothing when it is sound.

    :param source: compared too, unless it is None: rows not indexed, rows that are gone, rows of another text, each
        unless the queue names it; and the triggers
    """
    findings = Findings()
    codec = _check_codec(store, findings)
    if codec is None:
        return findings
    with lenient_text(store.conn):
        store.passages.check(codec, findings)
        store.codes.check(codec, findings)
        store.passages.check_rows(findings)
        store.residuals.check(codec, findings)
        store.outliers.check(codec, findings)
        listed = store.ivf.check(codec, findings)
        findings.orphans |= store.passages.unknown(listed)
    if source is not None:
        _check_source(store, source, findings)
    return findings


def _check_codec(store: Store, findings: Findings) -> StoredCodec | None:
    """Return the codec; None if it, or a table, is missing or damaged, so that nothing else can be judged."""
    if missing := store.missing_parts():
        findings.codec = missing != ["queue"]
        way_out = "rebuild the index" if findings.codec else "sync puts it back and compares every row"
        findings.problems.append(f"tables are missing ({', '.join(missing)}): {way_out}")
        return None
    try:
        codec = store.codec.load()
        store.codec.centroids(codec)
    except ColbertError as error:
        findings.problems.append(str(error))
        findings.codec = True
        return None
    return codec


def _check_source(store: Store, source: Source, findings: Findings) -> None:
    conn, is_queued = store.conn, store.queue.has
    if triggers.installed(conn, store.entry.name) != store.expected_triggers(source):
        findings.problems.append("the triggers on the table are not those they should be: sync puts them back")
    if n_null := source.count_null_keys(conn):
        findings.problems.append(f"rows whose key is NULL, which can't be indexed: {n_null:,}")
    missing, vanished = store.passages.missing_keys(source), store.passages.vanished_keys(source)
    findings.add("rows not indexed", (key for key in missing if not is_queued(key)))
    findings.add("indexed rows that the table lacks", (key for key in vanished if not is_queued(key)))
    findings.add(
        "rows that were changed after they were indexed",
        (
            row.key
            for row in source.iter_rows(conn)
            if (indexed := store.passages.content_hash(row.key)) is not None
            and indexed != row.content_hash
            and not is_queued(row.key)
        ),
    )


def repair(store: Store, findings: Findings) -> None:
    """Remove what is damaged, queue the rows it belonged to, and make the inverted lists anew if need be.

    Call inside ``atomic``; a full sync then encodes those rows again.

    :raises IndexCorrupt: if the codec is lost: only a rebuild helps then
    """
    if findings.codec:
        raise IndexCorrupt(findings.problems[0])
    # What has lost its row may have been the last passage of the row before it, which then looks complete.
    orphans = {passage_id for passage_id in findings.orphans if type(passage_id) is int and passage_id > 0}
    lost = orphans | store.passages.strays(findings.rows)
    suspects = findings.passages.union(passage_id - 1 for passage_id in lost)
    rows = {*store.passages.keys_of(suspects), *findings.rows}
    store.queue.add(rows)
    of_rows = {passage_id for key in rows for passage_id, *_ in store.passages.of_row(key)}
    store.forget(of_rows | findings.passages | findings.orphans)
    codec = store.codec.load()
    store.residuals.blank(codec, findings.blocks)
    if findings.lists or rows or findings.needs_model:
        store.ivf.clear()
        for first, end in centroid_ranges(codec):
            store.ivf.write(pairs_of(store.codes.batches(codec), first, end))
    store.update_entry()
