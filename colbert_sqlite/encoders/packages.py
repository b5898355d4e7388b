"""The libraries that run models: which are installed, in which release.

In: nothing. Out: answers from what is installed. Leaves to others: importing any of it.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata


def has_torch() -> bool:
    """Return whether torch and sentence-transformers are installed."""
    return all(importlib.util.find_spec(package) for package in ("torch", "sentence_transformers"))


def has_onnxruntime() -> bool:
    """Return whether onnxruntime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def version(package: str) -> str:
    """Return the release of an installed package, as its metadata has it, without what the build adds."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "of unknown version"


def onnx_backend(*, int8: bool) -> str:
    """Return what an encoder that onnxruntime runs says of itself."""
    return f"onnxruntime {version('onnxruntime')} {'int8' if int8 else 'float32'} (cpu)"
