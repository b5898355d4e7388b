"""Which words of a document answer which words of a query, and how clearly.

In: embeddings of tokens, and which of them make up a word. Out: similarities of words, and how far those that stand out
do so. Leaves to others: what a word is, and showing it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# From unrelated (0) to the same (1): from here on a word is marked, whatever the others are. On the best
# passages of 17 questions to a blog: words of content are at 0.7 to 0.9 in the form of the query or a related one,
# and articles and prepositions, which resemble each other, at 0.65 at most unless the very phrase is there.
NEARLY_THE_SAME = 2 / 3
# A word that is less near is marked if it is an outlier among the others, and not much less near than the nearest.
# 3.5 is the limit of Iglewicz and Hoaglin (How to Detect and Handle Outliers, 1993) for a deviation from the median in
# units of the median deviation, which is 0.6745 standard deviations.
OUTLIER = 3.5
MEDIAN_DEVIATION = 0.6745
MIN_OUTLIER = 1 / 3
SHARE_OF_BEST = 0.6
# Of a few words that are all alike, so that the next one is no outlier for a trifle.
MIN_DEVIATION = 0.02


def word_similarities(
    query: NDArray[np.float32],
    query_starts: NDArray[np.intp],
    document: NDArray[np.float32],
    document_starts: NDArray[np.intp],
) -> NDArray[np.float32]:
    """Return how similar each word of a query is to each word of a document.

    That is the mean, over the tokens of the query's word, of their best similarity in the document's word.

    :param query: float32 [n_query_tokens, dim], tokens of words only, a word's next to each other
    :param query_starts: first token of each word, rising from 0
    :param document: float32 [n_tokens, dim], likewise
    :return: float32 [n_query_words, n_words]
    """
    if not len(query_starts) or not len(document_starts):
        return np.zeros((len(query_starts), len(document_starts)), np.float32)
    best = np.maximum.reduceat(query @ document.T, document_starts, axis=1)
    lengths = np.diff(query_starts, append=len(query))
    return np.asarray(np.add.reduceat(best, query_starts, axis=0) / lengths[:, None], np.float32)


def prominence(
    similarities: NDArray[np.float32],
    among_query: NDArray[np.float32],
    query_forms: Sequence[str | None],
    forms: Sequence[str | None],
) -> NDArray[np.float32]:
    """Return how clearly each word of a document answers each word of a query: 1 is the same, 0 is not at all.

    A query word is related to most words somewhat, "how" more than "postgres". So its similarities are measured from
    their median over the different words of document and query, without the best: 0 there, 1 at identity. What
    answers it is what is then nearly the same, or an outlier.

    :param similarities: float32 [n_query_words, n_words], of :func:`word_similarities`
    :param among_query: float32 [n_query_words, n_query_words], likewise
    :param query_forms: words of the query, equal where they are the same; None for punctuation, which is never marked
    :param forms: words of the document, likewise
    :return: float32 [n_query_words, n_words]; 0 for all that is not to be marked
    """
    marked = np.zeros_like(similarities)
    columns = np.array([form is not None for form in forms], bool)
    if not columns.any():
        return marked
    number_of = {form: number for number, form in enumerate(dict.fromkeys(forms)) if form is not None}
    numbers = np.array([number_of[form] for form in forms if form is not None])
    order = np.argsort(numbers, kind="stable")
    firsts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    nearest = np.maximum.reduceat(similarities[:, columns][:, order], firsts, axis=1)
    for row, form in enumerate(query_forms):
        if form is None:
            continue
        ranked = np.sort(nearest[row])
        best, others = float(ranked[-1]), ranked[:-1]
        in_query = [at for at, other in enumerate(query_forms) if other not in (None, form)]
        related = np.concatenate([others, among_query[row, in_query]]).astype(np.float64)
        median = float(np.median(related)) if len(related) else 0.0
        deviation = float(np.median(np.abs(related - median))) if len(related) else np.inf
        above = similarities[row] - median
        nearness = above / max(1 - median, 1e-6)
        outlier = MEDIAN_DEVIATION * above / max(deviation, MIN_DEVIATION) >= OUTLIER
        outlier &= (nearness >= MIN_OUTLIER) & (above >= SHARE_OF_BEST * (best - median))
        marks = columns & (outlier | (nearness >= NEARLY_THE_SAME))
        marked[row, marks] = np.clip(nearness[marks], 0, 1)
    return marked
