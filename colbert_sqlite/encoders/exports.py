"""Where exported models lie: folders that export.py wrote and onnx.py runs.

In: a fingerprint or a folder. Out: a folder with an export, if there is one. Leaves to others: writing and running
them; nothing heavy is imported here.
"""

from __future__ import annotations

import importlib.util
import os
import re
from importlib import metadata
from pathlib import Path

import platformdirs

DESCRIPTION = "colbert_sqlite.json"
DESCRIPTION_FORMAT = 1
MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
CACHE_VARIABLE = "COLBERT_SQLITE_CACHE"
# Where the hub's repositories have the file of full precision.
READY_MADE = ("onnx/model.onnx", "model.onnx")


def can_run() -> bool:
    """Whether onnxruntime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def backend(int8: bool) -> str:
    """What an encoder that onnxruntime runs says of itself."""
    return f"onnxruntime {version('onnxruntime')} {'int8' if int8 else 'float32'} (cpu)"


def version(package: str) -> str:
    """Release of an installed package, as its metadata has it, without what the build adds."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "of unknown version"


def cache_folder() -> Path:
    """The user's folder for exports, which need not exist yet: COLBERT_SQLITE_CACHE, or as the system has it."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path(platformdirs.user_cache_dir("colbert-sqlite", appauthor=False))


def cached_folder(fingerprint: str) -> Path:
    """Where the export of the model with this fingerprint lies, or would."""
    # A fingerprint may come from a database file of unknown origin, and this becomes a path.
    if not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
        raise ValueError(f"{fingerprint!r} is no fingerprint of a model")
    return cache_folder() / "models" / fingerprint


def cached(fingerprint: str | None) -> Path | None:
    """The export of the model with this fingerprint, if there is one."""
    if fingerprint is None or not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
        return None
    folder = cached_folder(fingerprint)
    return folder if is_export(folder) else None


def is_export(folder: Path) -> bool:
    return (folder / DESCRIPTION).is_file()


def ready_made(folder: Path) -> Path | None:
    """The ONNX file that a checkpoint brings along."""
    return next((folder / name for name in READY_MADE if (folder / name).is_file()), None)
