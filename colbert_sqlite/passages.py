"""Rows become passages: text out of columns, markup stripped, cut to the model's length.

In: the raw values of one row, as SQLite holds them. Out: the row's extracted text, its content hash, and
passages with character offsets into that text. Leaves to others: reading rows, encoding passages.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from selectolax.lexbor import LexborHTMLParser, LexborNode
from semantic_text_splitter import TextSplitter

from colbert_sqlite.settings import Html

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_MAX_TOKENS = 256

# Most closing tags, not "<": prose and Markdown mention <b>, but only HTML closes its paragraphs.
_HTML = re.compile(
    r"\A\s*<(!doctype|!--|[a-z][a-z0-9]*[\s/>])|</(p|div|li|ul|ol|h[1-6]|table|td|blockquote|pre|section|article)\s*>",
    re.IGNORECASE,
)
_MARKDOWN_CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`|^(?: {4}|\t).*?$", re.DOTALL | re.MULTILINE)
_SKIPPED_TAGS = frozenset({"script", "style", "template", "head", "noscript"})
_PARAGRAPH_TAGS = frozenset(
    "address article aside blockquote details div dl fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header "
    "hr main nav ol p pre section summary table ul".split()
)
_LINE_TAGS = frozenset({"dd", "dt", "li", "tr", "caption", "option"})
_CELL_TAGS = frozenset({"td", "th"})
# Inside these a line break is a space. Elsewhere it may be Markdown's, between blocks of HTML.
_FLOWING_TAGS = frozenset("p li td th dd dt h1 h2 h3 h4 h5 h6 caption figcaption".split())
_SEGMENT_CHARACTERS = 50_000
_SPACES = re.compile(r"\s+")
_BLANKS = re.compile(r"[^\S\n]+")
_LINE_ENDS = re.compile(r"(?<![^\S\n])[^\S\n]*\n(?: (?! ))?")
_BLANK_LINES = re.compile(r"\n{3,}")


class RawValue(NamedTuple):
    """One value as SQLite holds it: ``typeof(x)`` and ``CAST(x AS BLOB)``, whatever its bytes."""

    type: str
    raw: bytes | None


class PassageText(NamedTuple):
    """A span of one row's extracted text.

    ``text`` is what is encoded: the heading, if any, on its own line above ``extracted[start:end]``.
    """

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Extracted:
    """The text of one row: ``heading`` stands above every passage, ``text`` is what passages are cut from."""

    heading: str
    text: str


def content_hash(values: Sequence[RawValue]) -> bytes:
    """Return 16 bytes that change whenever the type or the bytes of any value change."""
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        raw = b"" if value.raw is None else value.raw
        digest.update(f"{value.type}:{len(raw)}:".encode())
        digest.update(raw)
    return digest.digest()


def extract(values: Sequence[RawValue], heading: RawValue | None, *, html: Html, max_tokens: int) -> Extracted:
    """Return the text of a row, from the values of its columns and of its heading column.

    A heading too long to stand above every passage becomes the first paragraph of the text instead. The limit is
    counted in bytes, which no tokenizer exceeds in tokens, so that the offsets do not depend on the tokenizer.
    """
    paragraphs = [text for text in (_plain(value, html) for value in values) if text.strip()]
    head = "" if heading is None else _SPACES.sub(" ", _plain(heading, html)).strip()
    if head and (not paragraphs or len(head.encode()) > max_tokens // 2):
        paragraphs.insert(0, head)
        head = ""
    return Extracted(head, "\n\n".join(paragraphs))


def _plain(value: RawValue, html: Html) -> str:
    if value.raw is None:
        return ""
    if value.type == "blob":
        try:
            text = value.raw.decode()
        except UnicodeDecodeError:
            return ""
    else:
        text = value.raw.decode(errors="replace")
    # Tokenizers drop NUL and join the words on both sides of it.
    text = text.replace("\0", " ")
    if html == "yes" or (html == "auto" and looks_like_html(text)):
        return strip_html(text)
    return text


def looks_like_html(text: str) -> bool:
    """Return whether *text* is HTML, rather than plain text or Markdown that mentions or quotes some."""
    return "<" in text and _HTML.search(_MARKDOWN_CODE.sub("", text)) is not None


def strip_html(text: str) -> str:
    """Return the readable text of an HTML document or fragment, one blank line between paragraphs."""
    root = LexborHTMLParser(text).root
    if root is None:
        return ""
    parts: list[str] = []
    preformatted = flowing = 0
    # An explicit stack: the depth of the markup is the writer's choice, the depth of our calls is not.
    stack: list[tuple[LexborNode, bool]] = [(root, False)]
    while stack:
        node, leaving = stack.pop()
        tag = node.tag or ""
        if tag == "-text":
            content = node.text_content or ""
            parts.append(content if preformatted else (_SPACES if flowing else _BLANKS).sub(" ", content))
            continue
        if tag in _SKIPPED_TAGS:
            continue
        step = -1 if leaving else 1
        preformatted += step * (tag == "pre")
        flowing += step * (tag in _FLOWING_TAGS)
        if tag in _PARAGRAPH_TAGS:
            parts.append("\n\n")
        elif tag in _LINE_TAGS and not leaving:
            parts.append("\n")
        elif tag in _CELL_TAGS:
            parts.append(" ")
        if not leaving:
            if tag == "br":
                parts.append("\n")
            elif tag == "img":
                parts.append(node.attributes.get("alt") or "")
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(list(node.iter(include_text=True))))
    return _BLANK_LINES.sub("\n\n", _LINE_ENDS.sub("\n", "".join(parts))).strip()


class PassageSplitter:
    """Cuts the text of rows into passages by one model's own token count.

    :param tokenizer: the model's tokenizer, truncation and padding off
    :param max_tokens: longest passage in tokens, *n_special_tokens* included
    :param n_special_tokens: tokens the model adds to every passage
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, n_special_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._budget = max_tokens - n_special_tokens

    def count(self, text: str) -> int:
        """Return the number of tokens of *text*, special tokens left out."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def split(self, extracted: Extracted) -> list[PassageText]:
        """Return the passages of a row, in order; an empty list if it has no text.

        Passages end at the largest boundary that fits: paragraph, line, sentence, word, character. Only white space
        between passages is left out.
        """
        text, heading = extracted.text, extracted.heading
        if not text.strip():
            return []
        head = f"{heading}\n" if heading else ""
        capacity = self._budget - (self.count(head) if head else 0)
        while True:
            passages = [
                PassageText(start, start + len(chunk), head + chunk) for start, chunk in self._chunks(text, capacity)
            ]
            excess = max(self.count(p.text) for p in passages) - self._budget if head else 0
            # Pieces at the seam of heading and text may count more tokens together than apart.
            if excess <= 0:
                return passages
            capacity -= excess

    def _chunks(self, text: str, capacity: int) -> list[tuple[int, str]]:
        stripped = text.strip()
        # A token is at least one byte in every tokenizer, so most short texts need no splitter.
        if len(stripped) <= 8 * capacity and self.count(stripped) <= capacity:
            return [(len(text) - len(text.lstrip()), stripped)]
        return [
            (first + start, chunk)
            for first, end in _segments(text)
            for start, chunk in _splitter(self._tokenizer, capacity).chunk_indices(text[first:end])
        ]


@lru_cache(maxsize=8)
def _splitter(tokenizer: Tokenizer, capacity: int) -> TextSplitter:
    # Making one copies the whole tokenizer, which takes 20 ms; the capacity differs with the length of headings.
    return TextSplitter.from_huggingface_tokenizer(tokenizer, capacity)


def _segments(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of pieces of *text* that are short enough for the splitter, whose time is quadratic."""
    start = 0
    while start < len(text):
        end = start + _SEGMENT_CHARACTERS
        if end < len(text):
            cuts = (text.rfind(mark, start + _SEGMENT_CHARACTERS // 2, end) for mark in ("\n\n", "\n", ". ", " "))
            end = next((cut + 1 for cut in cuts if cut >= 0), end)
        yield start, min(end, len(text))
        start = end
