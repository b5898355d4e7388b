"""Look into a wheel and a source distribution before they are published.

    python -m tests.check_package dist

In: a folder with one of each. Out: nothing, or what is missing or too much.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

PACKAGES = ("colbert_sqlite", "sqlite_utils_colbert", "datasette_colbert")
IN_WHEEL = [
    "colbert_sqlite/__init__.py",
    "colbert_sqlite/py.typed",
    "colbert_sqlite/*.safetensors",
    "sqlite_utils_colbert/cli.py",
    "datasette_colbert/templates/*.html",
    "datasette_colbert/static/*.css",
    "datasette_colbert/static/*.js",
    "*.dist-info/entry_points.txt",
    "*.dist-info/licenses/LICENSE",
]
IN_SDIST = [
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "constraints.txt",
    "pyproject.toml",
    "tests/conftest.py",
    "tests/data/checkpoints/*/model.safetensors",
    "tests/data/plaid/index.npz",
    "tests/benchmarks/*.py",
    "sample_data/build.py",
    "sample_data/posts/*/*.md",
    "plugins/images/*.png",
]
TOO_MUCH = ["*.pyc", "*.db", "*.db-wal", "*.egg-info/*.db"]


def main(folder: Path) -> list[str]:
    """Return what is wrong with the two files of *folder*, a sentence each."""
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    in_wheel = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as archive:
        in_sdist = [name.partition("/")[2] for name in archive.getnames()]
    wrong = []
    for file, names, patterns in ((wheel, in_wheel, IN_WHEEL), (sdist, in_sdist, IN_SDIST)):
        wrong += [f"{file.name}: no {p}" for p in patterns if not any(fnmatch(name, p) for name in names)]
        wrong += [f"{file.name}: {name} is too much" for name in names if any(fnmatch(name, p) for p in TOO_MUCH)]
    allowed = (*(f"{package}/" for package in PACKAGES), f"{wheel.name.rpartition('-py3')[0]}.dist-info/")
    wrong += [f"{wheel.name}: {name} is too much" for name in in_wheel if not name.startswith(allowed)]
    return wrong


if __name__ == "__main__":
    problems = main(Path(sys.argv[1]))
    print(*problems, sep="\n", end="\n" if problems else "")
    sys.exit(bool(problems))
