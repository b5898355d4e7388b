"""The cases that the reference libraries made, for the encoders, codec and search to agree with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).resolve().parent / "data"
CHECKPOINTS = DATA / "checkpoints"
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


def texts_and_expected(case: str) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """The texts of a case, and the arrays that its library made of them."""
    folder = CHECKPOINTS / case
    with np.load(folder / "expected.npz") as npz:
        return json.loads((folder / "texts.json").read_text(encoding="utf-8")), dict(npz)
