"""Databases that were not made for these tests: text keys, HTML, compound keys without rowids."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.index import Index


@pytest.mark.parametrize(
    ("file", "table", "columns", "options", "query", "pk"),
    [
        ("til.db", "til", ["body"], {"where": "topic = 'sqlite'"}, "list all columns in a SQLite database", 0),
        ("blog.db", "blog_entry", ["body"], {"where": "id % 40 = 0"}, None, 0),
        ("docs.db", "section", ["text"], {"where": "project = 'llm'"}, None, 1),
    ],
)
def test_a_row_is_found_by_its_own_heading(
    shared: Path,
    tmp_path: Path,
    encoder: Encoder,
    file: str,
    table: str,
    columns: list[str],
    options: dict[str, Any],
    query: str | None,
    pk: int,
) -> None:
    path = tmp_path / file
    shutil.copy(shared / "data" / file, path)
    heading = "heading" if table == "section" else "title"
    rows = sqlite3.connect(path).execute(f"SELECT count(*) FROM {table} WHERE {options['where']}").fetchone()[0]
    with Index.create(path, table, columns, heading=heading, model=encoder, **options) as index:
        assert index.counts["rows"] == rows
        assert index.verify() == []
        for hit in index.search(query or "how to use the command line", k=5):
            title = hit.row[heading]
            same_title = f"{heading} = :title"
            expected = {h.pk for h in index.search(title, k=10, where=same_title, params={"title": title})}
            assert expected & {h.pk for h in index.search(title, k=3)}
            assert "<p>" not in hit.passage.text
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
