"""Settings, counts and sizes of one index, and whether a rebuild pays.

In: a view of the index, its model. Out: an :class:`IndexInfo`, or one fact of it. Leaves to others: lists of indexes
(``indexes.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from colbert_sqlite import growth
from colbert_sqlite.errors import SourceError
from colbert_sqlite.indexes import summarize
from colbert_sqlite.model import Model
from colbert_sqlite.results import IndexInfo
from colbert_sqlite.storage import triggers
from colbert_sqlite.storage.fts import FullText
from colbert_sqlite.storage.source import Source
from colbert_sqlite.view import View


def index_info(view: View, model: Model) -> IndexInfo:
    """Return settings, counts and sizes in bytes of an index.

    :raises IndexCorrupt: if its codec contradicts itself
    """
    store, codec = view.store, view.stored_codec
    entry, settings = store.entry, store.entry.settings
    summary = summarize(store)
    return IndexInfo(
        **{field.name: getattr(summary, field.name) for field in dataclasses.fields(summary)},
        where=settings.where,
        params=settings.params,
        html=settings.html,
        max_tokens=settings.max_tokens,
        pool_factor=settings.pool_factor,
        key_columns=entry.key_columns,
        model_fingerprint=entry.model_fingerprint,
        backend=model.describe(),
        triggers=settings.triggers,
        pending_changes=pending_changes(view),
        n_centroids=codec.n_centroids,
        n_centroids_added=codec.n_centroids - codec.n_trained,
        drift=growth.drift(codec),
        why_rebuild=growth.why_rebuild(codec, summary.tokens),
        generation=entry.generation,
        schema_version=entry.schema_version,
        created=entry.created,
        updated=entry.updated,
        bytes_by_part=store.bytes_by_part(),
        bytes_reclaimable=bytes_reclaimable(view),
        bytes_per_token=round(summary.bytes / summary.tokens, 2) if summary.tokens else None,
    )


def pending_changes(view: View) -> int | None:
    """Return the number of queued rows; None if the next sync must compare all rows."""
    store = view.store
    watched = store.entry.queue_complete and store.queue.exists()
    if watched and triggers.installed(store.conn, store.entry.name) == store.expected_triggers(view.source):
        return store.queue.count()
    return None


def bytes_reclaimable(view: View) -> int:
    """Return the bytes of residuals of deleted passages."""
    return view.store.residuals.reclaimable_bytes(view.stored_codec)


def why_rebuild(view: View) -> str | None:
    """Return why a rebuild pays; None if it does not."""
    return growth.why_rebuild(view.stored_codec, view.store.passages.counts().tokens)


def has_fts(view: View) -> bool:
    """Return whether the table has an FTS5 index, which the modes fts and hybrid need."""
    try:
        FullText.of(view.conn, view.source)
    except SourceError:
        return False
    return True


def has_blob_keys(view: View) -> bool:
    """Return whether the primary key of a row has a BLOB, which JSON can't hold."""
    return view.source.has_blob_keys(view.conn)


def column_names(view: View, columns: Sequence[str]) -> list[str]:
    """Return the names that the schema has for columns of the source table.

    :raises SourceError: if the table lacks one
    """
    return list(Source.inspect(view.conn, view.source.table, columns).columns)
