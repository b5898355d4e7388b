"""The settings of the Datasette plugin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click import ClickException
from click.testing import CliRunner
from datasette.cli import serve
from datasette_colbert.settings import PluginSettings, check_settings, parse_settings, settings_for

from tests.datasette.helpers import IS_1_0, serving


def test_without_configuration_everything_has_a_default() -> None:
    assert parse_settings({}) == PluginSettings()


def test_numbers_out_of_the_environment_are_texts() -> None:
    settings = parse_settings({"page_size": "20", "num_search_threads": "2", "sql_functions": "on"})
    assert (settings.page_size, settings.num_search_threads, settings.sql_functions) == (20, 2, True)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("page_size", 0, "page_size must be a whole number from 1 on, not 0"),
        ("max_k", "many", "max_k must be a whole number from 1 on, not 'many'"),
        ("search_time_limit_ms", 1.5, "search_time_limit_ms must be a whole number from 1 on, not 1.5"),
        ("num_search_threads", True, "num_search_threads must be a whole number from 1 on, not True"),
        ("auto_sync_seconds", -1, "auto_sync_seconds must be a whole number from 0 on, not -1"),
        ("mode", "semantic", "mode must be colbert, hybrid or fts, not 'semantic'"),
        ("indexes", "posts", "indexes must be a list of names, not 'posts'"),
        ("model", ["minilm"], "model must be a name or a folder, not ['minilm']"),
        ("sql_functions", "admins", "sql_functions must be true, false or \"actors\", not 'admins'"),
    ],
)
def test_a_wrong_value_is_refused_with_what_it_may_be(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(ClickException) as caught:
        parse_settings({name: value})
    assert caught.value.message == f"colbert-sqlite: {sentence}"


def test_an_unknown_setting_is_refused_with_those_there_are() -> None:
    with pytest.raises(ClickException, match="there is no setting 'indices'; there are auto_sync_seconds, indexes, "):
        parse_settings({"indices": ["posts"]})


@pytest.mark.parametrize("scope", ["database", "table"])
def test_what_is_of_the_process_is_refused_elsewhere(indexed_blog: Path, tmp_path: Path, scope: str) -> None:
    plugins: dict[str, Any] = {"plugins": {"colbert-sqlite": {"num_search_threads": 2}}}
    of_database = plugins if scope == "database" else {"tables": {"posts": plugins}}
    file = tmp_path / "datasette.json"
    file.write_text(json.dumps({"databases": {"blog": of_database}}))
    option = "--config" if IS_1_0 else "--metadata"
    result = CliRunner().invoke(serve, [str(indexed_blog), option, str(file), "--get", "/blog.json"])
    assert result.exit_code == 1
    assert result.output == (
        "Error: colbert-sqlite: num_search_threads is a setting of the whole process, not of "
        f"{'database blog' if scope == 'database' else 'table posts'}: move it to the top level\n"
    )


@pytest.mark.asyncio
async def test_a_table_s_setting_goes_before_its_database_s(indexed_blog: Path) -> None:
    def plugin(**settings: Any) -> dict[str, Any]:
        return {"plugins": {"colbert-sqlite": settings}}

    tables = {"posts": plugin(page_size=3)}
    config = {**plugin(page_size=1, mode="fts"), "databases": {"blog": {**plugin(page_size=2), "tables": tables}}}
    datasette = serving(indexed_blog, config=config)
    settings = [settings_for(datasette, *where) for where in ((), ("blog",), ("blog", "posts"))]
    assert [(one.page_size, one.mode) for one in settings] == [(1, "fts"), (2, "fts"), (3, "fts")]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "config", [{"databases": {"blog": None}}, {"databases": {"blog": {"tables": {"posts": None}}}}]
)
async def test_empty_places_in_the_configuration_say_nothing(indexed_blog: Path, config: dict[str, Any]) -> None:
    check_settings(serving(indexed_blog, config=config))


def test_a_page_is_no_longer_than_what_a_search_finds() -> None:
    assert parse_settings({"max_k": 5}).page_size == 5
    with pytest.raises(ClickException, match="page_size is 20, more than the 5 rows of max_k"):
        parse_settings({"max_k": 5, "page_size": 20})
