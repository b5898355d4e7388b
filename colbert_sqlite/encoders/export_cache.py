"""Exported models: what such a folder holds, and the cache that has one for each model.

In: a fingerprint, a folder, or the files of a model. Out: a sound export, run by onnxruntime, or None. Leaves to
others: writing exports (export.py), running them (onnx.py); both are imported only when needed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import platformdirs

from colbert_sqlite.encoders.checkpoint import read_json
from colbert_sqlite.encoders.packages import has_onnxruntime
from colbert_sqlite.encoders.tokens import Side
from colbert_sqlite.errors import ModelError
from colbert_sqlite.settings import ModelOptions

if TYPE_CHECKING:
    from colbert_sqlite.encoders.base import Encoder
    from colbert_sqlite.encoders.torch import TorchEncoder

logger = logging.getLogger("colbert_sqlite")

DESCRIPTION = "colbert_sqlite.json"
DESCRIPTION_FORMAT = 1
MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
CACHE_VARIABLE = "COLBERT_SQLITE_CACHE"
# No network takes longer sequences.
MAX_TOKENS = 1 << 20
# What exports are made from.
FLOAT32_TORCH = ModelOptions(device="cpu", dtype="float32", backend="torch")


class ModelFiles(Protocol):
    """The files of a model, and the ways to run them."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def torch_encoder(self, options: ModelOptions) -> TorchEncoder:
        """Run the model with torch."""
        ...

    def onnx_encoder(self, options: ModelOptions) -> Encoder:
        """Run the ONNX file that came with the model."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What ``colbert_sqlite.json`` says of an export.

    All there is to know, but for the weights of the network and the words of the tokenizer.
    """

    model: str  # what the exported model was called
    fingerprint: str  # of the model these files stand for; an int8 model has one of its own
    dim: int
    int8: bool
    onnx_bytes: int
    queries: Side
    passages: Side

    def to_json(self) -> str:
        values = {"format": DESCRIPTION_FORMAT, **asdict(self)}
        for side in ("queries", "passages"):
            values[side]["skip"] = sorted(values[side]["skip"])
        return json.dumps(values, ensure_ascii=False, indent=2) + "\n"


def read_description(folder: Path) -> Description:
    """Read what an exported folder says about itself.

    :raises ModelError: if that is damaged, or another version wrote it
    """
    path = folder / DESCRIPTION
    try:
        values = read_json(path)
        if (number := values.pop("format")) != DESCRIPTION_FORMAT:
            readable = f"this version reads format {DESCRIPTION_FORMAT}"
            raise ModelError(f"{path} has format {number}, and {readable}: export the model again")
        for side in ("queries", "passages"):
            values[side] = Side(**values[side] | {"skip": frozenset(values[side]["skip"])})
            _check_side(side, values[side])
        description = Description(**values)
        for name, type_ in (("model", str), ("dim", int), ("int8", bool), ("onnx_bytes", int)):
            if type(getattr(description, name)) is not type_:
                raise ValueError(f"{name} is {getattr(description, name)!r}")
        if not is_fingerprint(description.fingerprint):
            raise ValueError(f"{description.fingerprint!r} is not a fingerprint")
        return description
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error


def _check_side(name: str, side: Side) -> None:
    """Raise ValueError if a value has the wrong type, or no network could take it."""
    token = range(1 << 31)
    sound = (
        all(type(value) is type_ for value, type_ in ((side.prompt, str), (side.strip, bool), (side.attend, bool)))
        and all(type(n) is int for n in (side.length, side.expand_to, side.mask, *side.skip))
        and 0 < side.length <= MAX_TOKENS
        and 0 <= side.expand_to <= side.length
        and side.mask in token
        and (side.marker is None or (type(side.marker) is int and side.marker in token))
    )
    if not sound:
        raise ValueError(f"{name} is {side}")


def check_export(folder: Path) -> Description:
    """Read what an exported folder says about itself, and make sure that it is whole.

    :raises ModelError: if a file is missing, cut short or damaged
    """
    description = read_description(folder)
    if (size := onnx_bytes(folder)) != description.onnx_bytes:
        full = f"{description.onnx_bytes:,} bytes"
        raise ModelError(f"{MODEL} and {WEIGHTS} in {folder} have {size:,} of {full}: export the model again")
    return description


def onnx_bytes(folder: Path) -> int:
    """Return the bytes of an exported network: a cheap sign that it is whole."""
    return sum(path.stat().st_size for path in (folder / MODEL, folder / WEIGHTS) if path.is_file())


def cache_folder() -> Path:
    """Return the user's folder for exports: COLBERT_SQLITE_CACHE, or the system's. It need not exist yet."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path(platformdirs.user_cache_dir("colbert-sqlite", appauthor=False))


def is_fingerprint(value: object) -> bool:
    """Return whether *value* is a fingerprint. One from a file of a stranger would become a path otherwise."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def folder_for(fingerprint: str) -> Path:
    """Return where the export of the model with this fingerprint lies, or would."""
    if not is_fingerprint(fingerprint):
        raise ValueError(f"{fingerprint!r} is not a fingerprint of a model")
    return cache_folder() / "models" / fingerprint


def find(fingerprint: str | None) -> Path | None:
    """Return the folder with the export of the model with this fingerprint; None if there is none."""
    if fingerprint is None or not is_fingerprint(fingerprint):
        return None
    folder = folder_for(fingerprint)
    return folder if is_export(folder) else None


def is_export(folder: Path) -> bool:
    """Return whether *folder* holds an export, sound or not."""
    return (folder / DESCRIPTION).is_file()


def run(folder: Path, name: str, options: ModelOptions) -> Encoder:
    """Run the export in *folder*.

    :raises ModelError: if a file is missing or damaged
    """
    from colbert_sqlite.encoders.onnx import from_export

    return from_export(folder, name=name, batch_size=options.batch_size)


def load(fingerprint: str | None, name: str, options: ModelOptions) -> Encoder | None:
    """Run the cached export of the model with this fingerprint; None if there is none that works."""
    folder = find(fingerprint) if has_onnxruntime() else None
    try:
        return run(folder, name, options) if folder else None
    except ModelError as error:
        logger.warning("an export is passed over: %s", error)
        return None


def make(source: ModelFiles, options: ModelOptions) -> Path:
    """Return the folder with the sound export of a model in the cache, written if there is none.

    :raises ModelError: if the model can't be exported
    :raises MissingDependency: if a package that this needs is not installed
    """
    folder = folder_for(source.fingerprint)
    if folder.exists():
        try:
            check_export(folder)
            return folder
        except ModelError:
            shutil.rmtree(folder)
    from colbert_sqlite.encoders.export import export, remove_stale

    remove_stale(folder.parent)
    try:
        export(source.torch_encoder(replace(FLOAT32_TORCH, trust_remote_code=options.trust_remote_code)), folder)
    except (OSError, ValueError):
        # Another process may have been faster.
        if not folder.exists():
            raise
        check_export(folder)
    return folder
