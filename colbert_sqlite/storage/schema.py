"""Every table this package creates, and what their names mean.

In: the name of an index and the key columns of its source table. Out: quoted names and CREATE statements.
Leaves to others: filling and reading the tables (``store.py``, ``snapshot.py``).

One registry row per index, and one set of tables ``_colbert_{index}_{part}`` beside the user's own:

========== =========================================================================================
part       one row is
========== =========================================================================================
passages   a span of one source row: its key (``pk_{column}``), ``ordinal`` within the row, ``start`` and
           ``end`` in characters of the row's extracted text, ``doclen`` in tokens, ``residual_start`` in
           the token stream, ``content_hash`` of the row. A source row without text has one passage of doclen 0
codes      a passage: the centroid of each of its tokens, ``codec.codes_dtype``
residuals  ``codec.block_tokens`` consecutive tokens of the token stream: their packed residuals
centroids  1,024 centroids: int8 directions, ``dim`` bytes each, normalised on reading
ivf        a centroid: the ascending ids of the passages that have a token in it, as gaps (``blobs.py``)
codec      the only row: nbits, bucket cutoffs and weights (``<f4``), sizes, the length of the token stream
queue      the key of a source row that changed since the last sync
========== =========================================================================================

The residuals of all passages form one stream of tokens, in the order of ``passage_id``, cut into blocks
that each fill one database page: a row of its own per passage would waste a fifth of the file in the tails of
pages. A build in progress writes the same tables with ``_building`` after their names, and a single
transaction puts them in the place of the old ones.
"""

from __future__ import annotations

from collections.abc import Sequence

SCHEMA_VERSION = 2
REGISTRY = "_colbert_indexes"
PARTS = ("passages", "codes", "residuals", "centroids", "ivf", "codec", "queue")


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
    PRIMARY KEY (name, state)
)
"""


def create_statements(index: str, keys: Sequence[str], key_types: Sequence[str], *, building: bool) -> list[str]:
    """Return the CREATE statements of one index.

    :param keys: key columns of the source table
    :param key_types: their affinities and collations, so that we compare keys as the source does
    """

    def table(part: str) -> str:
        return qualified(table_name(index, part, building=building))

    names = [quote_identifier(name) for name in key_columns(keys)]
    columns = ",\n    ".join(
        f"{name} {type_} NOT NULL".replace("  ", " ") for name, type_ in zip(names, key_types, strict=True)
    )
    key_list = ", ".join(names)
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
        f"CREATE TABLE {table('codes')} (passage_id INTEGER PRIMARY KEY, codes BLOB NOT NULL)",
        f"CREATE TABLE {table('residuals')} (block INTEGER PRIMARY KEY, residuals BLOB NOT NULL)",
        f"CREATE TABLE {table('centroids')} (block INTEGER PRIMARY KEY, centroids BLOB NOT NULL)",
        f"CREATE TABLE {table('ivf')} (centroid INTEGER PRIMARY KEY, passage_ids BLOB NOT NULL)",
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
    stream_tokens INTEGER NOT NULL
)""",
        f"CREATE TABLE {table('queue')} (\n    {columns},\n    PRIMARY KEY ({key_list})\n) WITHOUT ROWID",
    ]
