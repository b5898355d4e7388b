"""Measures of an index, and the command that prints them."""

from __future__ import annotations

import gzip
import json
import math
import sqlite3
import sys
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner, Result
from sqlite_utils_colbert.cli import colbert

from colbert_sqlite import Filter, Index, MissingDependency, Progress, SourceError
from colbert_sqlite.encoders import Encoder
from colbert_sqlite.evaluate import evaluate, missing_documents, read_qrels, read_queries
from colbert_sqlite.settings import Fusion

pytest.importorskip("ir_measures")

QUERIES = {"q1": "knead the dough", "q2": "a tail of ice and dust", "q3": "nobody judged this"}
QRELS = {"q1": {"1": 2, "5": 1}, "q2": {"3": 1}, "q4": {"1": 1}}


def run(*words: str, exit_code: int = 0) -> Result:
    result = CliRunner(env={"COLUMNS": "100"}).invoke(colbert, ["eval", *words])
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    """The options for files of the queries and judgments above."""
    queries, qrels = tmp_path / "queries.jsonl", tmp_path / "qrels.tsv"
    queries.write_text("".join(json.dumps({"_id": qid, "text": text}) + "\n" for qid, text in QUERIES.items()))
    lines = [f"{qid}\t{doc}\t{grade}\n" for qid, grades in QRELS.items() for doc, grade in grades.items()]
    qrels.write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return ("--queries", str(queries), "--qrels", str(qrels))


def test_measures_are_those_of_the_ranks(small_index: Index) -> None:
    found = evaluate(small_index, QUERIES, QRELS, ["nDCG@3", "RR@10", "R@1", "R@10"], k=4)
    ranks = {qid: [str(hit.pk) for hit in small_index.search(QUERIES[qid], k=4)] for qid in ("q1", "q2")}
    assert ranks["q1"][0] == "1"
    assert list(found.per_query) == ["q1", "q2"]
    other = ranks["q1"].index("5") + 1
    gain = 2 + (1 / math.log2(other + 1) if other <= 3 else 0)
    assert found.per_query["q1"] == pytest.approx(
        {"nDCG@3": gain / (2 + 1 / math.log2(3)), "RR@10": 1.0, "R@1": 0.5, "R@10": 1.0}
    )
    backups = ranks["q2"].index("3") + 1
    assert found.per_query["q2"]["RR@10"] == pytest.approx(1 / backups)
    assert found.mean["R@10"] == 1.0
    assert found.mean["RR@10"] == pytest.approx((1 + 1 / backups) / 2)


def test_equal_scores_keep_the_order_of_the_hits(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite3.connect(tmp_path / "same.db")
    db.execute("create table posts (id integer primary key, body text)")
    db.executemany("insert into posts values (?, 'the same words')", [(n,) for n in range(1, 6)])
    db.commit()
    with Index.create(db, "posts", ["body"], model=encoder) as index:
        order = [str(hit.pk) for hit in index.search("the same words", k=5)]
        for place, pk in enumerate(order, start=1):
            assert evaluate(index, {"q": "the same words"}, {"q": {pk: 1}}, ["RR"], k=5).mean == {"RR": 1 / place}


def test_a_query_that_finds_nothing_relevant_counts_as_zero(small_index: Index) -> None:
    assert evaluate(small_index, QUERIES, {"q1": {"1": 1}, "q2": {"99": 1}}, ["RR@10"]).mean == {"RR@10": 0.5}


def test_a_column_can_hold_the_document_ids(small_index: Index) -> None:
    found = evaluate(small_index, QUERIES, {"q1": {"Bread": 1}}, ["RR@10"], id_column="TITLE")
    assert found.mean == {"RR@10": 1.0}
    with pytest.raises(ValueError, match="no column 'slug'; the table has id, title, body"):
        evaluate(small_index, QUERIES, QRELS, id_column="slug")


def test_a_compound_key_needs_a_column(tmp_path: Path, encoder: Encoder) -> None:
    db = sqlite3.connect(tmp_path / "two.db")
    db.execute("create table posts (a text, b text, body text, primary key (a, b))")
    db.execute("insert into posts values ('x', 'y', 'some words')")
    db.commit()
    with Index.create(db, "posts", ["body"], model=encoder) as index:
        for failing in (lambda: evaluate(index, QUERIES, QRELS), lambda: missing_documents(index, QRELS)):
            with pytest.raises(ValueError, match="primary key has several columns"):
                failing()
        assert evaluate(index, {"q": "words"}, {"q": {"y": 1}}, ["RR"], id_column="b").mean == {"RR": 1.0}


def test_progress_is_reported(small_index: Index) -> None:
    events: list[Progress] = []
    evaluate(small_index, QUERIES, QRELS, ["RR"], progress=events.append)
    assert events == [Progress("search", 2, 2)]


@pytest.mark.parametrize("name", ["nDCG@", "nothing", "RBP", "", "nDCG@10; import os", "P(color=1)@5", "P@0", "R@1.5"])
def test_an_unknown_measure_is_refused(small_index: Index, name: str) -> None:
    with pytest.raises(ValueError, match="no measure"):
        evaluate(small_index, QUERIES, QRELS, [name])


def test_a_measure_without_its_cut_off_is_refused(small_index: Index) -> None:
    for name in ("P", "P(rel=2)"):
        with pytest.raises(ValueError) as caught:
            evaluate(small_index, QUERIES, QRELS, measures=[name])
        assert str(caught.value) == f"measure {name!r} needs a cut-off, such as {name}@10"


def test_a_condition_leaves_rows_out(small_index: Index) -> None:
    found = evaluate(small_index, QUERIES, QRELS, ["R@10"], where="id != :id", params={"id": 1})
    assert {qid: values["R@10"] for qid, values in found.per_query.items()} == {"q1": 0.5, "q2": 1.0}


def test_files_without_an_id_in_common_are_refused(small_index: Index) -> None:
    with pytest.raises(ValueError, match="no query has judgments"):
        evaluate(small_index, {"x": "words"}, QRELS)


def test_relevant_documents_that_are_nowhere_are_named(small_index: Index, db_path: Path) -> None:
    qrels = {"q": {"1": 1, "98": 1, "99": 0}}
    assert missing_documents(small_index, qrels) == {"98"}
    assert missing_documents(small_index, {"q": {"Bread": 1, "Ice": 1}}, "title") == {"Ice"}
    assert missing_documents(small_index, qrels, filter=Filter("id > :id", {"id": 1})) == {"1", "98"}


def test_a_document_id_that_is_no_valid_utf8_is_read(small_index: Index, db_path: Path) -> None:
    db = sqlite3.connect(db_path)
    db.execute("update posts set title = cast(x'ff' as text) where id = 1")
    db.commit()
    assert missing_documents(small_index, {"q": {"\ufffd": 1, "Comets": 1}}, "title") == set()


def test_without_ir_measures_it_says_how_to_get_it(small_index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingDependency, match=r"pip install 'colbert-sqlite\[eval\]'"):
        evaluate(small_index, QUERIES, QRELS)


# Files


@pytest.mark.parametrize(
    "text",
    [
        '{"_id": "1", "text": "two words"}\n{"_id": 2, "text": "more"}\n',
        '{"id": "1", "text": "two words"}\r\n\r\n{"id": "2", "text": "more", "metadata": {}}',
        "1\ttwo words\n2\tmore\n",
        "query_id\ttext\n1\ttwo words\n2\tmore\n",
        "\ufeff1\ttwo words\n2\tmore",
    ],
)
def test_queries_are_read_in_each_format(tmp_path: Path, text: str) -> None:
    path = tmp_path / "queries"
    path.write_bytes(text.encode())
    assert read_queries(path) == {"1": "two words", "2": "more"}
    path.write_bytes(gzip.compress(text.encode()))
    assert read_queries(path) == {"1": "two words", "2": "more"}


@pytest.mark.parametrize(
    "text",
    [
        "query-id\tcorpus-id\tscore\n1\ta\t2\n1\tb\t0\n",
        "1\ta\t2\n1\tb\t0\n",
        "1 0 a 2\n1 0 b 0\n",
        "1\tQ0\ta\t2\r\n1\tQ0\tb\t0\r\n",
    ],
)
def test_judgments_are_read_in_each_format(tmp_path: Path, text: str) -> None:
    path = tmp_path / "qrels"
    path.write_bytes(text.encode())
    assert read_qrels(path) == {"1": {"a": 2, "b": 0}}


def test_a_document_id_may_have_spaces_between_tabs(tmp_path: Path) -> None:
    path = tmp_path / "qrels"
    path.write_text("1\ta b c\t2\n")
    assert read_qrels(path) == {"1": {"a b c": 2}}


@pytest.mark.parametrize("text", ["only words\n", '{"text": "no id"}\n', "[1]\n", "1\ta\n1\tb\n"])
def test_other_queries_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "queries"
    path.write_text(text)
    with pytest.raises(ValueError, match="line [12]: "):
        read_queries(path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("query-id\tcorpus-id\tscore\n1\ta\tx\n", 2),
        ("1\ta\t1\n1\ta\n", 2),
        ("1 a\n2 b\n", 1),
        ("1 d 5 yes\n1 0 6 1\n", 1),
        ("a\tb\tc\n1\ta\t1\n", 1),
    ],
)
def test_other_judgments_are_refused(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "qrels"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"line {line}: this is not a judgment"):
        read_qrels(path)


@pytest.mark.parametrize("raw", [b"\x1f\x8bbroken", b"\xff\xfe\x00"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(raw)
    with pytest.raises(SourceError, match="can't be read as text"):
        read_queries(path)


# The command


def test_the_command_prints_a_table(small_index: Index, db_path: Path, files: tuple[str, ...]) -> None:
    result = run(str(db_path), small_index.name, *files)
    header, _, row = result.stdout.splitlines()
    assert header.split() == ["mode", "k", "queries", "nDCG@10", "RR@10", "R@10", "R@100"]
    assert row.split()[:3] == ["colbert", "100", "2"]
    assert result.stderr == "1 judged queries have no text in the file of queries, and are left out: q4\n"


def test_the_command_prints_json(small_index: Index, db_path: Path, files: tuple[str, ...]) -> None:
    words = (str(db_path), small_index.name, *files, "--measure", "RR@10", "-k", "3", "--json")
    mean = evaluate(small_index, QUERIES, QRELS, ["RR@10"], k=3)
    assert json.loads(run(*words).stdout) == [{"mode": "colbert", "k": 3, "queries": 2, **mean.mean}]
    assert json.loads(run(*words, "--per-query").stdout) == [
        {"mode": "colbert", "query_id": qid, "query": QUERIES[qid], **mean.per_query[qid]} for qid in ("q1", "q2")
    ]


def make_full_text_searchable(db_path: Path) -> None:
    db = sqlite3.connect(db_path)
    db.execute("create virtual table posts_fts using fts5 (title, body, content='posts', content_rowid='id')")
    db.execute("insert into posts_fts (posts_fts) values ('rebuild')")
    db.commit()


def test_modes_are_compared_line_by_line(small_index: Index, db_path: Path, files: tuple[str, ...]) -> None:
    make_full_text_searchable(db_path)
    words = (str(db_path), small_index.name, *files, "--mode", "fts", "--mode", "hybrid", "--json")
    assert [row["mode"] for row in json.loads(run(*words).stdout)] == ["fts", "hybrid"]


def test_the_command_searches_the_rows_that_meet_a_condition(
    small_index: Index, db_path: Path, files: tuple[str, ...]
) -> None:
    words = ("--where", "id != cast(:id as integer)", "-p", "id", "1", "--measure", "R@10", "--json", "--per-query")
    result = run(str(db_path), small_index.name, *files, *words)
    assert [row["R@10"] for row in json.loads(result.stdout)] == [0.5, 1.0]
    assert result.stderr.splitlines()[0] == (
        "1 relevant documents are not among the rows that meet --where, so no search can find them: 1"
    )
    unused = run(str(db_path), small_index.name, *files, "-p", "id", "1", exit_code=1)
    assert unused.stderr == "Error: params (id) need where, the condition that uses them\n"


def test_hybrid_is_joined_as_asked(small_index: Index, db_path: Path, files: tuple[str, ...]) -> None:
    make_full_text_searchable(db_path)
    # The index has no titles, and the full-text search does.
    Path(files[1]).write_text("q\tbread dust\n")
    Path(files[3]).write_text("q\t1\t1\n")
    words = (str(db_path), small_index.name, *files, "--mode", "hybrid", "--measure", "RR", "--json")
    for fusion in get_args(Fusion):
        for weight, reciprocal_rank in (("0", 1.0), ("1", 0.5)):
            [row] = json.loads(run(*words, "--fusion", fusion, "--weight", weight).stdout)
            assert row["RR"] == reciprocal_rank


@pytest.mark.parametrize("words", [("--fusion", "rrf"), ("--weight", "0"), ("--weight", "1", "--mode", "fts")])
def test_what_joins_rankings_needs_hybrid(
    small_index: Index, db_path: Path, files: tuple[str, ...], words: tuple[str, ...]
) -> None:
    result = run(str(db_path), small_index.name, *files, *words, exit_code=2)
    assert result.stderr.splitlines()[-1] == "Error: --fusion and --weight say how --mode hybrid joins two rankings."


def test_missing_documents_are_told(small_index: Index, db_path: Path, files: tuple[str, ...]) -> None:
    Path(files[3]).write_text("q1\t1\t1\nq1\t77\t1\n")
    told = run(str(db_path), small_index.name, *files).stderr
    assert told == "1 relevant documents are not in the table, so no search can find them: 77\n"


def test_errors_are_one_line(small_index: Index, db_path: Path, files: tuple[str, ...]) -> None:
    for words in (["--measure", "nothing"], ["--id-column", "nothing"]):
        result = run(str(db_path), small_index.name, *files, *words, exit_code=1)
        assert result.stdout == ""
        [line] = result.stderr.splitlines()
        assert line.startswith("Error: ")
