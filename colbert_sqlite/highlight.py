"""Mark the words of a text that answer a query, or cut out the part that answers best.

In: a query, any text, a model. Out: the text, or a part of it, with marks around words. Leaves to others: finding the
words that answer (``words.py``), cutting long texts (``passages.py``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder, cached_encoder
from colbert_sqlite.encoders.token_words import is_punctuation
from colbert_sqlite.query import encode_query
from colbert_sqlite.values import whole_number
from colbert_sqlite.words import Likeness, Span, Words, likeness_of, words_of_query, words_of_text

# Windows within this share of the best score count as equal.
ABOUT_EQUAL = 0.05

_SENTENCE_END = re.compile(r"[.!?…]\W*\s|\n|[。！？]")
# Characters right before and right after a word, such as a bracket and a full stop.
_OPENING = re.compile(r"(?:(?<=\s)\S+)?\Z")
_CLOSING = re.compile(r"\A(?:\S+(?=\s))?")


def highlight(
    query: str, text: str, *, before: str = "<b>", after: str = "</b>", model: str | Encoder | None = None
) -> str:
    """Return *text* with the words that answer *query* between *before* and *after*, like FTS5's ``highlight()``.

    Nothing is escaped. For a page, use marks that the text does not contain, escape the result, then replace the marks.
    Nothing is stripped: marks may fall inside the tags of HTML.

    :param model: alias, folder or hub id of a ColBERT model, or an encoder; default: ``minilm``
    :raises ValueError: if the query is empty
    :raises ModelNotFound: if the model is not on this machine and can't be fetched
    """
    words, likeness = _compare(query, text, model)
    return mark(text, marked_spans(words.spans, likeness.prominence), before, after)


def snippet(
    query: str,
    text: str,
    *,
    before: str = "<b>",
    after: str = "</b>",
    ellipsis: str = "…",
    n_words: int = 30,
    model: str | Encoder | None = None,
) -> str:
    """Return the *n_words* words of *text* that answer *query* best, marked, like FTS5's ``snippet()``.

    Like :func:`highlight`, it escapes nothing.

    :param ellipsis: replaces the text cut off at either end
    :param model: as for :func:`highlight`
    :raises ValueError: if the query is empty, or *n_words* is not at least 1
    :raises ModelNotFound: if the model is not on this machine and can't be fetched
    """
    check_n_words(n_words)
    words, likeness = _compare(query, text, model)
    return cut_and_mark(text, words.spans, likeness, before, after, ellipsis, n_words)


def _compare(query: str, text: str, model: str | Encoder | None) -> tuple[Words, Likeness]:
    encoder = cached_encoder(model)
    query_words = words_of_query(encoder, encode_query(encoder, query))
    words = words_of_text(encoder, text)
    return words, likeness_of(query_words, words)


def marked_spans(spans: Sequence[Span], prominent: NDArray[np.float32]) -> list[Span]:
    """Return the spans of the words that answer any query word; words that touch are one span."""
    marked: list[Span] = []
    for at in np.flatnonzero(prominent.any(axis=0)).tolist():
        start, end = spans[at]
        if marked and marked[-1][1] >= start:
            marked[-1] = marked[-1][0], end
        else:
            marked.append((start, end))
    return marked


def mark(text: str, spans: Sequence[Span], before: str, after: str) -> str:
    """Return *text* with *before* and *after* around each span, as they are."""
    parts: list[str] = []
    last = 0
    for start, end in spans:
        parts += [text[last:start], before, text[start:end], after]
        last = end
    return "".join([*parts, text[last:]])


def cut_and_mark(
    text: str, spans: Sequence[Span], likeness: Likeness, before: str, after: str, ellipsis: str, n_words: int
) -> str:
    """Return the best *n_words* words of *text*, marked, with *ellipsis* at each cut."""
    countable = [at for at, (start, end) in enumerate(spans) if not is_punctuation(text[start:end])]
    if len(countable) <= n_words:
        return mark(text, marked_spans(spans, likeness.prominence), before, after)
    counted = [spans[at] for at in countable]
    similarities, prominent = (matrix[:, countable] for matrix in likeness)
    first = _best_window(text, counted, Likeness(similarities, prominent), n_words)
    last = first + n_words - 1
    start, end = 0, len(text)
    if first:
        start = counted[first][0] - len(_OPENING.findall(text[counted[first - 1][1] : counted[first][0]])[0])
    if last + 1 < len(counted):
        end = counted[last][1] + len(_CLOSING.findall(text[counted[last][1] : counted[last + 1][0]])[0])
    inside = slice(first, last + 1)
    marked = [(left - start, right - start) for left, right in marked_spans(counted[inside], prominent[:, inside])]
    window = mark(text[start:end], marked, before, after)
    return (ellipsis if first else "") + window + (ellipsis if last + 1 < len(counted) else "")


def check_n_words(n_words: int) -> None:
    """Make sure that a snippet has words.

    :raises ValueError: if *n_words* is not a whole number of at least 1
    """
    whole_number("n_words", n_words, 1)


def _best_window(text: str, spans: Sequence[Span], likeness: Likeness, n_words: int) -> int:
    """Return the first word of the window that answers the query best.

    The score of a window is the sum of its best answer to each query word. Of about equal neighbors, one that begins a
    sentence wins, else the one in their middle.
    """
    windows = np.lib.stride_tricks.sliding_window_view
    matrix = likeness.prominence if likeness.prominence.any() else likeness.similarities
    scores = windows(matrix, n_words, axis=1).max(axis=2).sum(axis=0)
    candidates = np.flatnonzero(scores >= scores.max() - ABOUT_EQUAL * abs(scores.max()))
    run = candidates[: int(np.argmax(np.diff(candidates, append=np.iinfo(np.int64).max) > 1)) + 1].tolist()
    begin_sentences = [at for at in run if not at or _SENTENCE_END.search(text[spans[at - 1][1] : spans[at][0]])]
    middle: int = run[len(run) // 2]
    return min(begin_sentences, key=lambda at: abs(at - middle), default=middle)
