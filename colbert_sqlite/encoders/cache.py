"""Encoders that a process has loaded, for callers that keep none themselves: reranking, SQL functions, web pages.

In: the name of a model and options, or a fingerprint. Out: the same encoder for the same model. Leaves to others:
finding and loading models (registry.py). Threads may call everything here at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from cachetools import LRUCache

from colbert_sqlite.encoders.registry import DEFAULT_MODEL, load
from colbert_sqlite.locks import ThreadLock
from colbert_sqlite.passages import DEFAULT_MAX_TOKENS, PassageSplitter
from colbert_sqlite.settings import ModelOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from colbert_sqlite.encoders.base import Encoder

# Each holds the weights of its model.
MAX_ENCODERS = 4
MAX_QUERIES = 256

# A thread that loads a model holds the first lock, one that looks a loaded model up only the second, for a moment.
_loading, _lookup = ThreadLock(), ThreadLock()
_encoders: LRUCache[tuple[str, ModelOptions], Encoder] = LRUCache(MAX_ENCODERS)
_fingerprints: dict[tuple[str, ModelOptions], str] = {}


def cached_encoder(
    model: str | Encoder | None = None, options: ModelOptions | None = None, *, many: bool = False
) -> Encoder:
    """Return the encoder called *model*, loaded once per process and options. An encoder is returned as it is.

    The four encoders used last are kept. A folder whose files change meanwhile is not read again. The first call
    exports the model to the cache folder, so that the next process starts without torch. Errors as in
    :func:`load_encoder`.

    :param many: if it is not loaded yet, load what encodes many passages faster
    """
    if model is not None and not isinstance(model, str):
        return model
    name, options = model or DEFAULT_MODEL, options or ModelOptions()
    if encoder := _by_name(name, options):
        return encoder
    # Two threads that need the same model must not both load it.
    with _loading:
        if encoder := _by_name(name, options):
            return encoder
        encoder = load(name, options, many=many, export=True)
        with _lookup:
            _fingerprints[name, options] = encoder.fingerprint
            return _by_fingerprint(encoder.fingerprint, options) or _keep(encoder, options)


def shared_encoder(fingerprint: str, load: Callable[[], Encoder], *, configured: str | None = None) -> Encoder:
    """Return the encoder with that fingerprint, as :func:`cached_encoder` loaded it, else as *load* loads it.

    :param configured: a model to use in place of it, if that has the fingerprint
    """
    if configured and (encoder := cached_encoder(configured)).fingerprint == fingerprint:
        return encoder
    options = ModelOptions()
    if cached := _by_fingerprint(fingerprint, options):
        return cached
    with _loading:
        return _by_fingerprint(fingerprint, options) or _keep(load(), options)


class _QueryCache:
    """An encoder that keeps its last queries: SQL embeds a query for row after row, a page for hits and matches."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._queries: LRUCache[str, NDArray[np.float32]] = LRUCache(MAX_QUERIES)
        self._lock = ThreadLock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_queries(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        with self._lock:
            embeddings = {text: self._queries[text] for text in texts if text in self._queries}
        new = [text for text in dict.fromkeys(texts) if text not in embeddings]
        if new:
            embeddings.update(zip(new, self._encoder.encode_queries(new), strict=True))
            with self._lock:
                self._queries.update((text, embeddings[text]) for text in new)
        return [embeddings[text] for text in texts]


@lru_cache(maxsize=MAX_ENCODERS)
def with_query_cache(encoder: Encoder) -> Encoder:
    """Return that encoder, keeping the embeddings of its last 256 queries."""
    return cast("Encoder", _QueryCache(encoder))


@lru_cache(maxsize=MAX_ENCODERS)
def cached_splitter(encoder: Encoder) -> PassageSplitter:
    """Return what cuts any text into passages for a model, as long as those of an index by default.

    Made once: the first long text costs one 20 ms more.
    """
    n_tokens = min(encoder.document_length, DEFAULT_MAX_TOKENS)
    return PassageSplitter(encoder.tokenizer, n_tokens, encoder.n_special_tokens)


def _by_name(name: str, options: ModelOptions) -> Encoder | None:
    with _lookup:
        fingerprint = _fingerprints.get((name, options))
        return None if fingerprint is None else _by_fingerprint(fingerprint, options)


def _by_fingerprint(fingerprint: str, options: ModelOptions) -> Encoder | None:
    with _lookup:
        return _encoders.get((fingerprint, options))


def _keep(encoder: Encoder, options: ModelOptions) -> Encoder:
    with _lookup:
        _encoders[encoder.fingerprint, options] = encoder
        return encoder
