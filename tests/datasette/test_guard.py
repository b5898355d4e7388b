"""The Datasette plugin, through Datasette's in-process client."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from datasette.app import Datasette
from datasette.cli import serve

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.index import Index
from tests.datasette.helpers import IS_1_0, rows, serving

HASHING = {"model": "hashing"}
REFUSED = "user-defined function raised exception"


@pytest.fixture
def path(indexed_blog: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(indexed_blog, tmp_path))


SEARCH = """
    select posts.id, title from json_each(colbert_search('posts', :q, :k)) as r
    join posts on posts.id = json_extract(r.value, '$.pk') order by r.key
"""


@pytest.mark.asyncio
async def test_any_query_may_search(path: Path) -> None:
    datasette = serving(path, plugin=HASHING)
    assert await rows(datasette, "blog", SEARCH, q="restore a copy of the database", k="1") == [[3, "Backups"]]
    assert await rows(datasette, "blog", SEARCH, q="", k="1") == []
    sql = "select id from posts order by colbert_score(:q, body) desc limit 1"
    assert await rows(datasette, "blog", sql, q="comet of ice") == [[2]]
    sql = "select json_extract(colbert_rerank(:q, id, body, 1), '$[0].pk') from posts"
    assert await rows(datasette, "blog", sql, q="comet of ice") == [[2]]
    sql = "select colbert_highlight(:q, 'a comet', '[', ']'), colbert_snippet(:q, 'a comet', '[', ']')"
    assert await rows(datasette, "blog", sql, q="comet") == [["a [comet]", "a [comet]"]]


@pytest.mark.asyncio
async def test_searches_at_the_same_time_do_not_meet(path: Path) -> None:
    datasette = serving(path, settings={"num_sql_threads": 4})
    best = {"knead the dough": 1, "comet of ice": 2, "restore the copy": 3, "waste rot into dark soil": 5}
    await rows(datasette, "blog", SEARCH, q="warm up", k="1")
    answers = await asyncio.gather(*(rows(datasette, "blog", SEARCH, q=q, k=str(k)) for k in (1, 2, 3) for q in best))
    assert [answer[0][0] for answer in answers] == [*best.values()] * 3


@pytest.mark.asyncio
async def test_a_database_that_never_changes_is_searched_without_locks(path: Path) -> None:
    datasette = Datasette([], immutables=[str(path)])
    lock = sqlite3.connect(path)
    lock.execute("BEGIN EXCLUSIVE")
    assert await rows(datasette, "blog", SEARCH, q="comet", k="1") == [[2, "Comets"]]
    lock.close()


@pytest.mark.asyncio
async def test_an_error_has_its_sentence_in_the_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datasette = serving(path)
    sql = "select colbert_search('pots', 'comet')"
    assert await rows(datasette, "blog", sql) == REFUSED
    assert caplog.messages[-1] == "colbert_search: no index 'pots' in this database; it has posts"


@pytest.mark.asyncio
async def test_sql_names_no_other_model_than_the_configured_one(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datasette = serving(path, plugin=HASHING)
    sql = "select colbert_score('comet', 'comet', :model) > 1.9"
    assert await rows(datasette, "blog", sql, model="hashing") == [[1]]
    assert await rows(datasette, "blog", sql, model="hashing-32") == REFUSED
    assert caplog.messages[-1] == "colbert_score: model 'hashing-32' may not be used here: leave the argument out"


@pytest.mark.asyncio
async def test_the_functions_can_be_switched_off_for_all_databases_or_for_one(path: Path) -> None:
    off = {"plugins": {"colbert-sqlite": {"sql_functions": False}}}
    for config in (off, {"databases": {"blog": off}}):
        datasette = serving(path, config=config)
        assert await rows(datasette, "blog", "select colbert_error()") == "no such function: colbert_error"


@pytest.mark.asyncio
@pytest.mark.parametrize("switch", [0, "0", "off", "No", "FALSE", {"$env": "COLBERT_FUNCTIONS"}])
async def test_a_switch_is_off_however_it_is_written(path: Path, switch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLBERT_FUNCTIONS", "false")
    datasette = serving(path, plugin={"sql_functions": switch})
    assert await rows(datasette, "blog", "select colbert_error()") == "no such function: colbert_error"


@pytest.mark.asyncio
@pytest.mark.parametrize("switch", [True, 1, "on", "Yes", "true"])
async def test_a_switch_is_on_however_it_is_written(path: Path, switch: Any) -> None:
    datasette = serving(path, plugin={"sql_functions": switch})
    assert await rows(datasette, "blog", "select colbert_error()") == [[None]]


@pytest.mark.parametrize("switch", ["maybe", 2, None, []])
def test_a_switch_that_is_neither_is_refused_before_anything_is_served(path: Path, switch: Any) -> None:
    wrong = {"plugins": {"colbert-sqlite": {"sql_functions": switch}}}
    for name, metadata in (("all", wrong), ("one", {"databases": {"blog": wrong}})):
        file = path.with_name(f"{name}.json")
        file.write_text(json.dumps(metadata))
        option = "--config" if IS_1_0 else "--metadata"
        result = CliRunner().invoke(serve, [str(path), option, str(file), "--get", "/blog.json"])
        sentence = f'Error: colbert-sqlite: sql_functions must be true, false or "actors", not {switch!r}\n'
        assert result.output == sentence
        assert result.exit_code == 1


@pytest.mark.asyncio
async def test_databases_that_are_joined_are_searched_by_their_names(path: Path, encoder: Encoder) -> None:
    other = path.with_name("other one.db")
    conn = sqlite3.connect(other)
    conn.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT)")
    conn.execute("INSERT INTO notes VALUES (7, 'comet')")
    conn.commit()
    Index.create(conn, "notes", ["body"], model=encoder)
    conn.close()
    datasette = serving(path, other, crossdb=True)
    sql = "select json_extract(colbert_search(:index, 'comet', 1), '$[0].pk')"
    assert await rows(datasette, "_memory", sql, index="blog.posts") == [[2]]
    assert await rows(datasette, "_memory", sql, index="other one.notes") == [[7]]
    alone = serving(path, memory=True)
    assert await rows(alone, "_memory", sql, index="blog.posts") == REFUSED


@pytest.mark.asyncio
async def test_writes_may_search_where_everybody_may(path: Path) -> None:
    datasette = serving(path, plugin={"sql_functions": True})
    await datasette.invoke_startup()
    database = datasette.get_database("blog")
    await database.execute_write("create table best as select colbert_search('posts', 'comet', 1) as hits")
    [[hits]] = [tuple(row) for row in (await database.execute("select hits from best")).rows]
    assert [hit["pk"] for hit in json.loads(hits)] == [2]
