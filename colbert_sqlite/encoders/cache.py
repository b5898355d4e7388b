"""Encoders that a process has loaded, for callers that keep none themselves: reranking, SQL functions.

In: the name of a model and the options of :func:`load_encoder`. Out: the same encoder for the same words. Leaves to
others: finding and loading models (models.py).
"""

from __future__ import annotations

from functools import lru_cache
from threading import RLock
from typing import TYPE_CHECKING

from colbert_sqlite.encoders.models import DEFAULT_MODEL, load_encoder

if TYPE_CHECKING:
    from colbert_sqlite.encoders import Encoder

# Each holds the weights of its model.
MOST_ENCODERS = 4

_loading = RLock()


def cached_encoder(
    model: str | Encoder | None = None,
    *,
    device: str | None = None,
    dtype: str = "auto",
    batch_size: int | None = None,
    trust_remote_code: bool = False,
    backend: str = "auto",
    indexing: bool = False,
) -> Encoder:
    """The encoder called *model*, loaded once per process and options; one that is loaded already is returned as it is.

    Threads may call this and use what they get at the same time. The four encoders used last are kept; a folder whose
    files change meanwhile is not looked at again. Where there is no index whose build exported the model to the cache
    folder, the first call does so, and the next process starts without torch. Arguments and errors as in
    :func:`load_encoder`.
    """
    if model is not None and not isinstance(model, str):
        return model
    # Two threads that want the same model must not both load it; lru_cache alone would let them.
    with _loading:
        return _loaded(model or DEFAULT_MODEL, device, dtype, batch_size, trust_remote_code, backend, indexing)


@lru_cache(maxsize=MOST_ENCODERS)
def _loaded(
    name: str,
    device: str | None,
    dtype: str,
    batch_size: int | None,
    trust_remote_code: bool,
    backend: str,
    indexing: bool,
) -> Encoder:
    return load_encoder(
        name,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
        backend=backend,
        indexing=indexing,
        export=True,
    )
