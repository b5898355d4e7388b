"""What a caller may hand over: numpy's scalars and arrays mean what they mean in Python."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colbert_sqlite import (
    Filter,
    Index,
    IndexSettings,
    IndexSummary,
    SearchSettings,
    Similar,
    list_indexes,
    rerank,
    search_all,
    snippet,
)
from colbert_sqlite.encoders import Encoder
from colbert_sqlite.values import json_value, plain_key, plain_value, whole_number


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(7), 7),
        (np.uint8(7), 7),
        (np.float32(0.5), 0.5),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), b"a"),
        (np.bool_(True), True),
        (np.array(7), 7),
        (np.datetime64("2024-05-06"), "2024-05-06"),
        (np.datetime64("2024-05-06T07:08:09"), "2024-05-06 07:08:09"),
        ("a", "a"),
        (None, None),
    ],
    ids=repr,
)
def test_a_numpy_value_is_the_value_that_it_stands_for(value: Any, plain: Any) -> None:
    assert plain_value(value) == plain
    assert type(plain_value(value)) is type(plain)


@pytest.mark.parametrize("pk", [(1, "a"), [np.int64(1), "a"], np.array([1, "a"], object)], ids=repr)
def test_a_compound_key_is_a_tuple_a_list_or_an_array(pk: Any) -> None:
    assert plain_key(pk) == (1, "a")


@pytest.mark.parametrize("value", [1.0, "1", True, None, np.float64(1), np.bool_(True), np.array([1, 2])], ids=repr)
def test_what_is_not_a_whole_number_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match="k must be a whole number from 1 to 9, not "):
        whole_number("k", value, 1, 9)


def test_keys_limits_and_parameters_may_be_numpy_values(small_index: Index) -> None:
    expected = small_index.search("bread", k=2, pks=[2, 3])
    assert small_index.search("bread", k=np.int64(2), pks=np.array([2, 3])) == expected  # type: ignore[arg-type]
    assert small_index.search("bread", pks=np.array([2, 3], np.int32), nprobe=np.int16(4)) == expected  # type: ignore[arg-type]
    within = small_index.search("bread", where="id > :n", params={"n": np.int64(2)})
    assert within == small_index.search("bread", where="id > 2")
    assert len(within) == 2
    assert small_index.similar(np.int64(1), np.int8(2)) == small_index.similar(1, 2)  # type: ignore[arg-type]
    assert small_index.explain("bread", np.uint16(1), ordinal=np.int64(0)) == small_index.explain("bread", 1, ordinal=0)  # type: ignore[arg-type]
    assert small_index.search("bread", threshold=np.float32(0.25)) == small_index.search("bread", threshold=0.25)  # type: ignore[arg-type]
    assert search_all([small_index], "bread", np.int64(1)) == search_all([small_index], "bread", 1)  # type: ignore[arg-type]


def test_settings_of_an_index_may_be_numpy_values(db_path: Path, encoder: Encoder) -> None:
    index = Index.create(
        db_path,
        "posts",
        np.array(["title", "body"]),  # type: ignore[arg-type]
        model=encoder,
        nbits=np.int64(2),  # type: ignore[arg-type]
        max_tokens=np.int32(32),  # type: ignore[arg-type]
        where="id > :n",
        params={"n": np.int64(1)},
    )
    assert (index.settings.nbits, index.settings.params, index.settings.columns) == (2, {"n": 1}, ("title", "body"))
    with Index.open(db_path, "posts", model=encoder) as again:
        assert again.settings == index.settings
        assert again.info().rows == 4


def test_texts_are_ranked_and_cut_with_numpy_limits(encoder: Encoder) -> None:
    texts = ["a comet", "bread and dough"]
    assert rerank("bread", np.array(texts), np.int64(1), model=encoder)[0].text == texts[1]  # type: ignore[arg-type]
    assert snippet("bread", "bread and dough", n_words=np.int64(1), model=encoder) == "<b>bread</b>…"  # type: ignore[arg-type]


def test_results_become_json_blobs_included(tmp_path: Path, encoder: Encoder) -> None:
    conn = sqlite3.connect(tmp_path / "t.db")
    conn.execute("CREATE TABLE t (a BLOB, b INTEGER, body TEXT, picture BLOB, PRIMARY KEY (a, b))")
    conn.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", [(b"\x01", 1, "bread", b"\xff"), (b"\x02", 2, "comet", None)])
    index = Index.create(conn, "t", ["body"], model=encoder)
    hit = index.search("bread", k=1)[0]
    blob = {"$base64": True, "encoded": "AQ=="}
    assert json.loads(json.dumps(hit.to_dict())) == {
        "rank": 1,
        "score": hit.score,
        "normalized_score": hit.normalized_score,
        "pk": [blob, 1],
        "row": {"a": blob, "b": 1, "body": "bread", "picture": {"$base64": True, "encoded": "/w=="}},
        "passage": {"text": "bread", "start": 0, "end": 5, "ordinal": 0},
        "index": "t",
        "database": str(tmp_path / "t.db"),
        "stale": False,
    }
    others: list[Similar | IndexSummary] = [*index.similar_all(1), *list_indexes(conn)]
    plain = [
        index.info().to_dict(),
        index.sync().to_dict(),
        index.rebuild().to_dict(),
        *(one.to_dict() for one in others),
    ]
    assert all(json.loads(json.dumps(values)) for values in plain)
    assert json.loads(json.dumps(index.explain("bread", (b"\x01", 1)).to_dict()))["query"] == "bread"
    assert index.info().to_dict()["columns"] == ["body"]


def test_results_and_settings_are_frozen(small_index: Index) -> None:
    for frozen in (
        small_index.info(),
        small_index.search("bread")[0],
        small_index.sync(),
        small_index.settings,
        SearchSettings.for_k(3),
        Filter("1"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, dataclasses.fields(frozen)[0].name, None)


def test_json_values_are_nested() -> None:
    assert json_value({"a": (1, [b"\x00"])}) == {"a": [1, [{"$base64": True, "encoded": "AA=="}]]}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"params": {"n": 1}}, r"params \(n\) need where, the condition that uses them"),
        ({"where": "1", "params": [1]}, "params must map names to values, not"),
        ({"pks": "17"}, "pks must be a list of primary keys, such as"),
        ({"pks": 17}, r"pks must be a list of primary keys, such as \[17\]"),
        ({"pks": b"17"}, "pks must be a list of primary keys, such as"),
    ],
    ids=str,
)
def test_a_wrong_filter_is_one_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Filter(**wrong)


def test_columns_are_a_list() -> None:
    with pytest.raises(ValueError, match=r"columns must be a list of names, such as \['body'\]"):
        IndexSettings(table="t", columns="body", model="")
