"""Who may see what of an index in Datasette: a forbidden table leaks nothing through any door."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils
import sqlite_utils_colbert
from datasette.app import Datasette
from datasette_colbert import access, compat, known
from datasette_colbert.compat import may_manage
from datasette_colbert.state import state_of
from sqlite_utils.plugins import pm as sqlite_utils_plugins

from colbert_sqlite.encoders import Encoder
from tests.datasette.helpers import IS_1_0, ROOT, SIGNED_IN, get, only_for, rows, serving, write_secrets

REFUSED = "user-defined function raised exception"
SEARCH = "select json_extract(colbert_search(:index, 'comet', 1), '$[0].pk')"
OTHER = {"id": "bob"}


@pytest.fixture
def path(indexed_blog: Path, tmp_path: Path, encoder: Encoder) -> Path:
    """Posts that everybody may see, and secrets, both indexed."""
    return write_secrets(Path(shutil.copy(indexed_blog, tmp_path)), encoder)


@pytest.fixture
def datasette(path: Path) -> Datasette:
    """Only ann may see the secrets; SQL functions are on for everybody, so that only the tables' permissions count."""
    return serving(path, config=only_for("ann", "blog", ["secrets"]), plugin={"sql_functions": True})


@pytest.mark.asyncio
@pytest.mark.parametrize("actor", [None, OTHER])
@pytest.mark.parametrize(
    "page", ["{}", "{}.json", "{}?q=comet", "{}.json?q=comet", "{}/similar/1", "{}/similar/1.json"]
)
async def test_an_index_of_a_forbidden_table_is_as_unknown_as_one_that_is_not_there(
    datasette: Datasette, page: str, actor: Any
) -> None:
    forbidden = await get(datasette, "/blog/-/colbert/" + page.format("secrets"), actor)
    unknown = await get(datasette, "/blog/-/colbert/" + page.format("nothing"), actor)
    assert (forbidden.status_code, unknown.status_code) == (404, 404)
    assert forbidden.text == unknown.text
    assert {**forbidden.headers} == {**unknown.headers}
    allowed = await get(datasette, "/blog/-/colbert/" + page.format("secrets"), SIGNED_IN)
    assert allowed.status_code == 200


@pytest.mark.asyncio
async def test_finding_out_takes_the_same_checks_whether_it_is_there_or_not(
    datasette: Datasette, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[list[str]] = []
    visible_tables = compat.visible_tables

    async def counting(datasette: Datasette, actor: Any, database: str, tables: Any) -> set[str]:
        checked.append(sorted(tables))
        return await visible_tables(datasette, actor, database, tables)

    monkeypatch.setattr(access, "visible_tables", counting)
    by_index = []
    for index in ("secrets", "nothing"):
        checked.clear()
        await get(datasette, f"/blog/-/colbert/{index}.json", None, q="comet")
        by_index.append([tables for tables in checked if tables])
    assert by_index[0] == by_index[1]


@pytest.mark.asyncio
async def test_the_list_has_only_what_the_actor_may_see(datasette: Datasette) -> None:
    async def listed(actor: Any) -> list[str]:
        answer = (await get(datasette, "/blog/-/colbert.json", actor, _shape="array")).json()
        return [index["name"] for index in answer]

    assert await listed(None) == ["posts"]
    assert await listed(OTHER) == ["posts"]
    assert await listed(SIGNED_IN) == ["posts", "secrets"]
    assert "secrets" not in (await get(datasette, "/blog/-/colbert", OTHER)).text


@pytest.mark.asyncio
@pytest.mark.parametrize("actor", [None, OTHER])
async def test_sql_functions_find_nothing_of_a_forbidden_table(
    datasette: Datasette, actor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert await rows(datasette, "blog", SEARCH, actor=actor, index="posts") == [[2]]
    assert await rows(datasette, "blog", SEARCH, actor=actor, index="secrets") == REFUSED
    about_secrets = caplog.messages[-1]
    assert await rows(datasette, "blog", SEARCH, actor=actor, index="nothing") == REFUSED
    assert caplog.messages[-1] == about_secrets.replace("'secrets'", "'nothing'")
    assert about_secrets == "colbert_search: no index 'secrets' in this database; it has posts"
    assert await rows(datasette, "blog", SEARCH, actor=SIGNED_IN, index="secrets") == [[1]]


@pytest.mark.asyncio
async def test_a_view_and_a_nested_call_search_no_more_than_their_reader_may(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute(
            "CREATE VIEW best AS SELECT p.title FROM posts p WHERE p.id IN (SELECT json_extract(value, '$.pk') FROM"
            " json_each(colbert_search('secrets', 'comet', 1)))"
        )
        conn.commit()
    datasette = serving(path, config=only_for("ann", "blog", ["secrets"]), plugin={"sql_functions": True})
    assert (await get(datasette, "/blog/best.json", OTHER)).status_code != 200
    assert (await get(datasette, "/blog/best.json", SIGNED_IN)).status_code == 200


@pytest.mark.asyncio
async def test_an_error_is_told_to_nobody_else(path: Path) -> None:
    datasette = serving(path, plugin={"sql_functions": True}, settings={"num_sql_threads": 1})
    await rows(datasette, "blog", SEARCH, actor=SIGNED_IN, index="my secret project")
    [[sentence]] = await rows(datasette, "blog", "select colbert_error()", actor=OTHER)
    assert sentence is None
    [[sentence]] = await rows(datasette, "blog", "select colbert_error()", actor=SIGNED_IN)
    assert sentence == "colbert_search: no index 'my secret project' in this database; it has posts, secrets"


@pytest.mark.asyncio
async def test_a_page_says_why_a_function_failed(path: Path) -> None:
    datasette = serving(path, plugin={"sql_functions": True})
    where = "colbert_search('nothing', 'comet', 1) != ''"
    for url in ("/blog/posts", "/blog/posts.json"):
        text = (await get(datasette, url, SIGNED_IN, _where=where)).text
        assert "no index" in text and "nothing" in text


@pytest.mark.asyncio
async def test_nobody_sees_the_tables_an_index_of_a_forbidden_table_is_made_of(datasette: Datasette) -> None:
    for table in ("_colbert_secrets_passages", "_colbert_secrets_residuals", "_colbert_indexes"):
        assert (await get(datasette, f"/blog/{table}.json", OTHER)).status_code == 403
        assert (await get(datasette, f"/blog/{table}.json", SIGNED_IN)).status_code == 200
    assert (await get(datasette, "/blog/_colbert_posts_passages.json", OTHER)).status_code == 200
    tables = (await get(datasette, "/blog.json?_show_hidden=1", OTHER)).json()["tables"]
    assert not [table["name"] for table in tables if "secrets" in table["name"]]


@pytest.mark.asyncio
async def test_the_tables_of_indexes_are_hidden(path: Path) -> None:
    datasette = serving(path)
    await datasette.invoke_startup()
    hidden = await datasette.get_database("blog").hidden_table_names()
    assert {"_colbert_indexes", "_colbert_posts_passages", "_colbert_secrets_queue"} <= {*hidden}
    assert "posts" not in hidden


@pytest.mark.asyncio
async def test_sql_that_an_anonymous_visitor_wrote_calls_no_functions_by_default(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasette = serving(path)
    for sql in (SEARCH, "select colbert_score('a', 'a'), :index", "select colbert_rerank('a', 1, 'a'), :index"):
        assert "raise" in await rows(datasette, "blog", sql, actor=None, index="posts")
        assert "SQL of your own may call this only once you are signed in" in caplog.messages[-1]
    assert await rows(datasette, "blog", SEARCH, actor=OTHER, index="posts") == [[2]]
    response = await get(datasette, "/blog/posts.json", None, _where="colbert_search('posts', 'comet', 1) != ''")
    assert response.status_code != 200


@pytest.mark.asyncio
async def test_a_saved_query_may_search_for_anybody(path: Path) -> None:
    saved = {"databases": {"blog": {"queries": {"search": {"sql": SEARCH.replace(":index", "'posts'") + ", :q"}}}}}
    datasette = serving(path, config=saved)
    answer = (await get(datasette, "/blog/search.json", None, q="x", _shape="arrays")).json()
    assert answer["rows"] == [[2, "x"]]


@pytest.mark.asyncio
async def test_who_is_unknown_may_not_search(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datasette = serving(path)
    await datasette.invoke_startup()
    with pytest.raises(sqlite3.OperationalError):
        await datasette.get_database("blog").execute_write("create table t as select colbert_search('posts', 'a', 1)")
    assert "who runs this statement is not known" in caplog.text


@pytest.mark.asyncio
async def test_only_configured_indexes_are_served(path: Path) -> None:
    datasette = serving(path, plugin={"indexes": ["Posts"], "sql_functions": True})
    assert (await get(datasette, "/blog/-/colbert/posts.json", q="comet")).status_code == 200
    assert (await get(datasette, "/blog/-/colbert/secrets.json", q="comet")).status_code == 404
    assert await rows(datasette, "blog", SEARCH, index="secrets") == REFUSED


@pytest.mark.asyncio
async def test_sql_finds_no_more_rows_at_a_time_than_configured(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    datasette = serving(path, plugin={"max_k": 20})
    assert await rows(datasette, "blog", "select json_array_length(colbert_search('posts', 'a', 20))") == [[4]]
    assert await rows(datasette, "blog", "select colbert_search('posts', 'a', 21)") == REFUSED
    assert caplog.messages[-1] == "colbert_search: k must be at most 20 here, not 21"


@pytest.mark.asyncio
async def test_a_database_that_may_not_be_seen_lists_no_indexes(path: Path) -> None:
    datasette = serving(path, config={"databases": {"blog": {"allow": {"id": "ann"}}}})
    assert (await get(datasette, "/blog/-/colbert", OTHER)).status_code == 403
    assert (await get(datasette, "/blog/-/colbert/posts", OTHER)).status_code == 404
    assert (await get(datasette, "/blog/-/colbert", SIGNED_IN)).status_code == 200


@pytest.mark.asyncio
@pytest.mark.parametrize("scope", [None, "everywhere", "blog"])
async def test_root_may_manage_and_others_may_when_configured(path: Path, scope: str | None) -> None:
    permissions = {"permissions": {"colbert-manage": {"id": "bob"}}}
    configs: dict[str | None, dict[str, Any]] = {
        None: {},
        "everywhere": permissions,
        "blog": {"databases": {"blog": permissions}},
    }
    datasette = serving(path, config=configs[scope])
    await datasette.invoke_startup()
    assert not await may_manage(datasette, None, "blog")
    assert not await may_manage(datasette, SIGNED_IN, "blog")
    assert await may_manage(datasette, OTHER, "blog") is (scope is not None)
    if scope is None:
        if IS_1_0:
            datasette.root_enabled = True
        assert await may_manage(datasette, ROOT, "blog")


@pytest.mark.asyncio
async def test_a_damaged_registry_harms_no_other_page(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("UPDATE _colbert_indexes SET name = x'00' WHERE name = 'posts'")
        conn.commit()
    datasette = serving(path)
    assert (await get(datasette, "/blog/posts.json")).status_code == 200
    for actor in (None, SIGNED_IN):
        assert (await get(datasette, "/blog/-/colbert/posts", actor)).status_code == 404
        # Nobody can tell whose tables these are made of.
        assert (await get(datasette, "/blog/_colbert_posts_codes.json", actor)).status_code == 403
        assert (await get(datasette, "/blog/_colbert_indexes.json", actor)).status_code == 403
    assert caplog.text.count("the indexes of database 'blog' can't be read") == 1
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("UPDATE _colbert_indexes SET name = 'posts' WHERE name = x'00'")
        conn.commit()
    monkeypatch.setattr(known, "SECONDS_TO_RETRY", 0)
    state_of(datasette, known.Registries).retry_at.clear()
    assert (await get(datasette, "/blog/-/colbert/posts")).status_code == 200


@pytest.mark.asyncio
@pytest.mark.parametrize("switch", [False, "actors"])
async def test_no_other_plugin_puts_functions_without_a_guard_on_a_connection(path: Path, switch: Any) -> None:
    datasette = serving(path, plugin={"sql_functions": switch}, settings={"num_sql_threads": 1})
    await datasette.invoke_startup()
    # Whatever is installed is registered by the first of them.
    sqlite_utils.Database(memory=True).close()
    is_registered = sqlite_utils_plugins.is_registered(sqlite_utils_colbert)
    name = None if is_registered else sqlite_utils_plugins.register(sqlite_utils_colbert)
    try:
        database = datasette.get_database("blog")
        tables = await database.execute_fn(lambda conn: sqlite_utils.Database(conn).table_names())
    finally:
        if name:
            sqlite_utils_plugins.unregister(sqlite_utils_colbert)
    assert "posts" in tables
    assert await rows(datasette, "blog", SEARCH, actor=None, index="posts") != [[2]]


@pytest.mark.asyncio
async def test_metadata_that_everybody_reads_names_no_index(datasette: Datasette) -> None:
    response = await get(datasette, "/-/metadata.json")
    assert "_colbert" not in response.text


@pytest.mark.asyncio
async def test_an_index_whose_table_is_gone_names_no_other_table(
    datasette: Datasette, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("ALTER TABLE posts RENAME TO articles")
        conn.commit()
    for url in ("/blog/-/colbert/posts.json?q=comet", "/blog/-/colbert/posts/similar/1.json"):
        assert "secrets" not in (await get(datasette, url)).text


@pytest.mark.asyncio
async def test_an_anonymous_visitor_is_told_no_error_of_another(path: Path) -> None:
    datasette = serving(path, plugin={"sql_functions": True}, settings={"num_sql_threads": 1})
    await rows(datasette, "blog", SEARCH, actor=None, index="my secret project")
    assert await rows(datasette, "blog", "select colbert_error()", actor=None) == [[None]]
