"""Row → text → passages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_sqlite.encoders import Encoder, load_encoder
from colbert_sqlite.passages import (
    Extracted,
    PassageSplitter,
    RawValue,
    content_hash,
    extract,
    looks_like_html,
    strip_html,
)


def text(value: str) -> RawValue:
    return RawValue("text", value.encode())


NULL = RawValue("null", None)


def test_columns_become_paragraphs_and_the_heading_stands_apart() -> None:
    extracted = extract([text("One."), NULL, text("Two.")], text(" A\n title "), html="auto", max_tokens=256)
    assert extracted == Extracted("A title", "One.\n\nTwo.")


def test_a_row_with_only_a_heading_is_its_heading() -> None:
    assert extract([NULL], text("Title"), html="auto", max_tokens=256) == Extracted("", "Title")


def test_a_heading_too_long_to_repeat_becomes_the_first_paragraph() -> None:
    assert extract([text("Body")], text("long " * 40), html="auto", max_tokens=256).heading == ""


def test_numbers_are_text_and_binary_values_are_not() -> None:
    values = [RawValue("integer", b"42"), RawValue("blob", b"\xff\x00"), RawValue("blob", b"bytes of text")]
    assert extract(values, None, html="auto", max_tokens=256).text == "42\n\nbytes of text"


def test_invalid_utf8_is_read_with_replacement_characters_and_nul_as_a_space() -> None:
    assert extract([RawValue("text", b"caf\xe9 \x00 bar")], None, html="auto", max_tokens=256).text == "caf\ufffd   bar"


def test_html_becomes_readable_paragraphs() -> None:
    html = (
        "<h2>Title</h2><p>Hello <b>wo</b>rld &amp;\n <a href=x>link</a></p><script>x()</script>"
        "<ul><li>one<li>two</ul>a<br>b<pre>x\n    y</pre><table><tr><td>1</td><td>2</td></tr></table><img alt='a cat'>"
    )
    assert strip_html(html) == "Title\n\nHello world & link\n\none\ntwo\n\na\nb\n\nx\n    y\n\n1  2\n\na cat"


def test_long_runs_of_blanks_are_no_trap() -> None:
    assert strip_html("<pre>a" + " " * 100_000 + "b</pre>") == "a" + " " * 100_000 + "b"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("<p>A paragraph", True),
        ("Text first, <em>then</em> <p>markup</p>", True),
        ("<!-- comment --> text", True),
        ("if a < b and c > d", False),
        ("The <b> tag makes text bold", False),
        ("Write `</p>` at the end", False),
        ("```html\n<p>example</p>\n```", False),
        ("plain text", False),
    ],
)
def test_html_is_recognized(value: str, expected: bool) -> None:
    assert looks_like_html(value) is expected


def test_html_can_be_forced_or_left_alone() -> None:
    value = [text("<p>A &amp; B</p>")]
    assert extract(value, None, html="no", max_tokens=256).text == "<p>A &amp; B</p>"
    assert extract([text("A &amp; B")], None, html="yes", max_tokens=256).text == "A & B"


@given(st.lists(st.tuples(st.sampled_from(["text", "blob", "integer"]), st.binary(max_size=8)), max_size=4))
def test_content_hash_tells_apart_where_values_end_and_their_types(values: list[tuple[str, bytes]]) -> None:
    raw = [RawValue(type_, data) for type_, data in values]
    assert content_hash(raw) == content_hash(list(raw))
    assert content_hash(raw) != content_hash([*raw, RawValue("text", b"")])
    for i, (type_, data) in enumerate(values):
        changed = [*raw]
        changed[i] = RawValue(type_, data + b"x")
        assert content_hash(changed) != content_hash(raw)


def test_null_and_empty_text_have_different_hashes() -> None:
    assert content_hash([NULL]) != content_hash([text("")])


def splitter(encoder: Encoder, max_tokens: int) -> PassageSplitter:
    return PassageSplitter(encoder.tokenizer, max_tokens, encoder.n_special_tokens)


WORDS = st.text(alphabet="abc é日😀.!\n <>", max_size=300)


@given(WORDS, st.sampled_from(["", "Heading"]), st.integers(16, 40))
def test_passages_fit_and_leave_out_only_white_space(body: str, heading: str, max_tokens: int) -> None:
    encoder = load_encoder("hashing")
    cut = splitter(encoder, max_tokens)
    passages = cut.split(Extracted(heading, body))
    position = 0
    for passage in passages:
        assert body[position : passage.start].strip() == ""
        assert passage.text == (f"{heading}\n" if heading else "") + body[passage.start : passage.end]
        assert cut.count(passage.text) <= max_tokens - encoder.n_special_tokens
        position = passage.end
    assert body[position:].strip() == ""


def test_passages_end_where_sentences_end(encoder: Encoder) -> None:
    sentences = [f"This is sentence number {i} of the row." for i in range(12)]
    passages = splitter(encoder, 32).split(Extracted("", " ".join(sentences)))
    assert len(passages) > 2
    assert all(passage.text.endswith(".") for passage in passages)


def test_a_row_of_20000_words_is_cut_whole(encoder: Encoder) -> None:
    body = " ".join(f"word{i}" for i in range(20_000))
    passages = splitter(encoder, 256).split(Extracted("", body))
    assert " ".join(passage.text for passage in passages) == body


@pytest.mark.parametrize("body", ["", "  \n\t "])
def test_a_row_without_text_has_no_passages(encoder: Encoder, body: str) -> None:
    assert splitter(encoder, 256).split(Extracted("", body)) == []
