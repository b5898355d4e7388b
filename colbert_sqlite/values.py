"""Plain values for SQLite and JSON, from Python's or numpy's.

In: a number, a key, a parameter. Out: the same in Python's own types, or in JSON's. Leaves to others: the meaning of
the value.

sqlite3 binds a numpy integer as a BLOB of its bytes, which equals no number.
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
    """Return a numpy scalar or array as Python's own values, anything else unchanged."""
    if type(value).__module__ == "numpy":
        value = value.item() if getattr(value, "ndim", 0) == 0 else value.tolist()
        if isinstance(value, (datetime.date, datetime.datetime)):
            # As sqlite3 itself writes a date.
            return value.isoformat(" ") if isinstance(value, datetime.datetime) else value.isoformat()
    return value


def plain_key(pk: object) -> tuple[SqlValue, ...]:
    """Return a primary key as the tuple of its columns.

    :param pk: one value, or a tuple, list or array of several
    """
    pk = plain_value(pk)
    return tuple(map(plain_value, pk if isinstance(pk, (tuple, list)) else (pk,)))


def whole_number(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Return *value* as an int.

    :param name: of the argument, for the error
    :raises ValueError: if it is not a whole number from *minimum* to *maximum*
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < minimum or (maximum is not None and number > maximum):
        limits = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum:,}"
        raise ValueError(f"{name} must be a whole number {limits}, not {value!r}")
    return number


def json_value(value: object) -> Any:
    """Return *value* as ``json.dumps`` takes it, a BLOB as sqlite-utils writes it."""
    if isinstance(value, bytes):
        return {"$base64": True, "encoded": base64.b64encode(value).decode("ascii")}
    if isinstance(value, Mapping):
        return {name: json_value(part) for name, part in value.items()}
    return [json_value(part) for part in value] if isinstance(value, (tuple, list)) else value
