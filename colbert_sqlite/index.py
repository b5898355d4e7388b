"""The noun users hold: one index in one database.

In: a database, the name of a table, queries. Out: hits and facts. Leaves to others: every algorithm and every
statement; this module wires encoders, engine and storage together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder, load_encoder
from colbert_sqlite.engine import plaid
from colbert_sqlite.engine.codec import ResidualCodec
from colbert_sqlite.errors import IndexCorrupt, IndexExists, ModelMismatch
from colbert_sqlite.indexing import ProgressCallback, build, codec_from, row_hash
from colbert_sqlite.passages import DEFAULT_MAX_TOKENS, extract
from colbert_sqlite.results import Hit, Passage
from colbert_sqlite.settings import Html, IndexSettings, SearchSettings
from colbert_sqlite.storage.check import check
from colbert_sqlite.storage.connection import Database, atomic, connect, reading
from colbert_sqlite.storage.snapshot import Snapshot
from colbert_sqlite.storage.source import Key, Source
from colbert_sqlite.storage.store import Store, StoredCodec, read_entries, read_entry

_WIDER = 4


class Index:
    """A ColBERT index of one table, inside the database of that table.

    Made by :meth:`create` or :meth:`open`. Searching never writes. Use it as a context manager, or call :meth:`close`,
    when it was opened from a path. Like its connection, it belongs to the thread that made it.
    """

    def __init__(self, store: Store, *, owns_connection: bool, load: Callable[[], Encoder]) -> None:
        self._store = store
        self._owns_connection = owns_connection
        self._load = load
        self._loaded: Encoder | None = None
        self._codec: tuple[StoredCodec, ResidualCodec] | None = None

    @classmethod
    def create(
        cls,
        db: Database,
        table: str,
        columns: Sequence[str],
        *,
        name: str | None = None,
        model: str | Encoder | None = None,
        nbits: int = 4,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        heading: str | None = None,
        html: Html = "auto",
        max_tokens: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | None = None,
        trust_remote_code: bool = False,
        progress: ProgressCallback | None = None,
        replace: bool = False,
    ) -> Index:
        """Build an index of *columns* of *table* and return it.

        The build commits as it goes: interrupt it, run it again with the same arguments, and it goes on. An index
        that is replaced stays in use until the new one is complete.

        :param db: a path, a ``sqlite3.Connection`` or a ``sqlite_utils.Database``
        :param name: name of the index; default: that of the table
        :param model: alias, folder or hub id of a ColBERT model, or an encoder; default: ``minilm``
        :param nbits: bits of residual per dimension: 1, 2, 4 or 8
        :param where: SQL condition; only rows that meet it are indexed. *params* are its named parameters
        :param heading: column, such as a title, repeated at the top of every passage of a row
        :param html: strip HTML markup: ``auto``, ``yes`` or ``no``
        :param max_tokens: longest passage in tokens; default: the model's document length, at most 256
        :param device: ``cpu``, ``cuda``, ``mps``; default: the best there is
        :param dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``, what the model computes in
        :param progress: called with a :class:`Progress` after every chunk of rows
        :raises IndexExists: if there is an index of that name and *replace* is not set
        :raises SourceError: if the table or a column is missing, or the table has no primary key
        :raises ModelNotFound: if the model is not on this machine and can't be fetched
        """
        conn, owned = connect(db)
        try:
            source = Source.inspect(conn, table, columns, heading=heading, where=where, params=params)
            name = _checked_name(source.table if name is None else name)
            if not replace and read_entry(conn, name) is not None:
                raise IndexExists(
                    f"there is an index {name!r} already: replace it with replace=True (--replace), "
                    "or give this one another name"
                )
            # Settings before the model: a wrong argument should not cost the seconds of loading it.
            settings = IndexSettings(
                table=source.table,
                columns=source.columns,
                model="",
                nbits=nbits,
                where=where,
                params=dict(params or {}),
                heading=source.heading,
                html=html,
                max_tokens=max_tokens,
            )
            if isinstance(model, str) or model is None:
                encoder = load_encoder(
                    model, device=device, dtype=dtype, batch_size=batch_size, trust_remote_code=trust_remote_code
                )
            else:
                encoder = model
            settings = dataclasses.replace(
                settings, model=encoder.name, max_tokens=_passage_tokens(max_tokens, encoder)
            )
            store = build(conn, name, source, settings, encoder, progress or _ignore)
        except BaseException:
            if owned:
                conn.close()
            raise
        return cls(store, owns_connection=owned, load=lambda: encoder)

    @classmethod
    def open(
        cls,
        db: Database,
        name: str,
        *,
        model: str | Encoder | None = None,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | None = None,
        trust_remote_code: bool = False,
    ) -> Index:
        """Return the index called *name*. The model is loaded when the first query needs it.

        :param model: where the model is now, if not under the name the index was built with
        :raises IndexNotFound: if there is no such index
        """
        conn, owned = connect(db)
        try:
            store = Store.open(conn, name)
        except BaseException:
            if owned:
                conn.close()
            raise

        def load() -> Encoder:
            if model is not None and not isinstance(model, str):
                return model
            return load_encoder(
                model or store.entry.model,
                device=device,
                dtype=dtype,
                batch_size=batch_size,
                trust_remote_code=trust_remote_code,
            )

        return cls(store, owns_connection=owned, load=load)

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Index {self.name!r} of table {self._store.entry.source_table!r}>"

    def close(self) -> None:
        """Close the connection, if it is ours."""
        if self._owns_connection:
            self._store.conn.close()

    @property
    def name(self) -> str:
        return self._store.entry.name

    @property
    def settings(self) -> IndexSettings:
        return self._store.entry.settings

    @property
    def counts(self) -> dict[str, int]:
        """Rows, rows without text, passages and tokens in the index."""
        return self._store.counts()

    @property
    def encoder(self) -> Encoder:
        """The model, loaded on first use.

        :raises ModelMismatch: if it is not the one the index was built with
        """
        if self._loaded is None:
            encoder, entry = self._load(), self._store.entry
            if (encoder.fingerprint, encoder.dim) != (entry.model_fingerprint, entry.dim):
                raise ModelMismatch(
                    f"index {entry.name!r} was built with {entry.model!r} (dim {entry.dim}, fingerprint "
                    f"{entry.model_fingerprint[:12]}), not {encoder.name!r} (dim {encoder.dim}, fingerprint "
                    f"{encoder.fingerprint[:12]}): pass the model it was built with, or build it again with --replace"
                )
            self._loaded = encoder
        return self._loaded

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        where: str | None = None,
        params: Mapping[str, Any] | None = None,
        pks: Iterable[Any] | None = None,
        nprobe: int | None = None,
        ndocs: int | None = None,
        centroid_score_threshold: float | None = None,
    ) -> list[Hit]:
        """Return the *k* rows that answer *query* best, or as many as match, best first.

        :param where: SQL condition on the source table; *params* are its named parameters
        :param pks: score exactly these rows; keys that are not indexed are passed over
        :param nprobe: centroids probed per query token; these three default to ``SearchSettings.for_k(k)``
        :param ndocs: passages kept after stage 2; a quarter of them is scored exactly
        :param centroid_score_threshold: stage 2 ignores passage tokens whose centroid scores lower everywhere
        :raises ValueError: if the query is empty, or *k* or a setting is out of range
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if not query.strip():
            raise ValueError("the query is empty")
        default = SearchSettings.for_k(k)
        settings = SearchSettings(
            nprobe=default.nprobe if nprobe is None else nprobe,
            ndocs=default.ndocs if ndocs is None else ndocs,
            centroid_score_threshold=(
                default.centroid_score_threshold if centroid_score_threshold is None else centroid_score_threshold
            ),
        )
        (embedding,) = self.encoder.encode_queries([query])
        with reading(self._store.conn):
            self._refresh()
            allowed = self._allowed(where, params, pks)
            return self._ranked(embedding, k, settings, allowed)

    def info(self) -> dict[str, Any]:
        """Return settings, counts and sizes in bytes, as plain values."""
        with reading(self._store.conn):
            self._refresh()
            entry, codec = self._store.entry, self._read_codec()[1]
            bytes_by_part = self._store.bytes_by_part()
            tokens = self.counts["tokens"]
            total = sum(bytes_by_part.values())
            return {
                **_summary(self._store),
                "heading": entry.settings.heading,
                "where": entry.settings.where,
                "html": entry.settings.html,
                "max_tokens": entry.settings.max_tokens,
                "key_columns": list(entry.key_columns),
                "model_fingerprint": entry.model_fingerprint,
                "n_centroids": codec.n_centroids,
                "generation": entry.generation,
                "schema_version": entry.schema_version,
                "created": entry.created,
                "updated": entry.updated,
                "bytes_by_part": bytes_by_part,
                "bytes_per_token": round(total / tokens, 2) if tokens else None,
            }

    def verify(self) -> list[str]:
        """Return a sentence per problem found in the stored data; none when the index is sound."""
        with reading(self._store.conn):
            self._refresh()
            return check(self._store, self._source())

    def rebuild(
        self,
        *,
        progress: ProgressCallback | None = None,
    ) -> dict[str, int]:
        """Train new centroids and encode every row again, with the same settings; return the counts.

        Readers keep the old index until the new one is complete.
        """
        entry = self._store.entry
        self._store = build(
            self._store.conn, entry.name, self._source(), entry.settings, self.encoder, progress or _ignore
        )
        return self.counts

    def drop(self) -> None:
        """Remove the index, and what an interrupted rebuild of it left. The source table is not touched."""
        drop(self._store.conn, self.name)

    def _source(self) -> Source:
        settings = self.settings
        return Source.inspect(
            self._store.conn,
            settings.table,
            settings.columns,
            heading=settings.heading,
            where=settings.where,
            params=settings.params,
        )

    def _refresh(self) -> None:
        """Follow what other connections did: a rebuild, a drop. Call inside ``reading``."""
        store = Store.open(self._store.conn, self.name)
        if store.entry.build_id != self._store.entry.build_id:
            if store.entry.model_fingerprint != self._store.entry.model_fingerprint:
                raise ModelMismatch(f"index {self.name!r} was replaced by one of another model: open it again")
            self._codec = None
        self._store = store

    def _read_codec(self) -> tuple[StoredCodec, ResidualCodec]:
        if self._codec is None:
            stored = self._store.read_codec()
            if stored is None:
                raise IndexCorrupt(f"index {self.name!r} has no codec: build it again with --replace")
            self._codec = stored, codec_from(stored)
        return self._codec

    def _allowed(
        self, where: str | None, params: Mapping[str, Any] | None, pks: Iterable[Any] | None
    ) -> NDArray[np.int64] | None:
        allowed = None
        if where is not None:
            source = Source.inspect(
                self._store.conn, self.settings.table, self.settings.columns, where=where, params=params
            )
            allowed = self._store.passage_ids_where(source)
        if pks is not None:
            of_keys = self._store.passage_ids_of(self._key(pk) for pk in pks)
            allowed = of_keys if allowed is None else np.intersect1d(allowed, of_keys, assume_unique=True)
        return allowed

    def _key(self, pk: Any) -> Key:
        key = tuple(pk) if isinstance(pk, (tuple, list)) else (pk,)
        columns = self._store.entry.key_columns
        if len(key) != len(columns):
            raise ValueError(
                f"a key of {self.settings.table!r} has {len(columns)} values ({', '.join(columns)}): {pk!r}"
            )
        return key

    def _ranked(
        self, embedding: NDArray[np.float32], k: int, settings: SearchSettings, allowed: NDArray[np.int64] | None
    ) -> list[Hit]:
        stored, codec = self._read_codec()
        snapshot = Snapshot(self._store, stored)
        wider = dataclasses.replace(
            settings, nprobe=_WIDER * settings.nprobe, ndocs=_WIDER * max(settings.ndocs, _WIDER * k)
        )
        for attempt, exhaustive in ((settings, False), (wider, False), (wider, True)):
            passage_ids, scores = plaid.search(
                embedding, codec, snapshot, attempt, allowed=allowed, exhaustive=exhaustive
            )
            hits = self._hits(passage_ids, scores, k)
            # Candidates may share rows, or their rows may be gone: look wider before returning fewer than there are.
            if len(hits) == k or len(hits) == self._store.count_rows(allowed):
                break
        return hits

    def _hits(self, passage_ids: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> list[Hit]:
        entry = self._store.entry
        settings = entry.settings
        source = self._source()
        hits: list[Hit] = []
        seen: set[Key] = set()
        batch = 4 * k
        for first in range(0, len(passage_ids), batch):
            ids = passage_ids[first : first + batch].tolist()
            rows = self._store.passage_rows(ids)
            for passage_id, score in zip(ids, scores[first : first + batch].tolist(), strict=True):
                if passage_id not in rows:
                    raise IndexCorrupt(
                        f"index {self.name!r} lists passage {passage_id}, which is not there: run verify"
                    )
                place = rows[passage_id]
                if place.key in seen:
                    continue
                seen.add(place.key)
                found = source.read_whole_row(self._store.conn, place.key)
                if found is None:
                    continue
                row, raw = found
                assert settings.max_tokens is not None
                text = extract(raw.values, raw.heading, html=settings.html, max_tokens=settings.max_tokens).text
                hits.append(
                    Hit(
                        rank=len(hits) + 1,
                        score=score,
                        pk=place.key[0] if len(place.key) == 1 else place.key,
                        row=row,
                        passage=Passage(text[place.start : place.end], place.start, place.end, place.ordinal),
                        index=entry.name,
                        stale=row_hash(raw) != place.content_hash,
                    )
                )
                if len(hits) == k:
                    return hits
        return hits


def list_indexes(db: Database) -> list[dict[str, Any]]:
    """Return name, state, table, columns, model, dim, nbits and counts of every index, unfinished ones too."""
    conn, owned = connect(db)
    try:
        with reading(conn):
            return [_summary(Store(conn, entry)) for entry in read_entries(conn)]
    finally:
        if owned:
            conn.close()


def drop(db: Database, name: str) -> None:
    """Remove an index, finished or not.

    :raises IndexNotFound: if there is none of that name
    """
    conn, owned = connect(db)
    try:
        entries = read_entries(conn, name)
        if not entries:
            Store.open(conn, name)
        with atomic(conn):
            for entry in entries:
                Store(conn, entry).drop()
    finally:
        if owned:
            conn.close()


def _summary(store: Store) -> dict[str, Any]:
    entry = store.entry
    return {
        "name": entry.name,
        "state": entry.state,
        "table": entry.source_table,
        "columns": [*entry.settings.columns],
        "model": entry.model,
        "dim": entry.dim,
        "nbits": entry.settings.nbits,
        **store.counts(),
        "bytes": sum(store.bytes_by_part().values()),
    }


def _checked_name(name: str) -> str:
    if not name.strip() or "\0" in name:
        raise ValueError(f"an index needs a name, and {name!r} is none")
    return name


def _passage_tokens(max_tokens: int | None, encoder: Encoder) -> int:
    if max_tokens is None:
        return min(DEFAULT_MAX_TOKENS, encoder.document_length)
    if max_tokens > encoder.document_length:
        raise ValueError(
            f"max_tokens is {max_tokens}, but model {encoder.name!r} takes passages of {encoder.document_length} tokens"
        )
    return max_tokens


def _ignore(_: object) -> None:
    pass
