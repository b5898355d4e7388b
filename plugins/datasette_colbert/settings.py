"""The settings below ``plugins: colbert-sqlite:`` in Datasette's configuration.

In: that mapping. Out: one frozen object, or one sentence about what is wrong with it. Leaves to others: reading the
files, which Datasette does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import click

from datasette_colbert.compat import configuration
from datasette_colbert.state import state_of

if TYPE_CHECKING:
    from datasette.app import Datasette

PLUGIN = "colbert-sqlite"
MODES = ("colbert", "hybrid", "fts")
# A setting from the environment is a text.
SWITCHES = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
PROCESS_SETTINGS = ("num_search_threads", "max_queued_searches", "search_time_limit_ms", "auto_sync_seconds")
DATABASE_SETTINGS = ("indexes", "sql_functions")

SqlFunctions = bool | Literal["actors"]


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """The settings of a table, a database or the process; the keys in the configuration have these names.

    ``indexes``: those to serve, None for all. ``model``: name or folder of the model of the indexes, and of the SQL
    functions. ``mode``: the mode of a search that chooses no other. ``page_size``: rows per page. ``max_k``: rows that
    one search may find. ``similar_rows``: how many the page of a row has. ``sql_functions``: whether SQL may call
    ``colbert_search`` and the others: true, false, or "actors": not SQL that an anonymous visitor wrote.

    ``num_search_threads``: searches at a time. ``max_queued_searches``: how many may wait for one.
    ``search_time_limit_ms``: how long a search may take, waiting included. ``auto_sync_seconds``: how often the plugin
    looks for indexes to sync, 0 for never.
    """

    indexes: tuple[str, ...] | None = None
    model: str | None = None
    mode: str = "colbert"
    page_size: int = 10
    max_k: int = 100
    similar_rows: int = 5
    sql_functions: SqlFunctions = "actors"
    num_search_threads: int = 1
    max_queued_searches: int = 40
    search_time_limit_ms: int = 10_000
    auto_sync_seconds: int = 0

    def serves(self, index: str) -> bool:
        return self.indexes is None or index.lower() in (name.lower() for name in self.indexes)


class _ParsedSettings:
    """The settings of one Datasette, each parsed when it is first needed."""

    def __init__(self, datasette: Datasette) -> None:
        self._settings: dict[tuple[str | None, str | None], PluginSettings] = {}

    def get(self, datasette: Datasette, database: str | None, table: str | None) -> PluginSettings:
        settings = self._settings.get((database, table))
        if settings is None:
            settings = self._settings[database, table] = parse_settings(_section(datasette, database, table))
        return settings


def settings_for(datasette: Datasette, database: str | None = None, table: str | None = None) -> PluginSettings:
    """Return the settings of a table, of a database, or of the process.

    What a table does not set, its database does, and what that does not, the process.

    :raises click.ClickException: if one of them is wrong
    """
    return state_of(datasette, _ParsedSettings).get(datasette, database, table)


def check_settings(datasette: Datasette) -> None:
    """Make sure that all settings can be used, those of single databases and tables too.

    :raises click.ClickException: if not
    """
    settings_for(datasette)
    for database, of_database in _mapping(configuration(datasette), "databases").items():
        _refuse(of_database, PROCESS_SETTINGS, "the whole process", f"database {database}", "the top level")
        settings_for(datasette, database)
        for table, of_table in _mapping(of_database, "tables").items():
            _refuse(of_table, PROCESS_SETTINGS, "the whole process", f"table {table}", "the top level")
            _refuse(of_table, DATABASE_SETTINGS, "a whole database", f"table {table}", "the database")
            settings_for(datasette, database, table)


def parse_settings(config: Mapping[str, object]) -> PluginSettings:
    """Return the settings in a mapping.

    :raises click.ClickException: if one of them is wrong
    """
    names = {field.name for field in fields(PluginSettings)}
    if unknown := sorted(set(config) - names):
        raise _wrong(f"there is no setting {unknown[0]!r}; there are {', '.join(sorted(names))}")
    values: dict[str, Any] = {name: _value(name, value) for name, value in config.items()}
    settings = PluginSettings(**values)
    if settings.page_size <= settings.max_k:
        return settings
    if "page_size" in config:
        raise _wrong(f"page_size is {settings.page_size}, more than the {settings.max_k} rows of max_k")
    return replace(settings, page_size=settings.max_k)


def _section(datasette: Datasette, database: str | None, table: str | None) -> Mapping[str, object]:
    config: dict[str, object] = {}
    for where in ({}, {"database": database}, {"database": database, "table": table}):
        # Datasette falls back to the wider section only where the narrower one does not exist.
        section = datasette.plugin_config(PLUGIN, **where) or {}
        if not isinstance(section, Mapping):
            raise _wrong(f"the settings are names with values, not {section!r}")
        config |= section
    return config


def checked_mode(name: str, mode: object) -> str:
    """Return *mode*, the value of the argument or setting *name*.

    :raises ValueError: if there is no such mode
    """
    if mode not in MODES:
        raise ValueError(f"{name} must be {', '.join(MODES[:-1])} or {MODES[-1]}, not {mode!r}")
    return str(mode)


def _value(name: str, value: object) -> object:
    if name == "indexes":
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise _wrong(f"indexes must be a list of names, not {value!r}")
        return tuple(map(str, value))
    if name == "model":
        if not isinstance(value, str) or not value:
            raise _wrong(f"model must be a name or a folder, not {value!r}")
        return value
    if name == "mode":
        try:
            return checked_mode(name, value)
        except ValueError as error:
            raise _wrong(str(error)) from None
    if name == "sql_functions":
        if value == "actors":
            return value
        try:
            return SWITCHES[str(value).lower()]
        except KeyError:
            raise _wrong(f'sql_functions must be true, false or "actors", not {value!r}') from None
    minimum = 0 if name in ("auto_sync_seconds", "max_queued_searches", "similar_rows") else 1
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = value
    if isinstance(number, bool) or not isinstance(number, int) or number < minimum:
        raise _wrong(f"{name} must be a whole number from {minimum} on, not {value!r}")
    return number


def _refuse(config: object, names: Sequence[str], wider: str, scope: str, target: str) -> None:
    """Make sure that a database or table has none of the settings *names*, which belong to something wider."""
    own = _mapping(_mapping(config, "plugins"), PLUGIN)
    for name in names:
        if name in own:
            raise _wrong(f"{name} is a setting of {wider}, not of {scope}: move it to {target}")


def _mapping(config: object, name: str) -> Mapping[str, object]:
    """The section of that name; empty where there is none, or no mapping: Datasette itself refuses that."""
    section = config.get(name) if isinstance(config, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def _wrong(sentence: str) -> click.ClickException:
    return click.ClickException(f"{PLUGIN}: {sentence}")
