"""Indexes of earlier releases, brought to this release's format.

In: a database and the name of an index in it. Out: the same index, readable. Leaves to others: what changes in place
(``storage/upgrade.py``), encoding.
"""

from __future__ import annotations

from typing import Any

from colbert_sqlite.encoders import Encoder, load
from colbert_sqlite.engine.codec import from_directions
from colbert_sqlite.engine.kmeans import cells_of
from colbert_sqlite.errors import MissingDependency, ModelMismatch, ModelNotFound
from colbert_sqlite.index import Index
from colbert_sqlite.indexing import ProgressCallback, writing
from colbert_sqlite.settings import Backend, ModelOptions
from colbert_sqlite.storage.connection import Database, connected
from colbert_sqlite.storage.registry import registered
from colbert_sqlite.storage.store import Store
from colbert_sqlite.storage.upgrade import IN_PLACE_FROM, Outdated, outdated, upgrade_in_place


def upgrade(
    db: Database,
    name: str,
    *,
    model: str | Encoder | None = None,
    device: str | None = None,
    dtype: str = "auto",
    batch_size: int | None = None,
    trust_remote_code: bool = False,
    backend: Backend = "auto",
    progress: ProgressCallback | None = None,
) -> bool:
    """Bring an index that an earlier release wrote to this release's format; return whether there was anything to do.

    Version 2 is brought up in place, and then synced if the model is at hand. The rows of an index of version 1 are
    encoded again.

    :param model: where the model is now, if not under the name the index was built with
    :raises IndexNotFound: if there is no such index
    :raises IndexCorrupt: if what is stored contradicts itself
    :raises ModelMismatch: if *model* is not the one that the index was built with
    :raises ModelNotFound: if rows are to be encoded and the model is not on this machine
    :raises SchemaVersionError: if a newer release wrote it
    """
    options: dict[str, Any] = {"device": device, "dtype": dtype, "batch_size": batch_size, "backend": backend}
    options["trust_remote_code"] = trust_remote_code
    with connected(db) as conn:
        with writing(conn, name, progress):
            old = outdated(conn, name) if any(e.name.lower() == name.lower() for e in registered(conn)) else None
            if old is None:
                Store.open(conn, name)
                return False
            if isinstance(model, str):
                # Whoever names a model is told that it is another before anything changes.
                model = load(model, ModelOptions(**options), many=True)
                _refuse_another_model(old, model)
            if old.schema_version >= IN_PLACE_FROM:
                upgrade_in_place(conn, old.name, lambda directions: cells_of(from_directions(directions)))
        if old.schema_version >= IN_PLACE_FROM:
            try:
                Index.open(conn, old.name, model=model, **options).sync(progress=progress)
            except (ModelNotFound, MissingDependency):
                # It is upgraded. What changed since it was made is encoded where the model is.
                pass
            return True
        settings = old.settings
        if model is not None:
            _refuse_another_model(old, model)
        Index.create(
            conn,
            settings.table,
            settings.columns,
            name=old.name,
            model=settings.model if model is None else model,
            nbits=settings.nbits,
            where=settings.where,
            params=settings.params,
            heading=settings.heading,
            html=settings.html,
            max_tokens=settings.max_tokens,
            progress=progress,
            replace=True,
            **options,
        )
        return True


def _refuse_another_model(old: Outdated, encoder: Encoder) -> None:
    if encoder.fingerprint != old.model_fingerprint:
        raise ModelMismatch(f"index {old.name!r} was built with {old.settings.model!r}, which {encoder.name!r} is not")
