"""Syncs indexes by itself, where the setting ``auto_sync_seconds`` says so.

In: the databases of a Datasette. Out: jobs that sync. Leaves to others: the jobs (jobs.py, work.py).
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from colbert_sqlite import ColbertError, serving
from datasette_colbert.compat import is_internal
from datasette_colbert.manage.jobs import Job, Jobs, jobs_of
from datasette_colbert.manage.read_only import why_read_only
from datasette_colbert.manage.work import Sync
from datasette_colbert.settings import settings_for
from datasette_colbert.state import remove_state, state_of

if TYPE_CHECKING:
    from datasette.app import Datasette

log = logging.getLogger("colbert_sqlite")

# What would compare every row, or failed the last time, is tried once in this number of rounds.
ROUNDS_TO_RETRY = 10


class AutoSync:
    """Syncs the indexes of one database by itself, looking for changed rows every *seconds*.

    An index without triggers, or whose table was dropped and created again, is compared as a whole, in every tenth
    round only. In those rounds an index whose last job failed or was cancelled is tried again too. *model_of* returns
    the model for the index of a table, as for :class:`Sync`.
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
        """Return a job for each index that is due."""
        self._round += 1
        with serving.open_read_only(self.path) as conn:
            due = (self._due(conn, name) for name in serving.names_in_use(conn))
            return [self.jobs.submit(work, is_automatic=True) for work in due if work is not None]

    def _due(self, conn: sqlite3.Connection, name: str) -> Sync | None:
        from colbert_sqlite import Index

        last = self.jobs.latest(self.database, name)
        if last is not None and not last.is_over:
            return None
        has_failed = last is not None and last.state != "done"
        try:
            with Index.open(conn, name).read() as view:
                n_pending, table = serving.pending_changes(view), view.store.entry.source_table
        except ColbertError:
            # The page that lists the indexes says so.
            return None
        if n_pending == 0 or ((has_failed or n_pending is None) and self._round % ROUNDS_TO_RETRY):
            return None
        return Sync(database=self.database, path=self.path, index=name, table=table, model=self.model_of(table))


def _started(datasette: Datasette) -> list[AutoSync]:
    """Begin to look at every database that can be written, if the settings say so."""
    seconds = settings_for(datasette).auto_sync_seconds
    if not seconds:
        return []

    def model_of(database: str) -> Callable[[str], str | None]:
        return lambda table: settings_for(datasette, database, table).model

    started = [
        AutoSync(jobs_of(datasette), name, str(db.path), seconds, model_of=model_of(name))
        for name, db in datasette.databases.items()
        if not is_internal(datasette, name) and not why_read_only(db)
    ]
    for auto_sync in started:
        auto_sync.start()
    return started


def start_auto_sync(datasette: Datasette) -> None:
    """Sync the indexes of a Datasette by itself from now on, if its settings say so."""
    state_of(datasette, _started)


def close_auto_sync(datasette: Datasette) -> None:
    """Look at no database of a Datasette any more."""
    for auto_sync in remove_state(datasette, _started) or ():
        auto_sync.close()
