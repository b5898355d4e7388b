"""Create an index of a table: check the settings, load the model, build, sync.

In: a database, settings, a model. Out: the parts of an :class:`Index`. Leaves to others: the build (``build.py``), the
sync (``sync.py``).
"""

from __future__ import annotations

import dataclasses
import sqlite3
from typing import NamedTuple

from colbert_sqlite.build import build
from colbert_sqlite.codec import CodecCache
from colbert_sqlite.encoders import Encoder, load, own_class
from colbert_sqlite.model import Model
from colbert_sqlite.passages import DEFAULT_MAX_TOKENS
from colbert_sqlite.progress import BuildReport, ProgressCallback, no_progress
from colbert_sqlite.settings import IndexSettings, ModelOptions
from colbert_sqlite.storage.connection import Database, plain_rows
from colbert_sqlite.storage.lock import writing
from colbert_sqlite.storage.registry import Entry, refuse_to_replace
from colbert_sqlite.storage.source import Source
from colbert_sqlite.storage.store import Store
from colbert_sqlite.storage.threads import Connections, closed_on_error, connections_to
from colbert_sqlite.sync import sync


class Created(NamedTuple):
    """A new index: its connections, its registry entry, its model, and the report of its build."""

    connections: Connections
    entry: Entry
    model: Model
    report: BuildReport


class _Plan(NamedTuple):
    """An index to build. Only the model fills in the last settings: its name and the passage size."""

    name: str
    source: Source
    settings: IndexSettings


def create_index(
    db: Database,
    name: str | None,
    settings: IndexSettings,
    model: str | Encoder | None,
    options: ModelOptions,
    *,
    progress: ProgressCallback | None,
    replace: bool,
) -> Created:
    """Build an index with these settings, or finish an interrupted build of the same settings.

    Arguments and errors as in :meth:`Index.create`.
    """
    report = BuildReport()
    connections = connections_to(db, name or settings.table)
    with closed_on_error(connections), connections.use() as session:
        # Before the model: a wrong argument must not cost the seconds of loading it.
        name, source, settings = _plan(session.conn, name, settings, replace=replace)
        encoder, settings = _load_encoder(settings, model, options, report)
        with writing(session.conn, name, progress):
            store = build_in_step(
                session.conn, name, source, settings, encoder, progress or no_progress, report, replace=replace
            )
    return Created(connections, store.entry, Model(store.entry, encoder, options), report)


def build_in_step(
    conn: sqlite3.Connection,
    name: str,
    source: Source,
    settings: IndexSettings,
    encoder: Encoder,
    progress: ProgressCallback,
    report: BuildReport,
    *,
    replace: bool,
) -> Store:
    """Build an index, put it in use, and sync the rows that triggers queued meanwhile.

    Arguments and errors as in :func:`build`.
    """
    store = build(conn, name, source, settings, encoder, progress, report, replace=replace)
    if settings.triggers:
        sync(store, source, Model(store.entry, encoder, ModelOptions()), CodecCache(), progress, report)
    return store


def _plan(conn: sqlite3.Connection, name: str | None, settings: IndexSettings, *, replace: bool) -> _Plan:
    """Return the index to build, with the names that the schema has.

    :param name: of the index; None: that of the table
    :raises ValueError: if *name* is empty or has a NUL
    :raises SourceError: if the table can't be indexed
    :raises IndexExists: if an index of that name exists and *replace* is not set
    """
    with plain_rows(conn):
        source = Source.of_index(conn, settings)
        name = source.table if name is None else name
        if not name.strip() or "\0" in name:
            raise ValueError(f"{name!r} can't be the name of an index")
        refuse_to_replace(conn, name, replace)
    settings = dataclasses.replace(settings, table=source.table, columns=source.columns, heading=source.heading)
    return _Plan(name, source, settings)


def _load_encoder(
    settings: IndexSettings, model: str | Encoder | None, options: ModelOptions, report: BuildReport
) -> tuple[Encoder, IndexSettings]:
    """Return the encoder, and the settings with its name and passage size.

    :raises ValueError: if *max_tokens* is more than the model reads. Other errors as in :func:`load_encoder`
    """
    if model is None or isinstance(model, str):
        with report.step("load"):
            encoder = load(model, options, many=True)
    else:
        encoder = model
    max_tokens = settings.max_tokens
    if max_tokens is None:
        max_tokens = min(DEFAULT_MAX_TOKENS, encoder.document_length)
    elif max_tokens > encoder.document_length:
        raise ValueError(
            f"max_tokens must be at most {encoder.document_length} with model {encoder.name!r}, not {max_tokens}"
        )
    return encoder, dataclasses.replace(settings, model=encoder.name, encoder=own_class(encoder), max_tokens=max_tokens)
