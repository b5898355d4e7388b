"""What ``from colbert_sqlite import …`` offers."""

from __future__ import annotations

import inspect

import pytest

import colbert_sqlite
from colbert_sqlite import errors


def test_public_names_are_sorted() -> None:
    assert colbert_sqlite.__all__ == sorted(colbert_sqlite.__all__)


def test_public_names_are_these() -> None:
    error_names = [name for name, _ in inspect.getmembers(errors, inspect.isclass)]
    others = """BuildReport Encoder Evaluation Explanation Filter Fusion Hit Index IndexCounts IndexInfo IndexSettings
    IndexSummary KnownModel Match Mode ModelOptions Passage PassageWord Progress Query Reranked SearchSettings Similar
    SyncResult Token attached_file evaluate export_model highlight known_models list_indexes load_encoder read_qrels
    read_queries register rerank search_all snippet upgrade""".split()
    assert colbert_sqlite.__all__ == sorted([*error_names, *others])


@pytest.mark.parametrize("name", sorted({*colbert_sqlite.__all__} - {"Fusion", "Mode"}))
def test_each_public_name_is_there_and_explains_itself(name: str) -> None:
    assert inspect.getdoc(getattr(colbert_sqlite, name))
    assert name in dir(colbert_sqlite)


def test_another_name_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Indx'"):
        _ = colbert_sqlite.Indx
