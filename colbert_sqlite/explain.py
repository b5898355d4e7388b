"""Why a passage has its score: which query word met which passage word.

In: a query, a passage, its stored embeddings. Out: an :class:`Explanation`: numbers, characters, HTML. Leaves to
others: finding and reading passages (``search.py``, ``view.py``), how words answer words (``words.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder, Token
from colbert_sqlite.engine.maxsim import alignments
from colbert_sqlite.engine.prominence import MIN_OUTLIER, NEARLY_THE_SAME
from colbert_sqlite.errors import SourceError
from colbert_sqlite.highlight import check_n_words, cut_and_mark, mark, marked_spans
from colbert_sqlite.query import Query
from colbert_sqlite.results import Passage
from colbert_sqlite.values import json_value
from colbert_sqlite.view import PassageToExplain
from colbert_sqlite.words import Likeness, Span, Words, likeness_of, words_of, words_of_query

MAX_HEAT = 4

# Marks mix with the colors of the page, so that text stays legible. The two hottest are underlined too.
STYLE = """<style>
.colbert-explanation mark { color: inherit; border-radius: 0.15em; padding: 0 0.1em; }
.colbert-explanation .colbert-heat-1 { background: color-mix(in srgb, var(--colbert-mark, #f0a000) 15%, transparent); }
.colbert-explanation .colbert-heat-2 { background: color-mix(in srgb, var(--colbert-mark, #f0a000) 25%, transparent); }
.colbert-explanation .colbert-heat-3 { background: color-mix(in srgb, var(--colbert-mark, #f0a000) 35%, transparent);
  text-decoration: underline 1px; }
.colbert-explanation .colbert-heat-4 { background: color-mix(in srgb, var(--colbert-mark, #f0a000) 45%, transparent);
  text-decoration: underline 2px; }
.colbert-passage { white-space: pre-wrap; overflow-wrap: anywhere; }
.colbert-explanation td, .colbert-explanation th { text-align: left; padding: 0 0.8em 0 0; }
</style>
"""


@dataclass(frozen=True, slots=True)
class PassageWord:
    """A word of a passage, and the query word that it answers best.

    ``start`` and ``end`` are characters of the passage's text, or of the heading where ``in_heading`` is true.
    ``query_word`` is the position in :attr:`Explanation.matches`, None for a query without words; ``similarity`` is the
    cosine to it, the mean over its tokens. ``heat`` is 0 for a word that does not stand out, else 1 to 4, 4 being the
    word itself or the nearest to it.
    """

    text: str
    start: int
    end: int
    in_heading: bool
    query_word: int | None
    similarity: float
    heat: int


@dataclass(frozen=True, slots=True)
class Match:
    """A word of the query, or a special token, and the word of the passage that it met.

    ``start`` and ``end`` are characters of the query, 0 and 0 for a special token, whose ``text`` is its name.
    ``contribution`` is its part of the score: the sum of the similarities of its tokens; ``similarity`` is their mean.
    ``met`` is the passage word with the largest share of the contribution, None if that is a special token;
    ``met_text`` is the word, or the name of the token. ``marked`` are the positions, in :attr:`Explanation.words`, of
    all words that answer it clearly.
    """

    text: str
    start: int
    end: int
    similarity: float
    contribution: float
    met: PassageWord | None
    met_text: str
    marked: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The parts of one passage's score for one query.

    ``score`` is the sum of the contributions of ``matches``, one for each query word, and ``special``, one for each
    special token: markers, mask tokens, the model's own prompt. ``words`` are the words of heading and passage that
    have an embedding; in most models punctuation has none. ``similarities`` and ``prominence`` are float32 [n_matches,
    n_words]: the cosines, and how clearly a word answers a query word, 0 where it is not marked.
    """

    query: str
    heading: str
    passage: Passage
    score: float
    normalized_score: float
    matches: tuple[Match, ...]
    special: tuple[Match, ...]
    words: tuple[PassageWord, ...]
    similarities: NDArray[np.float32] = field(repr=False, compare=False)
    prominence: NDArray[np.float32] = field(repr=False, compare=False)

    @property
    def special_score(self) -> float:
        """Share of the special tokens in the score."""
        return math.fsum(match.contribution for match in self.special)

    def to_dict(self) -> dict[str, Any]:
        """Return the explanation as nested dicts and lists, without the two matrices."""
        explanation = {
            "query": self.query,
            "score": self.score,
            "normalized_score": self.normalized_score,
            "special_score": self.special_score,
            "heading": self.heading,
            "passage": asdict(self.passage),
            "matches": [asdict(match) for match in self.matches],
            "special": [asdict(match) for match in self.special],
            "words": [asdict(word) for word in self.words],
        }
        return {name: json_value(value) for name, value in explanation.items()}

    def highlighted(self, before: str = "<b>", after: str = "</b>") -> str:
        """Return the passage's text with the words that answer the query marked; nothing is escaped."""
        spans, likeness = self._of_text()
        return mark(self.passage.text, marked_spans(spans, likeness.prominence), before, after)

    def snippet(self, before: str = "<b>", after: str = "</b>", *, ellipsis: str = "…", n_words: int = 30) -> str:
        """Return the *n_words* words of the passage's text that answer the query best, marked; nothing is escaped.

        :raises ValueError: if *n_words* is not at least 1
        """
        check_n_words(n_words)
        spans, likeness = self._of_text()
        return cut_and_mark(self.passage.text, spans, likeness, before, after, ellipsis, n_words)

    def _of_text(self) -> tuple[list[Span], Likeness]:
        """Return the words of the passage's text, without those of the heading."""
        n_heading = sum(word.in_heading for word in self.words)
        spans = [(word.start, word.end) for word in self.words[n_heading:]]
        return spans, Likeness(self.similarities[:, n_heading:], self.prominence[:, n_heading:])

    def to_html(self, *, style: bool = True, table: bool = True) -> str:
        """Return heading and passage as HTML, words that answer the query in ``<mark>``.

        Everything is escaped. A mark has the class ``colbert-heat-1`` to ``-4``. Its title names the query word that it
        answers; ``data-query-word`` is the position of that word.

        :param style: begin with a ``<style>``, which takes its color from ``--colbert-mark`` if the page sets it
        :param table: end with a table of the query's words
        """
        parts = [STYLE] if style else []
        parts.append('<div class="colbert-explanation">\n')
        if self.heading:
            parts.append(f'<p class="colbert-heading">{self._marked_html(in_heading=True)}</p>\n')
        parts.append(f'<p class="colbert-passage">{self._marked_html(in_heading=False)}</p>\n')
        if table:
            parts += self._table_html()
        return "".join([*parts, "</div>\n"])

    def pieces(self, *, in_heading: bool = False) -> Iterator[tuple[str, PassageWord | None]]:
        """Yield the text of passage or heading in pieces: words that have heat, and the text between them."""
        text = self.heading if in_heading else self.passage.text
        last = 0
        for word in self.words:
            if word.in_heading == in_heading and word.heat:
                yield text[last : word.start], None
                yield text[word.start : word.end], word
                last = word.end
        yield text[last:], None

    def _marked_html(self, *, in_heading: bool) -> str:
        return "".join(
            escape(text) if word is None else self._mark_html(text, word)
            for text, word in self.pieces(in_heading=in_heading)
        )

    def _mark_html(self, text: str, word: PassageWord) -> str:
        assert word.query_word is not None
        title = escape(f"{self.matches[word.query_word].text} {word.similarity:.2f}")
        attributes = f'class="colbert-heat-{word.heat}" data-query-word="{word.query_word}" title="{title}"'
        return f"<mark {attributes}>{escape(text)}</mark>"

    def _table_html(self) -> Iterable[str]:
        yield '<table class="colbert-matches">\n'
        yield "<tr><th>query</th><th>passage</th><th>similarity</th><th>score</th></tr>\n"
        for match in self.matches:
            yield (
                f"<tr><td>{escape(match.text)}</td><td>{escape(match.met_text)}</td>"
                f"<td>{match.similarity:.2f}</td><td>{match.contribution:.2f}</td></tr>\n"
            )
        if self.special:
            yield f"<tr><td colspan=3>special tokens</td><td>{self.special_score:.2f}</td></tr>\n"
        yield f"<tr><th colspan=3>score</th><th>{self.score:.2f}</th></tr>\n</table>\n"


class Explainer:
    """Explains passages for one query, whose words are split once."""

    def __init__(self, encoder: Encoder, query: Query) -> None:
        self._encoder = encoder
        self._query = query
        self._tokens = encoder.query_tokens(query.text)
        self._words = words_of_query(encoder, query, self._tokens)

    def explain(self, encoded: PassageToExplain) -> Explanation:
        """Return which word of the query met which word of a passage.

        A passage without stored embeddings is encoded again, uncompressed.

        :raises SourceError: if the embeddings are of another text
        """
        heading, passage, embeddings = encoded
        text = f"{heading}\n{passage.text}" if heading else passage.text
        tokens = self._encoder.passage_tokens(text)
        if embeddings is None:
            [embeddings] = self._encoder.encode_passages([text])
        if len(embeddings) != len(tokens):
            raise SourceError("the row changed after it was indexed: sync the index first")
        document = words_of(text, [(0, tokens, embeddings)], self._encoder.dim)
        likeness = likeness_of(self._words, document)
        words = _passage_words(text, len(heading), document, likeness)
        best, similarities = alignments(self._query.embeddings, embeddings)
        word_at = {number: at for at, number in enumerate(dict.fromkeys(t.word for t in tokens if t.word is not None))}
        targets = [token.name if token.word is None else word_at[token.word] for token in tokens]
        met = [(targets[at], similarity) for at, similarity in zip(best.tolist(), similarities.tolist(), strict=True)]
        matches, special = _matches(self._query.text, self._tokens, met, words, likeness)
        score = math.fsum(similarities.tolist())
        return Explanation(
            query=self._query.text,
            heading=heading,
            passage=passage,
            score=score,
            normalized_score=self._query.normalized(score),
            matches=tuple(matches),
            special=tuple(special),
            words=tuple(words),
            similarities=likeness.similarities,
            prominence=likeness.prominence,
        )


def _passage_words(text: str, n_heading: int, document: Words, likeness: Likeness) -> list[PassageWord]:
    words = []
    n_query_words, n_words = likeness.similarities.shape
    best: list[int | None] = [None] * n_words
    similarities, heats = [0.0] * n_words, [0] * n_words
    if n_query_words:
        is_marked = likeness.prominence.any(axis=0)
        rows = np.where(is_marked, likeness.prominence.argmax(axis=0), likeness.similarities.argmax(axis=0))
        best, cells = rows.tolist(), (rows, np.arange(n_words))
        similarities = likeness.similarities[cells].tolist()
        heats = [_heat(prominence) for prominence in likeness.prominence[cells].tolist()]
    for at, (start, end) in enumerate(document.spans):
        in_heading = start < n_heading
        # A line break separates heading and passage.
        shift = 0 if in_heading or not n_heading else n_heading + 1
        words.append(
            PassageWord(
                text=text[start:end],
                start=start - shift,
                end=end - shift,
                in_heading=in_heading,
                query_word=best[at],
                similarity=similarities[at],
                heat=heats[at],
            )
        )
    return words


def _heat(prominent: float) -> int:
    """Return prominence in steps from 1 to 4; from 3 on words are nearly the same; 0 stays 0."""
    steps = (1 + NEARLY_THE_SAME) / 2, NEARLY_THE_SAME, (MIN_OUTLIER + NEARLY_THE_SAME) / 2
    return next((MAX_HEAT - i for i, step in enumerate(steps) if prominent >= step), int(prominent > 0))


def _matches(
    query: str,
    query_tokens: Sequence[Token],
    met: Sequence[tuple[int | str, float]],
    words: Sequence[PassageWord],
    likeness: Likeness,
) -> tuple[list[Match], list[Match]]:
    """Return the matches of the query words, and those of the special tokens.

    :param met: for each query token the position of a word, or the name of a special token, and the similarity
    """
    of_words: dict[int, list[int]] = {}
    special: list[Match] = []
    for at, token in enumerate(query_tokens):
        if token.word is None:
            special.append(_match(token.name, (0, 0), [met[at]], words, ()))
        else:
            of_words.setdefault(token.word, []).append(at)
    matches = []
    for row, members in enumerate(of_words.values()):
        start, end = query_tokens[members[0]].start, query_tokens[members[-1]].end
        marked = tuple(np.flatnonzero(likeness.prominence[row]).tolist())
        matches.append(_match(query[start:end], (start, end), [met[at] for at in members], words, marked))
    return matches, special


def _match(
    text: str, span: Span, met: Sequence[tuple[int | str, float]], words: Sequence[PassageWord], marked: tuple[int, ...]
) -> Match:
    # The pieces of one word may meet several words: take the word with the largest sum of similarities.
    shares: dict[int | str, float] = {}
    for target, similarity in met:
        shares[target] = shares.get(target, 0.0) + similarity
    main = max(shares, key=lambda target: shares[target])
    word = None if isinstance(main, str) else words[main]
    contribution = math.fsum(similarity for _, similarity in met)
    return Match(
        text=text,
        start=span[0],
        end=span[1],
        similarity=contribution / len(met),
        contribution=contribution,
        met=word,
        met_text=str(main) if word is None else word.text,
        marked=marked,
    )
