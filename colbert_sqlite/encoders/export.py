"""A model that torch runs, written as a folder that onnxruntime runs: transformer, projection and normalization.

In: an encoder that torch runs in float32. Out: a folder as onnx.py describes it, whole or not at all. Leaves to others:
loading models, choosing the folder.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from colbert_sqlite.encoders.export_cache import DESCRIPTION, MODEL, WEIGHTS, Description, onnx_bytes
from colbert_sqlite.encoders.onnx import EMBEDDINGS, OnnxEncoder, from_export
from colbert_sqlite.encoders.torch import TorchEncoder, reading
from colbert_sqlite.errors import MissingDependency, ModelError

OPSET = 17
# Of what a network gives in torch and in onnxruntime; rounding alone is a thousandth of it.
TOLERANCE = 1e-3
# What is older was left behind by a process that was killed.
STALE_SECONDS = 3600
UNFINISHED = ".unfinished-"
# Empty, short, longer than any network takes; together they make a batch with much padding.
PROBES = ("", "a", "how do I back up postgres?", "Café, déjà vu — 日本語 🍕", "the quick brown fox; " * 300)


class _Complete(torch.nn.Module):
    """One network from ids and attention mask to L2-normalized embeddings."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        features = self.network({"input_ids": input_ids, "attention_mask": attention_mask})
        return torch.nn.functional.normalize(features["token_embeddings"], dim=-1)


def export(encoder: TorchEncoder, folder: Path, *, int8: bool = False) -> None:
    """Write *encoder* to *folder*, which appears once it is complete and gives torch's embeddings.

    :param encoder: on the processor, in float32
    :param int8: keep weights in eight bits; a model of its own, since its embeddings differ
    :raises ModelError: if the network can't be exported, or gives other embeddings as ONNX
    :raises MissingDependency: if onnx or onnxruntime is not installed
    :raises ValueError: if *folder* exists and is not empty
    """
    require_packages()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists: name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}{UNFINISHED}", dir=folder.parent))
    try:
        with reading(unfinished), _quiet_torch():
            _write_graph(encoder, unfinished / MODEL)
        _describe(encoder, unfinished, int8=False)
        _compare(encoder, from_export(unfinished, name=encoder.name, batch_size=None))
        if int8:
            _quantize(unfinished / MODEL)
        _move_weights(unfinished / MODEL)
        _describe(encoder, unfinished, int8=int8)
        from_export(unfinished, name=encoder.name, batch_size=None)
        # Temporary folders, and onnx's files of weights, are their owner's alone; the description is as others are.
        mode = (unfinished / DESCRIPTION).stat().st_mode & 0o666
        (unfinished / WEIGHTS).chmod(mode)
        unfinished.chmod(mode | (mode & 0o444) >> 2)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def require_packages() -> None:
    """Raise MissingDependency if a package that only exports need is not installed."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            f"exports need the package {error.name}: pip install 'colbert-sqlite[torch]'"
        ) from error


def int8_fingerprint(fingerprint: str) -> str:
    """Return the fingerprint of the int8 export of a model, whose embeddings differ too much from the model's own."""
    return hashlib.sha256(f"{fingerprint} int8".encode()).hexdigest()


def _write_graph(encoder: TorchEncoder, path: Path) -> None:
    ids = torch.tensor([encoder.tokenizer.encode("a b c d e f g").ids] * 2)
    attention = torch.ones_like(ids)
    attention[1, -2:] = 0
    axes = {0: "n_texts", 1: "n_tokens"}
    # The newer exporter (dynamo=True) took four times as long and fixed ModernBERT's masks to the length it saw.
    with torch.inference_mode():
        torch.onnx.export(
            _Complete(encoder.network).eval(),
            (ids, attention),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=[EMBEDDINGS],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, EMBEDDINGS: axes},
        )


def _move_weights(path: Path) -> None:
    """Move the weights into a file beside the graph, which onnxruntime maps into memory in place of copying it.

    all-MiniLM-L6-v2: 80 ms to load in place of 175, 61 MB in place of 129.
    """
    import onnx

    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location=WEIGHTS, size_threshold=1024)


def _describe(encoder: TorchEncoder, folder: Path, *, int8: bool) -> None:
    encoder.tokenizer.save(str(folder / "tokenizer.json"))
    description = Description(
        model=encoder.name,
        fingerprint=int8_fingerprint(encoder.fingerprint) if int8 else encoder.fingerprint,
        dim=encoder.dim,
        int8=int8,
        onnx_bytes=onnx_bytes(folder),
        queries=encoder.queries,
        passages=encoder.passages,
    )
    (folder / DESCRIPTION).write_text(description.to_json(), encoding="utf-8")


def _compare(encoder: TorchEncoder, exported: OnnxEncoder) -> None:
    for method in ("encode_queries", "encode_passages"):
        by_torch, by_onnx = (np.concatenate(getattr(one, method)(PROBES)) for one in (encoder, exported))
        difference = float(np.abs(by_torch - by_onnx).max()) if by_torch.shape == by_onnx.shape else float("inf")
        if not difference <= TOLERANCE:
            raise ModelError(
                f"the ONNX export of {encoder.name!r} gives other embeddings, off by up to {difference:.2g}"
            )


def _quantize(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = path.with_name("float32.onnx")
    path.rename(whole)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises on the root logger
    try:
        quantize_dynamic(whole, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"])
    finally:
        root.setLevel(level)
    whole.unlink()


@contextmanager
def _quiet_torch() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def remove_stale(folder: Path) -> None:
    """Remove what killed exports left in *folder*, which holds nothing but exports."""
    for left in folder.glob(f"*{UNFINISHED}*"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
