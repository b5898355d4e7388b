"""What ``plugins: colbert-sqlite:`` says in Datasette's configuration.

In: that mapping. Out: one frozen object, or one sentence about what is wrong with it. Leaves to others: where it is
written, which Datasette knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from datasette.app import Datasette

PLUGIN = "colbert-sqlite"
MODES = ("colbert", "hybrid", "fts")
# A setting out of the environment is a text.
SWITCHES = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
# These are of the process, not of a database or a table.
OF_PROCESS = ("num_search_threads", "max_queued_searches", "search_time_limit_ms", "auto_sync_seconds")
# And these of a database.
OF_DATABASE = ("indexes", "sql_functions")

SqlFunctions = bool | Literal["actors"]


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """One place or table's settings; the keys in the configuration have these names.

    ``indexes``: which are served, None for all. ``model``: name or folder of the model of the indexes, and of the SQL
    functions. ``mode``: how the pages search when the reader does not choose. ``page_size``: rows per page, ``max_k``:
    the most rows one search may find. ``similar_rows``: how many a row's page shows. ``sql_functions``: whether SQL may
    call ``colbert_search`` and the others: true, false, or "actors": not from SQL that an anonymous visitor wrote.

    ``num_search_threads``: searches at a time. ``max_queued_searches``: how many may wait for one.
    ``search_time_limit_ms``: how long a search may take, waiting included. ``auto_sync_seconds``: how often indexes
    that are behind are synced, 0 for never.
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


def settings_for(datasette: Datasette, database: str | None = None, table: str | None = None) -> PluginSettings:
    """Return the settings of a table, of a database, or of the process.

    What a table does not set, its database does, and what that does not, the process.

    :raises click.ClickException: if one of them can't be
    """
    config: dict[str, Any] = {}
    for where in ({}, {"database": database}, {"database": database, "table": table}):
        # Datasette falls back to the wider place only where the narrower one says nothing at all.
        given = datasette.plugin_config(PLUGIN, **where) or {}
        if not isinstance(given, Mapping):
            raise _wrong(f"the settings are names with values, not {given!r}")
        config |= given
    return parsed(config)


def check_settings(datasette: Datasette) -> None:
    """Make sure that all settings can be used, those of single databases and tables too.

    :raises click.ClickException: if not
    """
    settings_for(datasette)
    for database, of_database in _mapping(_tree(datasette), "databases").items():
        _refuse(of_database, OF_PROCESS, "the whole process", f"database {database}", "the top level")
        settings_for(datasette, database)
        for table, of_table in _mapping(of_database, "tables").items():
            _refuse(of_table, OF_PROCESS, "the whole process", f"table {table}", "the top level")
            _refuse(of_table, OF_DATABASE, "a whole database", f"table {table}", "the database")
            settings_for(datasette, database, table)


def parsed(config: Mapping[str, Any]) -> PluginSettings:
    """Return the settings a mapping says.

    :raises click.ClickException: if one of them can't be
    """
    known = {field.name for field in fields(PluginSettings)}
    if unknown := sorted(set(config) - known):
        raise _wrong(f"there is no setting {unknown[0]!r}; there are {', '.join(sorted(known))}")
    settings = PluginSettings(**{name: _value(name, value) for name, value in config.items()})
    if settings.page_size <= settings.max_k:
        return settings
    if "page_size" in config:
        raise _wrong(f"page_size is {settings.page_size}, more than the {settings.max_k} rows of max_k")
    return replace(settings, page_size=settings.max_k)


def checked_mode(name: str, mode: Any) -> str:
    """Return *mode*, the value of what is called *name*.

    :raises ValueError: if there is no such mode
    """
    if mode not in MODES:
        raise ValueError(f"{name} must be {', '.join(MODES[:-1])} or {MODES[-1]}, not {mode!r}")
    return str(mode)


def _value(name: str, value: Any) -> Any:
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
    least = 0 if name in ("auto_sync_seconds", "max_queued_searches", "similar_rows") else 1
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = value
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise _wrong(f"{name} must be a whole number from {least} on, not {value!r}")
    return number


def _refuse(config: Mapping[str, Any], names: Sequence[str], whole: str, place: str, target: str) -> None:
    """Make sure that a place has none of the settings *names*, which are those of something wider."""
    own = _mapping(_mapping(config, "plugins"), PLUGIN)
    for name in names:
        if name in own:
            raise _wrong(f"{name} is a setting of {whole}, not of {place}: move it to {target}")


def _mapping(config: Any, name: str) -> Mapping[str, Any]:
    """What is below a name; nothing where there is nothing, or what is no mapping, which Datasette itself minds."""
    below = config.get(name) if isinstance(config, Mapping) else None
    return below if isinstance(below, Mapping) else {}


def _tree(datasette: Datasette) -> Mapping[str, Any]:
    """The whole configuration, which 0.65 calls metadata."""
    return getattr(datasette, "config", None) or getattr(datasette, "_metadata_local", None) or {}


def _wrong(sentence: str) -> click.ClickException:
    return click.ClickException(f"{PLUGIN}: {sentence}")
