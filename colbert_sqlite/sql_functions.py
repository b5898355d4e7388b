"""``colbert_search(…)`` and the other SQL functions, for any connection.

In: a connection, and what SQL hands to the functions. Out: JSON, numbers and texts for SQL. Leaves to others:
searching (index.py), scoring (reranking.py), marking (highlighting.py). Plugins import this for every connection of a
process, so that whatever costs time to import is imported by the first call that needs it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sqlite3
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from functools import partial
from itertools import islice
from threading import RLock
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast
from urllib.parse import unquote

from colbert_sqlite.errors import ColbertError, IndexNotFound, ModelMismatch, SourceError
from colbert_sqlite.storage.connection import connect, data_version, files_of, is_locked, locked, refuse_writes

if TYPE_CHECKING:
    from sqlite_utils import Database as SqliteUtilsDatabase

    from colbert_sqlite.encoders import Encoder
    from colbert_sqlite.index import Index
    from colbert_sqlite.reranking import Reranked
    from colbert_sqlite.results import Hit

logger = logging.getLogger("colbert_sqlite")

# Database files kept open, with the centroids of their indexes.
MOST_FILES = 8
# Answers of each kept until the database changes: SQLite may call a function again for every row of a join.
MOST_ANSWERS = 8
# Not longer: what holds the lock may be the very statement that waits for us.
BUSY_SECONDS = 5

_GUARDED = "_colbert_guarded"

Value = str | int | float | bytes | None


class Guard(Protocol):
    """Who may do what with the functions of a connection, asked anew by every call."""

    def check(self) -> None:
        """Make sure that whoever runs this statement may call the functions.

        :raises ColbertError: if not
        """

    def searchable(self, schema: str) -> Collection[str] | None:
        """The names of the indexes of a database that may be searched, in lower case; None for all."""

    def most(self, schema: str) -> int | None:
        """The most rows a search of that database may find; None for any number."""

    def note(self, sentence: str) -> None:
        """Keep what was wrong with a call for whoever's statement it was."""

    def noted(self) -> str | None:
        """What was wrong with the last call that failed of whoever's statement this is."""


def register(
    conn: sqlite3.Connection | SqliteUtilsDatabase, *, database: str | None = None, model: str | Encoder | None = None
) -> None:
    """Give a connection the functions ``colbert_search``, ``colbert_score``, ``colbert_rerank``, ``colbert_highlight``,
    ``colbert_snippet`` and ``colbert_error``.

    Searches read the database through a connection of their own, which sees what is committed. A database in memory
    is read through *conn* itself, which then stays open until somebody closes it.

    :param database: how to open the file, if not by its path alone, such as ``file:/data/blog.db?immutable=1``
    :param model: what ``colbert_score``, ``colbert_rerank``, ``colbert_highlight`` and ``colbert_snippet`` encode with
        when they are not told; default: ``minilm``
    """
    connection = conn if isinstance(conn, sqlite3.Connection) else conn.conn
    prepare(connection, database=database, model=model, hold=True)


def prepare(
    conn: sqlite3.Connection,
    *,
    database: str | None = None,
    attached: Mapping[str, str] | None = None,
    model: str | Encoder | None = None,
    any_model: bool = True,
    hold: bool = False,
    guard: Guard | None = None,
) -> None:
    """As :func:`register`, for plugins, which see connections that others close, or forget.

    :param attached: paths or URIs of databases that will be attached, by their schemas
    :param any_model: whether SQL may name another model than *model*
    :param hold: keep a reference to *conn* if its database is in memory. A connection can be referred to neither
        weakly nor through the garbage collector, so without an explicit close it would stay open for ever
    :param guard: decides who may do what; default: everybody everything, but where a guard decides already
    """
    if guard is None and _is_guarded(conn):
        return
    if guard is not None:
        keep_as_is(conn)
    places = _places(conn)
    if database is not None:
        places["main"] = database
    places |= {schema.lower(): place for schema, place in (attached or {}).items()}
    functions = _Functions(
        places=places,
        held=conn if hold and "main" not in places else None,
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
            conn.create_function(name, n, functions.telling(name, function), deterministic=deterministic)
    conn.create_function("colbert_error", 0, functions.last_error)
    for n in (3, 4):
        conn.create_aggregate("colbert_rerank", n, cast(Any, partial(_Rerank, functions)))


def keep_as_is(conn: sqlite3.Connection) -> None:
    """Let nobody without a guard give this connection the functions from now on.

    ``sqlite_utils.Database(conn)``, which any plugin of Datasette may call, has them put on every connection.
    """
    conn.create_function(_GUARDED, 0, lambda: 1)


def _is_guarded(conn: sqlite3.Connection) -> bool:
    try:
        conn.execute(f"SELECT {_GUARDED}()")
    except sqlite3.OperationalError:
        return False
    return True


class _Functions:
    """The functions of one connection, to which they do not refer unless they hold it."""

    def __init__(
        self,
        *,
        places: Mapping[str, str],
        held: sqlite3.Connection | None,
        model: str | Encoder | None,
        any_model: bool,
        guard: Guard | None,
    ) -> None:
        self._places = places
        self._held = held
        self._in_memory = None if held is None else _Searched(held)
        self._model = model
        self._any_model = any_model
        self._guard = guard
        self._error: str | None = None

    def search(self, index: Value, query: Value, k: Value = 10, mode: Value = "colbert", *pks: Value) -> str:
        name, words = _text_of(index, "index"), _text_of(query, "query")
        asked = _Asked(words, _whole(k, "k"), _text_of(mode, "mode"), _text_of(pks[0], "pks") if pks else None)
        if not words.strip():
            return "[]"
        try:
            self._refuse("main", name, asked)
            return self._main_database().search(name, asked)
        except IndexNotFound:
            schema, place, name = self._in_schema(name)
            if place is None:
                raise
            self._refuse(schema, name, asked)
            return _opened(place).search(name, asked)

    def _refuse(self, schema: str, name: str, asked: _Asked) -> None:
        """Make sure that the guard lets this be searched.

        :raises IndexNotFound: if not, as if there were none
        :raises ValueError: if *k* is too high
        """
        if self._guard is None:
            return
        names, most = self._guard.searchable(schema), self._guard.most(schema)
        if names is not None and name.lower() not in names:
            there = f"; it has {', '.join(sorted(names))}" if names else ""
            raise IndexNotFound(f"no index {name!r} in this database{there}")
        if most is not None and asked.k > most:
            raise ValueError(f"k may be {most} here at most, not {asked.k}")

    def score(self, query: Value, text: Value, model: Value = "", /) -> float | None:
        words, passage = _text_of(query, "query"), _text_of(text, "text")
        if not words.strip():
            return None
        from colbert_sqlite.reranking import rerank

        [only] = rerank(words, [passage], model=self.encoder(_text_of(model, "model")))
        return _finite(only.score)

    def highlight(self, query: Value, text: Value, before: Value = "<b>", after: Value = "</b>", /) -> str:
        words, whole = _text_of(query, "query"), _text_of(text, "text")
        marks = _text_of(before, "before"), _text_of(after, "after")
        if not words.strip():
            return whole
        from colbert_sqlite.highlighting import highlight

        return highlight(words, whole, before=marks[0], after=marks[1], model=self.encoder())

    def snippet(
        self, query: Value, text: Value, before: Value = "<b>", after: Value = "</b>", n_words: Value = 30, /
    ) -> str:
        words, whole, n = _text_of(query, "query"), _text_of(text, "text"), _whole(n_words, "n_words")
        marks = _text_of(before, "before"), _text_of(after, "after")
        from colbert_sqlite.highlighting import check_n_words, snippet

        check_n_words(n)
        if not words.strip():
            ends = [word.end() for word in islice(re.finditer(r"\S+", whole), n + 1)]
            return whole if len(ends) <= n else whole[: ends[-2]] + "…"
        return snippet(words, whole, before=marks[0], after=marks[1], n_words=n, model=self.encoder())

    def encoder(self, model: str = "") -> Encoder:
        """The encoder of that name, or the one of this connection.

        :raises ValueError: if the connection has to do with one model
        """
        from colbert_sqlite.encoders import DEFAULT_MODEL, cached_encoder
        from colbert_sqlite.encoders.cache import with_query_cache

        usual = self._model or DEFAULT_MODEL
        if model and not self._any_model and model != (usual if isinstance(usual, str) else usual.name):
            raise ValueError(f"model {model!r} may not be used here: leave the argument out")
        return with_query_cache(cached_encoder(model or usual))

    def telling(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """That function with NULL for NULL, and its errors told."""

        def told(*values: Value) -> Any:
            try:
                self.check()
                return None if any(value is None for value in values) else function(*values)
            except Exception as error:
                self.tell(name, error)
                raise

        return told

    def tell(self, name: str, error: Exception) -> None:
        """Log an error and keep it for ``colbert_error()``: SQLite gets no word of it from Python."""
        ours = isinstance(error, (ColbertError, ValueError, sqlite3.Error))
        sentence = f"{name}: {error}" if ours else f"{name}: {type(error).__name__}: {error}"
        if self._guard is None:
            self._error = sentence
        else:
            self._guard.note(sentence)
        logger.error("%s", sentence, exc_info=None if ours else error)

    def last_error(self) -> str | None:
        return self._error if self._guard is None else self._guard.noted()

    def check(self) -> None:
        """Make sure that the functions may be called. Errors as in :meth:`Guard.check`."""
        if self._guard is not None:
            self._guard.check()

    def _main_database(self) -> _Searched:
        if self._in_memory is not None:
            return self._in_memory
        if "main" not in self._places:
            raise IndexNotFound(
                "this connection has a database in memory, to which searches have no way of their own: call "
                "colbert_sqlite.register(conn) from Python"
            )
        return _opened(self._places["main"])

    def _in_schema(self, name: str) -> tuple[str, str | None, str]:
        """The database, its file, and the index in it that *name*, as schema.index, means; no file if it means none."""
        places = self._places if self._held is None else {**self._places, **_places(self._held)}
        for i, character in enumerate(name):
            if character == "." and (place := places.get(name[:i].lower())):
                return name[:i].lower(), place, name[i + 1 :]
        return "", None, name


class _Rerank:
    """The aggregate ``colbert_rerank``: all texts of a group are encoded together, at its end."""

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
            self._functions.tell("colbert_rerank", error)
            raise
        self._pks.append(pk)

    def finalize(self) -> str | None:
        try:
            self._functions.check()
            return self._ranked()
        except Exception as error:
            self._functions.tell("colbert_rerank", error)
            raise

    def _ranked(self) -> str | None:
        if self._query is None or self._k == (None,):
            return None
        query, k = _text_of(self._query, "query"), _whole(self._k[0], "k") if self._k else None
        if not query.strip() or not self._texts:
            return "[]"
        from colbert_sqlite.reranking import rerank

        found = rerank(query, self._texts, k, model=self._functions.encoder())
        return _json([_of_reranked(rank, self._pks[one.position], one) for rank, one in enumerate(found, start=1)])


class _Asked(NamedTuple):
    """What is asked of an index. ``pks`` is a JSON array of keys, None for all rows."""

    query: str
    k: int
    mode: str
    pks: str | None


class _Identity(NamedTuple):
    """A file as a process knows it: another one may be at the same place later."""

    pid: int
    place: str
    device: int
    inode: int


class _Searched:
    """One database, and those of its indexes that were asked for. Threads take turns."""

    def __init__(self, database: str | sqlite3.Connection) -> None:
        self._database = database
        self._conn: sqlite3.Connection | None = None
        self._indexes: dict[str, Index] = {}
        self._answers: OrderedDict[tuple[str, _Asked], tuple[tuple[int, ...], str]] = OrderedDict()
        self._lock = RLock()

    def search(self, name: str, asked: _Asked) -> str:
        """The hits as JSON. Errors as in ``Index.search``."""
        with self._lock:
            try:
                return self._answer(name, asked)
            except sqlite3.OperationalError as error:
                if isinstance(self._database, str) and is_locked(error):
                    raise locked(_path_of(self._database), BUSY_SECONDS) from None
                raise

    def _answer(self, name: str, asked: _Asked) -> str:
        conn = self._connection()
        # Not what is seen inside a transaction, which may be rolled back.
        version = None if conn.in_transaction else data_version(conn)
        known, answer = self._answers.get((name, asked), (None, ""))
        if version is None or known != version:
            answer = _json([_of_hit(hit) for hit in self._search(conn, name, asked)])
            if version is not None:
                self._answers[name, asked] = version, answer
            if len(self._answers) > MOST_ANSWERS:
                self._answers.popitem(last=False)
        return answer

    def _connection(self) -> sqlite3.Connection:
        if self._conn is None:
            self._conn, owned = connect(self._database, any_thread=True, busy_seconds=BUSY_SECONDS)
            if owned:
                refuse_writes(self._conn)
                weakref.finalize(self, _close, self._conn, os.getpid())
        return self._conn

    def _search(self, conn: sqlite3.Connection, name: str, asked: _Asked) -> list[Hit]:
        from colbert_sqlite.index import Index

        if (index := self._indexes.get(name)) is not None:
            try:
                return _hits(index, asked)
            except (IndexNotFound, ModelMismatch):
                # Dropped, or built anew with another model, since it was opened.
                del self._indexes[name]
        index = self._indexes[name] = Index.open(conn, name)
        return _hits(index, asked)


def _hits(index: Index, asked: _Asked) -> list[Hit]:
    from colbert_sqlite.encoders.cache import shared_encoder, with_query_cache
    from colbert_sqlite.encoders.queries import check_queries, encode_queries
    from colbert_sqlite.settings import SearchSettings

    settings = SearchSettings.for_k(asked.k, mode=asked.mode)
    pks = None if asked.pks is None else _keys(asked.pks)
    check_queries([asked.query])
    encoder = with_query_cache(shared_encoder(index.model_fingerprint, lambda: index.encoder))
    embeddings = encode_queries(encoder, [asked.query])
    return index.search_encoded([asked.query], embeddings, asked.k, settings, pks=pks)[0]


def _close(conn: sqlite3.Connection, pid: int) -> None:
    if os.getpid() == pid:
        conn.close()


# What a process keeps: files by what they are.
_opening = RLock()
_files: OrderedDict[_Identity, _Searched] = OrderedDict()
# What the process had open that forked this one. SQLite must neither use nor close it here: that would harm locks.
_inherited: list[_Searched] = []


def _opened(place: str) -> _Searched:
    """The database file of that path or URI: the one that is there now, should it have been replaced."""
    try:
        status = os.stat(_path_of(place))
    except OSError as error:
        raise SourceError(f"no database file {_path_of(place)}: {error.strerror}") from None
    identity = _Identity(os.getpid(), place, status.st_dev, status.st_ino)
    with _opening:
        _inherited.extend(_files.pop(other) for other in list(_files) if other.pid != identity.pid)
        if identity not in _files:
            for other in [other for other in _files if other.place == place]:
                del _files[other]
            _files[identity] = _Searched(place)
        _files.move_to_end(identity)
        if len(_files) > MOST_FILES:
            _files.popitem(last=False)
        return _files[identity]


def _path_of(place: str) -> str:
    if not place.startswith("file:"):
        return place
    path = unquote(place.removeprefix("file:").partition("?")[0].partition("#")[0])
    if path.startswith("//"):
        path = "/" + path[2:].partition("/")[2]
    return path[1:] if re.match("/[A-Za-z]:", path) else path


def _places(conn: sqlite3.Connection) -> dict[str, str]:
    """The files of a connection by schema; none for what is in memory."""
    return {schema: path for schema, path in files_of(conn).items() if path}


def _text_of(value: Value, name: str) -> str:
    if isinstance(value, bytes):
        raise ValueError(f"{name} is a BLOB: cast it to text")
    return str(value)


def _whole(value: Value, name: str) -> int:
    """A whole number, which a web form hands over as text."""
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not isinstance(number, int):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return number


def _keys(pks: str) -> list[Any]:
    """The keys in a JSON array: a value each, an array of a compound key, or ``{"hex": "…"}`` for a BLOB."""
    try:
        keys = json.loads(pks)
    except (ValueError, RecursionError):
        keys = None
    if not isinstance(keys, list):
        raise ValueError("pks must be a JSON array of primary keys, as json_group_array(id) makes it")
    return [tuple(map(_key, key)) if isinstance(key, list) else _key(key) for key in keys]


def _key(value: Any) -> Any:
    if isinstance(value, dict):
        try:
            return bytes.fromhex(value["hex"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"pks has {json.dumps(value)}, which is no key") from None
    if isinstance(value, list):
        raise ValueError("pks has an array in an array in an array")
    return value


def _of_key(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_of_key(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a row has the key {value}, for which JSON has no number: leave the row out, or mend its key")
    return {"hex": value.hex().upper()} if isinstance(value, bytes) else value


def _of_hit(hit: Hit) -> dict[str, Any]:
    return {
        "rank": hit.rank,
        "score": hit.score,
        "normalized_score": hit.normalized_score,
        "pk": _of_key(hit.pk),
        "passage": hit.passage.text,
        "stale": hit.stale,
    }


def _of_reranked(rank: int, pk: Value, one: Reranked) -> dict[str, Any]:
    return {
        "rank": rank,
        "score": _finite(one.score),
        "normalized_score": one.normalized_score,
        "pk": _of_key(pk),
    }


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None


def _json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, ensure_ascii=False, allow_nan=False)
