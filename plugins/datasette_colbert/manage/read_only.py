"""Whether the indexes of a database can be changed.

In: a database of Datasette. Out: a sentence on why not. Leaves to others: who may change them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasette.database import Database


def why_read_only(db: Database) -> str:
    """Return a sentence on why the indexes of a database can't be changed here; empty if they can."""
    if db.is_memory or db.path is None:
        return "This database is in memory, and indexes are kept in files."
    if not db.is_mutable:
        return "This database is served as immutable: its indexes can be searched, and are changed elsewhere."
    if not all(_is_writable(path) for path in (Path(db.path), Path(db.path).absolute().parent)):
        return "The server may not write the file of this database or its folder: its indexes can be searched only."
    return ""


def _is_writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
