"""What an installed copy offers to its hosts. Skipped where the package runs from a checkout without installation."""

from __future__ import annotations

from importlib import metadata

import pytest

import colbert_sqlite


@pytest.fixture
def installed() -> metadata.Distribution:
    try:
        return metadata.distribution("colbert-sqlite")
    except metadata.PackageNotFoundError:
        pytest.skip("colbert-sqlite is not installed")


def test_the_version_is_the_one_the_package_states(installed: metadata.Distribution) -> None:
    assert installed.version == colbert_sqlite.__version__


def test_both_doors_lead_to_the_same_commands(installed: metadata.Distribution) -> None:
    from sqlite_utils.plugins import get_plugins, pm
    from sqlite_utils_colbert.cli import colbert

    [script] = installed.entry_points.select(group="console_scripts")
    assert (script.name, script.load()) == ("colbert-sqlite", colbert)
    hooks = ["prepare_connection", "register_commands"]
    assert {"name": "colbert-sqlite", "hooks": hooks, "version": installed.version} in get_plugins()
    assert pm.has_plugin("colbert")
