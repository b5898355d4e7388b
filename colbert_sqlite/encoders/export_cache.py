"""Where exported models lie: folders that export.py wrote and onnx.py runs.

In: a fingerprint or a folder. Out: a folder with an export, if there is one, and what it says about itself. Leaves to
others: writing and running them; nothing heavy is imported here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import platformdirs

from colbert_sqlite.encoders.checkpoint import read_json
from colbert_sqlite.encoders.tokens import Side
from colbert_sqlite.errors import ModelError

DESCRIPTION = "colbert_sqlite.json"
DESCRIPTION_FORMAT = 1
MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
CACHE_VARIABLE = "COLBERT_SQLITE_CACHE"
# No network takes longer sequences.
MOST_TOKENS = 1 << 20
# Where the hub's repositories have the file of full precision.
READY_MADE = ("onnx/model.onnx", "model.onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What ``colbert_sqlite.json`` says: all but the numbers of the network and the words of the tokenizer."""

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
    """What an exported folder says about itself.

    :raises ModelError: if that is damaged, or was written by another version
    """
    path = folder / DESCRIPTION
    try:
        values = read_json(path)
        if (written := values.pop("format")) != DESCRIPTION_FORMAT:
            readable = f"this version reads format {DESCRIPTION_FORMAT}"
            raise ModelError(f"{path} has format {written}, and {readable}: export the model again")
        for side in ("queries", "passages"):
            values[side] = Side(**values[side] | {"skip": frozenset(values[side]["skip"])})
            _check_side(side, values[side])
        description = Description(**values)
        for name, type_ in (("model", str), ("dim", int), ("int8", bool), ("onnx_bytes", int)):
            if type(getattr(description, name)) is not type_:
                raise ValueError(f"{name} is {getattr(description, name)!r}")
        if not is_fingerprint(description.fingerprint):
            raise ValueError(f"{description.fingerprint!r} is no fingerprint")
        return description
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error


def _check_side(name: str, side: Side) -> None:
    """Raise ValueError if a value is of another type than it should be, or no network could take it."""
    token = range(1 << 31)
    sound = (
        all(type(value) is type_ for value, type_ in ((side.prompt, str), (side.strip, bool), (side.attend, bool)))
        and all(type(n) is int for n in (side.length, side.expand_to, side.mask, *side.skip))
        and 0 < side.length <= MOST_TOKENS
        and 0 <= side.expand_to <= side.length
        and side.mask in token
        and (side.marker is None or (type(side.marker) is int and side.marker in token))
    )
    if not sound:
        raise ValueError(f"its {name} can't be read so: {side}")


def check_export(folder: Path) -> Description:
    """What an exported folder says about itself, if all of it is there.

    :raises ModelError: if a file is missing, cut short or damaged
    """
    description = read_description(folder)
    if (found := onnx_bytes(folder)) != description.onnx_bytes:
        wanted = f"{description.onnx_bytes:,} bytes"
        raise ModelError(f"{MODEL} and {WEIGHTS} in {folder} have {found:,} of {wanted}: export the model again")
    return description


def onnx_bytes(folder: Path) -> int:
    """Size of an exported network, as a cheap sign that it is whole."""
    return sum(path.stat().st_size for path in (folder / MODEL, folder / WEIGHTS) if path.is_file())


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


def is_fingerprint(value: object) -> bool:
    """Whether it is one of a model: one from a database file of unknown origin would become a path."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def cached_folder(fingerprint: str) -> Path:
    """Where the export of the model with this fingerprint lies, or would."""
    if not is_fingerprint(fingerprint):
        raise ValueError(f"{fingerprint!r} is no fingerprint of a model")
    return cache_folder() / "models" / fingerprint


def cached(fingerprint: str | None) -> Path | None:
    """The export of the model with this fingerprint, if there is one."""
    if fingerprint is None or not is_fingerprint(fingerprint):
        return None
    folder = cached_folder(fingerprint)
    return folder if is_export(folder) else None


def is_export(folder: Path) -> bool:
    return (folder / DESCRIPTION).is_file()


def ready_made(folder: Path) -> Path | None:
    """The ONNX file that a checkpoint brings along."""
    return next((folder / name for name in READY_MADE if (folder / name).is_file()), None)
