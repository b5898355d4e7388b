"""Errors of every command: one line, and nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from colbert_sqlite.encoders.hashing import HashingEncoder
from tests.cli.helpers import error, run


def test_a_missing_database_is_an_error_and_is_not_created(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.db")
    assert error("index", missing, "posts", "body") == f"Error: no database file {missing}"
    assert error("search", missing, "posts", "glue") == f"Error: no database file {missing}"
    assert error("list", missing) == f"Error: no database file {missing}"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("only some notes, and no database at all\n" * 100)
    for words in (("index", str(path), "posts", "body"), ("search", str(path), "posts", "glue"), ("list", str(path))):
        assert str(path) in error(*words)
        assert "database" in error(*words)


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (
            RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA."),
            "Error: CUDA error: out of memory",
        ),
        (MemoryError(), "Error: MemoryError"),
    ],
    ids=["torch", "Python"],
)
def test_a_device_that_fails_is_one_line(
    indexed: str, problem: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: HashingEncoder, texts: Sequence[str]) -> Any:
        raise problem

    monkeypatch.setattr(HashingEncoder, "encode_queries", fail)
    assert error("search", indexed, "posts", "glue") == line


def test_a_query_of_no_text_at_all_is_a_usage_error(indexed: str) -> None:
    assert "not valid UTF-8" in run("search", indexed, "posts", "gl\udc80ue", exit_code=2).stderr
