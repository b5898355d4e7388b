"""The command that says how good an index is: eval.

In: files of queries and judgments. Out: measures. Leaves to others: the work, which is
:mod:`colbert_sqlite.evaluation`.
"""

from __future__ import annotations

import sys
from typing import Any, get_args

import click

from colbert_sqlite.settings import Fusion, Mode
from sqlite_utils_colbert.options import (
    ColbertCommand,
    db_argument,
    fusion_options,
    index_argument,
    json_option,
    model_options,
    moved_model_option,
    plaid_options,
    refuse_fusion_without_hybrid,
    where_options,
)
from sqlite_utils_colbert.output import print_rows, print_table

file_option = click.Path(exists=True, dir_okay=False)


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
    help="Measure as ir_measures spells it, such as P@5; default: nDCG@10, RR@10 (which is MRR@10), R@10 and R@100",
)
@click.option("-k", "--limit", "k", type=int, default=100, show_default=True, help="Hits of each query")
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(get_args(Mode)),
    help="How to search, as in colbert search; several give a line each; default: colbert",
)
@fusion_options
@where_options("Search only the rows that meet this condition")
@click.option("--id-column", metavar="COLUMN", help="Column with the document ids; default: the primary key")
@plaid_options
@click.option("--per-query", is_flag=True, help="Output a line for each query")
@moved_model_option
@model_options
@json_option
def eval_(
    db: str,
    index: str,
    queries_file: str,
    qrels_file: str,
    measures: tuple[str, ...],
    k: int,
    modes: tuple[Mode, ...],
    fusion: Fusion | None,
    weight: float | None,
    where: str | None,
    params: tuple[tuple[str, str], ...],
    id_column: str | None,
    nprobe: int | None,
    ndocs: int | None,
    per_query: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how good the hits of an index are, with queries whose right answers are known

    A query that the judgments do not name is passed over.

    Examples:

    \b
        sqlite-utils colbert eval blog.db posts --queries queries.jsonl --qrels qrels.tsv
        sqlite-utils colbert eval blog.db posts --queries queries.jsonl --qrels qrels.tsv \\
          --mode colbert --mode fts --mode hybrid --measure nDCG@10 --id-column slug
    """
    from colbert_sqlite import Index
    from colbert_sqlite.evaluation import (
        MEASURES,
        evaluate,
        missing_documents,
        read_qrels,
        read_queries,
        relevant_documents,
    )

    refuse_fusion_without_hybrid(modes, fusion, weight)
    queries, qrels = read_queries(queries_file), read_qrels(qrels_file)
    with Index.open(db, index, **options) as opened:
        missing = missing_documents(db, opened, qrels, id_column, where, dict(params))
        relevant = relevant_documents(qrels)
        if relevant and missing == relevant and where is None:
            example = min(relevant)
            raise ValueError(
                f"no relevant document is in the table, {example!r} for one: is their id in an --id-column?"
            )
        found = {
            mode: evaluate(
                opened,
                queries,
                qrels,
                measures or MEASURES,
                k,
                mode=mode,
                id_column=id_column,
                where=where,
                params=dict(params),
                fusion=fusion,
                weight=weight,
                nprobe=nprobe,
                ndocs=ndocs,
                progress=show_progress,
            )
            for mode in modes or ("colbert",)
        }
    nowhere = "are not in the table" if where is None else "are not among the rows that meet --where"
    for what, ids in (
        (f"relevant documents {nowhere}, so no search can find them", missing),
        ("judged queries have no text in the file of queries, and are left out", qrels.keys() - queries.keys()),
    ):
        if ids:
            click.echo(f"{len(ids):,} {what}: {', '.join(sorted(ids)[:3])}{' …' if len(ids) > 3 else ''}", err=True)
    rows: list[dict[str, Any]]
    if per_query:
        rows = [
            {"mode": mode, "query_id": qid, "query": queries[qid], **values}
            for mode, evaluation in found.items()
            for qid, values in evaluation.per_query.items()
        ]
    else:
        rows = [
            {"mode": mode, "k": k, "queries": len(evaluation.per_query), **evaluation.mean}
            for mode, evaluation in found.items()
        ]
    if as_json:
        print_rows(rows, None)
    else:
        print_table([{name: cell(value) for name, value in row.items()} for row in rows])


def cell(value: Any) -> Any:
    return f"{value:.3f}" if isinstance(value, float) else value


def show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done:,} of {total:,} queries{'' if done < total else chr(10)}", err=True, nl=False)
