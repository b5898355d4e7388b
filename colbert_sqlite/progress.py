"""Where the time and the memory of a build go.

In: the steps of each stage, as they are made. Out: a :class:`BuildReport`. Leaves to others: which stages there are,
and showing them to anyone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

Item = TypeVar("Item")


class Memory(NamedTuple):
    """Memory of this process in bytes, None where the system does not tell.

    ``anonymous`` is what it has now, without the files it maps (Linux only); ``peak`` the most that was ever resident,
    mapped files included (Linux and macOS).
    """

    anonymous: int | None
    peak: int | None


def memory() -> Memory:
    """The memory of this process now."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = {
        name: int(value.split()[0]) * 1024
        for name, _, value in (line.partition(":") for line in lines)
        if "kB" in value
    }
    peak = told.get("VmHWM")
    if peak is None and resource is not None:
        # Not the first choice on Linux: there it begins with the peak of the process that started this one.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Memory(told.get("RssAnon"), peak)


@dataclass(slots=True)
class Stage:
    """One stage of a build, all its steps together.

    :param seconds: wall-clock time
    :param anonymous: bytes: the most anonymous memory that the process had at the end of a step; see :class:`Memory`
    :param peak: bytes: the peak of the process, if it was reached in this stage
    """

    seconds: float = 0.0
    anonymous: int | None = None
    peak: int | None = None


@dataclass(slots=True)
class BuildReport:
    """Time and memory of one run of a build.

    :param stages: load (the model), read (rows, cut into passages), encode, pool, train (the codec), compress, write
        (tables) and invert (the inverted lists), those that there were, in the order in which they first were
    :param n_tokens: tokens encoded in this run, before pooling; what an interrupted run had done does not count
    """

    stages: dict[str, Stage] = field(default_factory=dict)
    n_tokens: int = 0

    @contextmanager
    def step(self, stage: str) -> Iterator[None]:
        """Count what happens inside as one step of a stage."""
        told = self.stages.setdefault(stage, Stage())
        before, began = memory(), time.perf_counter()
        try:
            yield
        finally:
            told.seconds += time.perf_counter() - began
            after = memory()
            if after.anonymous is not None:
                told.anonymous = max(after.anonymous, told.anonymous or 0)
            if after.peak != before.peak:
                told.peak = after.peak

    def steps(self, stage: str, items: Iterable[Item]) -> Iterator[Item]:
        """Return the items; getting each of them is a step of a stage."""
        iterator = iter(items)
        while True:
            with self.step(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
