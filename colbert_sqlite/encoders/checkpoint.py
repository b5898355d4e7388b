"""What a model folder says about itself, read from its JSON files alone.

In: a folder in the Stanford, PyLate or sentence-transformers layout. Out: a :class:`Checkpoint`, or an error if the
folder is not a ColBERT model, has no safetensors, or brings its own code. Leaves to others: the weights, the
tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from colbert_sqlite.errors import ModelError

Layout = Literal["stanford", "pylate", "native"]

# All that can change an embedding, apart from the weights.
SETTINGS_FILES = (
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "artifact.metadata",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
# Where the hub's repositories have the file of full precision.
ONNX_FILES = ("onnx/model.onnx", "model.onnx")
SAFE_MODULES = ("sentence_transformers.", "pylate.models.")
TOKEN_MODULES = ("Transformer", "Dense", "MultiVectorMask", "Normalize")
TO_CONVERT = "load the model once with the library that made it and save it with safe_serialization=True"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """How queries or passages are read, in the words of the checkpoint.

    :param length: longest text in tokens; None: the network's own limit
    """

    length: int | None
    prompt: str = ""
    marker: str | None = None
    expand_to: int = 0
    expand_token: str | None = None  # None: the mask token
    attend: bool = False
    skiplist: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What the files of a model folder say."""

    folder: Path
    layout: Layout
    module_folders: tuple[Path, ...]  # of modules with weights, the backbone's first
    other_folders: tuple[Path, ...] = ()  # of modules without
    queries: TextSettings
    passages: TextSettings
    dim: int | None  # what the files claim; the weights decide

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the files that decide the embeddings: weights, settings, tokenizer. Takes a second per GB."""
        files = [
            folder / name
            for folder in (self.folder, *self.module_folders, *self.other_folders)
            for name in SETTINGS_FILES
        ]
        files += [path for folder in self.module_folders for path in weight_files(folder)]
        if "auto_map" in read_json(self.module_folders[0] / "config.json"):
            files += self.folder.glob("*.py")
        digest = hashlib.sha256()
        for path in sorted(set(files)):
            if path.is_file():
                digest.update(f"{path.relative_to(self.folder).as_posix()} {sha256(path)}\n".encode())
        return digest.hexdigest()


def read_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Read the settings of the model in *folder*.

    A folder may hold two layouts, one of them stale. What the sentence-transformers file says of itself counts first,
    then ``HF_ColBERT`` in config.json, whatever modules.json lists.

    :raises ModelError: if it is not a ColBERT model, lacks safetensors weights, contradicts itself, or has code of its
        own and *trust_remote_code* is false
    """
    try:
        config = read_json(folder / "config_sentence_transformers.json")
        modules = read_json(folder / "modules.json") or []
        is_stanford = "HF_ColBERT" in (read_json(folder / "config.json").get("architectures") or ())
        if config.get("model_type") == "MultiVectorEncoder" and modules:
            checkpoint = _native(folder, config, modules)
        elif config.get("model_type") == "ColBERT" or ("query_prefix" in config and not is_stanford):
            checkpoint = _pylate(folder, config, modules)
        elif is_stanford:
            checkpoint = _stanford(folder)
        else:
            raise ModelError(f"{folder} is not a ColBERT model: it has no projection for single tokens")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the settings files of the model in {folder} are damaged: {error}") from error
    _check_safe(checkpoint, [] if checkpoint.layout == "stanford" else modules, trust_remote_code)
    return checkpoint


def _stanford(folder: Path) -> Checkpoint:
    metadata = read_json(folder / "artifact.metadata")
    metadata = metadata.get("config", metadata)
    query_length = metadata.get("query_maxlen", 32)
    return Checkpoint(
        folder=folder,
        layout="stanford",
        module_folders=(folder,),
        queries=TextSettings(
            length=query_length,
            marker=metadata.get("query_token_id", "[unused0]"),
            expand_to=query_length,
            attend=metadata.get("attend_to_mask_tokens", False),
        ),
        passages=TextSettings(
            length=metadata.get("doc_maxlen", 220),
            marker=metadata.get("doc_token_id", "[unused1]"),
            skiplist=tuple(string.punctuation) if metadata.get("mask_punctuation", True) else (),
        ),
        dim=metadata.get("dim"),
    )


def _pylate(folder: Path, config: dict[str, Any], modules: list[dict[str, str]]) -> Checkpoint:
    # What is neither Transformer nor Dense was dropped by PyLate, and normalizing comes last in any case.
    used = [folder / m["path"] for m in modules if _kind(m) in ("Transformer", "Dense")]
    if len(used) < 2:
        raise ModelError(f"{folder} is not a ColBERT model: it has no projection for single tokens")
    prompts = config.get("prompts") or {}
    query_length = config.get("query_length") or 32
    expands = config.get("do_query_expansion", True)
    skiplist = config.get("skiplist_words")
    return Checkpoint(
        folder=folder,
        layout="pylate",
        module_folders=tuple(used),
        queries=TextSettings(
            length=query_length,
            prompt=prompts.get("query") or "",
            marker=config.get("query_prefix", "[Q] ") or None,
            expand_to=query_length if expands else 0,
            attend=bool(expands and config.get("attend_to_expansion_tokens")),
        ),
        passages=TextSettings(
            length=config.get("document_length") or 180,
            prompt=prompts.get("document") or "",
            marker=config.get("document_prefix", "[D] ") or None,
            skiplist=tuple(string.punctuation if skiplist is None else skiplist),
        ),
        dim=read_json(used[-1] / "config.json").get("out_features"),
    )


def _native(folder: Path, config: dict[str, Any], modules: list[dict[str, str]]) -> Checkpoint:
    foreign = [m["type"] for m in modules if _kind(m) not in TOKEN_MODULES]
    if foreign:
        raise ModelError(f"{folder} has modules that this version can't run: {', '.join(foreign)}")
    prompts = config.get("prompts") or {}
    folders = [(_kind(m), folder / m["path"]) for m in modules]
    used = [path for kind, path in folders if kind in ("Transformer", "Dense")]
    lengths = read_json(used[0] / "sentence_bert_config.json")
    expansion = lengths.get("query_expansion") or {}
    mask: dict[str, Any] = next(
        (read_json(path / "config.json") for kind, path in folders if kind == "MultiVectorMask"), {}
    )
    if mask.get("keep_only_token_ids"):
        raise ModelError(f"{folder} is made for images, not for text")
    skiplist = tuple(mask.get("skiplist_words") or ())
    skipping = mask.get("skiplist_tasks") or ["document"]
    fixed = expansion.get("length") if expansion.get("strategy") == "fixed" else None
    return Checkpoint(
        folder=folder,
        layout="native",
        module_folders=tuple(used),
        other_folders=tuple(path for _, path in folders if path not in used),
        queries=TextSettings(
            length=fixed or lengths.get("query_length"),
            prompt=prompts.get("query") or "",
            expand_to=expansion.get("length", 0),
            expand_token=expansion.get("token"),
            attend=expansion.get("attend", False),
            skiplist=skiplist if "query" in skipping else (),
        ),
        passages=TextSettings(
            length=lengths.get("document_length"),
            prompt=prompts.get("document") or "",
            skiplist=skiplist if "document" in skipping else (),
        ),
        dim=read_json(used[-1] / "config.json").get("out_features") if len(used) > 1 else None,
    )


def _check_safe(checkpoint: Checkpoint, modules: list[dict[str, str]], trust_remote_code: bool) -> None:
    """Raise ModelError if the weights are pickled, or the folder has code that the caller does not trust."""
    for folder in checkpoint.module_folders:
        if not weight_files(folder):
            pickled = next(folder.glob("*.bin"), None)
            problem = f"has only {pickled.name}" if pickled else "has no model.safetensors"
            raise ModelError(f"{folder} {problem}, and weights are read from safetensors only: {TO_CONVERT}")
    activations = [read_json(path / "config.json").get("activation_function") for path in checkpoint.module_folders[1:]]
    code = [m["type"] for m in modules if not m["type"].startswith(SAFE_MODULES)]
    code += [name for name in activations if name and not name.startswith("torch.")]
    code += (read_json(checkpoint.module_folders[0] / "config.json").get("auto_map") or {}).values()
    if code and not trust_remote_code:
        raise ModelError(
            f"{checkpoint.folder} brings its own code ({code[0]}); to run it, read it first and then pass "
            "trust_remote_code=True"
        )


def _kind(module: dict[str, str]) -> str:
    return module["type"].rpartition(".")[2]


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files with a folder's weights; empty if there are none."""
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    shards: Iterable[str] = read_json(folder / "model.safetensors.index.json").get("weight_map", {}).values()
    return [folder / name for name in sorted(set(shards))]


def onnx_file(folder: Path) -> Path | None:
    """Return the ONNX file of full precision in a folder; None if there is none."""
    return next((folder / name for name in ONNX_FILES if (folder / name).is_file()), None)


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file; an empty dict if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
