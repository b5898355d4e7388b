"""ColBERT late-interaction search inside a SQLite database. The first of the two doors for heavy imports.

In: nothing. Out: the public names, each loaded when it is first used, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colbert_sqlite.catalogue import list_indexes
    from colbert_sqlite.encoders import load_encoder
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
    )
    from colbert_sqlite.explain import Explanation, Match, PassageWord
    from colbert_sqlite.highlighting import highlight, snippet
    from colbert_sqlite.index import Index
    from colbert_sqlite.multi import search_all
    from colbert_sqlite.progress import Progress
    from colbert_sqlite.reranking import Reranked, rerank
    from colbert_sqlite.results import Hit, Passage
    from colbert_sqlite.settings import IndexSettings, SearchSettings
    from colbert_sqlite.sql_functions import register
    from colbert_sqlite.upgrade import upgrade

__version__ = "0.1a0"

__all__ = [
    "BuildInterrupted",
    "ColbertError",
    "Explanation",
    "Hit",
    "Index",
    "IndexBusy",
    "IndexCorrupt",
    "IndexExists",
    "IndexNotFound",
    "IndexSettings",
    "Match",
    "MissingDependency",
    "ModelError",
    "ModelMismatch",
    "ModelNotFound",
    "Passage",
    "PassageWord",
    "Progress",
    "Reranked",
    "SchemaVersionError",
    "SearchSettings",
    "ShapeError",
    "SourceError",
    "highlight",
    "list_indexes",
    "load_encoder",
    "register",
    "rerank",
    "search_all",
    "snippet",
    "upgrade",
]

_HOMES = {
    "Explanation": "explain:Explanation",
    "Hit": "results:Hit",
    "Index": "index:Index",
    "IndexSettings": "settings:IndexSettings",
    "Match": "explain:Match",
    "Passage": "results:Passage",
    "PassageWord": "explain:PassageWord",
    "Progress": "progress:Progress",
    "Reranked": "reranking:Reranked",
    "SearchSettings": "settings:SearchSettings",
    "highlight": "highlighting:highlight",
    "list_indexes": "catalogue:list_indexes",
    "load_encoder": "encoders:load_encoder",
    "register": "sql_functions:register",
    "rerank": "reranking:rerank",
    "search_all": "multi:search_all",
    "snippet": "highlighting:snippet",
    "upgrade": "upgrade:upgrade",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES.get(name, f"errors:{name}").partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps a function such as ``upgrade`` when the file of the same name is imported.

    The import system sets every submodule as an attribute of its package.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
