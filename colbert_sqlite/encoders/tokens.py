"""Texts to token ids and, through a network, to embeddings: markers, query augmentation, skiplist, batches.

In: texts, a ``tokenizers.Tokenizer`` and the :class:`Side` of a model that they go through. Out: for each text the ids
to feed, which of them are attended to, which give an embedding, the embeddings, and what each stands for. Leaves to
others: the network, and reading a model's files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders.base import Token
from colbert_sqlite.encoders.token_words import number_words

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """How a model reads one kind of text. Every ColBERT model has two: queries and passages."""

    length: int  # longest sequence, special tokens and marker included
    prompt: str = ""  # put before the text
    strip: bool = False  # drop surrounding whitespace first
    marker: int | None = None  # id inserted after the first token
    expand_to: int = 0  # query augmentation: filled up to this length with mask tokens
    mask: int = 0  # id of the mask token
    attend: bool = False  # whether the other tokens see the mask tokens
    skip: frozenset[int] = frozenset()  # ids that are read and give no embedding


class Tokens(NamedTuple):
    """One text as the network reads it: three lists of one length."""

    ids: list[int]
    attention: list[bool]
    keep: list[bool]


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], side: Side) -> list[Tokens]:
    """Return the tokens of each text.

    The marker is inserted into a sequence cut one token shorter, so that the closing [SEP] survives. Mask tokens give
    embeddings whether or not the other tokens attend to them.

    :param tokenizer: truncation and padding off

    ColBERT §3.2 (query augmentation, punctuation filter).
    """
    return [_tokens_of(encoding, side) for encoding in _encodings(tokenizer, texts, side)]


def _tokens_of(encoding: Encoding, side: Side) -> Tokens:
    ids = encoding.ids
    if side.marker is not None:
        ids.insert(1, side.marker)
    n_masks = max(side.expand_to - len(ids), 0)
    keep = [token not in side.skip for token in ids] + [True] * n_masks
    attention = [True] * len(ids) + [side.attend] * n_masks
    return Tokens(ids + [side.mask] * n_masks, attention, keep)


def _encodings(tokenizer: Tokenizer, texts: Sequence[str], side: Side) -> Iterator[Encoding]:
    """Yield each text, cut to its length, with special tokens but without marker and mask tokens."""
    n_added = tokenizer.num_special_tokens_to_add(False)
    room = max(side.length - n_added - (side.marker is not None), 0)
    prepared = [side.prompt + (text.strip() if side.strip else text) for text in texts]
    for encoding in tokenizer.encode_batch(prepared, add_special_tokens=False):
        encoding.truncate(room)
        yield tokenizer.post_process(encoding)


def embedded_tokens(tokenizer: Tokenizer, text: str, side: Side) -> list[Token]:
    """Return what each embedding of *text* stands for: the tokens that :func:`tokenize` keeps."""
    [encoding] = _encodings(tokenizer, [text], side)
    tokens = _tokens_of(encoding, side)
    # From positions in the text that was encoded to positions in *text*.
    shift = (len(text) - len(text.lstrip()) if side.strip else 0) - len(side.prompt)
    spans = [(max(start + shift, 0), max(end + shift, 0)) for start, end in encoding.offsets]
    pretokens = encoding.word_ids
    if side.marker is not None:
        spans.insert(1, (0, 0))
        pretokens.insert(1, None)
    n_masks = len(tokens.ids) - len(spans)
    spans += [(0, 0)] * n_masks
    pretokens += [None] * n_masks
    names = [tokenizer.id_to_token(token) or "" for token in tokens.ids]
    numbered = number_words(text, spans, pretokens, names)
    return [token for token, kept in zip(numbered, tokens.keep, strict=True) if kept]


def first_pieces(tokenizer: Tokenizer, words: Sequence[str]) -> frozenset[int]:
    """Return the first token id of each word: the skiplist of Stanford's checkpoints.

    With WordPiece these are the punctuation ids. With SentencePiece a mark that has no piece of its own after a space
    gives the bare word boundary, which is then skipped everywhere, and a mark outside the vocabulary gives [UNK].
    The models were trained like that.
    """
    return frozenset(e.ids[0] for e in tokenizer.encode_batch(list(words), add_special_tokens=False) if e.ids)


def batches(lengths: Sequence[int], *, max_tokens: int, max_count: int | None = None) -> Iterator[list[int]]:
    """Yield batches of positions of similar length, longest first, so that little is padding.

    :param lengths: tokens of each text
    :param max_tokens: of one batch, padding included; a longer text is a batch of its own
    :param max_count: texts in one batch
    """
    batch: list[int] = []
    for position in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        full = batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens
        if full or len(batch) == max_count:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


class NetworkEncoder(ABC):
    """An encoder whose network turns tokens into embeddings; subclasses run it.

    :param backend: what runs the network
    :param batch_tokens: at most so many tokens in one batch, padding included
    :param batch_size: at most so many texts in one batch; None: as many as ``batch_tokens`` allow
    """

    def __init__(
        self,
        *,
        name: str,
        fingerprint: str,
        backend: str,
        dim: int,
        queries: Side,
        passages: Side,
        tokenizer: Tokenizer,
        batch_tokens: int,
        batch_size: int | None,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.backend = backend
        self.dim = dim
        self.queries = queries
        self.passages = passages
        self.tokenizer = tokenizer
        self.query_length = queries.length
        self.document_length = passages.length
        self.n_special_tokens = len(tokenize(tokenizer, [""], passages)[0].ids)
        self._batch_tokens = batch_tokens
        self._batch_size = batch_size

    def encode_queries(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Embed queries: for each text, in order, float32 [n_tokens, dim]."""
        return self._encode(texts, self.queries)

    def encode_passages(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        """Embed passages: for each text, in order, float32 [n_tokens, dim], tokens of the skiplist left out."""
        return self._encode(texts, self.passages)

    def query_tokens(self, text: str) -> list[Token]:
        """Name the tokens of a query, one for each row of :meth:`encode_queries`."""
        return embedded_tokens(self.tokenizer, text, self.queries)

    def passage_tokens(self, text: str) -> list[Token]:
        """Name the tokens of a passage, one for each row of :meth:`encode_passages`."""
        return embedded_tokens(self.tokenizer, text, self.passages)

    def _encode(self, texts: Sequence[str], side: Side) -> list[NDArray[np.float32]]:
        tokens = tokenize(self.tokenizer, texts, side)
        embeddings: list[NDArray[np.float32]] = [np.empty((0, self.dim), np.float32)] * len(tokens)
        lengths = [len(t.ids) for t in tokens]
        for batch in batches(lengths, max_tokens=self._batch_tokens, max_count=self._batch_size):
            shape = (len(batch), lengths[batch[0]])
            ids = np.zeros(shape, np.int64)
            attention = np.zeros(shape, np.int64)
            for row, position in enumerate(batch):
                ids[row, : lengths[position]] = tokens[position].ids
                attention[row, : lengths[position]] = tokens[position].attention
            for position, rows in zip(batch, self._run(ids, attention), strict=True):
                embeddings[position] = rows[: lengths[position]][tokens[position].keep]
        return embeddings

    @abstractmethod
    def _run(self, ids: NDArray[np.int64], attention: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run the network on a batch.

        :param ids: int64 [n_texts, n_tokens], padded with 0
        :param attention: int64 [n_texts, n_tokens], 0 for padding
        :return: L2-normalized float32 [n_texts, n_tokens, dim], padding included
        """
