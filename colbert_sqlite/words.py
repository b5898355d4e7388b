"""The words of a text with their embeddings, and how they answer the words of a query.

In: texts, tokens, embeddings. Out: words, and matrices over pairs of words. Leaves to others: splitting text into words
(``encoders/``), measuring prominence (``engine/prominence.py``), marking words (``highlight.py``, ``explain.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder, Token
from colbert_sqlite.encoders.cache import cached_splitter
from colbert_sqlite.encoders.token_words import is_punctuation
from colbert_sqlite.engine.prominence import prominence, word_similarities
from colbert_sqlite.passages import Extracted
from colbert_sqlite.query import Query

Span = tuple[int, int]


class Words(NamedTuple):
    """The words of a text.

    ``spans`` are their characters, ``forms`` their casefolded texts, None for punctuation. ``embeddings`` is float32
    [n_tokens, dim]; word i owns ``embeddings[starts[i]:starts[i + 1]]``.
    """

    spans: list[Span]
    forms: list[str | None]
    embeddings: NDArray[np.float32]
    starts: NDArray[np.intp]


class Likeness(NamedTuple):
    """How words answer query words: float32 [n_query_words, n_words] each.

    ``similarities`` are cosines. ``prominence`` says how clearly a word answers, 0 where it does not.
    """

    similarities: NDArray[np.float32]
    prominence: NDArray[np.float32]


def words_of_query(encoder: Encoder, query: Query, tokens: Sequence[Token] | None = None) -> Words:
    """Return the words of a query.

    :param tokens: of the query, if they are known already
    """
    tokens = encoder.query_tokens(query.text) if tokens is None else tokens
    return words_of(query.text, [(0, tokens, query.embeddings)], encoder.dim)


def words_of_text(encoder: Encoder, text: str) -> Words:
    """Return the words of a text of any length, encoded passage by passage as in an index."""
    # Neither moves a character: tokenizers drop NUL, and refuse halves of surrogate pairs.
    clean = text.replace("\0", " ").encode(errors="replace").decode()
    passages = cached_splitter(encoder).split(Extracted("", clean))
    embeddings = encoder.encode_passages([passage.text for passage in passages])
    return words_of(
        clean,
        (
            (passage.start, encoder.passage_tokens(passage.text), rows)
            for passage, rows in zip(passages, embeddings, strict=True)
        ),
        encoder.dim,
    )


def words_of(text: str, parts: Iterable[tuple[int, Sequence[Token], NDArray[np.float32]]], dim: int) -> Words:
    """Return the words of a text.

    :param parts: start, tokens and embeddings of each passage, in the order of the text
    """
    spans: list[Span] = []
    starts: list[int] = []
    kept: list[NDArray[np.float32]] = [np.empty((0, dim), np.float32)]
    n_kept = 0
    for offset, tokens, rows in parts:
        last: int | None = None
        of_words = [at for at, token in enumerate(tokens) if token.word is not None]
        for at in of_words:
            token = tokens[at]
            if token.word == last:
                spans[-1] = spans[-1][0], max(spans[-1][1], offset + token.end)
            else:
                spans.append((offset + token.start, offset + token.end))
                starts.append(n_kept)
            last = token.word
            n_kept += 1
        kept.append(rows[of_words])
    forms = [None if is_punctuation(text[start:end]) else text[start:end].casefold() for start, end in spans]
    return Words(spans, forms, np.concatenate(kept), np.array(starts, np.intp))


def likeness_of(query: Words, document: Words) -> Likeness:
    """Return how each word of a document answers each word of a query."""
    similarities = word_similarities(query.embeddings, query.starts, document.embeddings, document.starts)
    among_query = word_similarities(query.embeddings, query.starts, query.embeddings, query.starts)
    return Likeness(similarities, prominence(similarities, among_query, query.forms, document.forms))
