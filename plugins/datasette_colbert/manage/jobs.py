"""Work on indexes in the background of one process.

In: work. Out: jobs, each with its state, progress and outcome, readable from any thread. Leaves to others: what the
work is (work.py), who may ask for it, pages.

One job runs at a time and the others wait in order: encoding takes every core there is, and two at once would each take
twice as long. A job opens a connection of its own.
"""

from __future__ import annotations

import atexit
import logging
import secrets
import sqlite3
import threading
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, NamedTuple

from colbert_sqlite import ColbertError
from datasette_colbert.compat import Json
from datasette_colbert.manage.work import Work
from datasette_colbert.state import state_of

if TYPE_CHECKING:
    from datasette.app import Datasette

    from colbert_sqlite import Progress

log = logging.getLogger("colbert_sqlite")

State = Literal["waiting", "running", "done", "failed", "cancelled"]
# Jobs that ended and can still be looked at.
MAX_ENDED_JOBS = 50
# Before that the first rows, which waited for the model, say little about the others.
MIN_SECONDS_TO_ESTIMATE = 10.0
# How long the end of the process waits for a job to notice. There is progress after every chunk of rows: some seconds.
SECONDS_TO_STOP = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A piece of work as it stands.

    ``stage``, ``done`` and ``total`` are those of :class:`colbert_sqlite.Progress`, ``stage`` empty before the first.
    The stage began when ``done`` was ``stage_began_at``, which is not 0 where an interrupted build goes on.
    ``is_automatic``: nobody asked for it. ``cancelling``: it must stop and has not noticed yet. ``error`` is one
    sentence, empty unless it failed. ``result`` has the counts that the work returned. Times are UTC.
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
        """How long the stage takes at its pace so far; None while that can't be said."""
        n_done = self.done - self.stage_began_at
        if self.state != "running" or self.stage_started is None or n_done <= 0:
            return None
        seconds = (_now() - self.stage_started).total_seconds()
        if seconds < MIN_SECONDS_TO_ESTIMATE:
            return None
        return round(seconds * (self.total - self.done) / n_done)

    @property
    def is_over(self) -> bool:
        return self.state not in ("waiting", "running")

    def is_of(self, database: str, index: str) -> bool:
        return (self.work.database, self.work.index.lower()) == (database, index.lower())

    def to_dict(self) -> Json:
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


class _Outcome(NamedTuple):
    """How a job ended; see :class:`Job`."""

    state: State
    error: str = ""
    result: dict[str, int] = {}


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
            if self._closed:
                return self._put(replace(job, state="cancelled", finished=_now()))
            self._put(job)
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
        """Return every job that is kept, the newest first."""
        with self._changed:
            return [*reversed(self._jobs.values())]

    def latest(self, database: str, index: str) -> Job | None:
        """Return the newest job of an index."""
        return next((job for job in self.all() if job.is_of(database, index)), None)

    def cancel(self, id: str) -> Job | None:
        """Ask a job to stop, and return it; a running one stops at its next progress."""
        with self._changed:
            job = self._jobs.get(id)
            if job is None or job.is_over:
                return job
            if job.state == "waiting":
                cancelled = self._put(replace(job, state="cancelled", finished=_now()))
                self._forget_old()
                return cancelled
            return self._put(replace(job, cancelling=True))

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
            state, error, result = self._run(job)
            with self._changed:
                job = self._jobs[job.id]
                self._put(replace(job, cancelling=False, finished=_now(), state=state, error=error, result=result))
                self._forget_old()

    def _next(self) -> Job | None:
        """Wait for a job that waits."""
        with self._changed:
            while not self._closed:
                for job in self._jobs.values():
                    if job.state == "waiting":
                        return self._put(replace(job, state="running", started=_now()))
                self._changed.wait()
        return None

    def _run(self, job: Job) -> _Outcome:
        def progress(now: Progress) -> None:
            with self._changed:
                earlier = self._jobs[job.id]
                current = replace(earlier, stage=now.stage, done=now.done, total=now.total)
                if earlier.stage != now.stage:
                    current = replace(current, stage_started=_now(), stage_began_at=now.done)
                self._put(current)
            if current.cancelling:
                raise _Cancelled

        try:
            return _Outcome("done", result=job.work.run(progress))
        except _Cancelled:
            return _Outcome("cancelled")
        except (ColbertError, ValueError, sqlite3.Error) as error:
            return _Outcome("failed", str(error))
        except Exception:
            log.exception("%s of index %r in %r", job.work.kind, job.work.index, job.work.database)
            return _Outcome("failed", "an unexpected error ended it: see the log of the server")

    def _put(self, job: Job) -> Job:
        self._jobs[job.id] = job
        self._changed.notify_all()
        return job

    def _forget_old(self) -> None:
        """Keep the last jobs, and of the automatic ones only the last one of each index."""
        over = [job for job in self._jobs.values() if job.is_over]
        latest = {(job.work.database, job.work.index.lower()): job.id for job in over}.values()
        for job in over:
            if job.is_automatic and job.id not in latest:
                del self._jobs[job.id]
        over = [job for job in over if job.id in self._jobs]
        for job in over[:-MAX_ENDED_JOBS]:
            del self._jobs[job.id]


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _new_jobs(datasette: Datasette) -> Jobs:
    return Jobs()


def jobs_of(datasette: Datasette) -> Jobs:
    """Return the jobs of a Datasette, the same object every time."""
    return state_of(datasette, _new_jobs)


def close_jobs(datasette: Datasette) -> None:
    """Take no more jobs, and cancel those there are without waiting for them."""
    jobs_of(datasette).close(0)
