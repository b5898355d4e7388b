"""The encoder cases that the reference libraries made, for every backend to agree with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

CASES = [
    "stanford_bert",
    "stanford_bert_unkpunct",
    "stanford_xlmr",
    "pylate_bert",
    "pylate_bert_2dense",
    "pylate_modernbert",
    "pylate_noprefix",
    "st6_native",
]


def texts_and_expected(shared: Path, case: str) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The texts of a case, and the arrays that its library made of them."""
    folder = shared / "reference" / "parity" / case
    with np.load(folder / "expected.npz") as npz:
        return json.loads((folder / "texts.json").read_text(encoding="utf-8")), dict(npz)
