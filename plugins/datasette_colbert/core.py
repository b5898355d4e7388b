"""What the plugin needs of the core beyond the public names of ``colbert_sqlite``.

In: connections, names, queries. Out: indexes, models, ranked rows. Leaves to others: everything a host decides. Nothing
else of the plugin imports the core's internals.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from colbert_sqlite import IndexNotFound, sql_functions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from colbert_sqlite import Explanation, Hit, Index, IndexSettings, Progress
    from colbert_sqlite.encoders import Encoder
    from colbert_sqlite.encoders.models import KnownModel
    from colbert_sqlite.searching import Ranked, Searcher
    from colbert_sqlite.sql_functions import Guard

ProgressCallback = Callable[["Progress"], None]
SqlValue = str | int | float | bytes | None
PrimaryKey = SqlValue | tuple[SqlValue, ...]


def add_sql_functions(
    conn: sqlite3.Connection, *, database: str | None, attached: Mapping[str, str], model: str | None, guard: Guard
) -> None:
    """Give a connection ``colbert_search()`` and the others, as far as *guard* lets its statements call them.

    :param database: how to open its file; None if it is in memory
    :param attached: how to open the databases that SQL can join, by schema
    :param model: the only model that SQL may name, and the default; None for the default of the core
    """
    # Another model may take minutes to load, gigabytes, or a hub.
    sql_functions.prepare(conn, database=database, attached=attached, model=model, any_model=False, guard=guard)


def refuse_sql_functions(conn: sqlite3.Connection) -> None:
    """Let no other plugin give a connection the functions: they would have no guard."""
    sql_functions.keep_as_is(conn)


def quote_identifier(name: str) -> str:
    """Return a name as SQL quotes it."""
    from colbert_sqlite.catalogue import quote_identifier

    return quote_identifier(name)


class RegisteredIndex(NamedTuple):
    """An index, "ready" or "building", and its source table, as the registry has them."""

    name: str
    state: str
    table: str


def registered_indexes(conn: sqlite3.Connection) -> tuple[RegisteredIndex, ...]:
    """Return every index and every build in progress, also those of other schema versions."""
    from colbert_sqlite.catalogue import registered_sources

    return tuple(RegisteredIndex(*source) for source in registered_sources(conn))


def is_index_table(table: str) -> bool:
    """Whether a table's name is one of those that indexes take for their tables."""
    return table.lower().startswith("_colbert_")


def tables_of_indexes(names: Sequence[str]) -> list[str]:
    """Return the registry, and all tables that indexes of these names have, or have while they are built."""
    from colbert_sqlite.catalogue import REGISTRY, index_tables

    return [REGISTRY, *(table for name in names for table in sorted(index_tables(name)))]


@dataclass(frozen=True, slots=True)
class UnfinishedBuild:
    """A build that stopped. ``replace``: an index of that name is in use meanwhile."""

    index: str
    table: str
    settings: IndexSettings
    replace: bool


def unfinished_build(conn: sqlite3.Connection, index: str) -> UnfinishedBuild:
    """Return the build of an index that was interrupted.

    :raises IndexNotFound: if there is no such build
    :raises ColbertError: if its settings can't be read
    """
    from colbert_sqlite.storage.connection import plain_rows
    from colbert_sqlite.storage.registry import read_entry

    with plain_rows(conn):
        entry = read_entry(conn, index, "building")
        ready = {one.name.lower() for one in registered_indexes(conn) if one.state == "ready"}
    if entry is None:
        raise IndexNotFound(f"no build of index {index!r} is unfinished")
    return UnfinishedBuild(entry.name, entry.source_table, entry.settings, entry.name.lower() in ready)


def check_source(
    conn: sqlite3.Connection, table: str, columns: Sequence[str] = (), *, heading: str | None = None
) -> str:
    """Make sure that a table and its columns can be indexed, and return the table's name as the schema has it.

    :raises SourceError: if not
    """
    from colbert_sqlite.storage.connection import plain_rows
    from colbert_sqlite.storage.source import Source

    with plain_rows(conn):
        return Source.inspect(conn, table, columns, heading=heading).table


@contextmanager
def one_state(conn: sqlite3.Connection) -> Iterator[None]:
    """Read several things from one state of a database, whatever others commit meanwhile."""
    from colbert_sqlite.storage.connection import reading

    with reading(conn):
        yield


@contextmanager
def reading_connection(path: str) -> Iterator[sqlite3.Connection]:
    """Open a file with a connection that can't write, and close it.

    :raises SourceError: if it can't be opened
    """
    from colbert_sqlite.storage.connection import connect, refuse_writes

    conn, _ = connect(path)
    with closing(conn):
        refuse_writes(conn)
        yield conn


def drop_index(path: str, index: str) -> None:
    """Remove an index, also one that is unfinished, damaged, or of another schema version.

    :raises IndexNotFound: if there is none of that name
    """
    from colbert_sqlite.catalogue import drop

    drop(path, index)


def models_here() -> list[KnownModel]:
    """Return the models with an alias whose files are on this machine, the default first."""
    from colbert_sqlite.encoders import known_models

    return [model for model in known_models() if model.on_this_machine]


def default_model() -> str:
    """Return the model of an index or function without a name of one."""
    from colbert_sqlite.encoders import DEFAULT_MODEL

    return DEFAULT_MODEL


def load_shared_model(model: str) -> Encoder:
    """Return the encoder of that name, loaded once in this process.

    :raises ColbertError: if it can't be loaded
    """
    from colbert_sqlite.encoders.cache import cached_encoder

    return cached_encoder(model)


def shared_encoder(index: Index, model: str | None) -> Encoder:
    """Return the encoder of an index, shared by this process: *model* if it has the right fingerprint."""
    from colbert_sqlite.encoders.cache import shared_encoder

    return shared_encoder(index.model_fingerprint, lambda: index.encoder, configured=model)


@dataclass(frozen=True, slots=True)
class Query:
    """A query, its embedding, and the encoder that made it."""

    text: str
    encoder: Encoder
    embedding: NDArray[np.float32]


def encode_query(index: Index, text: str, model: str | None) -> Query:
    """Return a query encoded for an index, from memory if it was encoded lately. *model* as in :func:`shared_encoder`.

    :raises ValueError: if it is no text that can be encoded
    :raises ColbertError: if the model can't be loaded
    """
    from colbert_sqlite.encoders.cache import remembering
    from colbert_sqlite.encoders.queries import check_queries, encode_queries

    check_queries([text])
    encoder = remembering(shared_encoder(index, model))
    [embedding] = encode_queries(encoder, [text])
    return Query(text, encoder, embedding)


class RankedRow(NamedTuple):
    """A row that matches, by its primary key, and what it is ranked by. ``internal`` is for :meth:`View.hits`."""

    pk: PrimaryKey
    score: float
    internal: Ranked


@dataclass(frozen=True, slots=True)
class View:
    """One state of an index, and the passages that a filter allows in it; None for all."""

    _searcher: Searcher
    _allowed: NDArray[np.int64] | None

    def search(self, query: Query, k: int, mode: str, *, effort: int) -> list[RankedRow]:
        """Return the *k* best rows, best first, with the default settings for *effort* rows.

        :raises ColbertError: as ``Index.search``
        """
        from colbert_sqlite import SearchSettings
        from colbert_sqlite.storage.source import pk_of

        settings = SearchSettings.for_k(effort, mode=mode)
        [rows] = self._searcher.search([query.text], [query.embedding], k, settings, self._allowed)
        return [RankedRow(pk_of(row.place.key), row.score, row) for row in rows]

    def hits(
        self, query: Query, rows: Sequence[RankedRow], *, first_rank: int, explain: bool
    ) -> Iterator[tuple[Hit, Explanation | None]]:
        """Yield the hits of rows with their explanations: None for a row that changed since, or without *explain*."""
        from colbert_sqlite.explain import Explainer

        explainer = Explainer(query.encoder, query.text, query.embedding) if explain else None
        ranked = [row.internal for row in rows]
        for hit, passage in self._searcher.hits_to_explain(ranked, len(query.embedding), first_rank=first_rank):
            yield hit, None if explainer is None or passage is None else explainer.explain(*passage)


@contextmanager
def view_of(index: Index, where: str | None = None, params: Mapping[str, object] | None = None) -> Iterator[View]:
    """Yield one state of an index, in one read transaction, with a filter.

    :raises SourceError: if the filter can't be used
    """
    with index.searcher(where, params) as (searcher, allowed):
        yield View(searcher, allowed)
