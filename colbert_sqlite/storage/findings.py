"""What is wrong with an index.

In: what the check of each table sees. Out: a sentence per problem, and what repair has to make anew. Leaves to others:
checking (each table's own file) and repairing (``verify.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from colbert_sqlite.storage.source import Key

_MAX_SHOWN = 5


@dataclass(slots=True)
class Findings:
    """What is wrong with an index.

    :param problems: a sentence each
    :param codec: whether the codec can't be read, so that nothing else can be judged or repaired
    :param passages: ids of passages that can't be trusted
    :param rows: keys of rows whose passages don't add up
    :param blocks: numbers of blocks of residuals that are damaged
    :param orphans: ids that tables name and no passage has
    :param lists: whether the inverted lists differ from the codes
    """

    problems: list[str] = field(default_factory=list)
    codec: bool = False
    passages: set[int] = field(default_factory=set)
    rows: list[Key] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    orphans: set[int] = field(default_factory=set)
    lists: bool = False

    @property
    def damaged(self) -> bool:
        """Whether something that is stored has to be made anew, rather than brought in step."""
        return bool(self.codec or self.needs_model or self.blocks or self.lists)

    @property
    def needs_model(self) -> bool:
        """Whether rows have to be encoded again."""
        return bool(self.passages or self.rows or self.orphans)

    def add(self, problem: str, concerned: Iterable[object]) -> bool:
        """Note a problem and the first of what it concerns, if it concerns anything."""
        first = list(islice(concerned, _MAX_SHOWN + 1))
        if first:
            self.problems.append(f"{problem}: {_some(first)}")
        return bool(first)


def _some(concerned: Sequence[object]) -> str:
    plain = (item[0] if isinstance(item, tuple) and len(item) == 1 else item for item in concerned[:_MAX_SHOWN])
    return ", ".join(map(str, plain)) + (", …" if len(concerned) > _MAX_SHOWN else "")
