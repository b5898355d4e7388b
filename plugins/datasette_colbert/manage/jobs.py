"""Work on indexes in the background of one process: create, sync, rebuild, drop.

In: what is to be done with which index of which file. Out: jobs, each with its state, progress and outcome, readable
from any thread. Leaves to others: the work itself (:class:`colbert_sqlite.Index`), who may ask for it, pages.

One job runs at a time and the others wait in order: encoding takes every core there is, and two at once would each take
twice as long. A job opens a connection of its own.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import secrets
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from colbert_sqlite.errors import ColbertError, IndexNotFound
from colbert_sqlite.settings import IndexSettings

if TYPE_CHECKING:
    from colbert_sqlite.encoders import Encoder
    from colbert_sqlite.indexing import Progress, ProgressCallback

log = logging.getLogger("colbert_sqlite")

State = Literal["waiting", "running", "done", "failed", "cancelled"]
# Jobs that ended and can still be looked at.
KEPT = 50
# Before that the first rows, which waited for the model, say little about the others.
SECONDS_TO_TELL = 10.0
# How long the end of the process waits for a job to notice. Progress is told after every chunk of rows: some seconds.
SECONDS_TO_STOP = 10.0
# What would compare every row, or failed the last time, is tried in every so many rounds only.
PATIENT_ROUNDS = 10
# Up to so many changed rows are encoded with the model that searches have in memory: loading what encodes faster would
# take longer.
FEW_ROWS = 1000


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
        """Do it, and return what came of it in numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """An index of *table* in the file *path*, which the server calls *database*."""

    database: str
    path: str
    index: str
    table: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Create(_Target):
    """Build an index, or go on with a build of the same settings that was interrupted."""

    kind: ClassVar[str] = "create"
    settings: IndexSettings
    replace: bool = False

    def run(self, progress: ProgressCallback) -> dict[str, int]:
        from colbert_sqlite.index import Index

        wanted = self.settings
        with Index.create(
            self.path,
            wanted.table,
            wanted.columns,
            name=self.index,
            model=wanted.model,
            nbits=wanted.nbits,
            where=wanted.where,
            params=wanted.params,
            heading=wanted.heading,
            html=wanted.html,
            max_tokens=wanted.max_tokens,
            pool_factor=wanted.pool_factor,
            triggers=wanted.triggers,
            progress=progress,
            replace=self.replace,
        ) as index:
            return index.counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync(_Target):
    """Bring an index in step with its table.

    ``model`` is a name or folder to take the model from, where that is the one the index was built with.
    """

    kind: ClassVar[str] = "sync"
    model: str | None = None

    def run(self, progress: ProgressCallback) -> dict[str, int]:
        from colbert_sqlite.encoders.cache import shared_encoder
        from colbert_sqlite.index import Index

        with Index.open(self.path, self.index) as index:
            n_pending, fingerprint = index.pending_changes, index.model_fingerprint
            if n_pending == 0:
                return index.sync(progress=progress)
            model: str | Encoder | None
            if n_pending is not None and n_pending <= FEW_ROWS:
                model = shared_encoder(fingerprint, lambda: index.encoder, configured=self.model)
            else:
                model = _fitting(self.model, fingerprint)
        with Index.open(self.path, self.index, model=model) as index:
            return index.sync(progress=progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild(_Target):
    """Encode every row of an index again. ``model`` as in :class:`Sync`."""

    kind: ClassVar[str] = "rebuild"
    model: str | None = None

    def run(self, progress: ProgressCallback) -> dict[str, int]:
        from colbert_sqlite.index import Index

        with Index.open(self.path, self.index) as index:
            model = _fitting(self.model, index.model_fingerprint)
        with Index.open(self.path, self.index, model=model) as index:
            return index.rebuild(progress=progress)


def _fitting(model: str | None, fingerprint: str) -> str | None:
    """Return *model* if it has that fingerprint."""
    from colbert_sqlite.encoders.cache import cached_encoder

    return model if model and cached_encoder(model).fingerprint == fingerprint else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(_Target):
    """Remove an index, finished or not."""

    kind: ClassVar[str] = "drop"

    def run(self, progress: ProgressCallback) -> dict[str, int]:
        from colbert_sqlite.catalogue import drop

        drop(self.path, self.index)
        return {}


def unfinished(conn: sqlite3.Connection, database: str, path: str, index: str) -> Create:
    """Return the work that goes on with the build of an index that was interrupted, with whatever settings it has.

    :param conn: a connection that reads the file *path*
    :raises IndexNotFound: if there is no such build
    :raises ColbertError: if its settings can't be read
    """
    from colbert_sqlite.storage.connection import plain_rows
    from colbert_sqlite.storage.registry import read_entry, registered

    with plain_rows(conn):
        entry = read_entry(conn, index, "building")
        in_use = {known.name.lower() for known in registered(conn) if known.state == "ready"}
    if entry is None:
        raise IndexNotFound(f"no build of index {index!r} is unfinished")
    return Create(
        database=database,
        path=path,
        index=entry.name,
        table=entry.source_table,
        settings=entry.settings,
        replace=entry.name.lower() in in_use,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A piece of work as it stands.

    ``stage``, ``done`` and ``total`` are those of :class:`colbert_sqlite.Progress`, ``stage`` empty before the first;
    it began when ``done`` was ``stage_began_at``, which is not 0 where an interrupted build goes on.
    ``is_automatic``: nobody asked for it. ``cancelling``: it was asked to stop and has not noticed yet. ``error`` is
    one sentence, empty unless it failed; ``result`` has the counts that the work returned. Times are UTC.
    """

    id: str
    work: Work
    actor_id: str | None
    submitted: datetime
    is_automatic: bool = False
    state: State = "waiting"
    cancelling: bool = False
    stage: str = ""
    done: int = 0
    total: int = 0
    started: datetime | None = None
    finished: datetime | None = None
    stage_started: datetime | None = None
    stage_began_at: int = 0
    error: str = ""
    result: dict[str, int] = field(default_factory=dict)

    @property
    def seconds_left(self) -> int | None:
        """How long the stage takes at the pace it had so far; None while that can't be said."""
        n_done = self.done - self.stage_began_at
        if self.state != "running" or self.stage_started is None or n_done <= 0:
            return None
        seconds = (_now() - self.stage_started).total_seconds()
        if seconds < SECONDS_TO_TELL:
            return None
        return round(seconds * (self.total - self.done) / n_done)

    @property
    def is_over(self) -> bool:
        return self.state not in ("waiting", "running")

    def is_of(self, database: str, index: str) -> bool:
        return (self.work.database, self.work.index.lower()) == (database, index.lower())

    def to_dict(self) -> dict[str, Any]:
        """Return the job as plain values."""
        work = {name: getattr(self.work, name) for name in ("kind", "database", "index", "table")}
        names = ("is_automatic", "state", "cancelling", "stage", "done", "total", "error", "result")
        times = {name: getattr(self, name) for name in ("submitted", "started", "finished")}
        return {
            "id": self.id,
            **work,
            **{name: getattr(self, name) for name in names},
            **{name: time and time.isoformat(timespec="seconds") for name, time in times.items()},
            "seconds_left": self.seconds_left,
        }


class _Cancelled(Exception):
    """Ends a piece of work from inside of its progress callback."""


class Jobs:
    """The jobs of one server."""

    def __init__(self) -> None:
        # Jobs are frozen and replaced under the lock, so that whoever has one has one moment of it.
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._worker: threading.Thread | None = None
        self._closed = False

    def submit(self, work: Work, actor_id: str | None = None, *, is_automatic: bool = False) -> Job:
        """Return the new job that does *work*, or the one that waits or runs already for the same index."""
        with self._changed:
            for job in self._jobs.values():
                if not job.is_over and job.is_of(work.database, work.index):
                    return job
            job = Job(
                id=secrets.token_urlsafe(12),
                work=work,
                actor_id=actor_id,
                submitted=_now(),
                is_automatic=is_automatic,
            )
            self._jobs[job.id] = job
            if self._closed:
                return self._change(job.id, state="cancelled", finished=_now())
            self._changed.notify_all()
            if self._worker is None:
                # One thread for all jobs: memory that a model used is used again by the same thread only.
                self._worker = threading.Thread(target=self._work, name="colbert-jobs", daemon=True)
                self._worker.start()
                # Killed in the middle of compiled code by the end of the process, a thread takes it down with a crash.
                atexit.register(self.close)
            return job

    def get(self, id: str) -> Job | None:
        """Return the job called *id*; None if there was none, or it was forgotten."""
        with self._changed:
            return self._jobs.get(id)

    def all(self) -> list[Job]:
        """Return every job that is known, the newest first."""
        with self._changed:
            return [*reversed(self._jobs.values())]

    def latest(self, database: str, index: str) -> Job | None:
        """Return the newest job of an index."""
        return next((job for job in self.all() if job.is_of(database, index)), None)

    def cancel(self, id: str) -> Job | None:
        """Ask a job to stop, and return it; a running one stops when it next tells of its progress."""
        with self._changed:
            job = self._jobs.get(id)
            if job is None or job.is_over:
                return job
            if job.state == "waiting":
                cancelled = self._change(id, state="cancelled", finished=_now())
                self._forget_old()
                return cancelled
            return self._change(id, cancelling=True)

    def wait(self, seconds: float) -> bool:
        """Return whether all jobs are over within *seconds*."""
        with self._changed:
            return self._changed.wait_for(lambda: all(job.is_over for job in self._jobs.values()), seconds)

    def close(self, seconds: float = SECONDS_TO_STOP) -> bool:
        """Take no more jobs, cancel those there are, and return whether all are over within *seconds*."""
        with self._changed:
            self._closed = True
            for id in self._jobs:
                self.cancel(id)
            self._changed.notify_all()
        if is_over := self.wait(seconds):
            atexit.unregister(self.close)
        return is_over

    def _work(self) -> None:
        """Run jobs, one after another, until this is closed."""
        while (job := self._next()) is not None:
            outcome = self._outcome(job)
            with self._changed:
                self._change(job.id, cancelling=False, finished=_now(), **outcome)
                self._forget_old()

    def _next(self) -> Job | None:
        """Wait for a job that waits."""
        with self._changed:
            while not self._closed:
                for job in self._jobs.values():
                    if job.state == "waiting":
                        return self._change(job.id, state="running", started=_now())
                self._changed.wait()
        return None

    def _outcome(self, job: Job) -> dict[str, Any]:
        """Do the work of a job; return what is to be noted of its end."""

        def progress(now: Progress) -> None:
            with self._changed:
                at = self._jobs[job.id]
                begun = {} if at.stage == now.stage else {"stage_started": _now(), "stage_began_at": now.done}
                at = self._change(job.id, stage=now.stage, done=now.done, total=now.total, **begun)
            if at.cancelling:
                raise _Cancelled

        try:
            return {"result": job.work.run(progress), "state": "done"}
        except _Cancelled:
            return {"state": "cancelled"}
        except (ColbertError, ValueError, sqlite3.Error) as error:
            return {"state": "failed", "error": str(error)}
        except Exception:
            log.exception("%s of index %r in %r", job.work.kind, job.work.index, job.work.database)
            return {"state": "failed", "error": "an unexpected error ended it: see the log of the server"}

    def _change(self, id: str, **values: Any) -> Job:
        job = self._jobs[id] = dataclasses.replace(self._jobs[id], **values)
        self._changed.notify_all()
        return job

    def _forget_old(self) -> None:
        """Keep the last jobs, and of those that nobody asked for only the last one of each index."""
        over = [job for job in self._jobs.values() if job.is_over]
        latest = {(job.work.database, job.work.index.lower()): job.id for job in over}.values()
        for job in over:
            if job.is_automatic and job.id not in latest:
                del self._jobs[job.id]
        over = [job for job in over if job.id in self._jobs]
        for job in over[:-KEPT]:
            del self._jobs[job.id]


class AutoSync:
    """Syncs the indexes of one database by itself, looking for changed rows every so many seconds.

    An index whose changes nobody notes (made without triggers, or its table was dropped and made anew) is compared as a
    whole in every tenth round only, and so is one whose last job failed or was cancelled tried again. *model_of* says
    where the model of a table's index is, as for :class:`Sync`.
    """

    def __init__(
        self, jobs: Jobs, database: str, path: str, seconds: float, *, model_of: Callable[[str], str | None]
    ) -> None:
        self.jobs = jobs
        self.database = database
        self.path = path
        self.seconds = seconds
        self.model_of = model_of
        self._round = 0
        self._problem = ""
        self._stop = threading.Event()

    def start(self) -> None:
        """Look again and again from now on, in a thread of its own."""
        threading.Thread(target=self._keep_looking, name=f"colbert-sync-{self.database}", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()

    def _keep_looking(self) -> None:
        while not self._stop.wait(self.seconds):
            try:
                self.look()
                self._problem = ""
            except (ColbertError, sqlite3.Error) as error:
                if self._problem != (problem := str(error)):
                    log.warning("Database %r can't be looked at for changed rows: %s", self.database, problem)
                self._problem = problem

    def look(self) -> list[Job]:
        """Return a job for each index that is to be synced now."""
        from colbert_sqlite.catalogue import registered_names
        from colbert_sqlite.storage.connection import connect, refuse_writes

        self._round += 1
        conn, _ = connect(self.path)
        with closing(conn):
            refuse_writes(conn)
            due = (self._due(conn, name) for name in registered_names(conn))
            return [self.jobs.submit(work, is_automatic=True) for work in due if work is not None]

    def _due(self, conn: sqlite3.Connection, name: str) -> Sync | None:
        from colbert_sqlite.index import Index

        last = self.jobs.latest(self.database, name)
        if last is not None and not last.is_over:
            return None
        is_patient = last is not None and last.state != "done"
        try:
            index = Index.open(conn, name)
            n_pending = index.pending_changes
        except ColbertError:
            # The page that lists the indexes says so.
            return None
        if n_pending == 0 or ((is_patient or n_pending is None) and self._round % PATIENT_ROUNDS):
            return None
        table = index.settings.table
        return Sync(database=self.database, path=self.path, index=name, table=table, model=self.model_of(table))


def _now() -> datetime:
    return datetime.now(timezone.utc)
