"""Values as SQLite takes them, from whatever a caller has: numpy's scalars and arrays too.

In: a number, a key, a parameter. Out: the same in Python's own types, or as JSON has it. Leaves to others: what the
value is for.

sqlite3 takes a numpy integer for a BLOB of its bytes, and finds nothing.
"""

from __future__ import annotations

import base64
import datetime
import operator
from collections.abc import Mapping
from typing import Any, TypeAlias

SqlValue: TypeAlias = str | int | float | bytes | None
PrimaryKey: TypeAlias = SqlValue | tuple[SqlValue, ...]


def plain_value(value: Any) -> Any:
    """Return a value that SQLite stores as what it means: numpy's as Python's own, others as they are."""
    if type(value).__module__ == "numpy":
        value = value.item() if getattr(value, "ndim", 0) == 0 else value.tolist()
        if isinstance(value, (datetime.date, datetime.datetime)):
            # What sqlite3 itself writes for a date.
            return value.isoformat(" ") if isinstance(value, datetime.datetime) else value.isoformat()
    return value


def plain_key(pk: object) -> tuple[SqlValue, ...]:
    """Return a primary key as a tuple of its columns: *pk* is one value, or a tuple, list or array of several."""
    pk = plain_value(pk)
    return tuple(map(plain_value, pk if isinstance(pk, (tuple, list)) else (pk,)))


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return *value* as an int.

    :raises ValueError: if it is not a whole number from *least* to *most*
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most:,}"
        raise ValueError(f"{name} must be a whole number {limits}, not {value!r}")
    return number


def json_value(value: object) -> Any:
    """Return *value* as ``json.dumps`` takes it; a BLOB becomes what sqlite-utils writes for one."""
    if isinstance(value, bytes):
        return {"$base64": True, "encoded": base64.b64encode(value).decode("ascii")}
    if isinstance(value, Mapping):
        return {name: json_value(part) for name, part in value.items()}
    return [json_value(part) for part in value] if isinstance(value, (tuple, list)) else value
