"""How far work is, what it did, and where its time and memory went.

In: the steps of a build or a sync, as they are made. Out: :class:`Progress` for a callback, a :class:`BuildReport`,
counts of rows. Leaves to others: which stages there are, and showing them to anyone.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]

Item = TypeVar("Item")


class Progress(NamedTuple):
    """How far long work is.

    ``stage`` is "encode", "compare" or "similar" (counted in rows), "search" (in queries), "train" or "write" (one step
    each), or "wait", for another process that writes the same index.
    """

    stage: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


def no_progress(_: Progress) -> None:
    """Show nothing."""


@dataclass(frozen=True, slots=True)
class SyncResult:
    """How many rows a sync added, updated, deleted and compared."""

    added: int = 0
    updated: int = 0
    deleted: int = 0
    compared: int = 0

    def __add__(self, other: SyncResult) -> SyncResult:
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return SyncResult(*(a + b for a, b in zip(mine, theirs, strict=True)))

    def to_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class IndexCounts:
    """How much an index holds: rows, those without text, passages, tokens."""

    rows: int
    rows_without_text: int
    passages: int
    tokens: int

    def to_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)


class Memory(NamedTuple):
    """Memory of this process in bytes.

    ``anonymous`` is what it has now, without mapped files: only on Linux, None elsewhere. ``peak`` is the most that was
    ever resident, mapped files included: on Linux and macOS, None elsewhere.
    """

    anonymous: int | None
    peak: int | None


def memory() -> Memory:
    """Return the memory of this process now."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    sizes = {
        name: int(value.split()[0]) * 1024
        for name, _, value in (line.partition(":") for line in lines)
        if "kB" in value
    }
    peak = sizes.get("VmHWM")
    if peak is None and resource is not None:
        # Not the first choice on Linux: there it begins with the peak of the process that started this one.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Memory(sizes.get("RssAnon"), peak)


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
        (tables) and invert (the inverted lists), in the order of their first steps
    :param n_tokens: tokens encoded in this run, before pooling
    """

    stages: dict[str, Stage] = field(default_factory=dict)
    n_tokens: int = 0

    @contextmanager
    def step(self, stage: str) -> Iterator[None]:
        """Count what happens inside as one step of a stage."""
        entry = self.stages.setdefault(stage, Stage())
        before, start = memory(), time.perf_counter()
        try:
            yield
        finally:
            entry.seconds += time.perf_counter() - start
            after = memory()
            if after.anonymous is not None:
                entry.anonymous = max(after.anonymous, entry.anonymous or 0)
            if after.peak != before.peak:
                entry.peak = after.peak

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
