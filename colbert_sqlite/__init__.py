"""ColBERT late-interaction search inside a SQLite database.

In: nothing. Out: the public names, each imported on first use. Leaves to others: everything else; importing this
package stays cheap.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colbert_sqlite.encoders import Encoder, KnownModel, Token, export_model, known_models, load_encoder
    from colbert_sqlite.errors import (
        BuildInterrupted,
        ColbertError,
        IndexBusy,
        IndexCorrupt,
        IndexExists,
        IndexNotFound,
        MissingDependency,
        ModelError,
        ModelMismatch,
        ModelNotFound,
        SchemaVersionError,
        ShapeError,
        SourceError,
        WrongThread,
    )
    from colbert_sqlite.evaluate import Evaluation, evaluate, read_qrels, read_queries
    from colbert_sqlite.explain import Explanation, Match, PassageWord
    from colbert_sqlite.highlight import highlight, snippet
    from colbert_sqlite.index import Index
    from colbert_sqlite.indexes import attached_file, list_indexes
    from colbert_sqlite.multi import search_all
    from colbert_sqlite.progress import BuildReport, IndexCounts, Progress, SyncResult
    from colbert_sqlite.query import Query
    from colbert_sqlite.rerank import Reranked, rerank
    from colbert_sqlite.results import Hit, IndexInfo, IndexSummary, Passage, Similar
    from colbert_sqlite.settings import Filter, Fusion, IndexSettings, Mode, ModelOptions, SearchSettings
    from colbert_sqlite.sql import register
    from colbert_sqlite.upgrade import upgrade

__version__ = "0.1a0"

__all__ = [
    "BuildInterrupted",
    "BuildReport",
    "ColbertError",
    "Encoder",
    "Evaluation",
    "Explanation",
    "Filter",
    "Fusion",
    "Hit",
    "Index",
    "IndexBusy",
    "IndexCorrupt",
    "IndexCounts",
    "IndexExists",
    "IndexInfo",
    "IndexNotFound",
    "IndexSettings",
    "IndexSummary",
    "KnownModel",
    "Match",
    "MissingDependency",
    "Mode",
    "ModelError",
    "ModelMismatch",
    "ModelNotFound",
    "ModelOptions",
    "Passage",
    "PassageWord",
    "Progress",
    "Query",
    "Reranked",
    "SchemaVersionError",
    "SearchSettings",
    "ShapeError",
    "Similar",
    "SourceError",
    "SyncResult",
    "Token",
    "WrongThread",
    "attached_file",
    "evaluate",
    "export_model",
    "highlight",
    "known_models",
    "list_indexes",
    "load_encoder",
    "read_qrels",
    "read_queries",
    "register",
    "rerank",
    "search_all",
    "snippet",
    "upgrade",
]

_HOMES = {
    "BuildReport": "progress",
    "Encoder": "encoders",
    "Evaluation": "evaluate",
    "Explanation": "explain",
    "Filter": "settings",
    "Fusion": "settings",
    "Hit": "results",
    "Index": "index",
    "IndexCounts": "progress",
    "IndexInfo": "results",
    "IndexSettings": "settings",
    "IndexSummary": "results",
    "KnownModel": "encoders",
    "Match": "explain",
    "Mode": "settings",
    "ModelOptions": "settings",
    "Passage": "results",
    "PassageWord": "explain",
    "Progress": "progress",
    "Query": "query",
    "Reranked": "rerank",
    "SearchSettings": "settings",
    "Similar": "results",
    "SyncResult": "progress",
    "Token": "encoders",
    "attached_file": "indexes",
    "evaluate": "evaluate",
    "export_model": "encoders",
    "highlight": "highlight",
    "known_models": "encoders",
    "list_indexes": "indexes",
    "load_encoder": "encoders",
    "read_qrels": "evaluate",
    "read_queries": "evaluate",
    "register": "sql",
    "rerank": "rerank",
    "search_all": "multi",
    "snippet": "highlight",
    "upgrade": "upgrade",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps a function such as ``rerank`` when the file of the same name is imported.

    The import system sets every submodule as an attribute of its package.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
