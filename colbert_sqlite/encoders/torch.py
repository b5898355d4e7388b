"""Token embeddings from a network that sentence-transformers loads and torch runs.

In: texts. Out: float32 arrays, L2-normalized. Leaves to others: which folder to load (registry.py), what its files say
(checkpoint.py), tokens (tokens.py).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Transformer
from tokenizers import Tokenizer
from transformers.utils import logging as transformers_logging

from colbert_sqlite.encoders.checkpoint import Checkpoint, weight_files
from colbert_sqlite.encoders.tokens import NetworkEncoder, Side
from colbert_sqlite.encoders.vocabulary import Vocabulary, plain_sides, side_of
from colbert_sqlite.errors import ModelError
from colbert_sqlite.memory import keep_freed_memory
from colbert_sqlite.settings import ModelOptions

# Of one batch, padding included. On two cores 4,096 was the fastest of 1,024 to 16,384 (blog paragraphs, bfloat16);
# elsewhere 128 passages of 256 tokens.
CPU_BATCH_TOKENS = 4096
GPU_BATCH_TOKENS = 32768

# What one layer frees the next one needs. Encoding took 8 to 12 % less time so.
MEGABYTES_KEPT = 31


class TorchEncoder(NetworkEncoder):
    """An encoder whose network torch runs: modules of sentence-transformers.

    :param network: Transformer, then Dense modules on token embeddings
    :param batch_size: texts in one batch; None: as many as fill the device
    """

    def __init__(
        self,
        network: MultiVectorEncoder,
        *,
        name: str,
        fingerprint: str,
        queries: Side,
        passages: Side,
        tokenizer: Tokenizer,
        batch_size: int | None = None,
    ) -> None:
        weights = next(network.parameters()).dtype
        version, numbers = torch.__version__.partition("+")[0], str(weights).removeprefix("torch.")
        super().__init__(
            name=name,
            fingerprint=fingerprint,
            backend=f"torch {version} {numbers} ({network.device})",
            dim=_dim(network),
            queries=queries,
            passages=passages,
            tokenizer=tokenizer,
            batch_tokens=CPU_BATCH_TOKENS if network.device.type == "cpu" else GPU_BATCH_TOKENS,
            batch_size=batch_size,
        )
        self.network = network.eval()
        if network.device.type == "cpu":
            keep_freed_memory(MEGABYTES_KEPT)

    def _run(self, ids: NDArray[np.int64], attention: NDArray[np.int64]) -> NDArray[np.float32]:
        device = self.network.device
        features = {
            "input_ids": torch.from_numpy(ids).to(device),
            "attention_mask": torch.from_numpy(attention).to(device),
        }
        with torch.inference_mode():
            embeddings = self.network(features)["token_embeddings"].float()
            normalized: NDArray[np.float32] = torch.nn.functional.normalize(embeddings, dim=-1).cpu().numpy()
        return normalized


def from_checkpoint(checkpoint: Checkpoint, options: ModelOptions, *, name: str, fingerprint: str) -> TorchEncoder:
    """Load the encoder of a ColBERT checkpoint in any layout.

    :raises ModelError: if a weight is missing or has another shape than the settings say
    """
    device = choose_device(options.device)
    kwargs = _loading_kwargs(options, device)
    with reading(checkpoint.folder):
        if checkpoint.layout == "stanford":
            backbone = Transformer(str(checkpoint.folder), **kwargs)
            modules = [backbone, _stanford_projection(checkpoint)]
            network = MultiVectorEncoder(modules=modules, device=device, local_files_only=True)
        else:
            network = MultiVectorEncoder(
                str(checkpoint.folder),
                device=device,
                local_files_only=True,
                trust_remote_code=options.trust_remote_code,
                model_kwargs=kwargs["model_kwargs"],
            )
        _check_complete(network, checkpoint.module_folders[0])
    dim = _dim(network)
    if checkpoint.dim not in (None, dim):
        raise ModelError(f"the settings in {checkpoint.folder} say {checkpoint.dim} dimensions, the weights have {dim}")
    tokenizer = _tokenizer(network)
    vocabulary = _vocabulary(network, tokenizer)
    return TorchEncoder(
        network,
        name=name,
        fingerprint=fingerprint,
        queries=side_of(checkpoint, checkpoint.queries, vocabulary),
        passages=side_of(checkpoint, checkpoint.passages, vocabulary),
        tokenizer=tokenizer,
        batch_size=options.batch_size,
    )


def from_single_vector_model(
    folder: Path,
    projection: Path,
    options: ModelOptions,
    *,
    name: str,
    fingerprint: str,
    query_length: int,
    document_length: int,
) -> TorchEncoder:
    """Load a model trained for one vector per text; *projection* maps its token embeddings.

    :param projection: safetensors file with ``weight`` [dim, hidden size] and ``bias`` [dim]
    """
    device = choose_device(options.device)
    linear = load_file(projection)
    dim, hidden_size = linear["weight"].shape
    with reading(folder):
        backbone = Transformer(str(folder), **_loading_kwargs(replace(options, trust_remote_code=False), device))
        dense = Dense(
            hidden_size,
            dim,
            activation_function=None,
            init_weight=linear["weight"].float(),
            init_bias=linear["bias"].float(),
            module_input_name="token_embeddings",
        )
        network = MultiVectorEncoder(modules=[backbone, dense], device=device, local_files_only=True)
        _check_complete(network, folder)
    tokenizer = _tokenizer(network)
    queries, passages = plain_sides(tokenizer, query_length, document_length)
    return TorchEncoder(
        network,
        name=name,
        fingerprint=fingerprint,
        queries=queries,
        passages=passages,
        tokenizer=tokenizer,
        batch_size=options.batch_size,
    )


def choose_device(device: str | None) -> str:
    """Return the device to run on: *device*, else CUDA, else MPS, else the processor.

    :raises ValueError: if torch does not know it or this machine does not have it
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no device {device!r} on this machine: {str(error).splitlines()[0]}") from error
    return device


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """Return the type of the weights; "auto" is bfloat16 where the hardware multiplies it, else float32.

    :raises ValueError: if *dtype* is another word
    """
    if dtype == "auto":
        if device.startswith("cuda"):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        elif device == "cpu":
            capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
            native = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
        else:
            native = False
        return torch.bfloat16 if native else torch.float32
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, not {dtype!r}")
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen


def beats_onnxruntime(device: str | None) -> bool:
    """Return whether torch encodes passages faster on *device* than onnxruntime on the processor.

    all-MiniLM-L6-v2 on two cores with AMX, tokens a second: torch in bfloat16 35,300, in float32 10,600, onnxruntime
    6,900 (tests/benchmarks/encode.py). In float32 it depends on the processor: on an AMD EPYC onnxruntime was faster.
    """
    device = choose_device(device)
    return device != "cpu" or choose_dtype("auto", device) == torch.bfloat16


def _loading_kwargs(options: ModelOptions, device: str) -> dict[str, dict[str, Any]]:
    shared = {"trust_remote_code": options.trust_remote_code}
    weights = {"dtype": choose_dtype(options.dtype, device), "use_safetensors": True}
    return {"model_kwargs": shared | weights, "processor_kwargs": dict(shared), "config_kwargs": dict(shared)}


def _stanford_projection(checkpoint: Checkpoint) -> Dense:
    for path in weight_files(checkpoint.folder):
        with safe_open(path, framework="pt") as tensors:
            if "linear.weight" in tensors.keys():
                weight = tensors.get_tensor("linear.weight").float()
                break
    else:
        raise ModelError(f"{checkpoint.folder} has no linear.weight, the projection of a ColBERT model")
    dim, hidden_size = weight.shape
    return Dense(
        hidden_size,
        dim,
        bias=False,
        activation_function=None,
        init_weight=weight,
        module_input_name="token_embeddings",
    )


def _dim(network: MultiVectorEncoder) -> int:
    dim = network.get_embedding_dimension()
    assert dim is not None, "a Transformer module knows its width"
    return dim


def _check_complete(network: MultiVectorEncoder, folder: Path) -> None:
    """Raise ModelError if the files lack weights: these would be random numbers, without an error.

    transformers also renames weights of some architectures while loading, so names are compared by count: a network is
    incomplete if more of its weights are not found than the files have to offer under other names.
    """
    backbone = network.transformers_model
    assert backbone is not None, "the first module is a Transformer"
    prefix = f"{backbone.base_model_prefix}."
    stored: set[str] = set()
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            stored.update(tensors.keys())
    if any(key.startswith(prefix) for key in stored):
        stored = {key.removeprefix(prefix) for key in stored if key.startswith(prefix)}
    needed = {key for key, _ in backbone.named_parameters()}
    stored, needed = ({key for key in keys if not key.startswith("pooler.")} for keys in (stored, needed))
    missing = needed - stored
    if len(missing) > len(stored - needed):
        raise ModelError(f"the weights in {folder} are incomplete: {min(missing)} is missing")


def _tokenizer(network: MultiVectorEncoder) -> Tokenizer:
    fast = getattr(network.tokenizer, "backend_tokenizer", None)
    if not isinstance(fast, Tokenizer):
        raise ModelError("the model has no fast tokenizer: save it with a tokenizer.json")
    tokenizer = Tokenizer.from_str(fast.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _vocabulary(network: MultiVectorEncoder, tokenizer: Tokenizer) -> Vocabulary:
    of_network = network.tokenizer
    return Vocabulary(
        tokenizer=tokenizer,
        pad=of_network.pad_token_id,
        unknown=of_network.unk_token_id,
        mask=of_network.mask_token_id,
        end=of_network.eos_token_id,
        limit=network.max_seq_length,
    )


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Silence the libraries' bars, logs and warnings, and turn what they raise into ModelError."""
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    levels = [logger.level for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"the model in {folder} can't be loaded: {str(error).splitlines()[0]}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
