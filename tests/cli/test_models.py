"""models."""

from __future__ import annotations

import json

from tests.cli.helpers import run


def test_models_lists_the_names_an_index_can_be_made_with() -> None:
    rows = {row["alias"]: row for row in json.loads(run("models", "--json").stdout)}
    assert {"answerai-colbert-small", "colbertv2", "hashing", "minilm"} <= set(rows)
    assert "minilm" in run("models").stdout
