"""What a job does with one index: create, sync, rebuild or drop it.

In: which index of which file. Out: counts of what was done. Leaves to others: the work itself
(:class:`colbert_sqlite.Index`), threads (jobs.py), who may ask for it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from colbert_sqlite import IndexSettings, serving

if TYPE_CHECKING:
    from colbert_sqlite import Index
    from colbert_sqlite.serving import ProgressCallback

# Up to this number of changed rows are encoded with the model that searches have in memory: loading what encodes faster
# would take longer.
MAX_ROWS_OF_SHARED_MODEL = 1000


class Work(Protocol):
    """What a job does, to which index of which database."""

    kind: ClassVar[str]

    @property
    def database(self) -> str: ...
    @property
    def index(self) -> str: ...
    @property
    def table(self) -> str: ...
    def run(self, progress: ProgressCallback) -> dict[str, int]:
        """Do the work, and return counts of what it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _IndexWork:
    """An index of *table* in the file *path*, which the server calls *database*."""

    database: str
    path: str
    index: str
    table: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Create(_IndexWork):
    """Build an index, or go on with a build of the same settings that was interrupted."""

    kind: ClassVar[str] = "create"
    settings: IndexSettings
    replace: bool = False

    def run(self, progress: ProgressCallback) -> dict[str, int]:
        from colbert_sqlite import Index

        settings = self.settings
        with Index.create(
            self.path,
            settings.table,
            settings.columns,
            name=self.index,
            model=settings.model,
            nbits=settings.nbits,
            where=settings.where,
            params=settings.params,
            heading=settings.heading,
            html=settings.html,
            max_tokens=settings.max_tokens,
            pool_factor=settings.pool_factor,
            triggers=settings.triggers,
            progress=progress,
            replace=self.replace,
        ) as index:
            return index.counts().to_dict()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync(_IndexWork):
    """Bring an index in step with its table. ``model`` is used if it is the one that built the index."""

    kind: ClassVar[str] = "sync"
    model: str | None = None

    def run(self, progress: ProgressCallback) -> dict[str, int]:
        from colbert_sqlite import Index

        with Index.open(self.path, self.index) as index:
            with index.read() as view:
                n_pending = serving.pending_changes(view)
            if n_pending == 0:
                return index.sync(progress=progress).to_dict()
            is_small = n_pending is not None and n_pending <= MAX_ROWS_OF_SHARED_MODEL
            model = serving.encoder_of(index, self.model) if is_small else _if_it_built(index, self.model)
        with Index.open(self.path, self.index, model=model) as index:
            return index.sync(progress=progress).to_dict()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild(_IndexWork):
    """Encode every row of an index again. ``model`` as in :class:`Sync`."""

    kind: ClassVar[str] = "rebuild"
    model: str | None = None

    def run(self, progress: ProgressCallback) -> dict[str, int]:
        from colbert_sqlite import Index

        with Index.open(self.path, self.index) as index:
            model = _if_it_built(index, self.model)
        with Index.open(self.path, self.index, model=model) as index:
            return index.rebuild(progress=progress).to_dict()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(_IndexWork):
    """Drop an index, finished or not."""

    kind: ClassVar[str] = "drop"

    def run(self, progress: ProgressCallback) -> dict[str, int]:
        serving.drop(self.path, self.index)
        return {}


def _if_it_built(index: Index, model: str | None) -> str | None:
    """Return *model* if it has the fingerprint of the one that built the index."""
    return model if model and serving.encoder_named(model).fingerprint == index.model_fingerprint else None


def continue_build(conn: sqlite3.Connection, database: str, path: str, index: str) -> Create:
    """Return the work that goes on with an interrupted build, with whatever settings it has.

    :param conn: a connection that reads the file *path*
    :raises IndexNotFound: if there is no such build
    :raises ColbertError: if its settings can't be read
    """
    build = serving.unfinished_build(conn, index)
    return Create(
        database=database,
        path=path,
        index=build.index,
        table=build.table,
        settings=build.settings,
        replace=build.replace,
    )
