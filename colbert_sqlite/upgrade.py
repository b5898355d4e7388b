"""Indexes of another format.

In: a database and the name of an index in it. Out: the same index, in the format of this release. Leaves to others:
building (``build.py``).
"""

from __future__ import annotations

from colbert_sqlite.build import build
from colbert_sqlite.codec import CodecCache
from colbert_sqlite.encoders import Encoder
from colbert_sqlite.model import Model
from colbert_sqlite.progress import BuildReport, ProgressCallback, no_progress
from colbert_sqlite.settings import Backend, ModelOptions
from colbert_sqlite.storage.connection import Database, connected
from colbert_sqlite.storage.lock import writing
from colbert_sqlite.storage.registry import read_outdated
from colbert_sqlite.storage.source import Source
from colbert_sqlite.storage.store import Store
from colbert_sqlite.sync import sync


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
) -> int | None:
    """Build an index of an older format anew, with its settings; return the format it had.

    Return None if the index has the format of this release: nothing is done then. The old index is replaced in the
    last transaction of the build. An interrupted upgrade goes on when it is run again.

    :param model: where the model is now, if not under the name the index was built with
    :raises IndexNotFound: if there is no such index
    :raises IndexCorrupt: if its registry entry can't be read
    :raises ModelMismatch: if *model* is not the one that the index was built with
    :raises ModelNotFound: if the model is not on this machine
    :raises SchemaVersionError: if a newer release wrote it
    :raises SourceError: if its table is gone or can no longer be indexed
    """
    options = ModelOptions(
        device=device, dtype=dtype, batch_size=batch_size, trust_remote_code=trust_remote_code, backend=backend
    )
    report, callback = BuildReport(), progress or no_progress
    with connected(db) as conn, writing(conn, name, progress):
        old = read_outdated(conn, name)
        if old is None:
            Store.open(conn, name)
            return None
        source = Source.of_index(conn, old.settings)
        loaded = Model(old, model, options)
        store = build(conn, old.name, source, old.settings, loaded.load(many=True), callback, report, replace=True)
        if old.settings.triggers:
            # What changed while it was built.
            sync(store, source, loaded, CodecCache(), callback, report)
        return old.schema_version
