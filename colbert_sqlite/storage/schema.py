"""Every table and trigger this package creates, and what their names mean.

In: the name of an index and what identifies and changes rows of its source table. Out: quoted names and CREATE
statements. Leaves to others: filling and reading the tables (``store.py``, ``postings.py``), and which statements the
schema already has (``triggers.py``).

One registry row per index, and one set of tables ``_colbert_{index}_{part}`` beside the user's own:

========== =========================================================================================
part       one row is
========== =========================================================================================
passages   a span of one source row: its key (``pk_{column}``), ``ordinal`` within the row, ``start`` and
           ``end`` in characters of the row's extracted text, ``doclen`` in tokens, ``residual_start`` in
           the token stream, ``content_hash`` of the row. A source row without text has one passage of doclen 0
codes      a passage: the centroid of each of its tokens, ``codec.codes_dtype``
residuals  ``codec.block_tokens`` consecutive tokens of the token stream: their packed residuals
centroids  1,024 centroids: int8 directions, ``dim`` bytes each, normalized on reading, and their coarse
           ``cells`` (``<u2``), through which the nearest centroid is found
ivf        a part of an inverted list: ascending ids of passages that have a token in a centroid, as gaps
           (``blobs.py``). ``segment`` is the centroid times 2**40, plus the first of the ids
codec      the only row: nbits, bucket cutoffs and weights (``<f4``), sizes, the length of the token stream,
           for how many tokens the codec was trained, and how many were added lately, at what mean residual
outliers   a token added lately that is far from every centroid: its place and its embedding (``<f2``)
queue      the key of a source row that changed since the last sync
========== =========================================================================================

Columns called ``checksum`` hold the CRC-32 of the BLOBs beside them, or of the whole row, less 2**31.

The residuals of all passages form one stream of tokens, in the order of ``passage_id``, cut into blocks
that each fill one database page: a row of its own per passage would waste a fifth of the file in the tails of
pages. A build in progress writes the same tables with ``_building`` after their names, and a single
transaction puts them in the place of the old ones. Only the queue belongs to an index whichever its tables are.

Triggers on the source table write keys to the queue and do nothing else, in SQL that any connection can run.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

SCHEMA_VERSION = 1
REGISTRY = "_colbert_indexes"
# The queue comes last: it is not part of a build.
PARTS = ("passages", "codes", "residuals", "centroids", "ivf", "codec", "outliers", "queue")
BUILT_PARTS = PARTS[:-1]


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one index, or of a build of it, in one database."""

    conn: sqlite3.Connection
    index: str
    building: bool

    def name(self, part: str) -> str:
        return table_name(self.index, part, building=self.building and part in BUILT_PARTS)

    def quoted(self, part: str) -> str:
        return qualified(self.name(part))


class UniqueColumns(NamedTuple):
    """Columns that no two rows may have alike, each with the collation that decides it; None for a rowid."""

    columns: tuple[tuple[str, str | None], ...]


def quote_identifier(name: str) -> str:
    """Return *name* as a quoted SQL identifier: the only way a name enters a statement of ours."""
    return '"' + name.replace('"', '""') + '"'


def qualified(name: str) -> str:
    """Return a table's quoted name in the main database, where no TEMP table of the same name hides it."""
    return f"main.{quote_identifier(name)}"


def table_name(index: str, part: str, *, building: bool = False) -> str:
    """Return the name of one table of an index.

    Parts have no underscore in them, so no two indexes, whatever their names, share a table.
    """
    return f"_colbert_{index}_{part}" + ("_building" if building else "")


def key_columns(keys: Sequence[str]) -> list[str]:
    """Return what the source's key columns are called in our tables, where other names are already taken."""
    return [f"pk_{key}" for key in keys]


CREATE_REGISTRY = f"""
CREATE TABLE IF NOT EXISTS {qualified(REGISTRY)} (
    name TEXT NOT NULL COLLATE NOCASE,
    state TEXT NOT NULL CHECK (state IN ('ready', 'building')),
    schema_version INTEGER NOT NULL,
    source_table TEXT NOT NULL,
    key_columns TEXT NOT NULL,
    settings TEXT NOT NULL,
    model TEXT NOT NULL,
    model_fingerprint TEXT NOT NULL,
    dim INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    build_id TEXT NOT NULL,
    created TEXT NOT NULL,
    updated TEXT NOT NULL,
    queue_complete INTEGER NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (name, state)
)
"""


def _declared_keys(keys: Sequence[str], key_types: Sequence[str]) -> tuple[str, str]:
    """Return definitions of the key columns, and their names."""
    names = [quote_identifier(name) for name in key_columns(keys)]
    definitions = (f"{name} {type_} NOT NULL".replace("  ", " ") for name, type_ in zip(names, key_types, strict=True))
    return ",\n    ".join(definitions), ", ".join(names)


def create_queue(index: str, keys: Sequence[str], key_types: Sequence[str]) -> str:
    """Return the CREATE statement of the queue of an index. Arguments as in :func:`create_statements`."""
    definitions, names = _declared_keys(keys, key_types)
    return (
        f"CREATE TABLE {qualified(table_name(index, 'queue'))} (\n    {definitions},\n    PRIMARY KEY ({names})\n)"
        " WITHOUT ROWID"
    )


def create_statements(index: str, keys: Sequence[str], key_types: Sequence[str], *, building: bool) -> list[str]:
    """Return the CREATE statements of one index, or of a build of it, without the queue.

    :param keys: key columns of the source table
    :param key_types: their affinities and collations, so that we compare keys as the source does
    """

    def table(part: str) -> str:
        return qualified(table_name(index, part, building=building))

    columns, key_list = _declared_keys(keys, key_types)
    return [
        f"""CREATE TABLE {table("passages")} (
    passage_id INTEGER PRIMARY KEY AUTOINCREMENT,
    {columns},
    ordinal INTEGER NOT NULL,
    start INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    doclen INTEGER NOT NULL,
    residual_start INTEGER NOT NULL,
    content_hash BLOB NOT NULL,
    UNIQUE ({key_list}, ordinal)
)""",
        f"""CREATE TABLE {table("codes")} (
    passage_id INTEGER PRIMARY KEY,
    codes BLOB NOT NULL,
    checksum INTEGER NOT NULL
)""",
        f"""CREATE TABLE {table("residuals")} (
    block INTEGER PRIMARY KEY,
    residuals BLOB NOT NULL,
    checksum INTEGER NOT NULL
)""",
        f"""CREATE TABLE {table("centroids")} (
    block INTEGER PRIMARY KEY,
    centroids BLOB NOT NULL,
    cells BLOB NOT NULL,
    checksum INTEGER NOT NULL
)""",
        f"""CREATE TABLE {table("ivf")} (
    segment INTEGER PRIMARY KEY,
    passage_ids BLOB NOT NULL,
    checksum INTEGER NOT NULL
)""",
        f"""CREATE TABLE {table("codec")} (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    nbits INTEGER NOT NULL,
    dim INTEGER NOT NULL,
    n_centroids INTEGER NOT NULL,
    bucket_cutoffs BLOB NOT NULL,
    bucket_weights BLOB NOT NULL,
    avg_residual REAL NOT NULL,
    scale_step REAL NOT NULL,
    codes_dtype TEXT NOT NULL,
    block_tokens INTEGER NOT NULL,
    stream_tokens INTEGER NOT NULL,
    n_trained INTEGER NOT NULL,
    trained_tokens INTEGER NOT NULL,
    recent_tokens REAL NOT NULL,
    recent_residual REAL NOT NULL,
    checksum INTEGER NOT NULL
)""",
        f"""CREATE TABLE {table("outliers")} (
    passage_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    embedding BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    PRIMARY KEY (passage_id, position)
) WITHOUT ROWID""",
    ]


TRIGGERS = ("insert", "update", "delete", "replaceinsert", "replaceupdate")


def trigger_statements(
    index: str,
    table: str,
    keys: Sequence[str],
    watched: Sequence[str] | None,
    unique: Sequence[UniqueColumns],
) -> dict[str, str]:
    """Return names and CREATE statements of the triggers that keep the queue of one index.

    :param watched: columns whose change queues a row; None queues it whatever changes
    :param unique: what else than its key may have a row replaced: SQLite runs no delete trigger then, unless
        ``recursive_triggers`` is on, so a trigger before the change looks for the rows that will go
    """
    # Names in the body of a trigger can't be qualified; they mean the trigger's own database.
    source = quote_identifier(table)
    queue = f"{quote_identifier(table_name(index, 'queue'))} ({', '.join(map(quote_identifier, key_columns(keys)))})"
    names = [quote_identifier(key) for key in keys]

    def key_of(row: str) -> str:
        values = [f"{row}.{name}" for name in names]
        # ON CONFLICT, not OR IGNORE: inside a trigger the conflict policy of the outer statement wins
        # (https://sqlite.org/lang_createtrigger.html). A key that is NULL can't be referred to.
        return (
            f"    INSERT INTO {queue} SELECT {', '.join(values)}"
            f" WHERE {' AND '.join(f'{value} IS NOT NULL' for value in values)} ON CONFLICT DO NOTHING;"
        )

    def replaced_by_new(constraint: UniqueColumns, *also: str) -> str:
        alike = (
            f"{quote_identifier(column)}{'' if collation is None else f' COLLATE {quote_identifier(collation)}'}"
            f" = new.{quote_identifier(column)}"
            for column, collation in constraint.columns
        )
        conditions = [*alike, *(f"{name} IS NOT NULL" for name in names), *also]
        return (
            f"    INSERT INTO {queue} SELECT {', '.join(names)} FROM {source} WHERE {' AND '.join(conditions)}"
            " ON CONFLICT DO NOTHING;"
        )

    changes = (
        f"(typeof(old.{name}) != typeof(new.{name}) OR old.{name} COLLATE BINARY IS NOT new.{name})"
        for name in map(quote_identifier, dict.fromkeys([*keys, *(watched or ())]))
    )
    # BINARY, since the primary key may tell keys apart that are alike by the collation of their column.
    itself = f"NOT ({' AND '.join(f'{name} COLLATE BINARY IS old.{name}' for name in names)})"
    bodies = {
        "insert": ("AFTER INSERT", "", [key_of("new")]),
        "update": (
            "AFTER UPDATE",
            # Not UPDATE OF: that misses generated columns, and a key that is changed by its name "rowid".
            "" if watched is None else f" WHEN {' OR '.join(changes)}",
            [key_of("old"), key_of("new")],
        ),
        "delete": ("AFTER DELETE", "", [key_of("old")]),
    }
    if unique:
        bodies["replaceinsert"] = ("BEFORE INSERT", "", [replaced_by_new(columns) for columns in unique])
        bodies["replaceupdate"] = ("BEFORE UPDATE", "", [replaced_by_new(columns, itself) for columns in unique])
    statements = {}
    for trigger, (event, condition, body) in bodies.items():
        name = table_name(index, trigger)
        lines = "\n".join(body)
        statements[name] = (
            f"CREATE TRIGGER {quote_identifier(name)} {event} ON {source}{condition}\nBEGIN\n{lines}\nEND"
        )
    return statements
