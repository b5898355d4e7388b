"""The one import policy: a room imports only rooms to its left, and importing the package is light."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import colbert_sqlite
from colbert_sqlite import serving

ROOT = Path(__file__).resolve().parent.parent
FLOW = """errors values settings progress memory locks passages encoders engine storage model codec results indexes
growth rows build verify sync optimize query view words highlight explain rerank search similar create
info index evaluate upgrade multi serving sql""".split()
APART = {"encoders", "engine", "storage"}
HOSTS = {"click", "tqdm", "tabulate", "datasette", "llm", "sqlite_utils_colbert", "datasette_colbert"}
HEAVY = {"torch", "transformers", "sentence_transformers", "numba", "numkong", "scipy", "onnxruntime"}


def core_modules() -> list[str]:
    core = ROOT / "colbert_sqlite"
    paths = sorted(path.relative_to(ROOT) for path in core.rglob("*.py") if path != core / "__init__.py")
    return [path.as_posix() for path in paths]


def room_of(path: str | Path) -> str:
    return Path(path).parts[1].removesuffix(".py")


def imported_names(path: str) -> Iterator[str]:
    """Absolute dotted names of everything a file imports, wherever in it."""
    package = list(Path(path).parts[:-1])
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def attributes_of(module: str, path: str) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module:
            yield node.attr


def rooms_imported_by(path: str) -> set[str]:
    names = (name.split(".")[1] for name in imported_names(path) if name.startswith("colbert_sqlite."))
    return {name for name in names if name not in colbert_sqlite.__all__ or name in FLOW}


@pytest.mark.parametrize("path", core_modules())
def test_rooms_import_only_from_earlier_rooms(path: str) -> None:
    room = room_of(path)
    earlier = FLOW[: FLOW.index(room)]
    allowed = {room, *earlier} - (APART - {room} if room in APART else set())
    assert rooms_imported_by(path) - allowed == set()


def hosts() -> list[str]:
    """Files that stand on the public names and on ``serving``."""
    plugins = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "plugins").rglob("*.py"))
    return ["colbert_sqlite/sql.py", *plugins]


@pytest.mark.parametrize("path", hosts())
def test_hosts_import_only_public_names_and_serving(path: str) -> None:
    names = {
        name.removeprefix("colbert_sqlite.") for name in imported_names(path) if name.startswith("colbert_sqlite.")
    }
    served = {f"serving.{name}" for name in serving.__all__}
    used = {f"serving.{name}" for name in attributes_of("serving", path)}
    assert (names | used) - {*colbert_sqlite.__all__, "__version__", "serving", *served} == set()


@pytest.mark.parametrize("path", core_modules())
def test_the_core_imports_no_host_and_no_plugin(path: str) -> None:
    assert {name.split(".")[0] for name in imported_names(path)} & HOSTS == set()


@pytest.mark.parametrize("path", core_modules())
def test_compiled_libraries_enter_through_one_file_each(path: str) -> None:
    doors = {"kernels.py": {"numba"}, "products.py": {"numkong"}, "pooling.py": {"scipy"}}
    libraries = {name.split(".")[0] for name in imported_names(path)} & {"numba", "numkong", "scipy"}
    assert libraries <= (doors.get(Path(path).name, set()) if Path(path).parent.name == "engine" else set())


@pytest.mark.parametrize("path", core_modules())
def test_model_libraries_enter_through_three_files(path: str) -> None:
    """torch through two of them, onnxruntime through two; all are imported when a model needs them."""
    doors = {
        "colbert_sqlite/encoders/torch.py": {"torch", "transformers", "sentence_transformers"},
        "colbert_sqlite/encoders/onnx.py": {"onnxruntime"},
        "colbert_sqlite/encoders/export.py": {"torch", "onnx", "onnxruntime"},
    }
    libraries = {name.split(".")[0] for name in imported_names(path)} & {*HEAVY, "onnx"} - {"numba", "numkong", "scipy"}
    assert libraries <= doors.get(path, set())


def source_files() -> list[Path]:
    return sorted([*(ROOT / "colbert_sqlite").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])


def n_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    assert node.end_lineno is not None
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and first.end_lineno is not None
    return node.end_lineno - node.lineno + 1 - ((first.end_lineno or 0) - first.lineno + 1 if documented else 0)


@pytest.mark.parametrize("path", source_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= (350 if path.is_relative_to(ROOT / "plugins") else 450)
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert [node.name for node in functions if n_lines(node) > 60] == []


def test_types_are_seldom_any() -> None:
    assert sum(len(re.findall(r"\bAny\b", path.read_text("utf-8"))) for path in source_files()) <= 100


def loaded_by(*code: str) -> set[str]:
    """Top-level names of the modules a fresh interpreter has loaded after running *code*."""
    script = ["import sys", f"sys.path[:0] = {[str(ROOT), str(ROOT / 'plugins')]}", *code]
    script.append("print(*{name.partition('.')[0] for name in sys.modules})")
    run = subprocess.run([sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("name", ["colbert_sqlite", "sqlite_utils_colbert", "datasette_colbert"])
def test_import_is_light(name: str) -> None:
    assert loaded_by(f"import {name}") & HEAVY == set()


def test_a_connection_gets_its_functions_without_numpy() -> None:
    loaded = loaded_by(
        "import sqlite3",
        "from colbert_sqlite import register",
        "register(sqlite3.connect(':memory:'))",
        "print()",
    )
    assert loaded & {*HEAVY, "numpy"} == set()


@pytest.mark.parametrize("words", [[], ["search"], ["index"]], ids=" ".join)
def test_help_is_light(words: list[str]) -> None:
    loaded = loaded_by(
        "from sqlite_utils_colbert.cli import colbert",
        f"colbert.main({[*words, '--help']}, standalone_mode=False)",
        "print()",
    )
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("words", [[], ["colbert"], ["tables"]], ids=" ".join)
def test_help_of_sqlite_utils_with_our_plugin_is_light(words: list[str]) -> None:
    loaded = loaded_by(
        "from sqlite_utils import cli",
        "import sqlite_utils_colbert",
        "sqlite_utils_colbert.register_commands(cli.cli)",
        f"cli.cli.main({[*words, '--help']}, standalone_mode=False)",
        "print()",
    )
    assert {"sqlite_utils_colbert", "colbert_sqlite"} <= loaded
    assert loaded & HEAVY == set()


@pytest.mark.skipif(importlib.util.find_spec("datasette") is None, reason="datasette is not installed")
def test_datasette_beside_us_is_light() -> None:
    loaded = loaded_by(
        "from datasette.cli import cli",
        "cli.main(['--version'], standalone_mode=False)",
        "print()",
    )
    assert "datasette" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
def test_the_check_for_light_imports_would_notice_numba() -> None:
    assert "numba" in loaded_by("import numba") & HEAVY
