"""What the plugin keeps for each Datasette of the process.

In: a Datasette, and a function that makes a thing for it. Out: that thing, made once, until it is removed.
Leaves to others: what the things are.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import TYPE_CHECKING, TypeVar, cast
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from datasette.app import Datasette

Thing = TypeVar("Thing")

_things: WeakKeyDictionary[Datasette, dict[object, object]] = WeakKeyDictionary()
# Reentrant: what makes one thing may need another.
_lock = RLock()


def state_of(datasette: Datasette, make: Callable[[Datasette], Thing]) -> Thing:
    """Return what *make* returned for a Datasette, the same thing every time."""
    with _lock:
        things = _things.setdefault(datasette, {})
        if make not in things:
            things[make] = make(datasette)
        return cast(Thing, things[make])


def remove_state(datasette: Datasette, make: Callable[[Datasette], Thing]) -> Thing | None:
    """Forget what *make* returned for a Datasette, and return it; None if it was not called."""
    with _lock:
        return cast("Thing | None", _things.get(datasette, {}).pop(make, None))
