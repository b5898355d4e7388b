"""Databases that were not made for these tests: text keys and Markdown, HTML, compound keys without rowids."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.index import Index
from colbert_sqlite.results import Hit

pytestmark = pytest.mark.real_databases

MakeIndex: TypeAlias = Callable[..., Index]


@pytest.fixture
def make_index(shared: Path, tmp_path: Path, encoder: Encoder) -> Iterator[MakeIndex]:
    """Index a table of a copy of a real database; afterwards the index and the whole file must be sound."""
    made: list[tuple[Index, Path]] = []

    def make(file: str, table: str, column: str, **options: Any) -> Index:
        path = tmp_path / file
        shutil.copyfile(shared / "data" / file, path)
        made.append((Index.create(path, table, [column], model=encoder, **options), path))
        return made[-1][0]

    yield make
    for index, path in made:
        assert index.verify() == []
        index.close()
        with sqlite3.connect(path) as conn:
            assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def pks(hits: list[Hit]) -> list[Any]:
    return [hit.pk for hit in hits]


def test_rows_of_markdown_with_text_keys_are_found_by_their_own_words(make_index: MakeIndex) -> None:
    index = make_index("til.db", "til", "body", heading="title", where="topic = 'sqlite'")
    assert index.counts().rows == 55
    for query, pk in [
        ("steampipe extensions", "sqlite_steampipe.md"),
        ("multipolygon countries territories", "sqlite_geopoly.md"),
        ("cancelling opcodes vmstep", "sqlite_counting-vm-ops.md"),
    ]:
        assert pk in pks(index.search(query, k=2)), query
    (hit,) = index.search("counting opcodes", pks=["sqlite_counting-vm-ops.md"])
    # A table that is not HTML is indexed as it is: offsets are those of the column itself.
    assert hit.row["body"][hit.passage.start : hit.passage.end] == hit.passage.text


def test_rows_of_html_are_found_by_their_own_words_and_shown_without_tags(make_index: MakeIndex) -> None:
    index = make_index("blog.db", "blog_entry", "body", heading="title", where="id % 80 = 0")
    assert index.counts().rows == 29
    for query, pk in [
        ("spectators at transatlantic aviation ansari", 240),
        ("incarcerated inmate offender", 2240),
        ("ghostwriting", 880),
        ("certbot renewing", 1680),
    ]:
        hits = index.search(query, k=29)
        assert len(hits) == 29
        assert pk in pks(hits[:2]), query
        for hit in hits:
            assert hit.row["body"].startswith("<")
            assert not [tag for tag in ("<p", "</", "<a ", "<li", "<h2", "href=") if tag in hit.passage.text]


def test_rows_with_compound_keys_and_no_rowid_are_found_by_their_own_words(make_index: MakeIndex) -> None:
    index = make_index("docs.db", "section", "text", heading="heading", where="project = 'llm'")
    assert index.counts().rows == 410
    for query, anchor in [
        ("siberian dalmatian poodle", "schemas#getting-started-with-dogs"),
        ("lethal exfiltration attacker", "tools#tools-warning"),
        ("crunchy yogurt carrot", "changelog#continue-previous-chat"),
    ]:
        assert ("llm", anchor) in pks(index.search(query, k=2)), query
    (hit,) = index.search("attacker", pks=[("llm", "tools#tools-warning")])
    assert hit.row["text"][hit.passage.start : hit.passage.end] == hit.passage.text
    assert "exfiltration" in hit.row["text"]
