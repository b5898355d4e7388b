"""Text in, token embeddings out. The second of the two doors for heavy imports.

In: query and passage texts. Out: float32 arrays of L2-normalized token embeddings. Leaves to others:
cutting rows into passages, compressing, storing, searching.
"""

from __future__ import annotations

from colbert_sqlite.encoders.base import Encoder, Token
from colbert_sqlite.encoders.cache import cached_encoder
from colbert_sqlite.encoders.registry import (
    DEFAULT_MODEL,
    KnownModel,
    backend_for,
    export_model,
    is_at_hand,
    known_models,
    load,
    load_encoder,
    own_class,
)

__all__ = [
    "DEFAULT_MODEL",
    "Encoder",
    "KnownModel",
    "Token",
    "backend_for",
    "cached_encoder",
    "export_model",
    "is_at_hand",
    "known_models",
    "load",
    "load_encoder",
    "own_class",
]
