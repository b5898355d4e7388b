"""Text in, token embeddings out. The second of the two doors for heavy imports.

In: query and passage texts. Out: float32 arrays of L2-normalized token embeddings. Leaves to others:
cutting rows into passages, compressing, storing, searching.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders.cache import cached_encoder
from colbert_sqlite.encoders.registry import (
    DEFAULT_MODEL,
    KnownModel,
    backend_for,
    export_model,
    known_models,
    load,
    load_encoder,
)
from colbert_sqlite.encoders.token_words import Token

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "DEFAULT_MODEL",
    "Encoder",
    "KnownModel",
    "Token",
    "backend_for",
    "cached_encoder",
    "export_model",
    "known_models",
    "load",
    "load_encoder",
]


class Encoder(Protocol):
    """Turns text into token embeddings. Implementations live beside this file."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """What the user called the model; written into the index."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that decides the embeddings; opening an index with another raises ModelMismatch."""
        ...

    @property
    def backend(self) -> str:
        """What runs the model: ``onnxruntime 1.31.1 float32 (cpu)``, ``torch 2.13.0 bfloat16 (cuda:0)``."""
        ...

    @property
    def dim(self) -> int: ...

    @property
    def query_length(self) -> int:
        """Longest query in tokens, special tokens included."""
        ...

    @property
    def document_length(self) -> int:
        """Longest passage in tokens, special tokens included. Longer ones are truncated."""
        ...

    @property
    def n_special_tokens(self) -> int:
        """Tokens of :attr:`document_length` that are not text: [CLS], the document marker, [SEP]."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer, truncation and padding off, to count tokens and find their characters."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """One array [n_tokens, dim] per query, rows L2-normalized, in the order of *texts*."""
        ...

    def encode_passages(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """One array [n_tokens, dim] per passage, rows L2-normalized, skiplist tokens left out."""
        ...

    def query_tokens(self, text: str) -> list[Token]:
        """What each row of :meth:`encode_queries` stands for: one token per row, in order."""
        ...

    def passage_tokens(self, text: str) -> list[Token]:
        """What each row of :meth:`encode_passages` stands for: one token per row, in order."""
        ...
