"""One generation of an index, read in one transaction: its tables, its codec, its source table.

In: the tables of an index. Out: passages, embeddings, rows as they are now. Leaves to others: transactions
(``index.py``), ranking (``search.py``).
"""

from __future__ import annotations

import sqlite3
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.codec import Codec, CodecCache
from colbert_sqlite.errors import SourceError
from colbert_sqlite.passages import extract
from colbert_sqlite.results import Passage
from colbert_sqlite.settings import Filter
from colbert_sqlite.storage.codec import StoredCodec
from colbert_sqlite.storage.passages import PassageRow
from colbert_sqlite.storage.postings import Checked, StoredPostings
from colbert_sqlite.storage.source import Key, Source, pk_of
from colbert_sqlite.storage.store import Store
from colbert_sqlite.values import plain_key


class CurrentRow(NamedTuple):
    """A row as it is now: every column, whether it changed after it was indexed, and one of its passages."""

    values: dict[str, Any]
    stale: bool
    heading: str
    passage: Passage


class PassageToExplain(NamedTuple):
    """A passage as it was encoded, under its heading.

    ``embeddings`` are float32 [n_tokens, dim]; None if they were pooled.
    """

    heading: str
    passage: Passage
    embeddings: NDArray[np.float32] | None


class View:
    """One index as one read transaction sees it.

    :param database: path of the file, empty for a database in memory
    """

    def __init__(self, store: Store, codecs: CodecCache, checked: Checked, database: str) -> None:
        self.store = store
        self.database = database
        self._codecs = codecs
        self._checked = checked

    @property
    def conn(self) -> sqlite3.Connection:
        return self.store.conn

    @cached_property
    def stored_codec(self) -> StoredCodec:
        """The codec without its centroids, which may be many.

        :raises IndexCorrupt: if it is damaged
        """
        return self.store.codec.load()

    @cached_property
    def codec(self) -> Codec:
        return self._codecs.load(self.store)

    @cached_property
    def postings(self) -> StoredPostings:
        return StoredPostings(self.store, self.codec.stored, self._checked)

    @cached_property
    def source(self) -> Source:
        """The source table, with the condition of the index.

        :raises SourceError: if the table is missing, or its key was changed
        """
        return self._with_same_key(inspect_source(self.store))

    def _with_same_key(self, source: Source) -> Source:
        """Return *source*. Errors as in :attr:`source`."""
        entry = self.store.entry
        if (source.keys, source.key_types) != (entry.key_columns, entry.key_types):
            raise SourceError(
                f"the primary key of table {source.table!r} was {', '.join(entry.key_columns)} when index "
                f"{entry.name!r} was built, and is {', '.join(source.keys)} now: rebuild the index"
            )
        return source

    def passage_ids(self, filter: Filter) -> NDArray[np.int64] | None:
        """Return the passage ids that a filter allows: int64, rising; None for all.

        :raises SourceError: if the condition can't be used
        :raises ValueError: if a key has another number of columns
        """
        allowed = None
        if filter.where is not None:
            allowed = self.store.passages.ids_where(self._with_same_key(inspect_source(self.store, filter)))
        if filter.pks is not None:
            of_keys = self.store.passages.ids_of(map(self.key, filter.pks))
            allowed = of_keys if allowed is None else np.intersect1d(allowed, of_keys, assume_unique=True)
        return allowed

    def key(self, pk: object) -> Key:
        """Return a primary key as the tuple of its columns.

        :raises ValueError: if it has another number of columns
        """
        key, columns = plain_key(pk), self.store.entry.key_columns
        if len(key) != len(columns):
            table = self.store.entry.source_table
            raise ValueError(f"a key of {table!r} has {len(columns)} values ({', '.join(columns)}), not {pk!r}")
        return key

    def passages_of(self, key: Key) -> NDArray[np.int64]:
        """Return the ids of a row's passages: int64 [n].

        :raises SourceError: if the row is not in the index, or has no text
        """
        passage_ids = self.store.passages.ids_of([key])
        if not len(passage_ids) or self.source.key_now(self.conn, key) is None:
            raise SourceError(
                f"index {self.store.entry.name!r} has no text of row {pk_of(key)!r}: the row is missing, not synced, "
                "or empty"
            )
        return passage_ids

    def embeddings(self, passage_ids: NDArray[np.int64]) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
        """Return codes [n_tokens] and stored embeddings float32 [n_tokens, dim] of passages.

        :raises IndexCorrupt: if they are damaged
        """
        codes, offsets = self.postings.codes(passage_ids)
        lengths = np.diff(offsets)
        residuals, starts = self.postings.residuals(passage_ids, lengths)
        rows = np.repeat(starts - offsets[:-1], lengths) + np.arange(len(codes))
        return codes, self.codec.residual.reconstruct(codes, residuals[rows])

    def current_row(self, passage: PassageRow) -> CurrentRow | None:
        """Return the row of a passage as it is now; None if the table lacks it."""
        settings = self.store.entry.settings
        row = self.source.read_whole_row(self.conn, passage.key)
        if row is None:
            return None
        assert settings.max_tokens is not None
        values, raw = row
        extracted = extract(raw.values, raw.heading, html=settings.html, max_tokens=settings.max_tokens)
        start, end = passage.start, passage.end
        if not extracted.text[start:end].strip():
            # The row has another text now, too short for the span of its passage.
            start, end = 0, min(end - start, len(extracted.text))
        text = Passage(extracted.text[start:end], start, end, passage.ordinal)
        return CurrentRow(values, raw.content_hash != passage.content_hash, extracted.heading, text)

    def passage_to_explain(self, passage_id: int, row: CurrentRow) -> PassageToExplain:
        """Return a passage of an unchanged row as it was encoded."""
        pooled = self.store.entry.settings.pool_factor > 1
        stored = None if pooled else self.embeddings(np.array([passage_id]))[1]
        return PassageToExplain(row.heading, row.passage, stored)


def inspect_source(store: Store, filter: Filter | None = None) -> Source:
    """Return the source table, narrowed by the condition of a filter, else by that of the index.

    :raises SourceError: if the table can't be indexed, or the condition can't be used
    """
    settings = store.entry.settings
    if filter is not None and filter.where is not None:
        return Source.inspect(
            store.conn,
            settings.table,
            settings.columns,
            heading=settings.heading,
            where=filter.where,
            params=filter.params,
        )
    try:
        return Source.of_index(store.conn, settings)
    except SourceError as error:
        name = store.entry.name
        raise SourceError(f"index {name!r} can't read its table: {error}; drop or replace the index") from None
