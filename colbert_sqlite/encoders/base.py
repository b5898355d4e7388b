"""What every encoder is: the protocol, and the token that one embedding stands for.

In: nothing. Out: the types that encoders implement and callers use. Leaves to others: every implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Token:
    """What one embedding stands for.

    A special token, such as ``[CLS]``, stands for no characters: its *word* is None, its *start* and *end* are 0.

    :param start: first character of the token in the text
    :param end: character after its last
    :param word: number of its word in the text, from 0; punctuation counts as words
    :param name: what the vocabulary calls the token: ``[CLS]``, ``##ing``
    """

    start: int
    end: int
    word: int | None
    name: str


class Encoder(Protocol):
    """Turns texts into token embeddings. Implement this to use a model of your own.

    These must hold:

    - An embedding is one row of a float32 array, of length 1 (L2-normalized), all its values finite.
    - The same text gives the same embeddings, up to rounding, whatever else is in the batch.
    - Queries and passages are compared by the inner products of their embeddings (MaxSim).
    - Methods may be called by several threads at once. Attributes never change.
    - The encoder is hashable; the default hash, by identity, is right.
    """

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """What the user calls the model. An index stores it, and shows it in messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex digits, of everything that decides the embeddings: weights, tokenizer, prompts, lengths.

        An index stores it. Opening the index with an encoder of another fingerprint raises ModelMismatch.
        """
        ...

    @property
    def backend(self) -> str:
        """What runs the model, for people: ``onnxruntime 1.31.1 float32 (cpu)``."""
        ...

    @property
    def dim(self) -> int:
        """Values in one embedding, the same for queries and passages."""
        ...

    @property
    def query_length(self) -> int:
        """Longest query in tokens, special tokens included. The encoder cuts longer ones off."""
        ...

    @property
    def document_length(self) -> int:
        """Longest passage in tokens, special tokens included. The encoder cuts longer ones off.

        Passages are made to fit, so nothing of a row is lost.
        """
        ...

    @property
    def n_special_tokens(self) -> int:
        """How many tokens of a passage are not its text: ``[CLS]``, the document marker, ``[SEP]``."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer, truncation and padding off. It counts tokens and finds their characters."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Embed queries.

        :return: for each text, in the same order, float32 [n_tokens, dim]
        """
        ...

    def encode_passages(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Embed passages.

        Tokens that should not be found, such as punctuation, have no row.

        :return: for each text, in the same order, float32 [n_tokens, dim]; a passage may have no rows
        """
        ...

    def query_tokens(self, text: str) -> list[Token]:
        """Name the tokens of a query: one for each row of :meth:`encode_queries`, in the same order."""
        ...

    def passage_tokens(self, text: str) -> list[Token]:
        """Name the tokens of a passage: one for each row of :meth:`encode_passages`, in the same order."""
        ...
