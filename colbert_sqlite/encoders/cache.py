"""Encoders that a process has loaded, for callers that keep none themselves: reranking, SQL functions.

In: the name of a model and the options of :func:`load_encoder`, or a fingerprint. Out: the same encoder for the same
model. Leaves to others: finding and loading models (registry.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import RLock
from typing import TYPE_CHECKING, Any, cast

from colbert_sqlite.encoders.registry import DEFAULT_MODEL, load
from colbert_sqlite.passages import DEFAULT_MAX_TOKENS, PassageSplitter
from colbert_sqlite.settings import ModelOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from colbert_sqlite.encoders import Encoder

# Each holds the weights of its model.
MOST_ENCODERS = 4
MOST_QUERIES = 256


# Who loads holds the first, who looks up what is loaded only the second, for a moment.
_loading, _looking = RLock(), RLock()
_encoders: OrderedDict[tuple[str, ModelOptions], Encoder] = OrderedDict()
_fingerprints: dict[tuple[str, ModelOptions], str] = {}


def cached_encoder(
    model: str | Encoder | None = None, options: ModelOptions | None = None, *, many: bool = False
) -> Encoder:
    """The encoder called *model*, loaded once per process and options; one that is loaded already is returned as it is.

    Threads may call this and use what they get at the same time. The four encoders used last are kept; a folder whose
    files change meanwhile is not looked at again. Where there is no index whose build exported the model to the cache
    folder, the first call does so, and the next process starts without torch. Errors as in :func:`load_encoder`.

    :param many: if it is not loaded yet, load what encodes many passages faster
    """
    if model is not None and not isinstance(model, str):
        return model
    name, options = model or DEFAULT_MODEL, options or ModelOptions()
    if encoder := _named(name, options):
        return encoder
    # Two threads that want the same model must not both load it.
    with _loading:
        if encoder := _named(name, options):
            return encoder
        encoder = load(name, options, many=many, export=True)
        with _looking:
            _fingerprints[name, options] = encoder.fingerprint
            return _kept(encoder.fingerprint, options) or _keep(encoder, options)


def shared_encoder(fingerprint: str, load: Callable[[], Encoder], *, configured: str | None = None) -> Encoder:
    """The encoder with that fingerprint, loaded without options by :func:`cached_encoder` or, if not yet, by *load*.

    :param configured: a model to use in place of it, if that has the fingerprint
    """
    if configured and (given := cached_encoder(configured)).fingerprint == fingerprint:
        return given
    if encoder := _kept(fingerprint, ModelOptions()):
        return encoder
    with _loading:
        return _kept(fingerprint, ModelOptions()) or _keep(load(), ModelOptions())


class _RememberingEncoder:
    """SQL asks the same query for row after row, and a page for search and explanations."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._queries: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = RLock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_queries(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._queries]
            if new:
                self._queries.update(zip(new, self._encoder.encode_queries(new), strict=True))
            found = [self._queries[text] for text in texts]
            while len(self._queries) > MOST_QUERIES:
                self._queries.popitem(last=False)
            return found


@lru_cache(maxsize=MOST_ENCODERS)
def remembering(encoder: Encoder) -> Encoder:
    """That encoder, which then knows the embeddings of its last 256 queries."""
    return cast("Encoder", _RememberingEncoder(encoder))


@lru_cache(maxsize=MOST_ENCODERS)
def cached_splitter(encoder: Encoder) -> PassageSplitter:
    """What cuts any text into passages for a model, as long as those of an index by default.

    Made once: the first long text costs one 20 ms more.
    """
    n_tokens = min(encoder.document_length, DEFAULT_MAX_TOKENS)
    return PassageSplitter(encoder.tokenizer, n_tokens, encoder.n_special_tokens)


def _named(name: str, options: ModelOptions) -> Encoder | None:
    with _looking:
        fingerprint = _fingerprints.get((name, options))
        return None if fingerprint is None else _kept(fingerprint, options)


def _kept(fingerprint: str, options: ModelOptions) -> Encoder | None:
    with _looking:
        if (encoder := _encoders.get((fingerprint, options))) is not None:
            _encoders.move_to_end((fingerprint, options))
        return encoder


def _keep(encoder: Encoder, options: ModelOptions) -> Encoder:
    with _looking:
        _encoders[encoder.fingerprint, options] = encoder
        if len(_encoders) > MOST_ENCODERS:
            _encoders.popitem(last=False)
        return encoder
