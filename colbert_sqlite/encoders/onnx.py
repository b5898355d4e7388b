"""Token embeddings from an ONNX file, without torch.

In: texts, and a folder: one that export.py wrote, or a checkpoint that brings its transformer as ONNX. Out: float32
arrays, L2-normalized. Leaves to others: which folder to load (registry.py), what a checkpoint's files say
(checkpoint.py, vocabulary.py), tokens (tokens.py).

A folder that export.py wrote holds ``model.onnx`` (ids and attention mask in, normalized embeddings out), its weights
in ``model.onnx.data``, ``tokenizer.json``, and ``colbert_sqlite.json``, which says all else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import ml_dtypes  # noqa: F401 -- numpy reads bfloat16 once it is imported
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from colbert_sqlite.encoders.checkpoint import Checkpoint, read_json, weight_files
from colbert_sqlite.encoders.export_cache import MODEL, check_export
from colbert_sqlite.encoders.packages import onnx_backend
from colbert_sqlite.encoders.tokens import NetworkEncoder, Side
from colbert_sqlite.encoders.vocabulary import plain_sides, read_tokenizer, read_vocabulary, side_of
from colbert_sqlite.errors import ModelError
from colbert_sqlite.locks import ThreadLock

# From 1.29 on onnxruntime reports to Microsoft, as soon as it is imported, what machine it runs on. Not on our account;
# whoever wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

# Of one batch, padding included.
BATCH_TOKENS = 4096
# The output of our exports, which are complete; then those of others, which end at the transformer or after it.
EMBEDDINGS = "embeddings"
HIDDEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
TOKEN_OUTPUTS = (EMBEDDINGS, *HIDDEN_OUTPUTS)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ACTIVATIONS: dict[str | None, Callable[[NDArray[np.float32]], NDArray[np.float32]] | None] = {
    None: None,
    "torch.nn.modules.linear.Identity": None,
    "torch.nn.modules.activation.Tanh": np.tanh,
    "torch.nn.modules.activation.ReLU": lambda rows: np.maximum(rows, 0),
}
_loading = ThreadLock()
# onnxruntime's own lines of log: what goes wrong reaches the user as one sentence of ours.
FATAL_ONLY = 4


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear map that an ONNX file lacks.

    :param weight: float32 [n_out, n_in]
    :param bias: float32 [n_out]
    :param residual: float32 [n_out, n_in]; its product is added to the output
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None = None
    activation: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    residual: NDArray[np.float32] | None = None

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        out = rows @ self.weight.T
        if self.bias is not None:
            out += self.bias
        if self.activation is not None:
            out = self.activation(out)
        return out if self.residual is None else out + rows @ self.residual.T


class OnnxEncoder(NetworkEncoder):
    """An encoder whose network onnxruntime runs on the processor.

    :param path: ONNX file; takes ``input_ids`` and ``attention_mask``, and ``token_type_ids`` if it must
    :param projection: maps applied to what the file gives, for one that ends at the transformer
    :param batch_size: texts in one batch; None fits it to their length
    :raises ModelError: if onnxruntime can't read the file, or the network has other inputs or outputs
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        fingerprint: str,
        dim: int,
        queries: Side,
        passages: Side,
        tokenizer: Tokenizer,
        projection: Sequence[Dense] = (),
        int8: bool = False,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(
            name=name,
            fingerprint=fingerprint,
            backend=onnx_backend(int8=int8),
            dim=dim,
            queries=queries,
            passages=passages,
            tokenizer=tokenizer,
            batch_tokens=BATCH_TOKENS,
            batch_size=batch_size,
        )
        self._path = path
        self._projection = projection
        self._session = _session(path)
        self._inputs = {node.name for node in self._session.get_inputs()}
        outputs = {node.name: node.shape for node in self._session.get_outputs()}
        self._output = next((name for name in TOKEN_OUTPUTS if name in outputs), next(iter(outputs)))
        shape = outputs[self._output]
        if not {"input_ids", "attention_mask"} <= self._inputs <= set(INPUTS) or len(shape) != 3:
            raise ModelError(f"{path} does not turn token ids into an embedding per token")
        if isinstance(shape[2], int) and shape[2] == dim and self._output not in HIDDEN_OUTPUTS:
            self._projection = ()
        elif isinstance(shape[2], int) and shape[2] != (projection[0].weight.shape[1] if projection else dim):
            raise ModelError(f"{path} gives {shape[2]} dimensions, and its model has {dim}")

    def _run(self, ids: NDArray[np.int64], attention: NDArray[np.int64]) -> NDArray[np.float32]:
        feeds = {"input_ids": ids, "attention_mask": attention}
        if "token_type_ids" in self._inputs:
            feeds["token_type_ids"] = np.zeros_like(ids)
        try:
            (output,) = self._session.run([self._output], feeds)
        except Exception as error:
            raise ModelError(f"{self._path} fails: {_first_line(error)}") from error
        rows: NDArray[np.float32] = output.astype(np.float32, copy=False)
        for dense in self._projection:
            rows = dense(rows)
        if self._output != EMBEDDINGS:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
        return rows


def from_export(folder: Path, *, name: str, batch_size: int | None) -> OnnxEncoder:
    """Load the encoder of a folder that export.py wrote.

    :raises ModelError: if a file is missing or damaged
    """
    description = check_export(folder)
    return OnnxEncoder(
        folder / MODEL,
        name=name,
        fingerprint=description.fingerprint,
        dim=description.dim,
        queries=description.queries,
        passages=description.passages,
        tokenizer=read_tokenizer(folder),
        int8=description.int8,
        batch_size=batch_size,
    )


def from_checkpoint(
    checkpoint: Checkpoint, path: Path, *, name: str, fingerprint: str, batch_size: int | None
) -> OnnxEncoder:
    """Load the encoder of a checkpoint that has its transformer, or all of it, as the ONNX file *path*.

    :raises ModelError: if its projection has an activation that numpy lacks, or lacks its weights
    """
    vocabulary = read_vocabulary(checkpoint)
    projection = _projection(checkpoint)
    return OnnxEncoder(
        path,
        name=name,
        fingerprint=fingerprint,
        dim=projection[-1].weight.shape[0],
        queries=side_of(checkpoint, checkpoint.queries, vocabulary),
        passages=side_of(checkpoint, checkpoint.passages, vocabulary),
        tokenizer=vocabulary.tokenizer,
        projection=projection,
        batch_size=batch_size,
    )


def from_single_vector_model(
    path: Path,
    folder: Path,
    projection: Path,
    *,
    name: str,
    fingerprint: str,
    query_length: int,
    document_length: int,
    batch_size: int | None,
) -> OnnxEncoder:
    """Load a transformer trained for one vector per text; *projection* maps its token embeddings.

    :param path: its ONNX file; *folder* has its tokenizer.json
    :param projection: safetensors file with ``weight`` [dim, hidden size] and ``bias`` [dim]
    """
    tokenizer = read_tokenizer(folder)
    linear = read_tensors(projection, ["weight", "bias"])
    queries, passages = plain_sides(tokenizer, query_length, document_length)
    return OnnxEncoder(
        path,
        name=name,
        fingerprint=fingerprint,
        dim=linear["weight"].shape[0],
        queries=queries,
        passages=passages,
        tokenizer=tokenizer,
        projection=[Dense(linear["weight"], linear["bias"])],
        batch_size=batch_size,
    )


def read_tensors(path: Path, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Read those of the tensors *names* that a safetensors file has, as float32.

    :raises ModelError: if the file is damaged
    """
    try:
        with safe_open(path, framework="np") as file:
            present = set(file.keys())
            return {name: file.get_tensor(name).astype(np.float32) for name in names if name in present}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error


def _projection(checkpoint: Checkpoint) -> list[Dense]:
    maps = []
    stanford = checkpoint.layout == "stanford"
    for folder in checkpoint.module_folders if stanford else checkpoint.module_folders[1:]:
        settings = {"activation_function": None} if stanford else read_json(folder / "config.json")
        activation = settings.get("activation_function", "unknown")
        if activation not in ACTIVATIONS:
            raise ModelError(f"the projection in {folder} has an activation that needs torch: {activation}")
        tensors: dict[str, NDArray[np.float32]] = {}
        for path in weight_files(folder):
            tensors |= read_tensors(path, ["linear.weight", "linear.bias", "residual.weight"])
        if "linear.weight" not in tensors or tensors["linear.weight"].ndim != 2:
            raise ModelError(f"{folder} has no linear.weight, the projection of a ColBERT model")
        weight, residual = tensors["linear.weight"], None
        if settings.get("use_residual"):
            residual = tensors.get("residual.weight", np.eye(weight.shape[1], dtype=np.float32))
        maps.append(Dense(weight, tensors.get("linear.bias"), ACTIVATIONS[activation], residual))
    return maps


def _session(path: Path) -> onnxruntime.InferenceSession:
    """Return the process's one session for a file. Threads share it, and the memory of its weights."""
    with _loading:
        return _loaded(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _loaded(path: Path, _changed: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = _n_threads()
    # Threads that wait by spinning take the processor from whatever comes after the encoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"onnxruntime can't read {path}: {_first_line(error)}") from error


def _n_threads() -> int:
    """Return OMP_NUM_THREADS, which torch and numpy obey too, else how many processors this process may use."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    if setting.isdecimal() and int(setting):
        return int(setting)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
