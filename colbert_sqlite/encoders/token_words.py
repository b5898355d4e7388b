"""What a token stands for: characters of the text, and the word they are part of.

In: the offsets that a tokenizer gives. Out: tokens with their characters and words. Leaves to others: making tokens.

Tokenizers disagree on words: to one "SQLite's" is three and to another, with the full stop after it, one. Here a word
is a run of letters, marks and digits, as the word boundaries of Unicode (UAX #29) have it, apart from scripts that
write no spaces: there every token is a word, since the tokenizer alone knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from unicodedata import category

from colbert_sqlite.encoders.base import Token

# Thai and Lao, Myanmar, Khmer, Hiragana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def number_words(
    text: str, spans: Sequence[tuple[int, int]], pretokens: Sequence[int | None], names: Sequence[str]
) -> list[Token]:
    """Return the tokens of *text*, in order, each with the number of its word and without white space at its ends.

    :param spans: characters of each token; those of several may overlap, as the bytes of one character do
    :param pretokens: which tokens the tokenizer took for parts of one word
    """
    tokens = []
    word = -1
    last_end, last_pretoken = 0, None
    for (start, end), pretoken, name in zip(spans, pretokens, names, strict=True):
        characters = text[start:end]
        start, end = start + len(characters) - len(characters.lstrip()), start + len(characters.rstrip())
        if start >= end:
            tokens.append(Token(0, 0, None, name))
            continue
        # An accent of its own, which a tokenizer may have made one with its letter.
        while end < len(text) and category(text[end])[0] == "M":
            end += 1
        # Between the pieces of one word there may be characters that the tokenizer drops.
        between = text[last_end:start]
        touches = not between or (pretoken == last_pretoken and not any(map(str.isspace, between)))
        if word < 0 or not (start < last_end or (touches and _joined(text, last_end - 1, start))):
            word += 1
        tokens.append(Token(start, end, word, name))
        last_end, last_pretoken = max(end, last_end), pretoken
    return tokens


def is_punctuation(text: str) -> bool:
    """Return whether *text* has no letter, no digit and no picture."""
    return not any(category(c)[0] in "LN" or category(c) == "So" for c in text)


def _joined(text: str, left: int, right: int) -> bool:
    """Return whether two characters belong to one word. Between them is nothing that counts."""
    if category(text[right]) in ("Mn", "Mc", "Me", "Cf"):
        return True
    if _is_inside_word(text, left) or _is_inside_word(text, right):
        return True
    return all(category(text[at])[0] in "LMN" and not _UNSPACED.match(text[at]) for at in (left, right))


def _is_inside_word(text: str, at: int) -> bool:
    """Return whether this is the apostrophe of "don't" or the point of "3.5"."""
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if text[at] in "'’":
        return before.isalpha() and after.isalpha()
    return text[at] in ".," and before.isdigit() and after.isdigit()
