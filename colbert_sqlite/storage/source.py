"""The user's own table, as we read it. Nothing here writes.

In: the name of a table, its columns and an optional condition. Out: its keys, and rows as raw values. Leaves to
others: making text and passages of them.
"""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from colbert_sqlite.errors import SourceError
from colbert_sqlite.passages import RawValue, content_hash
from colbert_sqlite.settings import IndexSettings
from colbert_sqlite.storage.connection import file_of, lenient_text
from colbert_sqlite.storage.schema import qualified, quote_identifier
from colbert_sqlite.values import PrimaryKey, SqlValue

Key = tuple[SqlValue, ...]

# Those that every connection has.
COLLATIONS = frozenset({"BINARY", "NOCASE", "RTRIM"})
_PURE_FUNCTIONS = frozenset(
    "-> ->> abs char glob hex ifnull instr json_array_length json_extract json_type json_valid length like lower ltrim "
    "nullif replace round rtrim sign substr substring trim typeof unicode upper".split()
)


def pk_of(key: Key) -> PrimaryKey:
    """Return a key as users see it: the value of a single column, or the tuple of several."""
    return key[0] if len(key) == 1 else key


class UniqueColumns(NamedTuple):
    """Columns that no two rows may have alike, each with the collation that decides it; None for a rowid."""

    columns: tuple[tuple[str, str | None], ...]


class SourceRow(NamedTuple):
    key: Key
    values: list[RawValue]
    heading: RawValue | None

    @property
    def n_bytes(self) -> int:
        return sum(len(value.raw or b"") for value in self.values)

    @property
    def content_hash(self) -> bytes:
        """Hash of everything that decides the row's passages."""
        return content_hash([*self.values, *([] if self.heading is None else [self.heading])])


@dataclass(frozen=True, slots=True)
class Source:
    """A table to index: where its text is and what identifies its rows."""

    table: str
    keys: tuple[str, ...]
    key_types: tuple[str, ...]
    key_collations: tuple[str | None, ...]
    """How the primary key compares values of its columns, which may be another collation than the column's own."""
    columns: tuple[str, ...]
    heading: str | None
    where: str | None
    params: Mapping[str, object]
    encoding: str = "UTF-8"

    @classmethod
    def inspect(
        cls,
        conn: sqlite3.Connection,
        table: str,
        columns: Sequence[str],
        *,
        heading: str | None = None,
        where: str | None = None,
        params: Mapping[str, object] | None = None,
    ) -> Source:
        """Return what the schema says of *table*, with its own spelling of names.

        :raises SourceError: if the table cannot be indexed: missing, no table, no primary key, no such column
        """
        if params is not None and not isinstance(params, Mapping):
            raise ValueError(f"params must map names to values, not {params!r}")
        table, strict = _ordinary_table(conn, table)
        declared = conn.execute(
            "SELECT name, type, pk FROM pragma_table_xinfo(?, 'main') WHERE hidden != 1", (table,)
        ).fetchall()
        by_name = {name.lower(): str(name) for name, _, _ in declared}

        def resolve(column: str) -> str:
            if column.lower() not in by_name:
                raise SourceError(f"no column {column!r} in table {table!r}; it has {_some([*by_name.values()])}")
            return by_name[column.lower()]

        names = tuple(map(resolve, columns))
        head = None if heading is None else resolve(heading)
        keys = sorted((pk, name, type_) for name, type_, pk in declared if pk)
        if not keys:
            words = shlex.join([file_of(conn) or "DATABASE", table])
            raise SourceError(
                f"table {table!r} has no primary key, and VACUUM may renumber its rowids: add one first, for example "
                f"with: sqlite-utils transform {words} --rename rowid id --pk id"
            )
        collations = _key_collations(conn, table)
        source = cls(
            table=table,
            keys=tuple(name for _, name, _ in keys),
            key_types=tuple(_key_type(type_, strict, collations.get(name)) for _, name, type_ in keys),
            key_collations=tuple(collations.get(name) for _, name, _ in keys),
            columns=tuple(name for name in names if name != head or len(names) == 1),
            heading=head if names != (head,) else None,
            where=where,
            params=dict(params or {}),
            encoding=conn.execute("PRAGMA encoding").fetchone()[0],
        )
        source._check_condition(conn)
        return source

    @classmethod
    def of_index(cls, conn: sqlite3.Connection, settings: IndexSettings) -> Source:
        """Return the table that an index with these settings is made of. Errors as in :meth:`inspect`."""
        return cls.inspect(
            conn,
            settings.table,
            settings.columns,
            heading=settings.heading,
            where=settings.where,
            params=settings.params,
        )

    def _check_condition(self, conn: sqlite3.Connection) -> None:
        if self.where is None:
            return
        try:
            conn.execute(f"EXPLAIN SELECT 1 FROM {self.from_where()}", dict(self.params)).fetchone()
        except (sqlite3.Error, OverflowError, ValueError) as error:
            raise SourceError(f"the condition {self.where!r} can't be used: {' '.join(str(error).split())}") from None

    def replaced_through(self, conn: sqlite3.Connection) -> tuple[list[UniqueColumns], bool]:
        """Return what else than its key may make SQLite replace a row, and whether that is all there is.

        Left out are indexes on an expression or with a condition, whose text can't be had; with a collation that other
        connections may not know; and on columns that get their default only after a trigger has looked at them.
        """
        indexes = conn.execute(
            "SELECT name, origin, partial FROM pragma_index_list(?, 'main') WHERE \"unique\" ORDER BY name",
            (self.table,),
        ).fetchall()
        defaults = "SELECT name FROM pragma_table_xinfo(?, 'main') WHERE \"notnull\" AND dflt_value IS NOT NULL"
        late = {name for (name,) in conn.execute(defaults, (self.table,))}
        unique, complete = [], True
        for name, origin, partial in indexes:
            if origin == "pk":
                continue
            sql = "SELECT name, upper(coll) FROM pragma_index_xinfo(?, 'main') WHERE key ORDER BY seqno"
            columns = tuple(conn.execute(sql, (name,)).fetchall())
            if partial or any(column in {None, *late} or coll not in COLLATIONS for column, coll in columns):
                complete = False
            else:
                unique.append(UniqueColumns(columns))
        if any(origin == "pk" for _, origin, _ in indexes) and (rowid := self.rowid(conn)):
            unique.append(UniqueColumns(((rowid, None),)))
        return unique, complete

    def rowid(self, conn: sqlite3.Connection) -> str | None:
        """Return what the rowid can be called; None if the table has no rowid, or columns of all its names."""
        sql = "SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?"
        if conn.execute(sql, (self.table,)).fetchone()[0]:
            return None
        columns = "SELECT lower(name) FROM pragma_table_xinfo(?, 'main')"
        taken = {name for (name,) in conn.execute(columns, (self.table,))}
        return next((name for name in ("rowid", "_rowid_", "oid") if name not in taken), None)

    def depends_on_row_alone(self, conn: sqlite3.Connection) -> bool:
        """Return whether only a change of a row itself can take it into the condition or out of it.

        Not so if the condition reads other rows or tables, the clock, or a function that may not be pure.
        """
        if self.where is None:
            return True
        sql = f"EXPLAIN SELECT 1 FROM {qualified(self.table)} NOT INDEXED WHERE ({self.where}\n)"
        opened = 0
        for _, opcode, *_, p4, _, _ in conn.execute(sql, dict(self.params)):
            opened += opcode == "OpenRead"
            if opcode == "VOpen" or ("Func" in opcode and str(p4).partition("(")[0].lower() not in _PURE_FUNCTIONS):
                return False
        return opened <= 1

    def refuse_null_keys(self, conn: sqlite3.Connection) -> None:
        """Make sure that every row can be referred to; SQLite lets a key that is no INTEGER be NULL.

        :raises SourceError: if keys are NULL
        """
        if n := self.count_null_keys(conn):
            raise SourceError(
                f"{n} rows of {self.table!r} have NULL in their primary key {', '.join(self.keys)} and can't be "
                "referred to: give them keys, or leave them out with a condition"
            )

    def count_null_keys(self, conn: sqlite3.Connection) -> int:
        """Return how many rows can't be referred to."""
        null_keys = " OR ".join(f"{quote_identifier(key)} IS NULL" for key in self.keys)
        sql = f"SELECT count(*) FROM {self.from_where(null_keys)}"
        n: int = conn.execute(sql, dict(self.params)).fetchone()[0]
        return n

    def count(self, conn: sqlite3.Connection) -> int:
        """Return how many rows meet the condition."""
        n: int = conn.execute(f"SELECT count(*) FROM {self.from_where()}", dict(self.params)).fetchone()[0]
        return n

    def iter_keys(self, conn: sqlite3.Connection) -> Iterator[Key]:
        """Yield the keys of all rows that meet the condition, in key order; those that are NULL left out."""
        sql = f"SELECT {self._key_list} FROM {self.from_where(self.has_key)} ORDER BY {self.compared_keys}"
        return self._strict_keys(conn, sql, self.params)

    def values(self, conn: sqlite3.Connection, column: str) -> list[Any]:
        """Return what all rows that meet the condition have in a column."""
        sql = f"SELECT {quote_identifier(column)} FROM {self.from_where()}"
        with lenient_text(conn):
            return [row[0] for row in conn.execute(sql, dict(self.params))]

    def iter_rows(self, conn: sqlite3.Connection, after: Key | None = None) -> Iterator[SourceRow]:
        """Yield rows that meet the condition and have a key, in key order, beginning behind *after*."""
        params = dict(self.params)
        beyond = None
        if after is not None:
            params.update(self._key_params(after))
            beyond = f"({self.compared_keys}) > ({', '.join(f':{name}' for name in self._key_params(after))})"
        rows = self.from_where(self.has_key, beyond)
        sql = f"SELECT {self._key_list}, {self._raw_list} FROM {rows} ORDER BY {self.compared_keys}"
        for row in self._strict_keys(conn, sql, params):
            yield self._source_row(row)

    def read_row(self, conn: sqlite3.Connection, key: Key) -> SourceRow | None:
        """Return the row of this key if it is there and meets the condition."""
        sql = f"SELECT {self._key_list}, {self._raw_list} FROM {self.from_where(self._key_equals)}"
        row = conn.execute(sql, {**self.params, **self._key_params(key)}).fetchone()
        return None if row is None else self._source_row(row)

    def has_blob_keys(self, conn: sqlite3.Connection) -> bool:
        """Return whether rows have BLOBs in their keys."""
        blobs = " OR ".join(f"typeof({quote_identifier(key)}) = 'blob'" for key in self.keys)
        sql = f"SELECT 1 FROM {self.from_where(blobs)} LIMIT 1"
        return conn.execute(sql, dict(self.params)).fetchone() is not None

    def key_now(self, conn: sqlite3.Connection, key: Key) -> Key | None:
        """Return the equal key that the table has now; None if no row meets the condition."""
        sql = f"SELECT {self._key_list} FROM {self.from_where(self._key_equals)}"
        now: Key | None = conn.execute(sql, {**self.params, **self._key_params(key)}).fetchone()
        return now

    def read_whole_row(self, conn: sqlite3.Connection, key: Key) -> tuple[dict[str, Any], SourceRow] | None:
        """Return every column of a row, and its raw values; None when it is gone or has left the condition."""
        columns = f"{self._raw_list}, {quote_identifier(self.table)}.*"
        sql = f"SELECT {columns} FROM {self.from_where(self._key_equals)}"
        with lenient_text(conn):
            cursor = conn.execute(sql, {**self.params, **self._key_params(key)})
            row = cursor.fetchone()
        if row is None:
            return None
        n_raw = 2 * self._n_raw
        names = [column[0] for column in cursor.description[n_raw:]]
        return dict(zip(names, row[n_raw:], strict=True)), self._source_row((*key, *row[:n_raw]))

    @property
    def has_key(self) -> str:
        """A condition that rows meet which can be referred to: no part of their key is NULL."""
        return " AND ".join(f"{quote_identifier(key)} IS NOT NULL" for key in self.keys)

    @property
    def compared_keys(self) -> str:
        """The key columns as they are to be compared."""
        return ", ".join(self._compared)

    @property
    def _compared(self) -> list[str]:
        return [
            quote_identifier(key) + ("" if collation is None else f" COLLATE {collation}")
            for key, collation in zip(self.keys, self.key_collations, strict=True)
        ]

    @property
    def _key_list(self) -> str:
        return ", ".join(quote_identifier(key) for key in self.keys)

    @property
    def _n_raw(self) -> int:
        return len(self.columns) + (self.heading is not None)

    @property
    def _raw_list(self) -> str:
        names = [*self.columns, *([self.heading] if self.heading is not None else [])]
        return ", ".join(f"typeof({q}), CAST({q} AS BLOB)" for q in map(quote_identifier, names))

    @property
    def _key_equals(self) -> str:
        return " AND ".join(f"{key} = :_colbert_key{i}" for i, key in enumerate(self._compared))

    def _key_params(self, key: Key) -> dict[str, object]:
        return {f"_colbert_key{i}": value for i, value in enumerate(key)}

    def from_where(self, *also: str | None) -> str:
        """Return what follows FROM: the table, its condition and others."""
        # The line feed ends a comment that a condition may end with.
        conditions = [f"({text}\n)" for text in (self.where, *also) if text]
        return qualified(self.table) + (f" WHERE {' AND '.join(conditions)}" if conditions else "")

    def _strict_keys(self, conn: sqlite3.Connection, sql: str, params: Mapping[str, object]) -> Iterator[Any]:
        cursor = conn.cursor()
        try:
            yield from cursor.execute(sql, dict(params))
        except sqlite3.OperationalError as error:
            if "decode" not in str(error):
                raise
            raise SourceError(f"a key of table {self.table!r} is not valid UTF-8: {error}") from None
        finally:
            cursor.close()

    def _source_row(self, row: Sequence[Any]) -> SourceRow:
        n = len(self.keys)
        values = [RawValue(type_, raw) for type_, raw in zip(row[n::2], row[n + 1 :: 2], strict=True)]
        if self.encoding != "UTF-8":
            values = [_as_utf8(value, self.encoding) for value in values]
        heading = values.pop() if self.heading is not None else None
        return SourceRow(tuple(row[:n]), values, heading)


def _as_utf8(value: RawValue, encoding: str) -> RawValue:
    if value.raw is None or value.type == "blob":
        return value
    return RawValue(value.type, value.raw.decode(encoding, "replace").encode(errors="replace"))


def _ordinary_table(conn: sqlite3.Connection, table: str) -> tuple[str, bool]:
    """Return the name of a table as its schema spells it, and whether it is STRICT.

    :raises SourceError: if it is missing, or not an ordinary table
    """
    row = conn.execute(
        "SELECT name, type, strict FROM pragma_table_list WHERE schema = 'main' AND name = ? COLLATE NOCASE", (table,)
    ).fetchone()
    if row is None:
        tables = conn.execute(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table'"
            " AND name NOT LIKE 'sqlite_%' AND name NOT LIKE '\\_colbert\\_%' ESCAPE '\\' ORDER BY name"
        )
        raise SourceError(f"no table {table!r} in this database; it has {_some([name for (name,) in tables])}")
    name, type_, strict = row
    if type_ != "table":
        kind = {"virtual": "virtual table", "shadow": "shadow table"}.get(type_, type_)
        raise SourceError(f"{name!r} is a {kind}, whose rows have no key to refer to: index an ordinary table")
    return name, bool(strict)


def _key_collations(conn: sqlite3.Connection, table: str) -> dict[str, str]:
    """Return the collations of the primary key, by column, those that every connection has."""
    # The schema may have nocase for NOCASE.
    rows = conn.execute(
        "SELECT x.name, upper(x.coll) FROM pragma_index_list(?, 'main') AS i,"
        " pragma_index_xinfo(i.name, 'main') AS x WHERE i.origin = 'pk' AND x.key",
        (table,),
    )
    return {name: collation for name, collation in rows if collation in COLLATIONS}


def _key_type(declared: str, strict: bool, collation: str | None) -> str:
    """Return affinity and collation of a key column, as our tables declare them."""
    type_ = "" if strict and declared == "ANY" else affinity(declared)
    return type_ if collation in (None, "BINARY") else f"{type_} COLLATE {collation}"


def affinity(declared: str) -> str:
    """Return the affinity SQLite gives a declared type, as a type of its own (https://sqlite.org/datatype3.html)."""
    upper = declared.upper()
    if "INT" in upper:
        return "INTEGER"
    if any(word in upper for word in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if "BLOB" in upper or not upper:
        return ""
    if any(word in upper for word in ("REAL", "FLOA", "DOUB")):
        return "REAL"
    return "NUMERIC"


def _some(names: list[str]) -> str:
    first = ", ".join(names[:12])
    return first + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "none"
