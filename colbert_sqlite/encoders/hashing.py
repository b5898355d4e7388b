"""An encoder without a model: every word is a fixed random direction. For tests, documentation and plumbing.

In: texts. Out: embeddings that agree where words, or parts of words, agree. Leaves to others: meaning.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from colbert_sqlite.encoders.base import Token
from colbert_sqlite.encoders.token_words import number_words

DEFAULT_DIM = 128
TRIGRAM_WEIGHT = 0.5
NEIGHBOR_WEIGHT = 0.15
START = "[CLS]"


class HashingEncoder:
    """Embeds a word by hashes of it and of its trigrams, mixed with a little of the neighboring words.

    The same text gives the same numbers on every machine. A text without words gives one embedding, that of the start.

    :raises ValueError: if *dim* is not a multiple of 8 from 16 to 1024
    """

    query_length = 128
    document_length = 256
    n_special_tokens = 1
    backend = "hashes of words"

    def __init__(self, dim: int = DEFAULT_DIM) -> None:
        if dim % 8 or not 16 <= dim <= 1024:
            raise ValueError(f"the hashing model has dimensions that are a multiple of 8 from 16 to 1024, not {dim}")
        self.dim = dim
        self.name = "hashing" if dim == DEFAULT_DIM else f"hashing-{dim}"
        self.fingerprint = hashlib.sha256(f"hashing 1, dim {dim}".encode()).hexdigest()
        self.tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        self._normalizer = BertNormalizer(lowercase=True, strip_accents=True)
        self.tokenizer.normalizer = self._normalizer
        self.tokenizer.pre_tokenizer = BertPreTokenizer()

    def encode_queries(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Embed queries: for each text, in order, float32 [n_tokens, dim]."""
        return [self._embed(words[: self.query_length - 1]) for words in self._words(texts)]

    def encode_passages(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Embed passages: for each text, in order, float32 [n_tokens, dim], punctuation left out."""
        passages = []
        for words in self._words(texts):
            words = words[: self.document_length - 1]
            keep = [True] + [word not in string.punctuation for word in words]
            passages.append(self._embed(words)[keep])
        return passages

    def query_tokens(self, text: str) -> list[Token]:
        """Name the tokens of a query, one for each row of :meth:`encode_queries`."""
        return self._tokens(text)[: self.query_length]

    def passage_tokens(self, text: str) -> list[Token]:
        """Name the tokens of a passage, one for each row of :meth:`encode_passages`."""
        tokens = self._tokens(text)[: self.document_length]
        return [tokens[0], *(token for token in tokens[1:] if token.name not in string.punctuation)]

    def _tokens(self, text: str) -> list[Token]:
        spans = [(0, 0), *self.tokenizer.encode(text).offsets]
        names = [START, *self._words([text])[0]]
        return number_words(text, spans, [None, *range(len(spans) - 1)], names)

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        encodings = self.tokenizer.encode_batch(list(texts))
        return [
            [self._normalizer.normalize_str(text[start:end]) for start, end in encoding.offsets]
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _embed(self, words: list[str]) -> NDArray[np.float32]:
        alone = np.stack([_word_direction(word, self.dim) for word in (START, *words)])
        mixed = alone.copy()
        mixed[1:] += NEIGHBOR_WEIGHT * alone[:-1]
        mixed[:-1] += NEIGHBOR_WEIGHT * alone[1:]
        return _normalize(mixed)


@lru_cache(maxsize=65536)
def _word_direction(word: str, dim: int) -> NDArray[np.float32]:
    padded = f"^{word}$"
    trigrams = [padded[i : i + 3] for i in range(len(padded) - 2)]
    parts = sum(_direction(trigram, dim) for trigram in trigrams) / len(trigrams) ** 0.5 if trigrams else 0
    return _normalize(_direction(padded, dim) + TRIGRAM_WEIGHT * parts)


def _direction(key: str, dim: int) -> NDArray[np.float32]:
    """Return a unit vector made of digest bytes of *key*: a random generator may change between releases."""
    digest = hashlib.shake_256(key.encode("utf-8", "surrogatepass")).digest(2 * dim)
    return _normalize(np.frombuffer(digest, "<i2").astype(np.float32))


def _normalize(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    normalized: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return normalized
