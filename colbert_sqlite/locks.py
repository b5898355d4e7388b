"""A lock that a forked process finds open.

In: nothing. Out: a lock for the threads of one process. Leaves to others: the lock between processes
(``storage/lock.py``).
"""

from __future__ import annotations

import os
from threading import RLock
from weakref import WeakSet


class ThreadLock:
    """A reentrant lock. A fork while another thread holds it leaves the child a new one.

    ``threading.RLock`` would stay locked in the child for ever: the thread that holds it exists only in the parent.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Replace the lock in a process that was just forked."""
        self._lock = RLock()


_locks: WeakSet[ThreadLock] = WeakSet()


def _renew_all() -> None:
    for lock in [*_locks]:
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
