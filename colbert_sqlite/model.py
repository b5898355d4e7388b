"""The model of one index, loaded once for all threads and checked against the index.

In: the registry entry of the index, the caller's options. Out: an encoder. Leaves to others: finding and running models
(``encoders/``).
"""

from __future__ import annotations

from threading import Thread

from colbert_sqlite.encoders import Encoder, backend_for, is_at_hand, load
from colbert_sqlite.engine import plaid
from colbert_sqlite.errors import MissingDependency, ModelError, ModelMismatch, ModelNotFound
from colbert_sqlite.locks import ThreadLock
from colbert_sqlite.settings import ModelOptions
from colbert_sqlite.storage.registry import Entry


class Model:
    """The model of an index.

    :param entry: the index; only a model with its fingerprint fits
    :param override: an encoder, or the model's name now; None: the name that the index was built with
    """

    def __init__(self, entry: Entry, override: str | Encoder | None, options: ModelOptions) -> None:
        self._entry = entry
        self._override = override
        self._options = options
        self._encoder: Encoder | None = None
        self._lock = ThreadLock()

    @property
    def is_loaded(self) -> bool:
        return self._encoder is not None

    def load(self, *, many: bool = False) -> Encoder:
        """Return the encoder, loaded on first use.

        :param many: whether many passages follow: then load the backend that encodes fastest, not the one that starts
            fastest
        :raises ModelMismatch: if it is not the model that the index was built with
        :raises ModelNotFound: if it is not on this machine and can't be fetched, or the caller must pass it
        """
        with self._lock:
            if self._encoder is None:
                kernels = Thread(target=plaid.load_kernels, args=[self._entry.settings.nbits])
                kernels.start()
                try:
                    encoder = self._find(many)
                finally:
                    # A process forked meanwhile would inherit numba's lock.
                    kernels.join()
                self._check(encoder)
                self._encoder = encoder
            return self._encoder

    def problems(self) -> list[str]:
        """Return the one sentence that says why the model can't be used; an empty list if it can."""
        try:
            self.load()
        except (ModelNotFound, ModelMismatch, ModelError, MissingDependency) as error:
            return [str(error)]
        return []

    def describe(self) -> str:
        """Return the backend of the model, such as ``onnxruntime 1.31.1 float32 (cpu)``, without loading it."""
        if self._override is not None and not isinstance(self._override, str):
            return self._override.backend
        if self._is_own and not is_at_hand(self._entry.model):
            return f"{self._entry.settings.encoder}, passed by the caller"
        name = self._override or self._entry.model
        return backend_for(name, self._options, fingerprint=self._entry.model_fingerprint)

    @property
    def _is_own(self) -> bool:
        """Whether a caller's own encoder built the index, and no override replaces it."""
        return bool(self._entry.settings.encoder) and self._override is None

    def _find(self, many: bool) -> Encoder:
        if self._override is not None and not isinstance(self._override, str):
            return self._override
        # An own encoder may wrap a model that is on this machine, or be a plugin by now.
        if self._is_own and not is_at_hand(self._entry.model):
            raise self._must_be_passed()
        # A model that the caller names may have any fingerprint: _check compares it.
        fingerprint = None if self._override else self._entry.model_fingerprint
        return load(self._override or self._entry.model, self._options, fingerprint=fingerprint, many=many)

    def _check(self, encoder: Encoder) -> None:
        entry = self._entry
        if (encoder.fingerprint, encoder.dim) == (entry.model_fingerprint, entry.dim):
            return
        if self._is_own:
            raise self._must_be_passed()
        raise ModelMismatch(
            f"index {entry.name!r} was built with {entry.model!r} (dim {entry.dim}, fingerprint "
            f"{entry.model_fingerprint[:12]}), not {encoder.name!r} (dim {encoder.dim}, fingerprint "
            f"{encoder.fingerprint[:12]}): pass the model it was built with, or replace the index with replace=True "
            "(--replace)"
        )

    def _must_be_passed(self) -> ModelNotFound:
        name, settings = self._entry.name, self._entry.settings
        return ModelNotFound(
            f"index {name!r} was built with the encoder {settings.encoder}, which you must pass: "
            f"Index.open(db, {name!r}, model=encoder); or offer it under the name {settings.model!r} as an entry "
            "point of the group colbert_sqlite.encoders"
        )
