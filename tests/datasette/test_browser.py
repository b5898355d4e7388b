"""The pages of the Datasette plugin in a real browser, served by a real process.

``COLBERT_DATASETTE`` is the command that serves, if not the Datasette of this environment: one environment may have the
browser, another one Datasette.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent
# How long a busy machine may take for what is done in less than a second.
PATIENCE_MS = 300_000
SERVER = shlex.split(os.environ.get("COLBERT_DATASETTE", f"{shlex.quote(sys.executable)} -m datasette"))
# That of the browser need not have numpy.
PYTHON = Path(SERVER[0]).with_name("python")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")])}

MAKE = """
import sqlite3, sys
from colbert_sqlite import Index

code = "\\n".join(f"line {i}: how to restore" for i in range(30))
posts = [
    ("Bread", "Knead the dough well. Let it rise overnight in a cold kitchen.", "food", "2024-01-01"),
    ("Backups", "Copy the database every night. Restore the copy every month.", "data", "2024-02-01"),
    ("Restoring backups", code, "data", "2024-03-01"),
    ("Markup", "Backups of <script>window.owned = true</script> & <b>bold</b> pages.", "data", "2024-04-01"),
    ("A" * 120 + " backups", "Restore " + "https://example.com/" + "x" * 200, "data", "2024-05-01"),
    *((f"Backups, part {i}", f"How to restore backups of disk {i}.", "data", f"2024-06-{i:02}") for i in range(1, 13)),
]
conn = sqlite3.connect(sys.argv[1])
conn.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT, body TEXT, topic TEXT, created TEXT)")
conn.executemany("INSERT INTO posts (title, body, topic, created) VALUES (?, ?, ?, ?)", posts)
conn.execute("CREATE VIRTUAL TABLE posts_fts USING fts5 (title, body, content='posts', content_rowid='id')")
conn.execute("INSERT INTO posts_fts (posts_fts) VALUES ('rebuild')")
conn.commit()
Index.create(conn, "posts", ["body"], heading="title", model="hashing")
conn.execute("UPDATE posts SET body = body || ' Twice.' WHERE id = 2")
for table in ["notes", "letters", "drafts"]:
    conn.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, title TEXT, body TEXT)")
    conn.execute(f"INSERT INTO {table} (title, body) SELECT title, body FROM posts")
conn.commit()
Index.create(conn, "notes", ["body"], model="hashing")
"""

HOLD = """
import sqlite3, sys
from colbert_sqlite.storage.lock import writing

with writing(sqlite3.connect(sys.argv[1]), sys.argv[2], print):
    print("held", flush=True)
    sys.stdin.read()
"""

INDEX = "/blog/-/colbert/posts"
SEARCH = f"{INDEX}?q=how+to+restore+backups"
PAGES = {
    "search": f"{SEARCH}&_facet=topic&created__gt=2023",
    "no query": INDEX,
    "no hits": f"{SEARCH}&topic=none",
    "error": f"{SEARCH}&_mode=other",
    "indexes": "/blog/-/colbert",
    "similar": f"{INDEX}/similar/3",
}
MANAGE, CREATE = "/blog/-/colbert-manage", "/blog/-/colbert-create"
MANAGING = {
    "manage": MANAGE,
    "tables": CREATE,
    "create": f"{CREATE}?table=posts",
    "drop": f"{MANAGE}?drop=posts",
    "job": "",
}
TABLE = "/blog/posts?_colbert=how+to+restore+backups"
BOX = "form[aria-label='By meaning']"
WORDS = ".colbert-words button"
LIT = ".colbert-hits mark.colbert-lit"
TIP = ".colbert-tip"

# An element of Datasette 1.0a41 has a list by the name of the DOM's method, which axe-core and playwright call.
KEEP_MATCHES = """
const matches = Element.prototype.matches;
Object.defineProperty(Element.prototype, "matches", { get: () => matches, set() {} });
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the database of the site is, and its log."""
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[str]:
    """The address of a Datasette that serves an index of a few posts."""
    subprocess.run([PYTHON, "-c", MAKE, str(folder / "blog.db")], env=ENVIRONMENT, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [*SERVER, str(folder / "blog.db"), "--root", "--port", address.rpartition(":")[2]]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        _wait_for(f"http://{address}/-/versions.json", process, folder / "log")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        with suppress(URLError, ConnectionError):
            urlopen(url).close()
            return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    pytest.fail(f"the server does not answer:\n{log.read_text()}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # A distribution's own first: the one that playwright fetches is not on every machine.
        path = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
        try:
            chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium: {error}")
        yield chromium
        chromium.close()


Visit = Callable[..., Any]


@pytest.fixture
def visit(browser: Any, site: str) -> Iterator[Visit]:
    """Open a page of the site in a window of its own; what the console reports fails the test."""
    contexts, reports = [], []

    def visit(path: str, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(PATIENCE_MS)
        contexts[-1].add_init_script(KEEP_MATCHES)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: reports.append(str(error)))
        page.on("console", lambda message: reports.append(message.text) if message.type == "error" else None)
        page.goto(site + path)
        return page

    yield visit
    for context in contexts:
        context.close()
    # Of a page whose status is 400 by design.
    assert [report for report in reports if "status of 400" not in report] == []


@pytest.fixture(scope="module")
def root(browser: Any, site: str, folder: Path) -> Any:
    """What the browser of somebody who may do everything keeps."""
    [login] = re.findall(r"http://\S+/-/auth-token\?token=\w+", (folder / "log").read_text())
    context = browser.new_context()
    context.request.get(login)
    kept = context.storage_state()
    context.close()
    return kept


@contextmanager
def held(folder: Path, index: str) -> Iterator[None]:
    """Let a job for this index get no further than its beginning."""
    command = [str(PYTHON), "-c", HOLD, str(folder / "blog.db"), index]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield
        finally:
            process.communicate()


@pytest.fixture
def job(visit: Visit, root: Any, folder: Path) -> Iterator[str]:
    """The path of the page of a job that does not end."""
    with held(folder, "notes"):
        page = visit(MANAGE, storage_state=root)
        follow(page, page.locator(".colbert-index", has_text="Table notes").locator("[value=Rebuild]").click)
        path = page.url.partition("/blog/")[2]
        yield f"/blog/{path}"
    # One job at a time: the next one is not to wait for this.
    page.locator(".message-info, .message-warning").wait_for()


def serious(page: Any, context: dict[str, list[str]] | None = None) -> list[Any]:
    """What axe finds that keeps people out."""
    return [
        (one["id"], node["target"])
        for one in axe.Axe().run(page, context=context).response["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def follow(page: Any, act: Callable[..., Any], *args: Any) -> None:
    """Do what leads to another page, and wait for that."""
    with page.expect_navigation():
        act(*args)


def texts(page: Any, selector: str) -> list[str]:
    return list(page.locator(selector).all_inner_texts())


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.textContent"))


def lit_words(page: Any) -> set[str]:
    return {text.lower() for text in texts(page, LIT)}


def overflow(page: Any) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def test_without_javascript_marks_stand_and_no_button_is_dead(visit: Visit) -> None:
    page = visit(SEARCH, java_script_enabled=False)
    assert page.locator(".colbert-hits mark[data-query-word][title]").count() > 10
    assert [button for button in page.locator("button").all() if button.is_visible()] == []
    page.fill("#colbert-q", "knead the dough")
    follow(page, page.keyboard.press, "Enter")
    assert texts(page, ".colbert-hits h2")[0] == "Bread"


def test_without_a_query_the_field_for_it_has_the_focus(visit: Visit) -> None:
    page = visit(INDEX)
    page.keyboard.type("backups")
    follow(page, page.keyboard.press, "Enter")
    assert page.input_value("#colbert-q") == "backups"
    assert page.locator(".colbert-hits article").count() == 10
    assert page.evaluate("document.activeElement.id") == ""


def test_keys_walk_the_words_of_the_query_and_light_what_answers_them(visit: Visit) -> None:
    page = visit(SEARCH)
    assert texts(page, WORDS) == ["how", "to", "restore", "backups"]
    while focused(page) != "how":
        page.keyboard.press("Tab")
    page.keyboard.press("End")
    assert focused(page) == "backups"
    assert lit_words(page) == {"backups"}
    page.keyboard.press("ArrowLeft")
    assert focused(page) == "restore"
    assert lit_words(page) == {"restore"}
    assert re.fullmatch(r"restore: Restor\w+ [01]\.\d\d", texts(page, ".colbert-met")[0], re.IGNORECASE)
    n_lit = page.locator(LIT).count()
    assert texts(page, ".colbert-words [role=status]")[0].startswith(f"marked {n_lit} × in ")
    page.keyboard.press("Home")
    page.keyboard.press("Tab")
    assert "colbert-chosen" not in page.locator(".colbert-hits").get_attribute("class")
    assert set(texts(page, ".colbert-met")) == {""}


def test_a_pressed_word_stays_until_escape(visit: Visit) -> None:
    page = visit(SEARCH)
    button = page.locator(WORDS).nth(3)
    button.focus()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Tab")
    assert lit_words(page) == {"backups"}
    page.keyboard.press("Escape")
    assert button.get_attribute("aria-pressed") == "false"
    assert lit_words(page) == set()


def test_the_mouse_lights_a_word_while_it_is_over_it(visit: Visit) -> None:
    page = visit(SEARCH)
    other = page.locator(".colbert-passage mark[data-query-word='2']").first
    shaded = other.evaluate("mark => getComputedStyle(mark).textDecorationLine")
    page.locator(WORDS).nth(3).hover()
    assert lit_words(page) == {"backups"}
    assert (shaded, other.evaluate("mark => getComputedStyle(mark).textDecorationLine")) == ("underline", "none")
    page.locator("h1").hover()
    assert lit_words(page) == set()


def test_a_mark_says_by_mouse_what_it_answers(visit: Visit) -> None:
    page = visit(SEARCH)
    assert page.locator(TIP).count() == 0
    mark = page.locator(".colbert-passage mark[data-query-word='3']").first
    mark.hover()
    [said] = texts(page, TIP)
    assert re.fullmatch(r"backups (0\.9\d|1\.00)", said)
    assert mark.get_attribute("title") is None
    page.locator(TIP).hover()
    assert page.locator(TIP).count() == 1
    page.locator("h1").hover()
    assert page.locator(TIP).count() == 0


def test_a_mark_says_by_keyboard_what_it_answers(visit: Visit) -> None:
    page = visit(SEARCH)
    marks = page.locator(".colbert-passage").first.locator("mark")
    page.locator(".colbert-hits h2 a").first.focus()
    page.keyboard.press("Tab")
    assert focused(page) == marks.first.inner_text()
    assert marks.first.get_attribute("aria-describedby") == "colbert-tip"
    first = texts(page, TIP)
    page.keyboard.press("ArrowRight")
    assert focused(page) == marks.nth(1).inner_text()
    assert [texts(page, TIP), first] == [
        [marks.nth(1).get_attribute("data-tip")],
        [marks.first.get_attribute("data-tip")],
    ]
    page.keyboard.press("Escape")
    assert page.locator(TIP).count() == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.colbert-passage')") is None


def test_a_mark_out_of_sight_opens_its_passage(visit: Visit) -> None:
    page = visit(f"{SEARCH}&id=3")
    passage, whole = page.locator(".colbert-passage"), page.locator(".colbert-whole")
    passage.locator("mark").first.focus()
    assert whole.get_attribute("open") is None
    page.keyboard.press("End")
    assert whole.get_attribute("open") == ""
    assert passage.evaluate("one => one.scrollHeight - one.clientHeight") == 0


def test_a_long_passage_opens_without_javascript(visit: Visit) -> None:
    page = visit(f"{SEARCH}&id=3", java_script_enabled=False)
    passage = page.locator(".colbert-passage")
    low = passage.bounding_box()["height"]
    page.locator(".colbert-whole summary").click()
    assert passage.bounding_box()["height"] > low + 100
    assert texts(visit(f"{SEARCH}&id=2"), ".colbert-whole") == []


def test_the_words_and_what_they_met_are_also_a_table(visit: Visit) -> None:
    page = visit(f"{SEARCH}&id=6")
    page.locator(".colbert-why summary").click()
    rows = [row.split("\t") for row in page.locator(".colbert-why table").inner_text().splitlines()]
    assert rows[0] == ["Query", "Row", "Similarity", "Score"]
    assert [row[:2] for row in rows[1:5]] == [["how", "How"], *([word, word] for word in ["to", "restore", "backups"])]
    assert [float(row[2]) > 0.95 for row in rows[1:5]] == [True] * 4
    assert [row[0] for row in rows[5:]] == ["special tokens", "together"]


def test_markup_in_a_passage_is_text(visit: Visit) -> None:
    page = visit(f"{SEARCH}&id=4")
    assert texts(page, ".colbert-passage") == ["Backups of <script>window.owned = true</script> & <b>bold</b> pages."]
    assert page.evaluate("window.owned") is None


def test_a_row_that_changed_says_so_and_has_no_marks(visit: Visit) -> None:
    page = visit(f"{SEARCH}&id=2")
    assert page.locator(".colbert-stale").count() == 1
    assert page.locator(".colbert-passage mark").count() == 0
    assert "sqlite-utils colbert sync blog.db posts" in page.locator(".message-info").inner_text()


def test_filters_are_added_and_removed_with_the_query_kept(visit: Visit) -> None:
    page = visit(f"{SEARCH}&_mode=hybrid")
    page.locator(".colbert-form summary").click()
    page.select_option("[name=_filter_column]", "title")
    page.select_option("[name=_filter_op]", "contains")
    page.fill("[name=_filter_value]", "part 1")
    follow(page, page.locator(".colbert-form [type=submit]").click)
    assert page.locator(".colbert-filters li").count() == 1
    assert sorted(texts(page, ".colbert-hits h2")) == [f"Backups, part {i}" for i in (1, 10, 11, 12)]
    follow(page, page.locator(".colbert-filters a").click)
    assert page.locator(".colbert-filters li").count() == 0
    assert page.input_value("#colbert-q") == "how to restore backups"
    assert texts(page, ".colbert-modes [aria-current]") == ["hybrid"]


def test_paging_goes_on_counting(visit: Visit) -> None:
    page = visit(SEARCH)
    follow(page, page.locator("[rel=next]").click)
    assert page.locator(".colbert-hits").get_attribute("start") == "11"
    assert texts(page, ".colbert-timing")[0].startswith("Rows 11 to ")
    follow(page, page.locator("[rel=prev]").click)
    assert texts(page, ".colbert-timing")[0].startswith("10 rows, ")


def test_no_hits_offer_ways_out(visit: Visit) -> None:
    page = visit(f"{SEARCH}&topic=none")
    assert texts(page, ".zero-results") == ["No rows with this filter"]
    follow(page, page.locator("text=without filters").click)
    assert page.locator(".colbert-hits article").count() == 10


def test_an_error_is_told_on_the_page(visit: Visit) -> None:
    page = visit(f"{SEARCH}&_mode=other")
    assert "'other'" in page.locator("[role=alert]").inner_text()
    assert page.input_value("#colbert-q") == "how to restore backups"


def test_steps_of_heat_differ_without_their_colors(visit: Visit) -> None:
    page = visit(SEARCH, forced_colors="active")
    lines = page.locator(".colbert-legend mark").evaluate_all(
        "marks => marks.map(getComputedStyle).map(s => `${s.textDecorationStyle} ${s.textDecorationThickness}`)"
    )
    assert lines == ["dotted 1px", "solid 1px", "solid 2px", "solid 3px"]


def test_nothing_moves_for_who_wants_less_motion(visit: Visit) -> None:
    def transition(motion: str) -> str:
        page = visit(SEARCH, reduced_motion=motion)
        return str(page.locator("mark").first.evaluate("mark => getComputedStyle(mark).transitionProperty"))

    assert (transition("no-preference"), transition("reduce")) == ("background-color", "none")


def test_dark_mode_is_dark(visit: Visit) -> None:
    page = visit(SEARCH, color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_need_not_scroll_sideways(visit: Visit, name: str) -> None:
    page = visit(PAGES[name], viewport={"width": 360, "height": 740}, has_touch=True)
    assert overflow(page) == 0
    page.evaluate("for (const details of document.querySelectorAll('main details')) details.open = true")
    assert overflow(page) == 0
    for mark in page.locator(".colbert-passage mark").all()[:20]:
        mark.tap()
        assert page.locator(TIP).count() == 1
        assert overflow(page) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(visit: Visit, name: str, scheme: str) -> None:
    page = visit(PAGES[name], color_scheme=scheme)
    page.evaluate("for (const details of document.querySelectorAll('main details')) details.open = true")
    if page.locator(WORDS).count():
        page.locator(WORDS).last.click()
    assert serious(page) == []


def test_it_works_under_a_strict_content_security_policy(visit: Visit, browser: Any, site: str) -> None:
    context = browser.new_context()
    page = context.new_page()

    def guarded(route: Any) -> None:
        response = route.fetch()
        headers = {**response.headers, "content-security-policy": "default-src 'self'"}
        route.fulfill(response=response, headers=headers)

    page.route(site + SEARCH, guarded)
    hosts = set()
    page.on("request", lambda request: hosts.add("/".join(request.url.split("/")[:3])))
    page.goto(site + SEARCH)
    assert page.locator(".colbert-page :is(style, script, [style])").count() == 0
    page.locator(WORDS).last.focus()
    assert lit_words(page) == {"backups"}
    mark = page.locator(".colbert-passage mark").last
    mark.hover()
    assert page.locator(TIP).bounding_box()["y"] > mark.bounding_box()["y"]
    assert hosts == {site}
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", MANAGING)
def test_pages_that_manage_are_for_everybody(visit: Visit, root: Any, job: str, name: str, scheme: str) -> None:
    options = {"color_scheme": scheme, "storage_state": root}
    assert serious(visit(MANAGING[name] or job, **options)) == []
    page = visit(MANAGING[name] or job, **options, viewport={"width": 360, "height": 740})
    assert overflow(page) == 0


@pytest.mark.parametrize(
    ("path", "added"), [(TABLE, [BOX]), ("/blog/posts/3", ["h2:has(+ .tight-bullets)", ".tight-bullets"])]
)
def test_what_is_added_to_pages_of_datasette_is_for_everybody(visit: Visit, path: str, added: list[str]) -> None:
    page = visit(path)
    assert [page.locator(selector).count() for selector in added] == [1] * len(added)
    # The colors of a button are those of Datasette.
    assert serious(page, {"include": added, "exclude": ["[type=submit]"]}) == []


def test_an_index_is_made_and_its_job_followed_to_the_end(visit: Visit, root: Any, folder: Path) -> None:
    with held(folder, "letters"):
        page = visit(f"{CREATE}?table=letters", storage_state=root)
        page.get_by_label(re.compile("^hashing")).check()
        follow(page, page.locator("[value='Create the index']").click)
        page.get_by_text("Waiting for another process").wait_for()
        assert page.locator("progress").evaluate("bar => bar.position") == -1
        page.reload()
        assert texts(page, "h1") == ["Create index letters"]
        page.get_by_text("Waiting for another process").wait_for()
    page.locator(".message-info").wait_for()
    assert texts(page, ".message-info")[0].startswith("Done: 17 rows, ")
    assert page.locator("progress").count() == 0
    assert serious(page) == []
    follow(page, page.get_by_role("link", name="Search the index").click)
    assert texts(page, "h1") == ["Search letters"]


def test_the_bar_says_how_far_a_job_is(visit: Visit, root: Any, job: str) -> None:
    def encoding(route: Any) -> None:
        response = route.fetch()
        now = {**response.json(), "stage": "encode", "text": "Encoding rows: 5 of 20.", "done": 5, "total": 20}
        route.fulfill(response=response, json=now)

    page = visit(job, storage_state=root)
    page.route(f"**{job}.json", encoding)
    page.get_by_text("Encoding rows: 5 of 20.").wait_for()
    assert page.locator("progress").evaluate("bar => bar.position") == 0.25
    page.unroute(f"**{job}.json")
    page.get_by_text("Waiting for another process").wait_for()
    assert page.locator("progress").evaluate("bar => bar.position") == -1


def test_without_javascript_a_job_is_followed_too(visit: Visit, root: Any, folder: Path) -> None:
    page = visit(f"{CREATE}?table=drafts", storage_state=root, java_script_enabled=False)
    page.get_by_label(re.compile("^hashing")).check()
    with held(folder, "drafts"):
        follow(page, page.locator("[value='Create the index']").click)
        assert page.locator("progress").count() == 1
    page.locator(".message-info").wait_for()
    assert texts(page, ".message-info")[0].startswith("Done: 17 rows, ")


def test_a_job_is_cancelled(visit: Visit, root: Any, job: str) -> None:
    page = visit(job, storage_state=root)
    follow(page, page.locator("[value=Cancel]").click)
    page.locator(".message-warning").wait_for()
    assert texts(page, ".message-warning") == ["Cancelled."]


def test_a_form_that_lacks_something_says_so_and_keeps_the_rest(visit: Visit, root: Any) -> None:
    page = visit(f"{CREATE}?table=posts", storage_state=root)
    page.fill("#colbert-name", "other")
    page.get_by_label(re.compile("^hashing")).check()
    for box in page.locator("[name=column]").all():
        box.uncheck()
    follow(page, page.locator("[value='Create the index']").click)
    assert "column" in page.locator("[role=alert]").inner_text()
    assert page.input_value("#colbert-name") == "other"
    assert page.get_by_label(re.compile("^hashing")).is_checked()
    assert serious(page) == []


def test_the_box_on_the_page_of_a_table_brings_rows_best_first(visit: Visit) -> None:
    page = visit("/blog/posts")
    page.fill("#_colbert", "how to restore backups")
    follow(page, page.keyboard.press, "Enter")
    assert page.input_value("#_colbert") == "how to restore backups"
    scores = [float(score) for score in texts(page, "td.col-score")]
    assert len(scores) == 17
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]
    follow(page, page.locator(BOX).get_by_role("link").first.click)
    assert page.input_value("#colbert-q") == "how to restore backups"


def test_on_a_phone_the_cells_of_a_table_have_the_names_of_their_columns(visit: Visit) -> None:
    page = visit(TABLE, viewport={"width": 360, "height": 740})
    assert page.locator(BOX).bounding_box()["width"] <= 360
    cells = page.locator(".rows-and-columns tbody tr").first.locator("td")
    columns = cells.evaluate_all("cells => cells.map(cell => cell.className.match(/col-(\\w+)/)[1])")
    shown = cells.evaluate_all("cells => cells.map(cell => getComputedStyle(cell, '::before').content)")
    assert "score" in columns
    assert shown == [f'"{column}"' for column in columns]
