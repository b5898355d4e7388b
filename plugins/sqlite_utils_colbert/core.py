"""What the commands need of the library beyond its public names: the list for ``colbert_sqlite.serving``.

In: paths, names of indexes, rows, as the commands have them. Out: connections, scores and facts. Leaves to others: all
of the work. Each function imports what it calls, because sqlite-utils imports this file with every command.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from colbert_sqlite import SearchSettings, sql_functions
from colbert_sqlite.settings import NBITS, Backend, Filter, Fusion, Html, Mode, ModelOptions

if TYPE_CHECKING:
    from colbert_sqlite import Index
    from colbert_sqlite.encoders import Encoder as Encoder
    from colbert_sqlite.encoders import KnownModel
    from colbert_sqlite.evaluation import Evaluation as Evaluation
    from colbert_sqlite.timing import BuildReport, Stage

__all__ = [
    "NBITS",
    "Backend",
    "Filter",
    "Fusion",
    "Html",
    "Mode",
    "ModelOptions",
    "column_names",
    "drop_index",
    "evaluate_index",
    "export_model",
    "has_blob_keys",
    "known_models",
    "missing_documents",
    "open_connection",
    "open_read_only",
    "prepare_connection",
    "quote_identifier",
    "read_qrels",
    "read_queries",
    "registered_names",
    "relevant_documents",
    "rerank_rows",
    "stages_of",
]

Document = Sequence["str | bytes | None"]
# torch loads seconds longer than onnxruntime and encodes faster: from about here on it pays.
MIN_BYTES_FOR_TORCH = 150_000


def prepare_connection(conn: sqlite3.Connection) -> None:
    """Put the SQL functions on a connection of sqlite-utils, unless Datasette guards it."""
    sql_functions.prepare(conn)


@contextmanager
def open_connection(path: str) -> Iterator[sqlite3.Connection]:
    """Open a database file, and close it at the end.

    :raises SourceError: if there is no such file, or it is not a database
    """
    from colbert_sqlite.storage.connection import connect

    conn, _ = connect(path)
    with closing(conn):
        yield conn


@contextmanager
def open_read_only(
    path: str, attached: Sequence[tuple[str, str]], prepare: Callable[[sqlite3.Connection], object]
) -> Iterator[sqlite3.Connection]:
    """Open a database file for SQL that may not write, and that may hold text of any encoding.

    :param attached: aliases and paths of other files that the SQL reads
    :param prepare: puts functions on the connection while it may still write
    :raises SourceError: if one of the files is missing, or is not a database
    """
    from colbert_sqlite.storage.connection import attach, lenient_text, refuse_writes

    with open_connection(path) as conn:
        for alias, other in attached:
            attach(conn, other, alias)
        prepare(conn)
        refuse_writes(conn)
        with lenient_text(conn):
            yield conn


def registered_names(db: str | sqlite3.Connection) -> tuple[str, ...]:
    """Return the names of all indexes in use, also of those that this release cannot read."""
    from colbert_sqlite.catalogue import registered_names

    return registered_names(db)


def drop_index(db: str, name: str) -> None:
    """Remove an index, also one that is unfinished or that this release cannot read.

    :raises IndexNotFound: if there is no index of that name
    """
    from colbert_sqlite.catalogue import drop

    drop(db, name)


def column_names(index: Index, columns: Sequence[str]) -> list[str]:
    """Return *columns* as the table of *index* writes their names.

    :raises SourceError: if the table has no such column
    """
    return index.spelled(columns) if columns else []


def has_blob_keys(index: Index) -> bool:
    """Return whether the table has a key that is a BLOB, which JSON cannot hold."""
    return index.has_blob_keys()


def quote_identifier(name: str) -> str:
    """Return the name of a table or column as SQL writes it."""
    from colbert_sqlite.storage.schema import quote_identifier

    return quote_identifier(name)


def rerank_rows(
    query: str, documents: Sequence[Document], model: str | None, options: ModelOptions
) -> tuple[list[float], Encoder]:
    """Return the score of each document, and the encoder behind the scores.

    :param documents: the values of each row; a row without text has the score ``-inf``
    :raises ValueError: if the query is empty
    """
    from colbert_sqlite.encoders import cached_encoder
    from colbert_sqlite.encoders.queries import check_queries
    from colbert_sqlite.passages import RawValue
    from colbert_sqlite.reranking import score_documents, text_value

    def raw(value: str | bytes | None) -> RawValue:
        if isinstance(value, str):
            return text_value(value)
        return RawValue("null" if value is None else "blob", value)

    check_queries([query])
    values = [[raw(value) for value in document] for document in documents]
    n_bytes = sum(len(value.raw or b"") for document in values for value in document)
    encoder = cached_encoder(
        model,
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch_size,
        trust_remote_code=options.trust_remote_code,
        backend=options.backend,
        indexing=n_bytes > MIN_BYTES_FOR_TORCH,
    )
    return [score for score, _ in score_documents(encoder, query, values)], encoder


def stages_of(report: BuildReport, seconds: float) -> dict[str, Stage]:
    """Return the stages of a build that took *seconds*, then the rest of it, then all of it."""
    from colbert_sqlite.timing import Stage, memory

    stages = dict(report.stages)
    stages["other"] = Stage(seconds - sum(stage.seconds for stage in stages.values()))
    now = memory()
    stages["in all"] = Stage(seconds, now.anonymous, now.peak)
    return stages


def known_models() -> list[KnownModel]:
    """Return the models that have a short name."""
    from colbert_sqlite.encoders import known_models

    return list(known_models())


def export_model(name: str, folder: Path, *, int8: bool, trust_remote_code: bool) -> None:
    """Write a model to a new folder that runs without torch."""
    from colbert_sqlite.encoders import export_model

    export_model(name, folder, int8=int8, trust_remote_code=trust_remote_code)


def read_queries(path: str) -> dict[str, str]:
    """Return the queries of a file, text by id.

    :raises ValueError: if a line is not a query
    """
    from colbert_sqlite.evaluation import read_queries

    return read_queries(path)


def read_qrels(path: str) -> dict[str, dict[str, int]]:
    """Return the judgments of a file, grade by document id by query id.

    :raises ValueError: if a line is not a judgment
    """
    from colbert_sqlite.evaluation import read_qrels

    return read_qrels(path)


def relevant_documents(qrels: Mapping[str, Mapping[str, int]]) -> set[str]:
    """Return the ids of all documents that are right for some query."""
    from colbert_sqlite.evaluation import relevant_documents

    return relevant_documents(qrels)


def missing_documents(
    db: str, index: Index, qrels: Mapping[str, Mapping[str, int]], id_column: str | None, filter: Filter
) -> set[str]:
    """Return the ids of relevant documents that no search of *index* can find."""
    from colbert_sqlite.evaluation import missing_documents

    return missing_documents(db, index, qrels, id_column, filter.where, filter.params)


def evaluate_index(
    index: Index,
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str],
    settings: SearchSettings,
    *,
    id_column: str | None,
    filter: Filter,
    progress: Callable[[int, int], None],
) -> Evaluation:
    """Search *index* for every judged query, and measure the hits.

    :param measures: names of ir_measures; empty for the usual four
    :param progress: called with the number of queries done and of all queries
    """
    from colbert_sqlite.evaluation import MEASURES, evaluate

    return evaluate(
        index,
        queries,
        qrels,
        measures or MEASURES,
        settings.k,
        id_column=id_column,
        where=filter.where,
        params=filter.params,
        mode=settings.mode,
        fusion=settings.fusion,
        weight=settings.weight,
        nprobe=settings.nprobe,
        ndocs=settings.ndocs,
        progress=progress,
    )
