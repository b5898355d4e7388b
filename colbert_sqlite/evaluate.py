"""Evaluate the hits of an index by the measures of ir_measures.

In: an index, queries, judgments. Out: measures of each query, and their means. Leaves to others: searching
(``index.py``), the measures themselves (ir_measures, extra ``eval``).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from colbert_sqlite.errors import MissingDependency, SourceError
from colbert_sqlite.progress import Progress, ProgressCallback, no_progress
from colbert_sqlite.query import encode_queries
from colbert_sqlite.results import Hit, Result
from colbert_sqlite.settings import Filter, SearchSettings
from colbert_sqlite.storage.source import Source

if TYPE_CHECKING:
    from ir_measures.measures import Measure

    from colbert_sqlite.index import Index
    from colbert_sqlite.settings import Fusion, Mode

Qrels = Mapping[str, Mapping[str, int]]

MEASURES = ("nDCG@10", "RR@10", "R@10", "R@100")
QUERIES_AT_ONCE = 64
ID_HEADERS = ("id", "_id", "qid", "query_id", "query-id")
HEADERS = {(qid, text) for qid in ID_HEADERS for text in ("text", "query")}


@dataclass(frozen=True, slots=True)
class Evaluation(Result):
    """Values of measures. ``mean`` is over the queries; ``per_query`` has the values of each, by query id."""

    mean: dict[str, float]
    per_query: dict[str, dict[str, float]]


def evaluate(
    index: Index,
    queries: Mapping[str, str],
    qrels: Qrels,
    measures: Sequence[str] = MEASURES,
    k: int = 100,
    *,
    id_column: str | None = None,
    where: str | None = None,
    params: Mapping[str, object] | None = None,
    mode: Mode | None = None,
    fusion: Fusion | None = None,
    weight: float | None = None,
    nprobe: int | None = None,
    ndocs: int | None = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Search *index* for every judged query and return the measures of the hits.

    Hits count in their order; of several hits with one document id the first counts.

    :param queries: texts by query id; queries that *qrels* does not judge are skipped
    :param qrels: grades by document id, by query id; other documents have grade 0
    :param measures: names of ir_measures, such as ``nDCG@10``, ``RR@10``, ``R@100``, ``P@5``, ``AP``
    :param k: hits of each query; a measure with a greater cut-off sees no more
    :param id_column: column of the table that holds the document ids; default: its primary key, as text
    :param where: search only the rows that meet this condition, an SQL expression, as in :meth:`Index.search`
    :param progress: called with a :class:`Progress` of stage "search", counted in queries
    :raises ValueError: if no query is judged, a measure is missing or unknown, or the key has several columns
    :raises MissingDependency: if ir_measures is not installed
    """
    settings = SearchSettings.for_k(k, mode=mode, fusion=fusion, weight=weight, nprobe=nprobe, ndocs=ndocs)
    filter, callback = Filter(where, params), progress or no_progress
    library = _ir_measures()
    parsed = [_measure(name) for name in measures]
    ids = [qid for qid in queries if qid in qrels]
    if not parsed:
        raise ValueError("measures must name at least one measure")
    if not ids:
        raise ValueError("no query has judgments: the ids in the two files differ")
    run: dict[str, dict[str, float]] = {}
    for first in range(0, len(ids), QUERIES_AT_ONCE):
        batch = ids[first : first + QUERIES_AT_ONCE]
        encoded = encode_queries(index.load_encoder(), [queries[qid] for qid in batch])
        for qid, hits in zip(batch, index.search_encoded(encoded, settings, filter), strict=True):
            run[qid] = _ranks(hits, id_column)
        callback(Progress("search", len(run), len(ids)))
    means, values = library.calc(parsed, {qid: dict(qrels[qid]) for qid in ids}, run)
    per_query: dict[str, dict[str, float]] = {qid: {} for qid in ids}
    for value in values:
        per_query[value.query_id][str(value.measure)] = value.value
    return Evaluation({str(measure): float(means[measure]) for measure in parsed}, per_query)


def _ranks(hits: Sequence[Hit], id_column: str | None) -> dict[str, float]:
    """Return the negative rank of each document: measures sort by score, and equal scores by id."""
    ranks: dict[str, float] = {}
    for hit in hits:
        ranks.setdefault(_document_id(hit, id_column), -hit.rank)
    return ranks


def _document_id(hit: Hit, id_column: str | None) -> str:
    if id_column is None:
        return _only(hit.pk)
    for name, value in hit.row.items():
        if name.lower() == id_column.lower():
            return str(value)
    raise ValueError(f"no column {id_column!r}; the table has {', '.join(hit.row)}")


def _only(key: object) -> str:
    if isinstance(key, tuple):
        raise ValueError("the primary key has several columns: name the column that holds the document ids")
    return str(key)


def relevant_documents(qrels: Qrels) -> set[str]:
    """Return the ids of all documents that are relevant to a query."""
    return {doc for grades in qrels.values() for doc, grade in grades.items() if grade > 0}


def missing_documents(
    index: Index, qrels: Qrels, id_column: str | None = None, filter: Filter | None = None
) -> set[str]:
    """Return the ids of relevant documents that the table of *index* lacks: no search can find them.

    :param id_column: column of the table that holds the document ids; default: its primary key
    :param filter: its condition narrows the table
    :raises ValueError: if the key has several columns and *id_column* is None
    """
    filter, columns = filter or Filter(), [] if id_column is None else [id_column]
    with index.read() as view:
        table = index.settings.table
        source = Source.inspect(view.conn, table, columns, where=filter.where, params=filter.params)
        column = _only(source.keys if len(source.keys) > 1 else source.keys[0]) if id_column is None else id_column
        ids = {str(value) for value in source.values(view.conn, column)}
    return relevant_documents(qrels) - ids


def _measure(name: str) -> Measure:
    measure: Measure | None
    try:
        measure = _ir_measures().parse_measure(name)
    except (NameError, ValueError, TypeError, AssertionError):
        measure = None
    if measure is not None and _is_supported(measure):
        return measure
    if measure is not None and "cutoff" not in measure.params and _is_supported(measure @ 10):
        raise ValueError(f"measure {name!r} needs a cut-off, such as {name}@10")
    raise ValueError(f"no measure {name!r}; ir_measures has nDCG@10, RR@10, R@100, P@5, AP and others")


def _is_supported(measure: Measure) -> bool:
    # trec_eval ends the process at a cut-off of 0.
    cutoff = measure.params.get("cutoff", 1)
    try:
        return type(cutoff) is int and cutoff >= 1 and bool(_ir_measures().DefaultPipeline.supports(measure))
    except AssertionError:
        return False


def _ir_measures() -> ModuleType:
    try:
        import ir_measures
    except ImportError:
        raise MissingDependency("evaluation needs ir_measures: pip install 'colbert-sqlite[eval]'") from None
    return ir_measures


def read_queries(path: str | Path) -> dict[str, str]:
    """Read the queries of a file, text by id.

    Its lines are JSON with ``_id`` or ``id`` and ``text``, or id, tab, text. It may be gzipped.

    :raises ValueError: if a line is neither, or two lines have one id
    :raises SourceError: if the file is not text
    """
    queries: dict[str, str] = {}
    for number, line in _lines(path):
        try:
            if line.startswith("{"):
                record = json.loads(line)
                qid, text = str(record["_id"] if "_id" in record else record["id"]), record["text"]
            else:
                qid, text = line.split("\t", 1)
        except (ValueError, KeyError):
            example = '{"_id": "1", "text": "…"}'
            raise ValueError(f"{path}, line {number}: this is not a query, like {example}, or id, tab, text") from None
        if number == 1 and (qid, text) in HEADERS:
            continue
        if qid in queries:
            raise ValueError(f"{path}, line {number}: two queries have the id {qid!r}")
        queries[qid] = text
    return queries


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read the judgments of a file, grade by document id by query id.

    BEIR's lines are query id, document id and grade, split by tabs, with or without a header. TREC's are query id,
    anything, document id and grade, split by white space. A header begins with ``query-id``, ``query_id``, ``qid``,
    ``id`` or ``_id``. The file may be gzipped.

    :raises ValueError: if a line is neither
    :raises SourceError: if the file is not text
    """
    qrels: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        cells = line.split("\t") if "\t" in line else line.split()
        try:
            if len(cells) not in (3, 4):
                raise ValueError
            qid, doc, grade = cells[0], cells[-2], int(cells[-1])
        except ValueError:
            if number == 1 and cells[0].lower() in ID_HEADERS:
                continue
            raise ValueError(
                f"{path}, line {number}: this is not a judgment, like query-id, tab, document-id, tab, 1"
            ) from None
        qrels.setdefault(qid, {})[doc] = grade
    return qrels


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not empty.

    :raises SourceError: if the file is neither text nor gzipped text
    """
    raw = Path(path).read_bytes()
    try:
        text = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} can't be read as text: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")
