"""The script that builds the sample blog."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BUILD = Path(__file__).resolve().parents[1] / "sample_data" / "build.py"


def build(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, BUILD, *arguments], capture_output=True, text=True)


def test_a_file_that_is_there_is_replaced_only_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "blog.db"
    path.write_text("a blog of somebody")
    refused = build(path)
    assert (refused.returncode, refused.stderr) == (
        1,
        f"{path} exists already: choose another name, or replace it with --replace\n",
    )
    assert path.read_text() == "a blog of somebody"
    assert build(path, "--replace").stdout == f"{path}: 132 posts\n"


def test_help_is_help(tmp_path: Path) -> None:
    assert "--replace" in build("--help").stdout
