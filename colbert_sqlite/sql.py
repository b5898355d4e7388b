"""``colbert_search(…)`` and the other SQL functions, for any connection.

In: a connection, and the arguments of SQL calls. Out: JSON, numbers and texts for SQL. Leaves to others: open indexes
and encoders (``serving.py``), searching, scoring, marking.

Plugins import this for every connection of a process. So slow modules are imported by the first call that needs them.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sqlite3
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from colbert_sqlite import ColbertError, IndexNotFound, serving

if TYPE_CHECKING:
    from sqlite_utils import Database as SqliteUtilsDatabase

    from colbert_sqlite import Encoder, Hit, Index, Reranked
    from colbert_sqlite.serving import Guard, Pool

logger = logging.getLogger("colbert_sqlite")

Value = str | int | float | bytes | None
JsonRow = dict[str, object]
T = TypeVar("T")


def register(
    conn: sqlite3.Connection | SqliteUtilsDatabase,
    *,
    database: str | None = None,
    attached: Mapping[str, str] | None = None,
    model: str | Encoder | None = None,
    any_model: bool = True,
    hold: bool = True,
    guard: Guard | None = None,
) -> None:
    """Register the SQL functions of this package on a connection.

    They are ``colbert_search``, ``colbert_score``, ``colbert_rerank``, ``colbert_highlight``, ``colbert_snippet`` and
    ``colbert_error``. Searches read the database through connections of their own, which see committed data. A database
    in memory is read through *conn* itself, which then stays open until somebody closes it.

    :param database: path or URI of the file, such as ``file:/data/blog.db?immutable=1``; default: the path of *conn*
    :param attached: paths or URIs of databases that are attached later, by their schemas
    :param model: encodes for ``colbert_score``, ``colbert_rerank``, ``colbert_highlight`` and ``colbert_snippet`` when
        SQL names no model; default: ``minilm``
    :param any_model: whether SQL may name another model than *model*
    :param hold: keep a reference to *conn* if its database is in memory. Python can't refer to a connection weakly, so
        it stays open until it is closed explicitly
    :param guard: decides who may call what, for hosts with users. Default: everybody may call everything. Without a
        guard, nothing is registered after :func:`colbert_sqlite.serving.guard_connection`
    """
    connection = conn if isinstance(conn, sqlite3.Connection) else conn.conn
    if guard is None and serving.is_guarded(connection):
        return
    if guard is not None:
        serving.guard_connection(connection)
    files = _files_of(connection)
    if database is not None:
        files["main"] = database
    files |= {schema.lower(): address for schema, address in (attached or {}).items()}
    functions = _Functions(
        files=files,
        held=connection if hold and "main" not in files else None,
        model=model,
        any_model=any_model,
        guard=guard,
    )
    for name, function, n_arguments, deterministic in (
        ("colbert_search", functions.search, (2, 3, 4, 5), False),
        ("colbert_score", functions.score, (2, 3), True),
        ("colbert_highlight", functions.highlight, (2, 4), True),
        ("colbert_snippet", functions.snippet, (2, 4, 5), True),
    ):
        for n in n_arguments:
            connection.create_function(name, n, functions.reported(name, function), deterministic=deterministic)
    connection.create_function("colbert_error", 0, functions.last_error)
    for n in (3, 4):
        connection.create_aggregate("colbert_rerank", n, partial(_Rerank, functions))  # type: ignore[arg-type]


class _Functions:
    """The functions of one connection. They refer to it only if they hold it."""

    def __init__(
        self,
        *,
        files: Mapping[str, str],
        held: sqlite3.Connection | None,
        model: str | Encoder | None,
        any_model: bool,
        guard: Guard | None,
    ) -> None:
        self._files = files
        self._held = held
        self._model = model
        self._any_model = any_model
        self._guard = guard
        self._error: str | None = None

    def search(self, index: Value, query: Value, k: Value = 10, mode: Value = "colbert", *pks: Value) -> str:
        name, text = _text_of(index, "index"), _text_of(query, "query")
        request = _Request(
            text, _whole_number(k, "k"), _text_of(mode, "mode"), _text_of(pks[0], "pks") if pks else None
        )
        if not text.strip():
            return "[]"
        try:
            self._check_request("main", name, request)
            return self._search_main(name, request)
        except IndexNotFound:
            schema, address, name = self._in_schema(name)
            if address is None:
                raise
            self._check_request(schema, name, request)
            return _search_file(address, name, request)

    def _search_main(self, name: str, request: _Request) -> str:
        if self._held is not None:
            return _answer(self._pool_in_memory, name, request)
        if "main" not in self._files:
            raise IndexNotFound(
                "searches can't open the database in memory of this connection: call colbert_sqlite.register(conn) "
                "from Python"
            )
        return _search_file(self._files["main"], name, request)

    @cached_property
    def _pool_in_memory(self) -> Pool:
        assert self._held is not None
        return serving.Pool.on(self._held)

    def _check_request(self, schema: str, name: str, request: _Request) -> None:
        """Make sure that the guard allows this search.

        :raises IndexNotFound: if not, in the words of a missing index
        :raises ValueError: if *k* is too high
        """
        if self._guard is None:
            return
        names, max_k = self._guard.searchable(schema), self._guard.max_k(schema)
        if names is not None and name.lower() not in names:
            has = f"; it has {', '.join(sorted(names))}" if names else ""
            raise IndexNotFound(f"no index {name!r} in this database{has}")
        if max_k is not None and request.k > max_k:
            raise ValueError(f"k must be at most {max_k} here, not {request.k}")

    def score(self, query: Value, text: Value, model: Value = "", /) -> float | None:
        question, passage = _text_of(query, "query"), _text_of(text, "text")
        if not question.strip():
            return None
        from colbert_sqlite import rerank

        [reranked] = rerank(question, [passage], model=self.encoder(_text_of(model, "model")))
        return _finite(reranked.score)

    def highlight(self, query: Value, text: Value, before: Value = "<b>", after: Value = "</b>", /) -> str:
        question, whole = _text_of(query, "query"), _text_of(text, "text")
        marks = _text_of(before, "before"), _text_of(after, "after")
        if not question.strip():
            return whole
        from colbert_sqlite import highlight

        return highlight(question, whole, before=marks[0], after=marks[1], model=self.encoder())

    def snippet(
        self, query: Value, text: Value, before: Value = "<b>", after: Value = "</b>", n_words: Value = 30, /
    ) -> str:
        question, whole, n = _text_of(query, "query"), _text_of(text, "text"), _whole_number(n_words, "n_words")
        marks = _text_of(before, "before"), _text_of(after, "after")
        if n < 1:
            raise ValueError(f"n_words must be a whole number of at least 1, not {n}")
        if not question.strip():
            ends = [word.end() for word in islice(re.finditer(r"\S+", whole), n + 1)]
            return whole if len(ends) <= n else whole[: ends[-2]] + "…"
        from colbert_sqlite import snippet

        return snippet(question, whole, before=marks[0], after=marks[1], n_words=n, model=self.encoder())

    def encoder(self, model: str = "") -> Encoder:
        """Return the encoder of that name, or that of this connection.

        :raises ValueError: if the connection allows only another model
        """
        default = self._model or serving.DEFAULT_MODEL
        if model and not self._any_model and model != (default if isinstance(default, str) else default.name):
            raise ValueError(f"model {model!r} may not be used here: leave the argument out")
        return serving.encoder_named(model or default)

    def reported(self, name: str, function: Callable[..., T]) -> Callable[..., T | None]:
        """Return *function*, extended: NULL arguments give NULL, and errors are reported."""

        def call(*values: Value) -> T | None:
            try:
                self.check()
                return None if any(value is None for value in values) else function(*values)
            except Exception as error:
                self.report(name, error)
                raise

        return call

    def report(self, name: str, error: Exception) -> None:
        """Log an error and keep it for ``colbert_error()``: Python does not pass its text to SQLite."""
        is_expected = isinstance(error, (ColbertError, ValueError, sqlite3.Error))
        sentence = f"{name}: {error}" if is_expected else f"{name}: {type(error).__name__}: {error}"
        if self._guard is None:
            self._error = sentence
        else:
            self._guard.record_error(sentence)
        logger.error("%s", sentence, exc_info=None if is_expected else error)

    def last_error(self) -> str | None:
        return self._error if self._guard is None else self._guard.last_error()

    def check(self) -> None:
        """Make sure that the functions may be called. Errors as in :meth:`Guard.check`."""
        if self._guard is not None:
            self._guard.check()

    def _in_schema(self, name: str) -> tuple[str, str | None, str]:
        """Return schema, file and index of *name*, read as schema.index; None for the file if no schema matches."""
        files = self._files if self._held is None else {**self._files, **_files_of(self._held)}
        for i, character in enumerate(name):
            if character == "." and (address := files.get(name[:i].lower())):
                return name[:i].lower(), address, name[i + 1 :]
        return "", None, name


class _Rerank:
    """The aggregate ``colbert_rerank``, which encodes all texts of a group at once, at its end."""

    def __init__(self, functions: _Functions) -> None:
        self._functions = functions
        self._query: Value = ""
        self._k: tuple[Value, ...] = ()
        self._pks: list[Value] = []
        self._texts: list[str] = []

    def step(self, query: Value, pk: Value, text: Value, *k: Value) -> None:
        self._query, self._k = query, k
        if text is None:
            return
        try:
            self._texts.append(_text_of(text, "text"))
        except ValueError as error:
            self._functions.report("colbert_rerank", error)
            raise
        self._pks.append(pk)

    def finalize(self) -> str | None:
        try:
            self._functions.check()
            return self._ranked()
        except Exception as error:
            self._functions.report("colbert_rerank", error)
            raise

    def _ranked(self) -> str | None:
        if self._query is None or self._k == (None,):
            return None
        query, k = _text_of(self._query, "query"), _whole_number(self._k[0], "k") if self._k else None
        if not query.strip() or not self._texts:
            return "[]"
        from colbert_sqlite import rerank

        ranked = rerank(query, self._texts, k, model=self._functions.encoder())
        return _json([_reranked_row(rank, self._pks[row.position], row) for rank, row in enumerate(ranked, start=1)])


class _Request(NamedTuple):
    """A search of an index. ``pks`` is a JSON array of keys, None for all rows."""

    query: str
    k: int
    mode: str
    pks: str | None


def _search_file(address: str, name: str, request: _Request) -> str:
    with serving.lock_errors(address):
        return _answer(serving.pool_of(address), name, request)


def _answer(pool: Pool, name: str, request: _Request) -> str:
    """Return the hits as JSON. SQLite may call a function for every row of a join: the last answers are cached.

    Errors as in ``Index.search``.
    """
    with pool.session() as session:
        conn, answers = session.conn, session.answers
        # An answer inside a transaction is not cached: the transaction may be rolled back.
        version = None if conn.in_transaction else serving.data_version(conn)
        stored_version, answer = answers.get((name, request), (None, ""))
        if version is None or stored_version != version:
            hits = pool.use(name, lambda index: _hits(index, request))
            answer = _json([_hit_row(hit) for hit in hits])
            if version is not None:
                answers[name, request] = version, answer
        return answer


def _hits(index: Index, request: _Request) -> list[Hit]:
    from colbert_sqlite import Filter, SearchSettings

    settings = SearchSettings.for_k(request.k, mode=request.mode)
    filter = Filter(pks=None if request.pks is None else _keys(request.pks))
    query = serving.encode_query(serving.encoder_of(index), request.query)
    return index.search_encoded([query], settings, filter)[0]


def _files_of(conn: sqlite3.Connection) -> dict[str, str]:
    """Return the files of a connection by schema, without databases in memory."""
    return {schema: path for schema, path in serving.files_of(conn).items() if path}


def _text_of(value: Value, name: str) -> str:
    if isinstance(value, bytes):
        raise ValueError(f"{name} is a BLOB: cast it to text")
    return str(value)


def _whole_number(value: Value, name: str) -> int:
    """Return a whole number, which a web form passes as text."""
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not isinstance(number, int):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return number


def _keys(pks: str) -> list[object]:
    """Return the keys in a JSON array: a value each, an array of a compound key, or ``{"hex": "…"}`` for a BLOB."""
    try:
        keys = json.loads(pks)
    except (ValueError, RecursionError):
        keys = None
    if not isinstance(keys, list):
        raise ValueError("pks must be a JSON array of primary keys, as json_group_array(id) makes it")
    return [tuple(map(_key, key)) if isinstance(key, list) else _key(key) for key in keys]


def _key(value: object) -> object:
    if isinstance(value, dict):
        try:
            return bytes.fromhex(value["hex"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"pks has {json.dumps(value)}, which can't be a key") from None
    if isinstance(value, list):
        raise ValueError("pks nests arrays too deeply: a compound key is one array of values")
    return value


def _key_value(value: object) -> object:
    if isinstance(value, tuple):
        return [_key_value(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"a row has the key {value}, for which JSON has no number: leave the row out, or change its key"
        )
    return {"hex": value.hex().upper()} if isinstance(value, bytes) else value


def _hit_row(hit: Hit) -> JsonRow:
    return {
        "rank": hit.rank,
        "score": hit.score,
        "normalized_score": hit.normalized_score,
        "pk": _key_value(hit.pk),
        "passage": hit.passage.text,
        "stale": hit.stale,
    }


def _reranked_row(rank: int, pk: Value, reranked: Reranked) -> JsonRow:
    return {
        "rank": rank,
        "score": _finite(reranked.score),
        "normalized_score": reranked.normalized_score,
        "pk": _key_value(pk),
    }


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None


def _json(rows: list[JsonRow]) -> str:
    return json.dumps(rows, ensure_ascii=False, allow_nan=False)
