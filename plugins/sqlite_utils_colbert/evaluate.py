"""The command that measures how good an index is: eval.

In: files of queries and judgments. Out: measures. Leaves to others: searching and measuring
(:func:`colbert_sqlite.evaluate`).
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from colbert_sqlite import Filter, Fusion, Mode, ModelOptions, Progress, SearchSettings
from sqlite_utils_colbert.options import (
    ColbertCommand,
    db_argument,
    filter_options,
    fusion_options,
    grouped,
    index_argument,
    json_option,
    keywords,
    limit_option,
    mode_choice,
    model_options,
    moved_model_option,
    plaid_options,
    refuse_fusion_without_hybrid,
)
from sqlite_utils_colbert.output import Row, print_rows, print_table

if TYPE_CHECKING:
    from colbert_sqlite import Evaluation

MAX_EXAMPLES = 3
# What a measure does not decide: a threshold would.
EVALUATED_SETTINGS = ("k", "mode", "fusion", "weight", "nprobe", "ndocs")
file_option = click.Path(exists=True, dir_okay=False)


def settings_of_modes(
    k: int,
    modes: tuple[Mode, ...],
    fusion: Fusion | None,
    weight: float | None,
    nprobe: int | None,
    ndocs: int | None,
) -> list[SearchSettings]:
    """Return settings for each mode."""
    modes = modes or ("colbert",)
    refuse_fusion_without_hybrid(modes, fusion, weight)
    settings = SearchSettings.for_k(k, fusion=fusion, weight=weight, nprobe=nprobe, ndocs=ndocs)
    return [replace(settings, mode=mode) for mode in dict.fromkeys(modes)]


@click.command(name="eval", cls=ColbertCommand)
@db_argument
@index_argument
@click.option(
    "--queries",
    "queries_file",
    type=file_option,
    required=True,
    metavar="FILE",
    help="Queries: JSON lines with _id and text, as BEIR has them, or lines of id, tab, text; may be gzipped",
)
@click.option(
    "--qrels",
    "qrels_file",
    type=file_option,
    required=True,
    metavar="FILE",
    help="Judgments: lines of query id, document id, grade, split by tabs (BEIR), or TREC's four columns",
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    help="Measure as ir_measures writes it, such as P@5; default: nDCG@10, RR@10 (which is MRR@10), R@10 and R@100",
)
@grouped(
    "settings",
    settings_of_modes,
    limit_option(100, "Hits of each query"),
    click.option(
        "--mode",
        "modes",
        multiple=True,
        type=mode_choice,
        help="How to search, as in colbert search; several give a line each; default: colbert",
    ),
    *fusion_options,
    *plaid_options,
)
@filter_options("Search only the rows that meet this condition")
@click.option("--id-column", metavar="COLUMN", help="Column with the document ids; default: the primary key")
@click.option("--per-query", is_flag=True, help="Output a line for each query")
@moved_model_option
@model_options
@json_option
def evaluate(
    db: str,
    index: str,
    queries_file: str,
    qrels_file: str,
    measures: tuple[str, ...],
    settings: list[SearchSettings],
    filter: Filter,
    id_column: str | None,
    per_query: bool,
    model: str | None,
    options: ModelOptions,
    as_json: bool,
) -> None:
    """Measure how good the hits of an index are, with queries whose right answers are known

    A query that the judgments do not name is passed over.

    Examples:

    \b
        sqlite-utils colbert eval blog.db posts --queries queries.jsonl --qrels qrels.tsv
        sqlite-utils colbert eval blog.db posts --queries queries.jsonl --qrels qrels.tsv \\
          --mode colbert --mode fts --mode hybrid --measure nDCG@10 --id-column slug
    """
    from colbert_sqlite import Index, read_qrels, read_queries, serving
    from colbert_sqlite import evaluate as evaluate_index

    queries, qrels = read_queries(queries_file), read_qrels(qrels_file)
    with Index.open(db, index, model=model, **keywords(options)) as opened:
        missing = serving.missing_documents(opened, qrels, id_column, filter)
        relevant = serving.relevant_documents(qrels)
        if relevant and missing == relevant and filter.where is None:
            example = min(relevant)
            raise ValueError(
                f"no relevant document is in the table, {example!r} for one: is their id in an --id-column?"
            )
        evaluations = [
            evaluate_index(
                opened,
                queries,
                qrels,
                measures or serving.MEASURES,
                id_column=id_column,
                progress=show_progress,
                **keywords(one, *EVALUATED_SETTINGS),
                **keywords(filter, "where", "params"),
            )
            for one in settings
        ]
    warn_of_missing(missing, qrels.keys() - queries.keys(), filter)
    rows_of = rows_of_queries if per_query else rows_of_modes
    rows = rows_of(settings, evaluations, queries)
    if as_json:
        print_rows(rows)
    else:
        print_table([{name: cell(value) for name, value in row.items()} for row in rows])


def warn_of_missing(documents: Collection[str], queries: Collection[str], filter: Filter) -> None:
    """Say on stderr which judgments could not count."""
    absent = "are not in the table" if filter.where is None else "are not among the rows that meet --where"
    for ids, what in (
        (documents, f"relevant documents {absent}, so no search can find them"),
        (queries, "judged queries have no text in the file of queries, and are left out"),
    ):
        if ids:
            examples = ", ".join(sorted(ids)[:MAX_EXAMPLES])
            click.echo(f"{len(ids):,} {what}: {examples}{' …' if len(ids) > MAX_EXAMPLES else ''}", err=True)


def rows_of_modes(
    settings: Sequence[SearchSettings], evaluations: Sequence[Evaluation], queries: Mapping[str, str]
) -> list[Row]:
    return [
        {"mode": one.mode, "k": one.k, "queries": len(evaluation.per_query), **evaluation.mean}
        for one, evaluation in zip(settings, evaluations, strict=True)
    ]


def rows_of_queries(
    settings: Sequence[SearchSettings], evaluations: Sequence[Evaluation], queries: Mapping[str, str]
) -> list[Row]:
    return [
        {"mode": one.mode, "query_id": qid, "query": queries[qid], **values}
        for one, evaluation in zip(settings, evaluations, strict=True)
        for qid, values in evaluation.per_query.items()
    ]


def cell(value: object) -> object:
    return f"{value:.3f}" if isinstance(value, float) else value


def show_progress(progress: Progress) -> None:
    if sys.stderr.isatty():
        end = "" if progress.done < progress.total else "\n"
        click.echo(f"\r{progress.done:,} of {progress.total:,} queries{end}", err=True, nl=False)
