"""The search pages of the Datasette plugin and their JSON."""

from __future__ import annotations

import asyncio
import csv
import re
import shutil
import sqlite3
import threading
from contextlib import closing
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from datasette_colbert.service import Busy, SearchRequest, Service, TookTooLong, service_of

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.index import Index
from tests.datasette.helpers import IS_1_0, ROOT, get, serving

PAGE = "/blog/-/colbert/posts"
N_ROWS = 30


@pytest.fixture(scope="module")
def thirty_posts(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Path:
    """Thirty posts, all about comets to some degree, in three topics, with a date, a heading and FTS5."""
    path = tmp_path_factory.mktemp("thirty_posts") / "blog.db"
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT)")
        conn.executemany("INSERT INTO topics VALUES (?, ?)", [(1, "sky"), (2, "sea"), (3, "soil")])
        conn.execute(
            "CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT, body TEXT, created TEXT,"
            " topic INTEGER REFERENCES topics(id))"
        )
        for i in range(1, N_ROWS + 1):
            body = f"comet {'ice ' * (i % 7)} tail number {i} of the long night"
            conn.execute(
                "INSERT INTO posts VALUES (?, ?, ?, ?, ?)",
                (i, f"Post <{i}>", body, f"2024-01-{i:02} 10:00:00", i % 3 + 1),
            )
        conn.execute("CREATE VIRTUAL TABLE posts_fts USING fts5(body, content=\"posts\", content_rowid='id')")
        conn.execute("INSERT INTO posts_fts(posts_fts) VALUES ('rebuild')")
        conn.commit()
        Index.create(conn, "posts", ["body"], heading="title", model=encoder)
    return path


@pytest.fixture
def path(thirty_posts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(thirty_posts, tmp_path))


@pytest.fixture
def datasette(path: Path) -> Datasette:
    return serving(path)


async def json_rows(datasette: Datasette, **args: str) -> list[dict[str, Any]]:
    response = await get(datasette, f"{PAGE}.json", None, _shape="array", **args)
    assert response.status_code == 200, response.text
    rows: list[dict[str, Any]] = response.json()
    return rows


def searched(path: Path, k: int, **options: Any) -> list[Any]:
    with Index.open(path, "posts") as index:
        return [hit.pk for hit in index.search("comet ice", k, **options)]


@pytest.mark.asyncio
async def test_json_has_the_hits_of_a_search(datasette: Datasette, path: Path) -> None:
    rows = await json_rows(datasette, q="comet ice", _size="5")
    with Index.open(path, "posts") as index:
        hits = index.search("comet ice", 5)
    assert [row["pk"] for row in rows] == [hit.pk for hit in hits]
    first = hits[0]
    assert rows[0] == {
        "rank": 1,
        "score": first.score,
        "normalized_score": first.normalized_score,
        "pk": first.pk,
        "url": f"/blog/posts/{first.pk}",
        "passage": first.passage.text,
        "stale": False,
        "row": first.row,
    }


@pytest.mark.asyncio
async def test_rows_have_the_shape_of_the_datasette_that_serves_them(datasette: Datasette) -> None:
    whole = (await get(datasette, f"{PAGE}.json", q="comet", _size="2")).json()
    assert [type(row) for row in whole["rows"]] == [dict if IS_1_0 else list] * 2
    assert whole["mode"] == "colbert" and whole["pending_changes"] == 0 and whole["milliseconds"] > 0
    lines = await get(datasette, f"{PAGE}.json", q="comet", _size="2", _shape="array", _nl="on")
    assert len(lines.text.splitlines()) == 2
    assert (await get(datasette, f"{PAGE}.json", q="comet", _shape="round")).status_code == 400


@pytest.mark.asyncio
async def test_an_error_has_the_shape_of_the_datasette_that_tells_it(datasette: Datasette) -> None:
    response = await get(datasette, f"{PAGE}.json", q="comet", _mode="semantic")
    sentence = "_mode must be colbert, hybrid or fts, not 'semantic'"
    expected: dict[str, Any] = {"ok": False, "error": sentence, "status": 400}
    expected |= {"errors": [sentence]} if IS_1_0 else {"title": None}
    assert (response.status_code, response.json()) == (400, expected)
    page = await get(datasette, PAGE, q="comet", _mode="semantic")
    assert page.status_code == 400
    assert f"{sentence}." in unescape(page.text)


@pytest.mark.asyncio
async def test_rows_have_the_columns_that_are_asked_for(datasette: Datasette) -> None:
    [row] = await json_rows(datasette, q="comet", _size="1", _col="title")
    assert [*row["row"]] == ["title"]
    [row] = await json_rows(datasette, q="comet", _size="1", _nocol="body")
    assert [*row["row"]] == ["id", "title", "created", "topic"]


@pytest.mark.asyncio
async def test_explanations_come_when_asked_for(datasette: Datasette) -> None:
    [row] = await json_rows(datasette, q="comet ice", _size="1", _explain="1")
    assert [match["text"] for match in row["explanation"]["matches"]] == ["comet", "ice"]


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ["colbert", "fts", "hybrid"])
async def test_pages_follow_each_other_without_gaps_or_repetitions(datasette: Datasette, mode: str) -> None:
    seen: list[int] = []
    url: str | None = f"{PAGE}.json?q=comet+ice&_size=7&_mode={mode}"
    pages = 0
    while url:
        answer = (await get(datasette, url)).json()
        rows = answer["rows"] if IS_1_0 else [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]
        assert [row["rank"] for row in rows] == [*range(len(seen) + 1, len(seen) + len(rows) + 1)]
        seen += [row["pk"] for row in rows]
        url, pages = answer["next_url"] and answer["next_url"].replace("http://localhost", ""), pages + 1
    assert pages == 5
    assert sorted(seen) == [*range(1, N_ROWS + 1)]


@pytest.mark.asyncio
async def test_no_more_rows_than_configured_can_be_reached(path: Path) -> None:
    datasette = serving(path, plugin={"page_size": 4, "max_k": 10})
    assert [len(await json_rows(datasette, q="comet", _page=page)) for page in "1234"] == [4, 4, 2, 0]
    response = await get(datasette, f"{PAGE}.json", q="comet", _size="11")
    assert response.json()["error"] == "_size must be a whole number from 1 to 10, not '11'"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("args", "where"),
    [
        ({"topic": "2"}, "topic = 2"),
        ({"created__gte": "2024-01-20", "topic__not": "1"}, "created >= '2024-01-20' and topic != 1"),
        ({"_where": "id % 2 = 0"}, "id % 2 = 0"),
        ({"_search": "ice"}, "body like '%ice%'"),
    ],
)
async def test_filters_of_table_pages_filter_before_the_rows_are_scored(
    datasette: Datasette, path: Path, args: dict[str, Any], where: str
) -> None:
    rows = await json_rows(datasette, q="comet ice", _size="5", **args)
    assert [row["pk"] for row in rows] == searched(path, 5, where=where)
    page = await get(datasette, PAGE, q="comet ice", **args)
    assert page.text.count("remove this filter") == len(args)


@pytest.mark.asyncio
async def test_a_filter_that_can_not_be_used_is_refused_with_a_sentence(datasette: Datasette) -> None:
    refused: list[dict[str, Any]] = [{"_where": "no such thing"}, {"color": "red"}]
    for args in refused:
        response = await get(datasette, f"{PAGE}.json", q="comet", **args)
        assert response.status_code == 400
        assert re.search("can't be used|has no column 'color'", response.json()["error"])


@pytest.mark.asyncio
async def test_the_filter_form_leads_to_a_clean_address(datasette: Datasette) -> None:
    response = await get(datasette, PAGE, q="comet", _filter_column="topic", _filter_op="exact", _filter_value="2")
    assert response.status_code == 302
    assert response.headers["location"] == f"{PAGE}?q=comet&topic__exact=2"


@pytest.mark.asyncio
async def test_facets_count_the_rows_that_were_found(datasette: Datasette) -> None:
    page = (await get(datasette, PAGE, q="comet", _facet="topic", id__lte="15")).text
    counts = re.findall(r'>(sky|sea|soil)</a> (?:<span class="facet-count">)?(\d+)', page)
    assert sorted(counts) == [("sea", "5"), ("sky", "5"), ("soil", "5")]
    assert "_facet=topic" in (await get(datasette, PAGE, q="comet")).text


@pytest.mark.asyncio
async def test_configured_facets_count_them_too(path: Path) -> None:
    config = {"databases": {"blog": {"tables": {"posts": {"facets": ["topic"]}}}}}
    page = (await get(serving(path, config=config), PAGE, q="comet")).text
    assert "Counted among the best 30 rows" in page


@pytest.mark.asyncio
async def test_words_that_answer_are_marked_and_the_rest_is_escaped(datasette: Datasette) -> None:
    page = (await get(datasette, PAGE, q="comet", _size="1")).text
    assert re.search(r'<mark class="colbert-heat-4" data-query-word="0"[^>]*>comet</mark>', page)
    assert "Post &lt;" in page and "Post <" not in page
    script = (await get(datasette, PAGE, q="<script>alert(1)</script>")).text
    assert "<script>alert" not in script


@pytest.mark.asyncio
async def test_a_hit_has_its_date_and_leads_to_its_row_and_to_similar_ones(datasette: Datasette) -> None:
    [row] = await json_rows(datasette, q="comet ice", _size="1")
    page = (await get(datasette, PAGE, q="comet ice", _size="1")).text
    assert f"2024-01-{row['pk']:02}" in page
    assert f'href="/blog/posts/{row["pk"]}"' in page
    assert f'href="{PAGE}/similar/{row["pk"]}"' in page


@pytest.mark.asyncio
async def test_a_change_that_is_not_synced_is_told(datasette: Datasette, path: Path) -> None:
    assert "not in the index yet" not in (await get(datasette, PAGE, q="comet")).text
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("UPDATE posts SET body = 'comet ice ice ice' WHERE id = 1")
        conn.commit()
    page = (await get(datasette, PAGE, q="comet ice", id="1")).text
    assert "1 change is not in the index yet" in page
    assert "This row was changed after it was indexed" in page
    [row] = await json_rows(datasette, q="comet ice", id="1")
    assert row["stale"]
    with Index.open(path, "posts") as index:
        index.sync()
    assert "not in the index yet" not in (await get(datasette, PAGE, q="comet")).text


@pytest.mark.asyncio
async def test_an_index_is_searched_as_it_is_now(datasette: Datasette, path: Path) -> None:
    assert await json_rows(datasette, q="comet")
    with closing(sqlite3.connect(path)) as conn:
        Index.create(conn, "posts", ["title"], model="hashing-32", replace=True)
    assert [row["passage"] for row in await json_rows(datasette, q="Post 17", _size="1")] == ["Post <17>"]
    with Index.open(path, "posts") as index:
        index.drop()
    assert (await get(datasette, f"{PAGE}.json", q="comet")).status_code == 404


@pytest.mark.asyncio
async def test_the_default_mode_is_configured(path: Path) -> None:
    datasette = serving(path, plugin={"mode": "fts"})
    answer = (await get(datasette, f"{PAGE}.json", q="tail")).json()
    assert answer["mode"] == "fts"


@pytest.mark.asyncio
async def test_a_default_mode_that_needs_fts5_gives_way_where_there_is_none(indexed_blog: Path) -> None:
    datasette = serving(indexed_blog, plugin={"mode": "hybrid"})
    answer = (await get(datasette, f"{PAGE}.json", q="comet")).json()
    assert answer["mode"] == "colbert"
    assert (await get(datasette, "/blog/posts.json", _colbert="comet")).status_code == 200


@pytest.mark.asyncio
async def test_links_keep_the_path_that_the_server_is_at(path: Path) -> None:
    datasette = serving(path, settings={"base_url": "/below/"})
    # Datasette's own client asks for paths below base_url.
    page = (await get(datasette, PAGE, q="comet ice", _size="5", topic="2")).text
    links = [unescape(link) for link in re.findall(r'href="([^"]+)"', page) if "/-/colbert/" in link]
    assert f"/below{PAGE}?q=comet+ice&_size=5&topic=2&_page=2" in links
    assert f"/below{PAGE}?q=comet+ice&_size=5" in links
    assert {link for link in links if not link.startswith(f"/below{PAGE}")} == set()


@pytest.mark.asyncio
async def test_modes_that_need_fts5_say_so_without_it(indexed_blog: Path) -> None:
    datasette = serving(indexed_blog)
    assert (await get(datasette, PAGE, ROOT, q="comet")).text.count("the table has no FTS5 index") == 2
    assert "FTS5" not in (await get(datasette, PAGE, q="comet")).text
    response = await get(datasette, f"{PAGE}.json", q="comet", _mode="fts")
    assert response.status_code == 400
    assert response.json()["error"] == "table posts has no FTS5 index, which mode fts needs"


@pytest.mark.asyncio
async def test_without_a_query_the_page_tells_what_can_be_asked(datasette: Datasette) -> None:
    for query in ("", "  "):
        page = await get(datasette, PAGE, q=query)
        assert page.status_code == 200
        assert "30 rows" in page.text
        assert await json_rows(datasette, q=query) == []


@pytest.mark.asyncio
async def test_similar_rows_are_those_of_the_index(datasette: Datasette, path: Path) -> None:
    rows = (await get(datasette, f"{PAGE}/similar/3.json", _shape="array")).json()
    with Index.open(path, "posts") as index:
        assert [row["pk"] for row in rows] == [hit.pk for hit in index.similar(3, 10)]
    assert (await get(datasette, f"{PAGE}/similar/3")).status_code == 200
    for key in ("99", "x", "1,2"):
        assert (await get(datasette, f"{PAGE}/similar/{key}.json")).status_code == 404


@pytest.mark.asyncio
async def test_what_is_wrong_with_an_index_is_told_only_to_the_log(
    datasette: Datasette, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("UPDATE _colbert_posts_codec SET bucket_weights = x'00'")
        conn.commit()
    response = await get(datasette, f"{PAGE}.json", q="comet")
    sentence = "This index can't be searched at the moment. What is wrong is in the server's log"
    assert (response.status_code, response.json()["error"]) == (500, sentence)
    assert "index 'posts' of database 'blog'" in caplog.text


@pytest.mark.asyncio
async def test_more_searches_than_may_wait_are_told_to_come_again(path: Path) -> None:
    datasette = serving(path, plugin={"num_search_threads": 1, "max_queued_searches": 1})
    service, release = service_of(datasette), threading.Event()
    waiting = [asyncio.ensure_future(service._run(release.wait)) for _ in range(2)]
    await asyncio.sleep(0.05)
    try:
        for url in (f"{PAGE}.json?q=comet", f"{PAGE}?q=comet", "/blog/-/colbert.json", f"{PAGE}/similar/1.json"):
            response = await get(datasette, url)
            assert response.status_code == 503, url
            assert response.headers["retry-after"] == "2"
            assert "oo many searches at a time" in response.text
        # Everything else goes on meanwhile.
        assert (await get(datasette, "/blog/posts.json")).status_code == 200
    finally:
        release.set()
    await asyncio.gather(*waiting)
    assert (await get(datasette, f"{PAGE}.json?q=comet")).status_code == 200


@pytest.mark.asyncio
async def test_a_search_that_takes_too_long_is_given_up(path: Path) -> None:
    datasette = serving(path, plugin={"search_time_limit_ms": 300})
    await datasette.invoke_startup()
    endless = "(with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n) > 0"
    service = service_of(datasette)
    await service.search("blog", "posts", SearchRequest("comet", 1, "colbert"))
    with pytest.raises(TookTooLong, match="longer than 0.3 seconds: use fewer or simpler filters"):
        await service.search("blog", "posts", SearchRequest("comet", 1, "colbert", endless))
    # SQLite stopped: the only thread is free again.
    assert (await service.search("blog", "posts", SearchRequest("comet", 1, "colbert"))).hits == []
    response = await get(datasette, f"{PAGE}.json", q="comet", _where=endless)
    assert response.status_code == 503


@pytest.mark.asyncio
async def test_what_waits_longer_than_it_may_is_told_to_come_again(path: Path) -> None:
    service, release = Service(serving(path, plugin={"search_time_limit_ms": 100})), threading.Event()
    blocking = asyncio.ensure_future(service._run(lambda: release.wait(5)))
    await asyncio.sleep(0.02)
    with pytest.raises(Busy):
        await service._run(lambda: None)
    release.set()
    with pytest.raises(TookTooLong):
        await blocking


@pytest.mark.asyncio
async def test_warming_searches_every_index_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(sqlite3.connect(path)) as conn:
        Index.create(conn, "topics", ["name"], model="hashing-32")
        conn.execute("UPDATE _colbert_indexes SET checksum = x'00' WHERE name = 'topics'")
        conn.commit()
    datasette = serving(path)
    await datasette.invoke_startup()
    service = service_of(datasette)
    service.warm()
    await service._run(lambda: None)
    assert caplog.text.count("can't be searched") == 1
    assert "index 'topics' of database 'blog' can't be searched" in caplog.text


@pytest.mark.asyncio
async def test_a_page_of_a_database_that_never_changes(path: Path) -> None:
    datasette = Datasette([], immutables=[str(path)])
    lock = sqlite3.connect(path)
    lock.execute("BEGIN EXCLUSIVE")
    assert (await get(datasette, f"{PAGE}.json", q="comet")).status_code == 200
    lock.close()


@pytest.mark.asyncio
async def test_csv_has_the_rows_of_the_page_best_first(datasette: Datasette) -> None:
    answer = await get(datasette, f"{PAGE}.csv", q="comet ice", _size="3", _col="title")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    lines = [*csv.reader(answer.text.splitlines())]
    assert lines[0] == ["rank", "score", "normalized_score", "stale", "passage", "title"]
    rows = await json_rows(datasette, q="comet ice", _size="3")
    assert [line[-1] for line in lines[1:]] == [row["row"]["title"] for row in rows]
    assert (await get(datasette, f"{PAGE}.csv", q="comet", _mode="x")).status_code == 400


@pytest.mark.asyncio
async def test_the_largest_page_has_every_row_that_can_be_found(datasette: Datasette) -> None:
    assert len(await json_rows(datasette, q="comet", _size="max")) == N_ROWS


@pytest.mark.asyncio
async def test_a_column_that_is_not_there_is_refused(datasette: Datasette) -> None:
    response = await get(datasette, f"{PAGE}.json", q="comet", _col="color")
    assert (response.status_code, response.json()["error"]) == (400, "table posts has no column 'color'")


@pytest.mark.asyncio
async def test_a_row_without_marks_says_so(datasette: Datasette) -> None:
    assert "No word of it stands out" in (await get(datasette, PAGE, q="tax returns", _size="1")).text
    assert "No word of it stands out" not in (await get(datasette, PAGE, q="comet", _size="1")).text


@pytest.mark.asyncio
async def test_filters_have_the_time_of_any_sql(path: Path) -> None:
    datasette = serving(path, settings={"sql_time_limit_ms": 200})
    endless = "(with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n) > 0"
    response = await get(datasette, f"{PAGE}.json", q="comet", _where=endless)
    sentence = "the filters take longer than 200 ms: use fewer or simpler ones"
    assert (response.status_code, response.json()["error"]) == (400, sentence)


@pytest.mark.asyncio
@pytest.mark.parametrize("args", [{"_size": "0000000001000000"}, {"_facet": "color"}, {"_page": "x"}])
async def test_arguments_that_can_not_be_are_refused(datasette: Datasette, args: dict[str, Any]) -> None:
    assert (await get(datasette, PAGE, q="comet", **args)).status_code == 400
