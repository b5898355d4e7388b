"""Fixtures shared by every test file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with reference cases and real databases; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("COLBERT_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set COLBERT_SHARED")
    return folder
