"""The pages of the Datasette plugin that make, sync, rebuild and drop indexes: who may, what happens, what is said."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette
from datasette.database import Database
from datasette_colbert.manage.auto_sync import close_auto_sync, start_auto_sync
from datasette_colbert.manage.candidates import candidate
from datasette_colbert.manage.jobs import Job, Jobs, close_jobs, jobs_of
from datasette_colbert.manage.work import Create

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.index import Index
from colbert_sqlite.indexes import list_indexes
from colbert_sqlite.progress import Progress, ProgressCallback
from colbert_sqlite.settings import IndexSettings
from tests.datasette.helpers import IS_1_0, ROOT, cookies, get, serving, write_secrets

SECONDS = 60
# May manage, but not see the secrets.
MANAGER = {"id": "ann"}
OTHER = {"id": "bob"}
CONFIG: dict[str, Any] = {
    "permissions": {"colbert-manage": {"id": ["ann", "root"]}},
    "databases": {"blog": {"tables": {"secrets": {"allow": {"id": "root"}}}}},
}
MANAGE, CREATE = "/blog/-/colbert-manage", "/blog/-/colbert-create"


@pytest.fixture
def path(indexed_blog: Path, tmp_path: Path, encoder: Encoder) -> Path:
    """Posts, indexed, and secrets, indexed too; words, which have no primary key."""
    path = write_secrets(Path(shutil.copy(indexed_blog, tmp_path)), encoder)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE words (word TEXT)")
    return path


@pytest.fixture
def datasette(path: Path) -> Iterator[Datasette]:
    datasette = serving(path, config=CONFIG)
    yield datasette
    assert jobs_of(datasette).close(SECONDS)


async def post(
    datasette: Datasette, path: str, actor: Any, *, headers: dict[str, str] | None = None, **fields: Any
) -> Any:
    """The response to a form that an actor sends from one of Datasette's own pages."""
    sent = cookies(datasette, actor)
    if not IS_1_0:
        page = await get(datasette, "/-/allow-debug", ROOT)
        fields["csrftoken"] = sent["ds_csrftoken"] = page.cookies["ds_csrftoken"]
    return await datasette.client.post(path, data=fields, cookies=sent, headers=headers)


async def over(datasette: Datasette) -> list[Job]:
    """All jobs, once they are over, the newest first."""
    assert await asyncio.to_thread(jobs_of(datasette).wait, SECONDS)
    return jobs_of(datasette).all()


def text(response: Any) -> str:
    """The words of a page's content."""
    main = response.text.partition("<main")[2].partition("</main>")[0]
    return " ".join(re.sub(r"<[^>]*>", " ", main.partition(">")[2]).split())


def names(path: Path) -> list[str]:
    return [index.name for index in list_indexes(path)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def add_post(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("INSERT INTO posts (title, body) VALUES ('Rain', 'It rains on the observatory')")
        conn.commit()


@dataclass(frozen=True, kw_only=True)
class HeldCreate(Create):
    """A build that stops before its first row until it may go on."""

    reached: threading.Event
    opened: threading.Event

    def run(self, progress: ProgressCallback) -> dict[str, int]:
        def held(now: Progress) -> None:
            self.reached.set()
            assert self.opened.wait(SECONDS)
            progress(now)

        return Create.run(self, held)


def hold(jobs: Jobs, path: Path, table: str = "posts") -> tuple[Job, threading.Event]:
    """A job that builds an index called "held", and runs until the event is set."""
    work = HeldCreate(
        database="blog",
        path=str(path),
        index="held",
        table=table,
        settings=IndexSettings(table=table, columns=("title",), model="hashing"),
        reached=threading.Event(),
        opened=threading.Event(),
    )
    job = jobs.submit(work)
    assert work.reached.wait(SECONDS)
    return job, work.opened


@pytest.mark.asyncio
async def test_the_page_says_how_each_index_is(datasette: Datasette, path: Path) -> None:
    page = await get(datasette, MANAGE, ROOT)
    assert text(page).startswith(
        "ColBERT indexes of blog posts Table posts , column body, model hashing 5 rows, 4 passages, 55 tokens,"
    )
    assert "In step with its table" in text(page)
    add_post(path)
    assert "1 change is pending" in text(await get(datasette, MANAGE, ROOT))
    rows = (await get(datasette, f"{MANAGE}.json", ROOT, _shape="objects")).json()["rows"]
    by_name = {row["name"]: row for row in rows}
    assert {
        name: by_name["posts"][name] for name in ("state", "table", "columns", "rows", "pending_changes", "job")
    } == {
        "state": "ready",
        "table": "posts",
        "columns": ["body"],
        "rows": 5,
        "pending_changes": 1,
        "job": None,
    }
    assert [*by_name] == ["posts", "secrets"]


@pytest.mark.asyncio
async def test_looking_changes_nothing(datasette: Datasette, path: Path) -> None:
    before = digest(path)
    for url in (MANAGE, f"{MANAGE}?drop=posts", f"{MANAGE}?action=drop&index=posts", CREATE, f"{CREATE}?table=posts"):
        assert (await get(datasette, url, ROOT)).status_code == 200
    assert (digest(path), jobs_of(datasette).all()) == (before, [])
    assert sorted(os.listdir(path.parent)) == ["blog.db"]


@pytest.mark.asyncio
async def test_an_index_is_made_on_the_page(datasette: Datasette, path: Path) -> None:
    choose = await get(datasette, CREATE, MANAGER)
    assert 'href="/blog/-/colbert-create?table=posts"' in choose.text
    assert "words: table &#39;words&#39; has no primary key" in choose.text
    form = await get(datasette, f"{CREATE}?table=posts", MANAGER)
    assert re.findall(r'value="(\w+)" id="column-\d" checked', form.text) == ["body"]
    assert re.findall(r"<option selected>(\w+)", form.text) == ["title"]
    fields: dict[str, Any] = {
        "table": "posts",
        "column": ["title", "body"],
        "heading": "title",
        "name": "both",
        "model": "hashing",
    }
    response = await post(datasette, CREATE, MANAGER, **fields)
    [job] = await over(datasette)
    assert (response.status_code, response.headers["location"]) == (302, f"/blog/-/colbert-jobs/{job.id}")
    assert (job.state, job.actor_id, job.error) == ("done", "ann", "")
    page = await get(datasette, response.headers["location"], MANAGER)
    assert text(page).startswith("Create index both Done: 5 rows, 5 passages, 61 tokens. Search the index ,")
    assert 'href="/blog/-/colbert/both"' in page.text and "http-equiv" not in page.text
    with Index.open(path, "both") as index:
        assert (index.settings.columns, index.settings.heading) == (("body",), "title")
    answer = await get(datasette, "/blog/-/colbert/both.json", MANAGER, q="comet of ice", _shape="objects")
    assert answer.json()["rows"][0]["pk"] == 2
    assert "create both : Done: 5 rows" in text(await get(datasette, MANAGE, MANAGER))


def test_columns_with_sentences_are_proposed() -> None:
    conn = sqlite3.connect(":memory:")
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, Title TEXT, body TEXT, body_html TEXT, url TEXT, data TEXT)")
    body = "Knead the dough well, and let it rise overnight in a cold kitchen. " * 2
    values = (1, "Bread", body, f"<p>{body}</p>", "https://example.com/" + "a" * 40, f'{{"text": "{body}"}}')
    conn.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)", values)
    table = candidate(conn, "t")
    assert [column.name for column in table.columns if column.proposed] == ["body"]
    assert (table.heading, table.n_rows, table.bytes) == ("Title", 1, 15 * len(body))
    assert table.columns[2].example == f"{body[:80]}…"
    conn.execute("UPDATE t SET body = NULL, body_html = NULL, data = NULL")
    table = candidate(conn, "t")
    assert ([column.name for column in table.columns if column.proposed], table.heading) == (["Title"], "Title")
    conn.execute("DELETE FROM t")
    table = candidate(conn, "t")
    assert ([column.name for column in table.columns if column.proposed], table.heading, table.bytes) == ([], "", 0)


@pytest.mark.asyncio
async def test_an_index_is_synced_rebuilt_and_dropped_on_the_page(datasette: Datasette, path: Path) -> None:
    add_post(path)
    for action, said in (("sync", "Done: 1 added, 0 updated, 0 deleted."), ("rebuild", "Done: 6 rows,")):
        response = await post(datasette, MANAGE, MANAGER, action=action, index="posts")
        assert (await over(datasette))[0].state == "done"
        assert said in text(await get(datasette, response.headers["location"], MANAGER))
        with Index.open(path, "posts") as index:
            assert (index.counts().rows, index.info().pending_changes) == (6, 0)
    confirm = await get(datasette, f"{MANAGE}?drop=posts", MANAGER)
    assert text(confirm).startswith("Drop index posts? Table posts stays as it is.")
    await post(datasette, MANAGE, MANAGER, action="drop", index="posts")
    assert [job.work.kind for job in await over(datasette)] == ["drop", "rebuild", "sync"]
    assert names(path) == ["secrets"]
    assert "No index" in text(await get(datasette, MANAGE, MANAGER))


@pytest.mark.asyncio
async def test_jobs_and_errors_are_json_too(datasette: Datasette, path: Path) -> None:
    answer = await post(datasette, f"{MANAGE}.json", MANAGER, action="sync", index="posts")
    job = answer.json()
    assert (answer.status_code, job["ok"], job["kind"], job["index"]) == (202, True, "sync", "posts")
    await over(datasette)
    job = (await get(datasette, f"{job['url']}.json", MANAGER)).json()
    assert {name: job[name] for name in ("ok", "state", "is_over", "text", "result")} == {
        "ok": True,
        "state": "done",
        "is_over": True,
        "text": "Done: 0 added, 0 updated, 0 deleted.",
        "result": {"added": 0, "updated": 0, "deleted": 0, "compared": 0},
    }
    wrong = await post(datasette, f"{MANAGE}.json", MANAGER, action="paint", index="posts")
    assert (wrong.status_code, wrong.json()["error"]) == (400, "action must be sync, rebuild, continue or drop")
    wrong = await post(datasette, f"{CREATE}.json", MANAGER, table="posts", model="hashing")
    assert (wrong.status_code, wrong.json()["error"]) == (400, "name at least one column to index")
    assert (await get(datasette, "/blog/-/colbert-jobs/none.json", MANAGER)).status_code == 404


@pytest.mark.asyncio
@pytest.mark.parametrize("actor", [None, OTHER])
async def test_who_lacks_the_permission_gets_403(datasette: Datasette, path: Path, actor: Any) -> None:
    await post(datasette, MANAGE, ROOT, action="sync", index="posts")
    [job] = await over(datasette)
    before = digest(path)
    for url in (MANAGE, CREATE, f"{CREATE}?table=posts", f"{MANAGE}?drop=nothing", f"/blog/-/colbert-jobs/{job.id}"):
        assert (await get(datasette, url, actor)).status_code == 403
        page, mark, args = url.partition("?")
        answer = await get(datasette, f"{page}.json{mark}{args}", actor)
        assert (answer.status_code, answer.json()["error"]) == (403, "Permission denied: colbert-manage")
        for action in ("sync", "rebuild", "drop", "continue"):
            assert (await post(datasette, page, actor, action=action, index="posts")).status_code == 403
    fields: dict[str, Any] = {"table": "posts", "column": "body", "name": "mine", "model": "hashing"}
    assert (await post(datasette, CREATE, actor, **fields)).status_code == 403
    assert (await over(datasette), digest(path)) == ([job], before)


@pytest.mark.asyncio
async def test_the_permission_is_of_a_database(path: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(path, tmp_path / "other.db"))
    datasette = serving(path, other, config={"databases": {"other": {"permissions": {"colbert-manage": MANAGER}}}})
    codes = [(await get(datasette, f"/{name}/-/colbert-manage", MANAGER)).status_code for name in ("blog", "other")]
    assert codes == [403, 200]
    assert (await get(datasette, MANAGE, ROOT)).status_code == 200


@pytest.mark.asyncio
async def test_an_index_of_a_forbidden_table_is_as_unknown_as_one_that_is_not_there(
    datasette: Datasette, path: Path
) -> None:
    before = digest(path)
    for url in (MANAGE, CREATE):
        page = await get(datasette, url, MANAGER)
        assert page.status_code == 200 and "secrets" not in page.text
    assert "secrets" in (await get(datasette, MANAGE, ROOT)).text
    for url in (f"{MANAGE}?drop={{}}", f"{CREATE}?table={{}}", f"{CREATE}.json?table={{}}"):
        forbidden, unknown = [await get(datasette, url.format(name), MANAGER) for name in ("secrets", "nothing")]
        assert (forbidden.status_code, forbidden.text) == (404, unknown.text)
    for action in ("sync", "rebuild", "drop", "continue"):
        answers = [await post(datasette, MANAGE, MANAGER, action=action, index=n) for n in ("secrets", "nothing")]
        assert (answers[0].status_code, answers[0].text) == (404, answers[1].text)
    fields: dict[str, Any] = {"column": "body", "model": "hashing", "name": "mine"}
    answers = [await post(datasette, CREATE, MANAGER, table=name, **fields) for name in ("secrets", "nothing")]
    assert (answers[0].status_code, answers[0].text) == (404, answers[1].text)
    assert (jobs_of(datasette).all(), digest(path)) == ([], before)


@pytest.mark.asyncio
async def test_a_job_on_a_forbidden_table_is_as_unknown_too(datasette: Datasette, path: Path) -> None:
    job, opened = hold(jobs_of(datasette), path, "secrets")
    assert "held" not in (await get(datasette, MANAGE, MANAGER)).text
    assert "held" in (await get(datasette, MANAGE, ROOT)).text
    for suffix in ("", ".json"):
        urls = [f"/blog/-/colbert-jobs/{id}{suffix}" for id in (job.id, "none")]
        seen, unknown = [await get(datasette, url, MANAGER) for url in urls]
        assert (seen.status_code, seen.text) == (404, unknown.text)
        assert (await post(datasette, urls[0], MANAGER)).status_code == 404
    opened.set()
    assert (await over(datasette))[0].state == "done"


@pytest.mark.asyncio
async def test_a_form_from_another_site_is_refused(datasette: Datasette, path: Path) -> None:
    fields: dict[str, Any] = {"action": "drop", "index": "posts"}
    if IS_1_0:
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
            assert (await post(datasette, MANAGE, ROOT, headers=headers, **fields)).status_code == 403
        answer = await post(datasette, MANAGE, ROOT, headers={"Sec-Fetch-Site": "same-origin"}, **fields)
    else:
        for token in ({}, {"csrftoken": "guessed"}):
            data = {**fields, **token}
            refused = await datasette.client.post(MANAGE, data=data, cookies=cookies(datasette, ROOT))
            assert refused.status_code == 403
        assert jobs_of(datasette).all() == []
        answer = await post(datasette, MANAGE, ROOT, **fields)
    assert answer.status_code == 302
    assert [job.work.kind for job in await over(datasette)] == ["drop"]


async def refused_to_write(datasette: Datasette, sentence: str) -> None:
    for url in (MANAGE, CREATE, f"{CREATE}?table=posts", f"{MANAGE}?drop=posts"):
        page = await get(datasette, url, ROOT)
        assert page.status_code == 200 and sentence in text(page) and "<form" not in page.text.partition("<main")[2]
    for url in (MANAGE, CREATE):
        fields: dict[str, Any] = {
            "action": "drop",
            "index": "posts",
            "table": "posts",
            "column": "body",
            "model": "hashing",
        }
        answer = await post(datasette, url, ROOT, **fields)
        assert (answer.status_code, sentence in answer.text) == (403, True)
    assert jobs_of(datasette).all() == []
    answer = await get(datasette, "/blog/-/colbert/posts.json", ROOT, q="comet of ice", _shape="objects")
    assert answer.json()["rows"][0]["pk"] == 2


@pytest.mark.asyncio
async def test_an_immutable_database_is_searched_only(path: Path) -> None:
    config = {"config" if IS_1_0 else "metadata": CONFIG}
    datasette = Datasette([], immutables=[str(path)], **config)
    await refused_to_write(datasette, "This database is served as immutable: its indexes can be searched, and are")


@pytest.mark.asyncio
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("what", ["file", "folder"])
async def test_a_database_that_the_server_may_not_write_is_searched_only(path: Path, what: str) -> None:
    protected = path if what == "file" else path.parent
    mode = protected.stat().st_mode
    protected.chmod(0o444 if what == "file" else 0o555)
    try:
        await refused_to_write(serving(path, config=CONFIG), "The server may not write the file of this database or")
    finally:
        protected.chmod(mode)


@pytest.mark.asyncio
async def test_a_database_in_memory_has_no_indexes(path: Path) -> None:
    datasette = serving(path, config={"permissions": {"colbert-manage": True}})
    datasette.add_database(Database(datasette, memory_name="colbert_managing"), name="memory")
    for page in ("manage", "create"):
        answer = await get(datasette, f"/memory/-/colbert-{page}", ROOT)
        assert "This database is in memory, and indexes are kept in files." in text(answer)
    assert (await post(datasette, "/memory/-/colbert-manage", ROOT, action="sync", index="posts")).status_code == 403
    for unknown in ("_internal", "_memory", "nothing"):
        assert (await get(datasette, f"/{unknown}/-/colbert-manage", ROOT)).status_code == 404


@pytest.mark.asyncio
async def test_a_job_is_followed_cancelled_and_goes_on(datasette: Datasette, path: Path) -> None:
    job, opened = hold(jobs_of(datasette), path)
    url = f"/blog/-/colbert-jobs/{job.id}"
    page = await get(datasette, url, MANAGER)
    assert text(page).startswith("Create index held Getting ready.")
    head = page.text.partition("</head>")[0]
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in head
    assert "/-/static-plugins/colbert-sqlite/colbert-jobs.js" in head
    assert f'data-colbert-job="{url}.json"' in (await get(datasette, MANAGE, MANAGER)).text
    answer = await post(datasette, url, MANAGER)
    assert (answer.status_code, answer.headers["location"]) == (302, url)
    page = await get(datasette, url, MANAGER)
    assert "Stops as soon as it can." in text(page) and 'value="Cancel"' not in page.text
    opened.set()
    assert (await over(datasette))[0].state == "cancelled"
    page = await get(datasette, url, MANAGER)
    assert text(page).startswith("Create index held Cancelled. The build is not finished.")
    assert 'value="Continue"' in page.text
    assert "The build is not finished" in text(await get(datasette, MANAGE, MANAGER))
    await post(datasette, MANAGE, MANAGER, action="continue", index="held")
    assert [job.state for job in await over(datasette)] == ["done", "cancelled"]
    assert names(path) == ["held", "posts", "secrets"]
    answer = await post(datasette, f"{MANAGE}.json", MANAGER, action="continue", index="held")
    assert (answer.status_code, answer.json()["error"]) == (400, "index 'held' has no unfinished build")
    assert "Cancelled" in text(await get(datasette, url, MANAGER))


@pytest.mark.asyncio
async def test_a_build_that_is_not_finished_can_be_dropped(datasette: Datasette, path: Path) -> None:
    job, opened = hold(jobs_of(datasette), path)
    await post(datasette, f"/blog/-/colbert-jobs/{job.id}", MANAGER)
    opened.set()
    assert (await over(datasette))[0].state == "cancelled"
    await post(datasette, MANAGE, MANAGER, action="drop", index="held")
    await over(datasette)
    assert names(path) == ["posts", "secrets"]


@pytest.mark.asyncio
async def test_an_index_has_one_job_at_a_time(datasette: Datasette, path: Path) -> None:
    job, opened = hold(jobs_of(datasette), path)
    answers = [await post(datasette, MANAGE, MANAGER, action=action, index="held") for action in ("drop", "continue")]
    assert {answer.headers["location"] for answer in answers} == {f"/blog/-/colbert-jobs/{job.id}"}
    sent = {**cookies(datasette, MANAGER), "ds_messages": answers[0].cookies["ds_messages"]}
    page = await datasette.client.get(f"/blog/-/colbert-jobs/{job.id}", cookies=sent)
    assert "Index held has this job already" in page.text
    other = await post(datasette, MANAGE, MANAGER, action="sync", index="posts")
    assert "Waiting for its turn." in text(await get(datasette, other.headers["location"], MANAGER))
    opened.set()
    assert [job.state for job in await over(datasette)] == ["done", "done"]


@pytest.mark.asyncio
async def test_a_job_that_fails_says_why(datasette: Datasette, path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("DROP TABLE posts")
    page = await get(datasette, MANAGE, MANAGER)
    assert "no table &#39;posts&#39; in this database" in page.text
    response = await post(datasette, MANAGE, MANAGER, action="sync", index="posts")
    [job] = await over(datasette)
    assert job.state == "failed" and job.error.startswith("index 'posts' can't read its table: no table 'posts' in")
    assert (
        f"Failed: {job.error}".replace("'", "&#39;")
        in (await get(datasette, response.headers["location"], MANAGER)).text
    )
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"column": []}, "name at least one column to index"),
        ({"column": "bodi"}, "no column 'bodi' in table 'posts'; it has id, title, body"),
        ({"name": ""}, "index 'posts' exists already"),
        ({"model": "/etc"}, "choose one of the models: "),
        ({"model": "colbert-ir/colbertv2.0"}, "choose one of the models: "),
        ({"heading": "nothing"}, "no column 'nothing' in table 'posts'"),
    ],
)
async def test_a_form_that_can_not_be_is_shown_again(
    datasette: Datasette, path: Path, fields: dict[str, Any], sentence: str
) -> None:
    before = digest(path)
    fields = {"table": "posts", "column": ["title"], "heading": "", "name": "mine", "model": "hashing", **fields}
    answer = await post(datasette, CREATE, MANAGER, **fields)
    assert (answer.status_code, sentence.replace("'", "&#39;") in answer.text) == (400, True)
    if fields["column"] == ["title"]:
        assert re.findall(r'value="(\w+)" id="column-\d" checked', answer.text) == ["title"]
    assert (jobs_of(datasette).all(), digest(path)) == ([], before)


@pytest.mark.asyncio
async def test_a_table_without_a_key_is_refused_with_the_way_out(datasette: Datasette) -> None:
    answer = await get(datasette, f"{CREATE}?table=words", MANAGER)
    assert answer.status_code == 400 and "has no primary key" in answer.text


@pytest.mark.asyncio
async def test_an_index_that_can_not_be_read_can_be_dropped(datasette: Datasette, path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("UPDATE _colbert_indexes SET schema_version = 99 WHERE name = 'posts'")
        conn.commit()
    page = await get(datasette, MANAGE, MANAGER)
    assert "index &#39;posts&#39; has schema version 99" in page.text and 'value="Sync"' not in page.text
    await post(datasette, MANAGE, MANAGER, action="drop", index="posts")
    assert (await over(datasette))[0].state == "done"
    assert names(path) == ["secrets"]


@pytest.mark.asyncio
async def test_names_may_be_anything(datasette: Datasette, path: Path) -> None:
    name = "<b>/ é &'\"?.json"
    fields: dict[str, Any] = {"table": "posts", "column": "body", "model": "hashing"}
    answer = await post(datasette, CREATE, MANAGER, **fields, name=name)
    await over(datasette)
    for url in (MANAGE, f"{MANAGE}?drop=%3Cb%3E%2F%20%C3%A9%20%26%27%22%3F.json", answer.headers["location"]):
        page = await get(datasette, url, MANAGER)
        assert page.status_code == 200 and "&lt;b&gt;/ é &amp;&#39;&#34;?.json" in page.text
        assert "<b>" not in page.text
    assert "search" in text(await get(datasette, answer.headers["location"], MANAGER)).lower()
    await post(datasette, MANAGE, MANAGER, action="drop", index=name)
    assert (await over(datasette))[0].state == "done" and name not in names(path)


@pytest.mark.asyncio
async def test_an_index_that_is_not_served_is_shown_as_such(path: Path) -> None:
    datasette = serving(path, config=CONFIG, plugin={"indexes": ["secrets"]})
    assert "Not served: the setting indexes does not name it" in text(await get(datasette, MANAGE, MANAGER))


@pytest.mark.asyncio
async def test_indexes_are_synced_by_themselves_where_that_is_set(path: Path) -> None:
    datasette = serving(path, config=CONFIG, plugin={"auto_sync_seconds": 1})
    start_auto_sync(datasette)
    start_auto_sync(datasette)
    add_post(path)
    while not (started := jobs_of(datasette).all()):
        await asyncio.sleep(0.05)
    assert [(job.state, job.actor_id, job.result["added"]) for job in await over(datasette)] == [("done", None, 1)]
    assert "sync posts : Done: 1 added" in text(await get(datasette, MANAGE, MANAGER))
    close_auto_sync(datasette)
    close_jobs(datasette)
    assert len(started) == 1 and jobs_of(datasette).wait(SECONDS)
