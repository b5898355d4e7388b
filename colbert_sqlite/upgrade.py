"""Upgrade an index of an older format to the format of this release.

In: a database and the name of an index in it. Out: the same index in the new format. Leaves to others: building
(``build.py``).
"""

from __future__ import annotations

from colbert_sqlite.create import build_in_step
from colbert_sqlite.encoders import Encoder
from colbert_sqlite.model import Model
from colbert_sqlite.progress import BuildReport, ProgressCallback, no_progress
from colbert_sqlite.settings import Backend, ModelOptions
from colbert_sqlite.storage.connection import Database, connected
from colbert_sqlite.storage.lock import writing
from colbert_sqlite.storage.registry import read_outdated
from colbert_sqlite.storage.source import Source
from colbert_sqlite.storage.store import Store


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
    """Rebuild an index of an older format with its settings; return the number of that format.

    Returns None, and changes nothing, if the index has the format of this release. The last transaction of the build
    replaces the old index. After an interruption, the same call finishes the upgrade.

    :param model: an encoder, or the name of the model now; default: the name that the index was built with
    :raises IndexNotFound: if no index has that name
    :raises IndexCorrupt: if its registry entry is damaged
    :raises ModelMismatch: if *model* is not the one that the index was built with
    :raises ModelNotFound: if the model is not on this machine
    :raises SchemaVersionError: if a newer release wrote the index
    :raises SourceError: if its table is missing or can no longer be indexed
    """
    options = ModelOptions(
        device=device, dtype=dtype, batch_size=batch_size, trust_remote_code=trust_remote_code, backend=backend
    )
    with connected(db) as conn, writing(conn, name, progress):
        old = read_outdated(conn, name)
        if old is None:
            Store.open(conn, name)
            return None
        source = Source.of_index(conn, old.settings)
        encoder = Model(old, model, options).load(many=True)
        callback = progress or no_progress
        build_in_step(conn, old.name, source, old.settings, encoder, callback, BuildReport(), replace=True)
        return old.schema_version
