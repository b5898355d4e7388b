"""What Datasette's own pages of tables, rows and databases have of an index."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from datasette.app import Datasette
from datasette_colbert.service import service_of
from selectolax.lexbor import LexborHTMLParser

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.index import Index
from tests.datasette.helpers import IS_1_0, ROOT, SIGNED_IN, get, only_for, serving

OTHER = {"id": "bob"}
# A new one for each response.
TOKEN = re.compile(r'<input type="hidden" name="csrftoken" value="[^"]+">')
QUERY = "the icy tail of a comet"
WORDS = ["comet", "ice", "icy", "tail", "sun", "dough", "bread", "oven"]
TOPICS = ["sky", "kitchen", "garden"]
# Keys that look alike once they are joined by commas, and that need encoding in a URL.
NOTES = [("a,b", "c"), ("a", "b,c"), ("x/y", "z~"), ("é", "")]


def write(path: Path, encoder: Encoder) -> Path:
    with closing(sqlite3.connect(path)) as conn:
        conn.executescript("""
            CREATE TABLE authors (id INTEGER PRIMARY KEY, name TEXT);
            CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT, body TEXT, topic TEXT,
                author INTEGER REFERENCES authors (id));
            CREATE TABLE notes (body TEXT, second TEXT, score REAL, q TEXT, first TEXT, PRIMARY KEY (first, second))
                WITHOUT ROWID;
            CREATE TABLE chunks (hash BLOB PRIMARY KEY, body TEXT);
            CREATE TABLE plain (id INTEGER PRIMARY KEY, body TEXT);
            CREATE VIEW views AS SELECT * FROM posts;
            INSERT INTO authors VALUES (1, 'Ada & Co'), (2, 'Grace');
            INSERT INTO plain VALUES (1, 'a comet');
        """)
        bodies = [" ".join(word for bit, word in enumerate(WORDS) if i >> bit & 1) for i in range(1, 41)]
        posts = [(f"Post {i}", body, TOPICS[i % 3], 1 + i % 2) for i, body in enumerate(bodies, 1)]
        conn.executemany("INSERT INTO posts (title, body, topic, author) VALUES (?, ?, ?, ?)", posts)
        conn.executemany(
            "INSERT INTO notes VALUES (?, ?, ?, ?, ?)",
            [
                (body, second, i, "yes", first)
                for i, ((first, second), body) in enumerate(zip(NOTES, bodies[3:7], strict=True))
            ],
        )
        conn.execute("INSERT INTO chunks VALUES (x'00ff', 'a comet')")
        conn.execute("CREATE VIRTUAL TABLE notes_words USING fts5 (body)")
        conn.commit()
        Index.create(conn, "posts", ["body"], heading="title", model=encoder)
        Index.create(conn, "notes", ["body"], model=encoder)
        Index.create(conn, "chunks", ["body"], model=encoder)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Path:
    return write(tmp_path_factory.mktemp("tables") / "blog.db", encoder)


@pytest.fixture
def path(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(written, tmp_path))


@pytest.fixture
def datasette(path: Path) -> Datasette:
    return serving(path, plugin={})


def best(path: Path, k: int, where: str | None = None, index: str = "posts", query: str = QUERY) -> list[Any]:
    """The primary keys that the library finds, best first."""
    with Index.open(path, index) as opened:
        return [hit.pk for hit in opened.search(query, k, where=where)]


def url(page: str, *pairs: tuple[str, str], **args: str) -> str:
    return f"{page}?{urlencode([*pairs, *args.items()])}"


def table_rows(response: Any) -> list[dict[str, str]]:
    """The rows of the table on a page, as texts by column."""
    assert response.status_code == 200, response.text
    tree = LexborHTMLParser(response.text)
    columns = [th.attributes["data-column"] or "" for th in tree.css("table.rows-and-columns th")]
    return [
        dict(zip(columns, (td.text().strip() for td in tr.css("td")), strict=True))
        for tr in tree.css("table.rows-and-columns tbody tr")
    ]


def ids(response: Any) -> list[int]:
    return [int(row["id"]) for row in table_rows(response)]


def summary(response: Any) -> str:
    """What a page says above its rows."""
    heading = LexborHTMLParser(response.text).css_first("h3")
    return " ".join(heading.text().split())


def sentence(response: Any) -> str:
    """What an error in JSON says."""
    return str(response.json()["error"])


def box(response: Any) -> Any:
    """The search box of a page; None if it has none."""
    return LexborHTMLParser(response.text).css_first("form[role=search]")


def link(response: Any, text: str) -> str | None:
    links = [a for a in LexborHTMLParser(response.text).css("a") if text in a.text()]
    return links[0].attributes["href"] if links else None


def query_of(href: str | None) -> dict[str, list[str]]:
    assert href is not None
    return parse_qs(urlsplit(href).query, keep_blank_values=True)


@pytest.mark.asyncio
async def test_a_page_has_the_best_rows_best_first_with_their_scores(datasette: Datasette, path: Path) -> None:
    response = await get(datasette, url("/blog/posts", _colbert=QUERY, _size="7"))
    rows = table_rows(response)
    assert [int(row["id"]) for row in rows] == best(path, 7)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    with Index.open(path, "posts") as index:
        assert [row["score"] for row in rows] == [f"{hit.score:.2f}" for hit in index.search(QUERY, 7)]
    assert list(rows[0]) == ["id", "score", "title", "body", "topic", "author"]
    assert summary(response) == f'7 rows where text best answers "{QUERY}"'


@pytest.mark.asyncio
async def test_other_filters_narrow_first(datasette: Datasette, path: Path) -> None:
    response = await get(datasette, url("/blog/posts", _colbert=QUERY, _size="4", topic="sky", id__gt="10"))
    assert ids(response) == best(path, 4, "topic = 'sky' AND id > 10")
    assert summary(response) == f'4 rows where text best answers "{QUERY}", id > 10 and topic = "sky"'
    response = await get(datasette, url("/blog/posts", _colbert=QUERY, _size="4", _where="id % 5 = 0"), SIGNED_IN)
    assert ids(response) == best(path, 4, "id % 5 = 0")


@pytest.mark.asyncio
async def test_there_is_one_page_of_as_many_rows_as_pages_have(path: Path) -> None:
    config = {"databases": {"blog": {"tables": {"posts": {"size": 9}}}}}
    assert ids(await get(serving(path, config=config), url("/blog/posts", _colbert=QUERY))) == best(path, 9)
    datasette = serving(path, plugin={"max_k": 6}, settings={"default_page_size": 5})
    for size, k in {"": 5, "3": 3, "6": 6, "20": 6, "max": 6}.items():
        response = await get(datasette, url("/blog/posts", _colbert=QUERY, _size=size))
        assert ids(response) == best(path, k)
        assert "Next page" not in response.text
        answer = (await get(datasette, url("/blog/posts.json", _colbert=QUERY, _size=size))).json()
        assert (len(answer["rows"]), answer["next"]) == (k, None)
    wrong = await get(datasette, url("/blog/posts.json", _colbert=QUERY, _size="many"))
    assert (wrong.status_code, sentence(wrong)) == (400, "_size must be a positive integer")


@pytest.mark.asyncio
@pytest.mark.parametrize(("argument", "order"), [("_sort", "id"), ("_sort_desc", "id DESC")])
async def test_an_order_that_is_asked_for_wins(datasette: Datasette, path: Path, argument: str, order: str) -> None:
    response = await get(datasette, url("/blog/posts", ("_colbert", QUERY), ("_size", "7"), (argument, "id")))
    assert ids(response) == sorted(best(path, 7), reverse="DESC" in order)
    assert all(float(row["score"]) > 0 for row in table_rows(response))
    assert "Best first" not in response.text
    assert f"sorted by id{' descending' if 'DESC' in order else ''}" in summary(response)


@pytest.mark.asyncio
async def test_an_order_that_is_only_configured_does_not(path: Path) -> None:
    config = {"databases": {"blog": {"tables": {"posts": {"sort_desc": "title"}}}}}
    datasette = serving(path, config=config)
    response = await get(datasette, url("/blog/posts", _colbert=QUERY, _size="7", topic="sky"))
    assert ids(response) == best(path, 7, "topic = 'sky'")
    assert summary(response) == f'7 rows where text best answers "{QUERY}" and topic = "sky"'
    assert "sorted by title descending" in summary(await get(datasette, "/blog/posts"))


@pytest.mark.asyncio
async def test_no_column_is_said_to_be_the_order_of_a_page_in_order_of_scores(datasette: Datasette) -> None:
    page = await get(datasette, "/blog/posts")
    assert LexborHTMLParser(page.text).css_first("#sort_by option[selected]").attributes["value"] == "id"
    assert "▼" in page.text
    searched = await get(datasette, url("/blog/posts", _colbert=QUERY))
    # Else applying a filter would hand the order on.
    assert LexborHTMLParser(searched.text).css("#sort_by option[selected]") == []
    assert "▼" not in searched.text
    assert LexborHTMLParser(searched.text).css("th[data-column=score] a") == []


@pytest.mark.asyncio
async def test_json_has_the_same_rows_in_the_order_of_keys(datasette: Datasette, path: Path) -> None:
    expected = sorted(best(path, 7, "topic = 'sky'"))
    page = url("/blog/posts.json", _colbert=QUERY, _size="7", topic="sky", _shape="array")
    assert [row["id"] for row in (await get(datasette, page)).json()] == expected
    page = url("/blog/posts.json", _colbert=QUERY, _size="7", topic="sky", _shape="object", _col="title")
    assert [*(await get(datasette, page)).json()] == [str(pk) for pk in expected]


@pytest.mark.asyncio
@pytest.mark.parametrize("more", [{}, {"_stream": "on"}, {"_dl": "on"}, {"_labels": "on"}])
async def test_csv_has_the_same_rows(datasette: Datasette, path: Path, more: dict[str, str]) -> None:
    response = await get(datasette, url("/blog/posts.csv", _colbert=QUERY, _size="7", topic="sky", **more))
    rows = list(csv.DictReader(io.StringIO(response.text)))
    n_rows = 100 if more == {"_stream": "on"} else 7
    assert sorted(int(row["id"]) for row in rows) == sorted(best(path, n_rows, "topic = 'sky'"))
    assert {row.get("author_label") for row in rows} <= ({"Ada & Co", "Grace"} if more == {"_labels": "on"} else {None})


@pytest.mark.asyncio
async def test_facets_count_what_was_found(datasette: Datasette, path: Path) -> None:
    pks = best(path, 9)
    expected = {topic: sum(TOPICS[pk % 3] == topic for pk in pks) for topic in TOPICS}
    page = url("/blog/posts.json", _colbert=QUERY, _size="9", _facet="topic")
    facets = (await get(datasette, page)).json()["facet_results"]
    [topic] = [facets["results"]["topic"]] if IS_1_0 else [facets["topic"]]
    assert {one["value"]: one["count"] for one in topic["results"]} == {k: n for k, n in expected.items() if n}
    page = url("/blog/posts", _colbert=QUERY, _size="9", _facet="topic")
    assert query_of(link(await get(datasette, page), "kitchen"))["_colbert"] == [QUERY]


@pytest.mark.asyncio
async def test_labels_and_columns_are_as_ever(datasette: Datasette, path: Path) -> None:
    rows = table_rows(await get(datasette, url("/blog/posts", _colbert=QUERY, _size="5", _nocol="body")))
    assert [*rows[0]] == ["id", "score", "title", "topic", "author"]
    authors = {1: "Ada & Co\xa01", 2: "Grace\xa02"}
    assert [row["author"] for row in rows] == [authors[1 + pk % 2] for pk in best(path, 5)]
    rows = table_rows(await get(datasette, url("/blog/posts", _colbert=QUERY, _size="5", _col="topic")))
    assert ([*rows[0]], [int(row["id"]) for row in rows]) == (["id", "score", "topic"], best(path, 5))


@pytest.mark.asyncio
async def test_keys_of_several_texts_are_told_apart(datasette: Datasette, path: Path) -> None:
    response = await get(datasette, url("/blog/notes", _colbert=QUERY))
    rows = table_rows(response)
    expected = best(path, 10, index="notes")
    assert len(expected) == len(NOTES)
    assert [(row["first"], row["second"]) for row in rows] == expected
    with Index.open(path, "notes") as index:
        scores = {hit.pk: f"{hit.score:.2f}" for hit in index.search(QUERY, 10)}
    assert [row["ColBERT score"] for row in rows] == [scores[pk] for pk in expected]
    answer = (await get(datasette, url("/blog/notes.json", _colbert=QUERY, _size="2", _shape="array"))).json()
    assert {(row["first"], row["second"]) for row in answer} == set(best(path, 2, index="notes"))


@pytest.mark.asyncio
async def test_a_column_may_be_called_score_or_q(datasette: Datasette) -> None:
    response = await get(datasette, url("/blog/notes", _colbert=QUERY, q="yes"))
    assert [*table_rows(response)[0]][1:] == ["ColBERT score", "body", "second", "score", "q", "first"]
    assert summary(response) == f'4 rows where text best answers "{QUERY}" and q = "yes"'
    assert query_of(link(response, "See why")) == {"q": [QUERY], "q__exact": ["yes"]}
    assert table_rows(await get(datasette, url("/blog/notes", _colbert=QUERY, q="no"))) == []


@pytest.mark.asyncio
async def test_rows_changed_or_deleted_since_are_as_they_are_now(datasette: Datasette, path: Path) -> None:
    [first, second, third, fourth] = best(path, 4)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("DELETE FROM posts WHERE id = ?", (first,))
        conn.execute("UPDATE posts SET title = 'Changed' WHERE id = ?", (second,))
        conn.commit()
    rows = table_rows(await get(datasette, url("/blog/posts", _colbert=QUERY, _size="3")))
    assert [int(row["id"]) for row in rows] == [second, third, fourth]
    assert [row["title"] for row in rows] == ["Changed", f"Post {third}", f"Post {fourth}"]


@pytest.mark.asyncio
@pytest.mark.parametrize("words", ["", "   "])
async def test_no_words_are_no_filter(datasette: Datasette, words: str) -> None:
    response = await get(datasette, url("/blog/posts", _colbert=words))
    assert (len(table_rows(response)), summary(response)) == (40, "40 rows")
    assert "score" not in table_rows(response)[0]


@pytest.mark.asyncio
@pytest.mark.parametrize("table", ["plain", "authors", "views"])
async def test_a_table_without_an_index_has_nothing_of_this(datasette: Datasette, table: str) -> None:
    plain, searched = await get(datasette, f"/blog/{table}"), await get(datasette, f"/blog/{table}?_colbert=comet")
    assert table_rows(searched) == table_rows(plain)
    assert box(plain) is box(searched) is None
    assert "ColBERT" not in plain.text


@pytest.mark.asyncio
async def test_an_index_that_is_not_served_is_not_there(path: Path) -> None:
    datasette = serving(path, plugin={"indexes": ["notes"]})
    response = await get(datasette, url("/blog/posts", _colbert=QUERY))
    assert (len(table_rows(response)), box(response)) == (40, None)
    assert "Similar rows" not in (await get(datasette, "/blog/posts/1")).text
    menu = await get(datasette, "/blog/posts", ROOT)
    assert (link(menu, "Search with ColBERT"), link(menu, "Create a ColBERT index")) == (None, None)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("table", "args", "message"),
    [
        ("posts", {"_colbert_mode": "best"}, "_colbert_mode must be colbert, hybrid or fts, not 'best'"),
        ("posts", {"_colbert_index": "notes"}, "table posts has no ColBERT index 'notes'; it has posts"),
        ("posts", {"nonsense": "1"}, "table posts has no column 'nonsense' to filter by"),
        ("chunks", {}, "table chunks has BLOBs for keys, which no filter can name: use the search page"),
    ],
)
async def test_what_cant_be_searched_for_is_said(
    datasette: Datasette, table: str, args: dict[str, str], message: str
) -> None:
    answer = await get(datasette, url(f"/blog/{table}.json", _colbert=QUERY, **args))
    assert (answer.status_code, sentence(answer)) == (400, message)
    page = await get(datasette, url(f"/blog/{table}", _colbert=QUERY, **args))
    assert page.status_code == 400
    assert escape(message, quote=False) in page.text.replace("&#39;", "'")


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ["fts", "hybrid"])
async def test_modes_need_what_the_search_page_needs(datasette: Datasette, mode: str) -> None:
    answer = await get(datasette, url("/blog/posts.json", _colbert=QUERY, _colbert_mode=mode))
    assert answer.status_code == 400
    assert "FTS5" in sentence(answer)


@pytest.mark.asyncio
async def test_a_mode_may_be_chosen_or_configured(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        # In quotes by which Datasette knows what the table is for.
        conn.execute("""CREATE VIRTUAL TABLE posts_fts USING fts5 (body, content="posts", content_rowid="id")""")
        conn.execute("INSERT INTO posts_fts (posts_fts) VALUES ('rebuild')")
        conn.commit()
    for mode in ("fts", "hybrid"):
        with Index.open(path, "posts") as index:
            expected = [hit.pk for hit in index.search("dough comet", 30, mode=mode)]
        chosen = await get(serving(path), url("/blog/posts", _colbert="dough comet", _size="30", _colbert_mode=mode))
        configured = await get(
            serving(path, plugin={"mode": mode}), url("/blog/posts", _colbert="dough comet", _size="30")
        )
        assert ids(chosen) == ids(configured) == expected
        assert len({row["score"] for row in table_rows(chosen)}) > 3
        assert box(chosen).css_first("input[name=_colbert_mode]").attributes["value"] == mode
        assert query_of(link(chosen, "See why")) == {"q": ["dough comet"], "_mode": [mode]}
    searched = await get(serving(path), url("/blog/posts", _colbert=QUERY, _size="5", _search="dough"))
    assert ids(searched) == best(path, 5, "id IN (SELECT rowid FROM posts_fts WHERE posts_fts MATCH 'dough')")
    assert query_of(link(searched, "See why")) == {"q": [QUERY], "_search": ["dough"]}


@pytest.mark.asyncio
async def test_sql_of_a_reader_fails_as_it_does_without_words(datasette: Datasette) -> None:
    plain = await get(datasette, url("/blog/posts.json", _where="nonsense = 1"), SIGNED_IN)
    searched = await get(datasette, url("/blog/posts.json", _colbert=QUERY, _where="nonsense = 1"), SIGNED_IN)
    assert (plain.status_code, searched.status_code) == (400, 400)
    assert "nonsense" in sentence(searched)


@asynccontextmanager
async def occupied(datasette: Datasette) -> AsyncIterator[None]:
    """A Datasette whose only thread for searches has something to do."""
    done = threading.Event()
    task = asyncio.ensure_future(service_of(datasette)._run(done.wait))
    await asyncio.sleep(0.05)
    try:
        yield
    finally:
        done.set()
        await task


@pytest.mark.asyncio
async def test_too_many_searches_at_a_time_are_told_when_to_come_back(path: Path) -> None:
    datasette = serving(path, plugin={"max_queued_searches": 0})
    async with occupied(datasette):
        for page in ("/blog/posts", "/blog/posts.json", "/blog/posts.csv"):
            response = await get(datasette, url(page, _colbert=QUERY))
            assert (response.status_code, response.headers["Retry-After"]) == (503, "2")
            assert "too many searches at a time: try again in some seconds" in response.text
        row = await get(datasette, "/blog/posts/3")
        assert row.status_code == 200
        assert link(row, "Similar rows") == "/blog/-/colbert/posts/similar/3"
        assert (await get(datasette, "/blog/posts")).status_code == 200
    assert (await get(datasette, url("/blog/posts", _colbert=QUERY))).status_code == 200


@pytest.mark.asyncio
async def test_the_page_of_a_row_does_not_wait_long(datasette: Datasette) -> None:
    async with occupied(datasette):
        row = await get(datasette, "/blog/posts/3")
    assert link(row, "Similar rows") == "/blog/-/colbert/posts/similar/3"
    assert "More similar rows" not in row.text


@pytest.mark.asyncio
async def test_an_index_that_is_broken_says_so_only_to_the_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("UPDATE _colbert_indexes SET model_fingerprint = 'another'")
        conn.commit()
    response = await get(serving(path), url("/blog/posts.json", _colbert=QUERY))
    assert response.status_code == 500
    assert sentence(response) == "This index can't be searched at the moment. What is wrong is in the server's log"
    assert "index 'posts' of database 'blog'" in caplog.text
    assert "its checksum differs" in caplog.text


@pytest.mark.asyncio
async def test_the_box_keeps_what_else_the_page_is_asked_for(datasette: Datasette) -> None:
    args = {"_colbert": 'a "<b>" comet', "_size": "5", "topic": "sky", "_sort": "id", "_facet": "topic"}
    response = await get(datasette, url("/blog/posts", **args))
    assert "<b>" not in response.text
    form = box(response)
    fields = {field.attributes.get("name"): field.attributes.get("value") for field in form.css("input")}
    assert form.attributes["action"] == "/blog/posts"
    assert fields == {"_colbert": args["_colbert"], "_size": "5", "topic": "sky", "_facet": "topic", None: "Search"}
    # Datasette's own form keeps the words.
    assert LexborHTMLParser(response.text).css_first("form.filters input[name=_colbert]") is not None
    assert query_of(link(response, "all rows")) == {
        "_size": ["5"], "topic": ["sky"], "_sort": ["id"], "_facet": ["topic"]
    }  # fmt: skip
    more = link(response, "See why")
    assert query_of(more) == {"q": [args["_colbert"]], "topic": ["sky"], "_facet": ["topic"]}
    assert urlsplit(str(more)).path == "/blog/-/colbert/posts"
    answer = await get(datasette, f"{str(more).replace('/posts?', '/posts.json?')}&_size=5&_shape=array")
    assert {row["pk"] for row in answer.json()} == {*ids(response)}


@pytest.mark.asyncio
async def test_without_words_the_box_is_empty(datasette: Datasette) -> None:
    form = box(await get(datasette, "/blog/posts"))
    assert [field.attributes.get("value") for field in form.css("input")] == ["", "Search"]
    assert link(await get(datasette, "/blog/posts"), "See why") is None


@pytest.mark.asyncio
async def test_one_of_several_indexes_may_be_chosen(path: Path, encoder: Encoder) -> None:
    Index.create(path, "posts", ["title"], name="by title", model=encoder).close()
    datasette = serving(path)
    query = "Post 17"
    default = await get(datasette, url("/blog/posts", _colbert=query, _size="3"))
    assert ids(default) == best(path, 3, index="by title", query=query)
    chosen = await get(datasette, url("/blog/posts", _colbert=QUERY, _size="3", _colbert_index="Posts"))
    assert ids(chosen) == best(path, 3)
    options = box(chosen).css("option")
    assert [one.text() for one in options] == ["by title", "posts"]
    assert ["selected" in one.attributes for one in options] == [False, True]
    assert box(chosen).css("input[name=_colbert_index]") == []
    menu = await get(datasette, "/blog/posts")
    assert link(menu, "Search with ColBERT: by title") == "/blog/-/colbert/by+title"
    assert link(menu, "Search with ColBERT: posts") == "/blog/-/colbert/posts"


@pytest.mark.asyncio
async def test_everything_works_below_a_base_url(path: Path) -> None:
    datasette = serving(path, settings={"base_url": "/data/"})
    response = await get(datasette, url("/blog/posts", _colbert=QUERY, _size="3"))
    assert ids(response) == best(path, 3)
    assert box(response).attributes["action"] == "/data/blog/posts"
    assert link(response, "all rows") == "/data/blog/posts?_size=3"
    assert str(link(response, "See why")).startswith("/data/blog/-/colbert/posts?q=")


@pytest.mark.asyncio
async def test_a_row_has_links_to_the_rows_most_like_it(datasette: Datasette, path: Path) -> None:
    response = await get(datasette, "/blog/posts/7")
    with Index.open(path, "posts") as index:
        expected = [(f"/blog/posts/{hit.pk}", hit.row["title"], f"{hit.score:.2f}") for hit in index.similar(7, 5)]
    items = LexborHTMLParser(response.text).css("h2 + ul.tight-bullets li")
    links = [(li.css_first("a").attributes["href"], li.css_first("a").text(), li.text().split()[-1]) for li in items]
    assert links == expected
    assert link(response, "More similar rows") == "/blog/-/colbert/posts/similar/7"


@pytest.mark.asyncio
async def test_a_row_with_a_key_of_several_texts_has_them_too(datasette: Datasette, path: Path) -> None:
    with Index.open(path, "notes") as index:
        expected = [hit.pk for hit in index.similar(("x/y", "z~"), 5)]
    response = await get(datasette, "/blog/notes/x~2Fy,z~7E")
    items = LexborHTMLParser(response.text).css("h2 + ul.tight-bullets li a")
    assert [a.text() for a in items] == [", ".join(pk) for pk in expected]
    for a in items:
        assert (await get(datasette, str(a.attributes["href"]))).status_code == 200


@pytest.mark.asyncio
async def test_how_many_similar_rows_there_are_is_a_setting(path: Path) -> None:
    two = await get(serving(path, plugin={"similar_rows": 2}), "/blog/posts/7")
    assert len(LexborHTMLParser(two.text).css("h2 + ul.tight-bullets li")) == 2
    zero = await get(serving(path, plugin={"similar_rows": 0}), "/blog/posts/7")
    assert "More similar rows" not in zero.text


@pytest.mark.asyncio
async def test_a_row_that_is_not_indexed_yet_is_shown_without_any(datasette: Datasette, path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("INSERT INTO posts (id, body) VALUES (99, 'a new comet')")
        conn.commit()
    response = await get(datasette, "/blog/posts/99")
    assert response.status_code == 200
    assert "More similar rows" not in response.text
    for page in ("/blog/authors/1", "/blog/plain/1"):
        assert "imilar rows" not in (await get(datasette, page)).text


@pytest.mark.asyncio
async def test_json_of_a_row_searches_nothing(path: Path) -> None:
    datasette = serving(path, plugin={"max_queued_searches": 0})
    async with occupied(datasette):
        answer = (await get(datasette, "/blog/posts/7.json")).json()
    assert len(answer["rows"]) == 1


@pytest.mark.asyncio
async def test_menus_lead_to_the_pages_of_the_plugin(datasette: Datasette) -> None:
    table = await get(datasette, "/blog/posts")
    assert link(table, "Search with ColBERT") == "/blog/-/colbert/posts"
    assert link(table, "Create a ColBERT index") is None
    database = await get(datasette, "/blog")
    assert link(database, "Search with ColBERT") == "/blog/-/colbert"
    assert link(database, "Manage ColBERT indexes") is None
    for page in ("/blog/-/colbert", "/blog/-/colbert/posts"):
        assert (await get(datasette, page)).status_code == 200


@pytest.mark.asyncio
async def test_managers_have_more_in_their_menus(datasette: Datasette) -> None:
    assert link(await get(datasette, "/blog", ROOT), "Manage ColBERT indexes") == "/blog/-/colbert-manage"
    create = link(await get(datasette, "/blog/plain", ROOT), "Create a ColBERT index")
    assert create == "/blog/-/colbert-create?table=plain"
    for page in (str(create), "/blog/-/colbert-manage"):
        assert (await get(datasette, page, ROOT)).status_code == 200
    for table in ("posts", "notes_words_data"):
        assert link(await get(datasette, f"/blog/{table}", ROOT), "Create a ColBERT index") is None
    assert link(await get(datasette, "/blog/plain", OTHER), "Create a ColBERT index") is None


@pytest.mark.asyncio
async def test_an_immutable_database_offers_no_index_to_create(path: Path) -> None:
    datasette = serving(immutables=[str(path)])
    assert link(await get(datasette, "/blog/plain", ROOT), "Create a ColBERT index") is None
    assert ids(await get(datasette, url("/blog/posts", _colbert=QUERY, _size="3"))) == best(path, 3)


@pytest.mark.asyncio
@pytest.mark.skipif(not IS_1_0, reason="0.65 has no menu for rows")
async def test_the_menu_of_a_row_leads_to_similar_rows(datasette: Datasette) -> None:
    response = await get(datasette, "/blog/posts/7")
    menu = LexborHTMLParser(response.text).css_first(".page-action-menu")
    assert [a.attributes["href"] for a in menu.css("a")] == ["/blog/-/colbert/posts/similar/7"]


@pytest.mark.asyncio
@pytest.mark.skipif(not IS_1_0, reason="0.65 has neither")
async def test_counts_and_fragments_of_1_0_are_narrowed_too(datasette: Datasette, path: Path) -> None:
    [first, *_] = best(path, 3)
    page = url("/blog/posts/-/fragment", _colbert=QUERY, _size="3", _row=str(first))
    assert ids(await get(datasette, page)) == [first]
    answer = await datasette.client.post(url("/blog/posts/-/count", _colbert=QUERY, _size="3"))
    assert answer.json() == {"ok": True, "count": 3}
    page = url("/blog/posts.json", _colbert=QUERY, _size="3", _extra="count,human_description_en")
    answer = (await get(datasette, page)).json()
    assert (answer["count"], answer["human_description_en"]) == (3, f'where text best answers "{QUERY}"')


@pytest.mark.asyncio
@pytest.mark.parametrize("actor", [None, OTHER])
async def test_a_forbidden_table_is_as_forbidden_with_words_as_without(path: Path, actor: Any) -> None:
    datasette = serving(path, config=only_for("ann", "blog", ["posts"]))
    for page in ("/blog/posts", "/blog/posts.json", "/blog/posts.csv", "/blog/posts/1", "/blog/posts/999"):
        plain, searched = await get(datasette, page, actor), await get(datasette, url(page, _colbert=QUERY), actor)
        assert (plain.status_code, searched.status_code) == (403, 403)
        assert TOKEN.sub("", plain.text) == TOKEN.sub("", searched.text)
        assert "ColBERT" not in plain.text
    allowed = await get(datasette, url("/blog/posts", _colbert=QUERY, _size="3"), SIGNED_IN)
    assert ids(allowed) == best(path, 3)


@pytest.mark.asyncio
async def test_nothing_else_tells_of_an_index_of_a_forbidden_table(path: Path) -> None:
    datasette = serving(path, config=only_for("ann", "blog", ["posts", "notes", "chunks"]))
    for page in ("/blog", "/blog/authors", "/blog/authors/1", "/blog/plain"):
        text = (await get(datasette, url(page, _colbert=QUERY, _colbert_index="posts"), OTHER)).text
        assert "ColBERT" not in text
        assert "imilar rows" not in text
        assert box(await get(datasette, page, OTHER)) is None
    assert link(await get(datasette, "/blog", SIGNED_IN), "Search with ColBERT") == "/blog/-/colbert"


@pytest.mark.asyncio
async def test_another_index_of_a_forbidden_table_is_not_named(path: Path) -> None:
    datasette = serving(path, config=only_for("ann", "blog", ["notes"]))
    there = await get(datasette, url("/blog/posts.json", _colbert=QUERY, _colbert_index="notes"), OTHER)
    not_there = await get(datasette, url("/blog/posts.json", _colbert=QUERY, _colbert_index="nope"), OTHER)
    assert there.text.replace("notes", "nope") == not_there.text
    through = '{"table": "notes", "column": "first", "value": "a"}'
    response = await get(datasette, url("/blog/posts.json", _colbert=QUERY, _through=through), OTHER)
    assert response.status_code == 403


@pytest.mark.asyncio
async def test_who_may_not_write_sql_cant_do_so_beside_words(path: Path) -> None:
    datasette = serving(path, settings={"default_allow_sql": False})
    response = await get(datasette, url("/blog/posts.json", _colbert=QUERY, _where="1"), OTHER)
    assert (response.status_code, sentence(response)) == (403, "_where= is not allowed")


@pytest.mark.asyncio
async def test_templates_of_a_site_come_first(path: Path, tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "table.html").write_text('{% extends "default:table.html" %}')
    (templates / "_table.html").write_text("{% for row in display_rows %}[{{ row['id'] }}]{% endfor %}")
    response = await get(serving(path, template_dir=str(templates)), url("/blog/posts", _colbert=QUERY, _size="3"))
    assert "".join(f"[{pk}]" for pk in sorted(best(path, 3))) in response.text
    (templates / "_table.html").write_text(
        "{% for row in colbert_scored(display_columns, display_rows, rows).rows %}[{{ row['id'] }}]{% endfor %}"
    )
    response = await get(serving(path, template_dir=str(templates)), url("/blog/posts", _colbert=QUERY, _size="3"))
    assert "".join(f"[{pk}]" for pk in best(path, 3)) in response.text
