"""Marks of single parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet


def slow(*values: object) -> list[ParameterSet]:
    """Parameters that ``make test`` leaves out, since others stand for them; CI runs them all."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
