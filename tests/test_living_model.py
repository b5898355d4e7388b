"""An index lives through whatever may happen to its table, and is always what a plain reference says it should be.

``COLBERT_STEPS=400x100 pytest -rP tests/test_living_model.py`` makes 400 examples of at most 100 steps, and
counts them.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import sqlite_utils
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

from colbert_sqlite.codec import load_codec
from colbert_sqlite.encoders.hashing import HashingEncoder
from colbert_sqlite.engine import plaid
from colbert_sqlite.engine.postings import ArrayPostings
from colbert_sqlite.index import Index
from colbert_sqlite.passages import RawValue, extract
from colbert_sqlite.progress import BuildReport
from colbert_sqlite.results import Passage
from colbert_sqlite.rows import RowEncoder
from colbert_sqlite.settings import SearchSettings
from colbert_sqlite.storage.encoded import EncodedRow
from colbert_sqlite.storage.source import SourceRow
from colbert_sqlite.storage.store import Store

EXAMPLES, STEPS = map(int, os.environ.get("COLBERT_STEPS", "20x50").split("x"))

WORDS = "apple walrus comet bread kitchen dust sun copper river tail 7 night".split()
LONG = ". ".join(f"{WORDS[i % 12]} {WORDS[i * 5 % 11]} sentence{i} about {WORDS[i * 7 % 12]}" for i in range(12))
BODIES = [None, "", " ", "!", "apple", "Apple", "walrus comet", "bread " * 40, LONG, LONG.upper(), f"{LONG} and more"]
QUERIES = ["apple", "the walrus and the comet", "copper river 7", "sentence3"]
EVERYTHING = SearchSettings(nprobe=32, ndocs=2048)


class Interruption(Exception):
    pass


class WatchedEncoder(HashingEncoder):
    interrupted = False

    def encode_passages(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        if self.interrupted:
            raise Interruption
        return super().encode_passages(texts)


ENCODER = WatchedEncoder(32)


@dataclass(frozen=True)
class Schema:
    """A table: its keys' columns and definition, which keys are used, and how an index of it is made."""

    keys: tuple[str, ...]
    definition: str
    candidates: tuple[tuple[Any, ...], ...]
    nocase: bool = False
    options: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()


INTEGER_KEYS = tuple((i,) for i in (-3, 1, 2, 3, 4, 5, 9, 2**40))
INTEGER = Schema(("id",), "id INTEGER PRIMARY KEY", INTEGER_KEYS)
SCHEMAS = {
    "integer": INTEGER,
    "nocase": Schema(("id",), "id TEXT PRIMARY KEY COLLATE NOCASE", tuple((c,) for c in "AabBcDé"), nocase=True),
    "compound": Schema(
        ("b", "a"),
        "a TEXT, b INTEGER, PRIMARY KEY (b, a)",
        tuple((b, a) for b in (1, 2, 30) for a in ("x", "X", "y z")),
        options="WITHOUT ROWID",
    ),
    "where": Schema(
        INTEGER.keys, INTEGER.definition, INTEGER_KEYS, arguments=(("where", "n < :n"), ("params", {"n": 2}))
    ),
    "elsewhere": Schema(
        INTEGER.keys, INTEGER.definition, INTEGER_KEYS, arguments=(("where", "n IN (SELECT n FROM allowed)"),)
    ),
    "no triggers": Schema(INTEGER.keys, INTEGER.definition, INTEGER_KEYS, arguments=(("triggers", False),)),
}


class Row(NamedTuple):
    key: tuple[Any, ...]
    slug: str | None
    body: str | None
    n: int


KEYS = st.integers(0, 63)
SLUGS = st.sampled_from([None, "s1", "s2", "s3", "s4", "s5"])
TEXTS = st.sampled_from(BODIES)
NUMBERS = st.integers(0, 3)


class LivingIndex(RuleBasedStateMachine):
    schema: Schema
    n_steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "t.db"
        ENCODER.interrupted = False
        self.own, self.other = self.connection(), self.connection()
        self.writer = self.other
        self.recursive = False
        self.rows: dict[tuple[Any, ...], Row] = {}
        self.allowed = {0, 1}
        self.encoded: dict[tuple[str, str], EncodedRow] = {}
        # What the index holds, by key; whether triggers were lost since.
        self.indexed: dict[tuple[Any, ...], str | None] = {}
        self.lost = False

    def connection(self) -> sqlite3.Connection:
        conn = sqlite3.connect(self.path, isolation_level=None)
        conn.execute("PRAGMA synchronous = OFF")
        return conn

    def teardown(self) -> None:
        self.own.close()
        self.other.close()
        shutil.rmtree(self.folder)

    # What there is.

    def norm(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same for keys that are equal in SQL; NOCASE folds ASCII alone."""
        return tuple(part.encode().lower().decode() for part in key) if self.schema.nocase else key

    def key(self, number: int) -> tuple[Any, ...]:
        return self.schema.candidates[number % len(self.schema.candidates)]

    def existing(self, number: int) -> tuple[Any, ...]:
        """A key of the table, if it has any."""
        keys = sorted(row.key for row in self.rows.values())
        return keys[number % len(keys)] if keys else self.key(number)

    def meets(self, row: Row) -> bool:
        if "where" not in dict(self.schema.arguments):
            return True
        return row.n in self.allowed if "allowed" in dict(self.schema.arguments)["where"] else row.n < 2

    def expected(self) -> dict[tuple[Any, ...], Row]:
        return {key: row for key, row in self.rows.items() if self.meets(row)}

    @property
    def names(self) -> str:
        return ", ".join([*self.schema.keys, "slug", "body", "n"])

    @property
    def equals(self) -> str:
        return " AND ".join(f"{key} = ?" for key in self.schema.keys)

    def create_table(self, conn: sqlite3.Connection, name: str = "t") -> None:
        parts = self.schema.definition.partition(", PRIMARY KEY")
        columns = f"{parts[0]}, slug TEXT, body TEXT, n INTEGER{parts[1]}{parts[2]}"
        conn.execute(f"CREATE TABLE {name} ({columns}) {self.schema.options}")

    def create_unique(self, conn: sqlite3.Connection) -> None:
        conn.execute("CREATE UNIQUE INDEX slugs ON t (slug)")

    def insert(self, conn: sqlite3.Connection, row: Row, policy: str = "") -> None:
        places = ", ".join("?" * (len(self.schema.keys) + 3))
        conn.execute(f"INSERT {policy} INTO t ({self.names}) VALUES ({places})", (*row.key, *row[1:]))

    def put(self, row: Row, *, instead_of: tuple[Any, ...] | None = None) -> None:
        """Do as REPLACE does: rows of the same key or slug give way."""
        if instead_of is not None:
            self.rows.pop(self.norm(instead_of))
        for key, other in list(self.rows.items()):
            if key == self.norm(row.key) or (row.slug is not None and other.slug == row.slug):
                del self.rows[key]
        self.rows[self.norm(row.key)] = row

    @initialize(bodies=st.lists(TEXTS, min_size=6, max_size=6) | st.just([]), nbits=st.sampled_from([1, 2, 4, 8]))
    def create(self, bodies: list[str | None], nbits: int) -> None:
        self.create_table(self.own)
        self.create_unique(self.own)
        self.own.execute("CREATE TABLE allowed (n INTEGER)")
        self.own.execute("INSERT INTO allowed VALUES (0), (1)")
        for i, body in enumerate(bodies):
            row = Row(self.key(i), f"s{i}" if i else None, body, i % 3)
            self.put(row)
            self.insert(self.own, row, "OR REPLACE")
        self.index = Index.create(
            self.own, "t", ["body"], model=ENCODER, nbits=nbits, max_tokens=24, **dict(self.schema.arguments)
        )
        self.in_step()

    # What changes rows.

    @rule(rows=st.lists(st.tuples(KEYS, SLUGS, TEXTS, NUMBERS), min_size=1, max_size=4))
    def insert_rows(self, rows: list[tuple[int, str | None, str | None, int]]) -> None:
        for row in rows:
            self.insert_row(*row)

    def insert_row(self, number: int, slug: str | None, body: str | None, n: int) -> None:
        row = Row(self.key(number), slug, body, n)
        slugs = {other.slug for other in self.rows.values() if other.slug}
        if self.norm(row.key) in self.rows or slug in slugs:
            with pytest.raises(sqlite3.IntegrityError):
                self.insert(self.writer, row)
            self.insert(self.writer, row, "OR IGNORE")
        else:
            self.insert(self.writer, row)
            self.put(row)

    @rule(number=KEYS, slug=SLUGS, body=TEXTS, n=NUMBERS)
    def replace_row(self, number: int, slug: str | None, body: str | None, n: int) -> None:
        row = Row(self.key(number), slug, body, n)
        self.insert(self.writer, row, "OR REPLACE")
        self.put(row)

    @rule(number=KEYS, body=TEXTS)
    def update_text(self, number: int, body: str | None) -> None:
        key = self.existing(number)
        self.writer.execute(f"UPDATE t SET body = ? WHERE {self.equals}", (body, *key))
        if self.norm(key) in self.rows:
            self.rows[self.norm(key)] = self.rows[self.norm(key)]._replace(body=body)

    @rule(number=KEYS, n=NUMBERS)
    def update_another_column(self, number: int, n: int) -> None:
        key = self.existing(number)
        self.writer.execute(f"UPDATE t SET n = ? WHERE {self.equals}", (n, *key))
        if self.norm(key) in self.rows:
            self.rows[self.norm(key)] = self.rows[self.norm(key)]._replace(n=n)

    @rule(number=KEYS, slug=SLUGS)
    def take_the_slug_of_another(self, number: int, slug: str | None) -> None:
        key = self.existing(number)
        self.writer.execute(f"UPDATE OR REPLACE t SET slug = ? WHERE {self.equals}", (slug, *key))
        if row := self.rows.get(self.norm(key)):
            self.put(row._replace(slug=slug), instead_of=key)

    @rule(number=KEYS, to=KEYS)
    def change_a_key(self, number: int, to: int) -> None:
        key, new = self.existing(number), self.key(to)
        assignments = ", ".join(f"{name} = ?" for name in self.schema.keys)
        self.writer.execute(f"UPDATE OR REPLACE t SET {assignments} WHERE {self.equals}", (*new, *key))
        if row := self.rows.get(self.norm(key)):
            self.put(row._replace(key=new), instead_of=key)

    @rule(number=KEYS, body=TEXTS, n=NUMBERS)
    def upsert(self, number: int, body: str | None, n: int) -> None:
        row = Row(self.key(number), None, body, n)
        places = ", ".join("?" * (len(self.schema.keys) + 3))
        self.writer.execute(
            f"INSERT INTO t ({self.names}) VALUES ({places}) ON CONFLICT ({', '.join(self.schema.keys)})"
            " DO UPDATE SET body = excluded.body",
            (*row.key, *row[1:]),
        )
        if old := self.rows.get(self.norm(row.key)):
            self.rows[self.norm(row.key)] = old._replace(body=body)
        else:
            self.put(row)

    @rule(number=KEYS)
    def delete_row(self, number: int) -> None:
        key = self.existing(number)
        self.writer.execute(f"DELETE FROM t WHERE {self.equals}", key)
        self.rows.pop(self.norm(key), None)

    @rule(how=st.integers(0, 4), left_out=st.sampled_from([0, 1, 5, 18, 255]), body=TEXTS)
    def reload(self, how: int, left_out: int, body: str | None) -> None:
        if how < 2:
            self.delete_all_and_load_again(left_out, body)
        elif how == 2:
            self.reload_with_sqlite_utils(body)
        elif how == 3 and self.schema.definition == INTEGER.definition:
            self.transform_with_sqlite_utils()
        else:
            self.drop_and_create_the_table()

    def delete_all_and_load_again(self, left_out: int, body: str | None) -> None:
        before = list(self.rows.values())
        self.writer.execute("BEGIN")
        self.writer.execute("DELETE FROM t")
        self.rows = {}
        for i, row in enumerate(before):
            if not left_out >> i % 8 & 1:
                row = row if i else row._replace(body=body)
                self.insert(self.writer, row)
                self.put(row)
        self.writer.execute("COMMIT")

    def reload_with_sqlite_utils(self, body: str | None) -> None:
        columns = [*self.schema.keys, "slug", "body", "n"]
        self.rows = {key: row._replace(body=row.body if i else body) for i, (key, row) in enumerate(self.rows.items())}
        rows = [dict(zip(columns, (*row.key, *row[1:]), strict=True)) for row in self.rows.values()]
        if rows:
            sqlite_utils.Database(self.writer).table("t").insert_all(rows, replace=True)

    def drop_and_create_the_table(self) -> None:
        self.writer.execute("BEGIN")
        self.create_table(self.writer, "new")
        self.writer.execute(f"INSERT INTO new ({self.names}) SELECT {self.names} FROM t")
        self.writer.execute("DROP TABLE t")
        self.writer.execute("ALTER TABLE new RENAME TO t")
        self.create_unique(self.writer)
        self.writer.execute("COMMIT")
        self.lost = True

    def transform_with_sqlite_utils(self) -> None:
        sqlite_utils.Database(self.writer).table("t").transform(column_order=["body", "id"])
        self.lost = True

    @rule(keys=st.lists(KEYS, max_size=3), body=TEXTS, savepoint=st.booleans())
    def change_and_roll_back(self, keys: list[int], body: str | None, savepoint: bool) -> None:
        self.writer.execute("BEGIN")
        if savepoint:
            self.writer.execute("SAVEPOINT s")
        for i, number in enumerate(keys):
            self.insert(self.writer, Row(self.key(number), f"s{i}", body, 0), "OR REPLACE")
        self.writer.execute("DELETE FROM t WHERE n > 1")
        if savepoint:
            self.writer.execute("ROLLBACK TO s")
            self.writer.execute("COMMIT")
        else:
            self.writer.execute("ROLLBACK")

    @precondition(lambda self: self.schema is SCHEMAS["elsewhere"])
    @rule(n=NUMBERS)
    def change_what_the_condition_reads(self, n: int) -> None:
        if n in self.allowed:
            self.allowed.remove(n)
            self.writer.execute("DELETE FROM allowed WHERE n = ?", (n,))
        else:
            self.allowed.add(n)
            self.writer.execute("INSERT INTO allowed VALUES (?)", (n,))

    @rule(what=st.integers(0, 2))
    def change_the_circumstances(self, what: int) -> None:
        (self.write_on_the_other_connection, self.toggle_recursive_triggers, self.open_again)[what]()

    def write_on_the_other_connection(self) -> None:
        self.writer = self.own if self.writer is self.other else self.other

    def toggle_recursive_triggers(self) -> None:
        self.recursive = not self.recursive
        for conn in (self.own, self.other):
            conn.execute(f"PRAGMA recursive_triggers = {self.recursive}")

    # What is done to the index.

    @rule(full=st.booleans())
    def sync(self, full: bool) -> None:
        expected = self.expected()
        added = {key for key in expected if key not in self.indexed}
        updated = {key for key in expected if key in self.indexed and self.indexed[key] != expected[key].body}
        counts = self.index.sync(full=full).to_dict()
        compared = counts.pop("compared")
        assert counts == {
            "added": len(added),
            "updated": len(updated),
            "deleted": len(self.indexed.keys() - expected.keys()),
        }
        if full or not self.index.settings.triggers or self.schema is SCHEMAS["elsewhere"]:
            assert compared == len(expected)
        else:
            # An interrupted sync may have put lost triggers back, and compared.
            assert compared in ([0, len(expected)] if self.lost else [0])
        self.in_step()

    @rule(what=st.integers(0, 5))
    def look_after_it(self, what: int) -> None:
        (
            self.sync_and_roll_back,
            self.rebuild,
            self.repair,
            self.optimize,
            lambda: self.interrupt(Index.sync),
            lambda: self.interrupt(Index.rebuild),
        )[what]()

    def sync_and_roll_back(self) -> None:
        self.own.execute("BEGIN")
        indexed, lost = self.indexed, self.lost
        self.index.sync()
        self.in_step()
        self.own.execute("ROLLBACK")
        self.indexed, self.lost = indexed, lost

    def rebuild(self) -> None:
        self.index.rebuild()
        self.in_step()

    def repair(self) -> None:
        self.index.repair()
        self.in_step()

    def optimize(self) -> None:
        before = self.found()
        self.index.optimize()
        assert self.index.info().bytes_reclaimable == 0
        assert self.found() == before

    def interrupt(self, what: Callable[[Index], object]) -> None:
        ENCODER.interrupted = True
        try:
            what(self.index)
        except Interruption:
            # Few rows are one transaction: it was the first.
            pass
        else:
            self.in_step()
        finally:
            ENCODER.interrupted = False

    def open_again(self) -> None:
        self.own.close()
        if self.writer is not self.other:
            self.writer = self.own = self.connection()
        else:
            self.own = self.connection()
        self.own.execute(f"PRAGMA recursive_triggers = {self.recursive}")
        self.index = Index.open(self.own, "t", model=ENCODER)

    # What is always so.

    @invariant()
    def hits_are_rows_as_they_are_now(self) -> None:
        """Found is what is indexed and still there and meets the condition; nothing that is gone."""
        type(self).n_steps += 1
        expected = self.expected()
        hits = self.index.search(QUERIES[0], k=1000)
        found = {self.norm(self.tuple_of(hit.pk)): hit for hit in hits}
        with_text = {key for key, body in self.indexed.items() if body and body.strip()}
        assert (len(found), found.keys()) == (len(hits), with_text & expected.keys())
        for key, hit in found.items():
            row = expected[key]
            assert self.tuple_of(hit.pk) == row.key
            assert tuple(hit.row[name] for name in self.names.split(", ")) == (*row.key, *row[1:])
            assert hit.stale == (self.indexed[key] != row.body)

    @invariant()
    def the_index_is_sound(self) -> None:
        if not self.lost and self.index.settings.triggers and self.schema is not SCHEMAS["elsewhere"]:
            assert self.index.verify() == []

    def tuple_of(self, pk: Any) -> tuple[Any, ...]:
        return pk if isinstance(pk, tuple) else (pk,)

    def found(self) -> list[dict[Any, tuple[float, Passage]]]:
        return [{hit.pk: (hit.score, hit.passage) for hit in hits} for hits in self.index.search_many(QUERIES, k=1000)]

    def in_step(self) -> None:
        """The index has what the rows of the table give with its codec, hit for hit, and passage for passage."""
        expected = self.expected()
        self.indexed = {key: row.body for key, row in expected.items()}
        self.lost = False
        assert self.index.verify() == []
        assert self.index.counts().rows == len(expected)
        store = Store.open(self.own, self.index.name)
        stored, codec = load_codec(store)
        build_id = store.entry.build_id
        assert stored.n_centroids == stored.n_trained
        encoder = RowEncoder(ENCODER, self.index.settings, BuildReport())
        owners: list[tuple[tuple[Any, ...], Passage]] = []
        codes, residuals = [np.empty(0, np.uint32)], [np.empty((0, codec.bytes_per_token), np.uint8)]
        for row in expected.values():
            if not row.body:
                continue
            if (build_id, row.body) not in self.encoded:
                values = [RawValue("text", row.body.encode())]
                self.encoded[build_id, row.body] = encoder.encode(
                    [encoder.split(SourceRow(row.key, values, None))], codec
                )[0]
            text = extract([RawValue("text", row.body.encode())], None, html="auto", max_tokens=24).text
            for i, passage in enumerate(self.encoded[build_id, row.body].passages):
                span = text[passage.start : passage.end]
                owners.append((row.key, Passage(span, passage.start, passage.end, i)))
                codes.append(passage.codes)
                residuals.append(passage.residuals)
        assert self.index.counts().passages == len(owners)
        offsets = np.cumsum([0, *map(len, codes[1:])])
        postings = ArrayPostings(np.arange(len(owners)), np.concatenate(codes), offsets, np.concatenate(residuals))
        for query, embeddings in zip(QUERIES, ENCODER.encode_queries(QUERIES), strict=True):
            ids, scores = plaid.search(embeddings, codec, postings, EVERYTHING, exhaustive=True)
            best: dict[tuple[Any, ...], tuple[float, Passage]] = {}
            each: dict[tuple[tuple[Any, ...], Passage], float] = {}
            for i, score in zip(ids.tolist(), scores.tolist(), strict=True):
                best.setdefault(owners[i][0], (score, owners[i][1]))
                each[owners[i]] = score
            hits = self.index.search(query, k=1000)
            found = [(self.tuple_of(hit.pk), hit.score, hit.passage) for hit in hits]
            wanted = [(key, *of_row) for key, of_row in best.items()]
            assert sorted(found, key=lambda h: (-h[1], repr(h[0]))) == sorted(wanted, key=lambda h: (-h[1], repr(h[0])))
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            for hit in self.index.search(query, k=3, nprobe=2, ndocs=8):
                assert hit.score == each[self.tuple_of(hit.pk), hit.passage]


@pytest.fixture(autouse=True)
def codec_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colbert_sqlite.growth.OUTLIERS_AT_ONCE", 1 << 60)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_index_is_what_a_fresh_one_would_be(schema: str) -> None:
    name = f"LivingIndexOf{schema.title().replace(' ', '')}"
    name = f"LivingIndexOf{schema.title().replace(' ', '')}"
    machine: type[LivingIndex] = type(name, (LivingIndex,), {"schema": SCHEMAS[schema]})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=-(-EXAMPLES // len(SCHEMAS)),
            stateful_step_count=STEPS,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{machine.n_steps:,} steps")
