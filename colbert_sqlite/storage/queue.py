"""The queue: keys of rows that may differ from what is indexed.

In: keys, from triggers and from comparing. Out: the same, until they are removed. Leaves to others: the triggers that
fill it (``triggers.py``), and encoding the rows (``sync.py``).
"""

from __future__ import annotations

from collections.abc import Iterable

from colbert_sqlite.storage.schema import Tables, table_exists
from colbert_sqlite.storage.source import Key


class Queue:
    """The queue of one index. Call all that writes inside ``atomic``."""

    def __init__(self, tables: Tables) -> None:
        self._conn = tables.conn
        self._tables = tables
        self._table = tables.quoted("queue")
        self._keys = tables.key_list
        self._key_equals = tables.key_equals

    @staticmethod
    def definition(tables: Tables) -> str:
        return (
            f"CREATE TABLE {tables.quoted('queue')} (\n    {tables.key_definitions},\n"
            f"    PRIMARY KEY ({tables.key_list})\n) WITHOUT ROWID"
        )

    def exists(self) -> bool:
        return table_exists(self._conn, self._tables.name("queue"))

    def create(self) -> None:
        self._conn.execute(self.definition(self._tables))

    def drop(self) -> None:
        self._conn.execute(f"DROP TABLE IF EXISTS {self._table}")

    def add(self, keys: Iterable[Key]) -> None:
        values = ", ".join("?" * len(self._tables.keys))
        self._conn.executemany(f"INSERT INTO {self._table} VALUES ({values}) ON CONFLICT DO NOTHING", keys)

    def remove(self, keys: Iterable[Key]) -> None:
        self._conn.executemany(f"DELETE FROM {self._table} WHERE {self._key_equals}", keys)

    def keys(self, after: Key | None, limit: int) -> list[Key]:
        """Return keys in their order, beginning behind *after*."""
        beyond = "" if after is None else f" WHERE ({self._keys}) > ({', '.join('?' * len(after))})"
        sql = f"SELECT {self._keys} FROM {self._table}{beyond} ORDER BY {self._keys} LIMIT {limit}"
        return self._conn.execute(sql, after or ()).fetchall()

    def has(self, key: Key) -> bool:
        sql = f"SELECT 1 FROM {self._table} WHERE {self._key_equals}"
        return self._conn.execute(sql, key).fetchone() is not None

    def count(self) -> int:
        n: int = self._conn.execute(f"SELECT count(*) FROM {self._table}").fetchone()[0]
        return n
