"""What the tests of the Datasette plugin share: the same words for Datasette 0.65 and 1.0."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from datasette.app import Datasette

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.index import Index

IS_1_0 = hasattr(Datasette, "allowed")
SIGNED_IN = {"id": "ann"}
ROOT = {"id": "root"}


def serving(
    *paths: Path, config: Mapping[str, Any] | None = None, plugin: Mapping[str, Any] | None = None, **kwargs: Any
) -> Datasette:
    """A Datasette that serves these files, with settings of the plugin and other configuration."""
    whole = {**(config or {})}
    if plugin is not None:
        whole["plugins"] = {"colbert-sqlite": dict(plugin)}
    return Datasette([str(path) for path in paths], **{"config" if IS_1_0 else "metadata": whole}, **kwargs)


def write_secrets(path: Path, encoder: Encoder) -> Path:
    """Put an indexed table of secrets into a file."""
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE secrets (id INTEGER PRIMARY KEY, title TEXT, body TEXT)")
        conn.execute("INSERT INTO secrets VALUES (1, 'Hideout', 'the treasure is under the comet observatory')")
        conn.commit()
        Index.create(conn, "secrets", ["body"], heading="title", model=encoder)
    return path


def cookies(datasette: Datasette, actor: Mapping[str, Any] | None) -> dict[str, str]:
    return {} if actor is None else {"ds_actor": datasette.sign({"a": dict(actor)}, "actor")}


async def get(datasette: Datasette, path: str, actor: Mapping[str, Any] | None = None, **params: Any) -> Any:
    """The response to a GET of an actor."""
    if IS_1_0:
        datasette.root_enabled = True
    return await datasette.client.get(path, params=params or None, cookies=cookies(datasette, actor))


async def rows(
    datasette: Datasette, database: str, sql: str, *, actor: Mapping[str, Any] | None = SIGNED_IN, **params: str
) -> Any:
    """What a SELECT returns over HTTP, or its error."""
    path = f"/{database}/-/query.json" if IS_1_0 else f"/{database}.json"
    answer = (await get(datasette, path, actor, sql=sql, _shape="arrays", **params)).json()
    return answer["rows"] if answer["ok"] else answer["error"]


def only_for(actor_id: str, database: str, tables: Iterable[str]) -> dict[str, Any]:
    """Configuration by which only one actor may see some tables."""
    return {"databases": {database: {"tables": {table: {"allow": {"id": actor_id}} for table in tables}}}}
