"""What stands before a build: the settings it is made with, and the model.

In: what the caller asked for. Out: a name, a source table, complete settings, an encoder. Leaves to others: the build.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from typing import NamedTuple

from colbert_sqlite.encoders import Encoder, load_encoder
from colbert_sqlite.passages import DEFAULT_MAX_TOKENS
from colbert_sqlite.progress import BuildReport
from colbert_sqlite.settings import IndexSettings, ModelOptions
from colbert_sqlite.storage.connection import plain_rows
from colbert_sqlite.storage.registry import refuse_to_replace
from colbert_sqlite.storage.source import Source


class Plan(NamedTuple):
    """What is built: the settings lack only what the model decides."""

    name: str
    source: Source
    settings: IndexSettings


def plan(conn: sqlite3.Connection, name: str | None, settings: IndexSettings, *, replace: bool) -> Plan:
    """Return what is built, with the names that the schema has.

    :param name: of the index; None: that of the table
    :raises ValueError: if *name* can't be one
    :raises SourceError: if the table can't be indexed
    :raises IndexExists: if there is an index of that name and *replace* is not set
    """
    with plain_rows(conn):
        source = Source.inspect(
            conn,
            settings.table,
            settings.columns,
            heading=settings.heading,
            where=settings.where,
            params=settings.params,
        )
        name = source.table if name is None else name
        if not name.strip() or "\0" in name:
            raise ValueError(f"{name!r} can't be the name of an index")
        refuse_to_replace(conn, name, replace)
    settings = dataclasses.replace(settings, table=source.table, columns=source.columns, heading=source.heading)
    return Plan(name, source, settings)


def load_for(
    settings: IndexSettings, model: str | Encoder | None, options: ModelOptions, report: BuildReport
) -> tuple[Encoder, IndexSettings]:
    """Return the encoder, and the settings with what it decides.

    :raises ValueError: if passages would be longer than the model reads. Other errors as in :func:`load_encoder`
    """
    if model is None or isinstance(model, str):
        with report.step("load"):
            encoder = load_encoder(
                model,
                device=options.device,
                dtype=options.dtype,
                batch_size=options.batch_size,
                trust_remote_code=options.trust_remote_code,
                backend=options.backend,
                indexing=True,
            )
    else:
        encoder = model
    max_tokens = settings.max_tokens
    if max_tokens is None:
        max_tokens = min(DEFAULT_MAX_TOKENS, encoder.document_length)
    elif max_tokens > encoder.document_length:
        raise ValueError(
            f"max_tokens is {max_tokens}, but model {encoder.name!r} takes passages of {encoder.document_length} tokens"
        )
    return encoder, dataclasses.replace(settings, model=encoder.name, max_tokens=max_tokens)
