"""The tables of this package: what they are called, and what they hold.

In: the name of an index. Out: quoted names of its tables. Leaves to others: each table, which has a file of its own
here, and triggers (``triggers.py``).

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
           ``cells`` (``<u2``), which make the search for the nearest centroid fast
ivf        a part of an inverted list: rising ids of passages that have a token in a centroid, as gaps
           (``blobs.py``). ``segment`` is the centroid times 2**40, plus the first of the ids
codec      the only row: nbits, bucket cutoffs and weights (``<f4``), sizes, the length of the token stream,
           the next passage id, for how many tokens the codec was trained, and how many were added lately, at
           what mean residual
outliers   a token added lately that is far from every centroid: its position and its embedding (``<f2``)
queue      the key of a source row that changed since the last sync
========== =========================================================================================

Columns called ``checksum`` hold the CRC-32 of the BLOBs beside them, or of the whole row, less 2**31.

A passage id is never used again, not even by a rebuild: whoever keeps one may trust it.

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

# One more with every change of a table or of what its values mean: `upgrade` builds older indexes again.
SCHEMA_VERSION = 1
TABLE_PREFIX = "_colbert_"
REGISTRY = f"{TABLE_PREFIX}indexes"
# The queue comes last: it is not part of a build.
PARTS = ("passages", "codes", "residuals", "centroids", "ivf", "codec", "outliers", "queue")
BUILT_PARTS = PARTS[:-1]


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one index, or of a build of it, in one database.

    :param keys: key columns of the source table
    :param key_types: their affinities and collations, so that we compare keys as the source does
    :param dim: dimensions of its embeddings
    """

    conn: sqlite3.Connection
    index: str
    building: bool
    keys: tuple[str, ...]
    key_types: tuple[str, ...]
    dim: int

    def name(self, part: str) -> str:
        return table_name(self.index, part, building=self.building and part in BUILT_PARTS)

    def quoted(self, part: str) -> str:
        return qualified(self.name(part))

    @property
    def key_list(self) -> str:
        """The key columns of our tables."""
        return ", ".join(map(quote_identifier, key_columns(self.keys)))

    @property
    def key_equals(self) -> str:
        """A condition on the key columns of our tables, with a parameter for each."""
        return " AND ".join(f"{quote_identifier(key)} = ?" for key in key_columns(self.keys))

    @property
    def key_definitions(self) -> str:
        """The key columns as they are declared."""
        names = map(quote_identifier, key_columns(self.keys))
        declared = zip(names, self.key_types, strict=True)
        return ",\n    ".join(f"{name} {type_} NOT NULL".replace("  ", " ") for name, type_ in declared)


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
    return f"{TABLE_PREFIX}{index}_{part}" + ("_building" if building else "")


def table_exists(conn: sqlite3.Connection, name: str) -> bool:
    """Return whether the main database has a table of that name."""
    sql = "SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = ? COLLATE NOCASE"
    return conn.execute(sql, (name,)).fetchone() is not None


def key_columns(keys: Sequence[str]) -> list[str]:
    """Return what the source's key columns are called in our tables, where other names are already taken."""
    return [f"pk_{key}" for key in keys]
