"""Random damage to an index, and what becomes of everything that reads or writes it.

In: a database made by :func:`make_sound`, and seeds, of which each is one piece of damage. Out: :class:`Outcome` per
seed. The damage is done in a process of its own, because a kernel that reads out of range may end it::

    python tests/fuzz.py 5000        # a table of 5,000 pieces of damage
    NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(mktemp -d) python tests/fuzz.py 500

"""

from __future__ import annotations

import collections
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from colbert_sqlite.encoders import Encoder, load_encoder
from colbert_sqlite.errors import ColbertError
from colbert_sqlite.index import Index
from colbert_sqlite.indexes import list_indexes
from tests.damage import forge_checksums

N_ROWS = 60
QUERIES = ["word3 word17 word91", "word5", "word60 word61 word62 word63 word64 word65", "nothing of this"]
# Longer than anything takes, on a machine that does much else.
SECONDS = 120
MEMORY = 8 << 30

BLOBS = [
    ("codes", "codes"),
    ("residuals", "residuals"),
    ("ivf", "passage_ids"),
    ("centroids", "centroids"),
    ("centroids", "cells"),
    ("outliers", "embedding"),
    ("codec", "bucket_cutoffs"),
    ("codec", "bucket_weights"),
]


class Outcome(NamedTuple):
    """What came of one piece of damage.

    :param kind: what was damaged, and whether checksums were forged
    :param results: for each thing that was done, "right", "other", or the class of the error
    """

    seed: int
    kind: str
    detail: str
    results: dict[str, str]

    @property
    def summary(self) -> str:
        """The worst of all results."""
        found = set(self.results.values()) - {"right"}
        return next((bad for bad in ("crash", "hang") if bad in found), None) or (
            "wrong" if self.wrong else "right" if not found else "error" if "other" not in found else "other"
        )

    @property
    def wrong(self) -> dict[str, str]:
        """What should never happen to an index damaged in this way."""
        ok = {"right", "ColbertError"}
        if not self.is_strict:
            ok |= {"other", "sqlite3.Error"}
        return {done: result for done, result in self.results.items() if result not in ok}

    @property
    def is_strict(self) -> bool:
        """Whether checksums cover what was damaged, so that nothing but right results and errors of ours will do."""
        return self.kind in {"BLOB", "codec row", "registry row"}


def make_sound(path: Path) -> None:
    """Make a small index whose parts are all in use, with changes of its table still queued."""
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA page_size = 1024")
    conn.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, title TEXT, body TEXT)")
    generator = random.Random(3)

    def body() -> str:
        return " ".join(f"word{generator.randrange(150)}" for _ in range(generator.randrange(5, 120)))

    conn.executemany("INSERT INTO posts VALUES (?, ?, ?)", [(i, f"Title {i % 7}", body()) for i in range(1, N_ROWS)])
    conn.execute("INSERT INTO posts VALUES (0, NULL, NULL)")
    index = Index.create(
        conn,
        "posts",
        ["body"],
        heading="title",
        where="id < :most",
        params={"most": 1000},
        model="hashing-32",
        max_tokens=24,
    )
    conn.executemany("UPDATE posts SET body = ? WHERE id = ?", [(f"{body()} other things {i}", i) for i in (4, 8, 15)])
    index.sync()
    conn.execute("UPDATE posts SET body = 'word3 and something else' WHERE id = 23")
    conn.execute("DELETE FROM posts WHERE id = 42")
    conn.execute("INSERT INTO posts VALUES (777, 'New', 'word5 word6 word7')")
    conn.close()


def steps(path: Path, encoder: Encoder) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is done with a database, in order: reading first."""

    def opened() -> Index:
        return Index.open(path, "posts", model=encoder)

    def hits_of(**arguments: Any) -> Callable[[], object]:
        def search() -> object:
            with opened() as index:
                return [_plain(index.search(query, **arguments)) for query in QUERIES]

        return search

    def every_hit() -> object:
        """Everything that is found, equal scores in the order of keys: passage ids decide otherwise."""
        with opened() as index:
            return [sorted(_plain(hits), key=str) for hits in index.search_many(QUERIES, k=1000)]

    def listed() -> object:
        entries = list_indexes(path)
        for entry in entries:
            if entry.state == "unreadable":
                raise ColbertError(entry.problem)
        return [_without(entry, "bytes") for entry in entries]

    def call(method: str, **arguments: Any) -> Callable[[], object]:
        def run() -> object:
            with opened() as index:
                return getattr(index, method)(**arguments)

        return run

    for k in (1, 10, 1000):
        yield f"search k={k}", hits_of(k=k)
    # The default would score all of so small an index: these go through inverted lists.
    yield "search probing", hits_of(k=3, nprobe=3, ndocs=64)
    yield "search narrow", hits_of(k=10, nprobe=1, ndocs=16)
    yield "search where", hits_of(k=5, where="id % 2", ndocs=32)
    yield "search pks", hits_of(k=5, pks=[1, 5, 8, 13, 42, 99])
    yield "search_many", every_hit
    yield "info", lambda: _without(call("info")(), "bytes")
    yield "list", listed
    yield "verify", call("verify")
    yield "sync", call("sync")
    yield "search after sync", every_hit
    yield "optimize", lambda: _at_least_0(call("optimize")())
    yield "repair", lambda: bool(call("repair")())
    yield "verify after repair", call("verify")
    yield "search after repair", every_hit


def _plain(hits: list[Any]) -> list[tuple[Any, ...]]:
    return [(round(hit.score, 5), hit.pk, hit.row, hit.passage.text, hit.stale) for hit in hits]


def _at_least_0(n: object) -> bool:
    return isinstance(n, int) and n >= 0


def _without(facts: Any, *names: str) -> dict[str, Any]:
    """Facts but for those that repairing, or the time, may change."""
    return {name: value for name, value in facts.to_dict().items() if not name.startswith(names)}


def expected(path: Path, folder: Path, encoder: Encoder) -> dict[str, object]:
    """What a sound database gives."""
    copy = Path(shutil.copy(path, folder / "expected.db"))
    return {name: step() for name, step in steps(copy, encoder)}


def run(seed: int, path: Path, folder: Path, encoder: Encoder, right: dict[str, object]) -> Outcome:
    """Damage a copy of a database, and do everything with it."""
    copy = Path(shutil.copy(path, folder / "damaged.db"))
    kind, detail = damage(copy, random.Random(seed))
    results = {}
    for name, step in steps(copy, encoder):
        try:
            found = step()
        except ColbertError:
            results[name] = "ColbertError"
        except sqlite3.Error as error:
            results[name] = "sqlite3.Error"
            detail += f" / {name}: {error}"
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
        else:
            # Where nothing could be brought up, what was indexed before is what is right.
            unsynced = name == "search after sync" and results["sync"] != "right"
            results[name] = "right" if found == right["search_many" if unsynced else name] else "other"
        if name in {"verify", "verify after repair"} and results[name] == "other":
            # Naming what is wrong is right; after repair there must be nothing, unless repair refused.
            results[name] = "right" if name == "verify" or results["repair"] != "right" else "other"
    return Outcome(seed, kind, detail, results)


def damage(path: Path, generator: random.Random) -> tuple[str, str]:
    """Damage one value, or one row, and say which."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        forged = generator.random() < 0.5
        kind = generator.choices(["BLOB", "codec row", "registry row", "other row"], [6, 1, 1, 2])[0]
        detail = ""
        while not detail:
            if kind == "BLOB":
                detail = _damage_blob(conn, generator)
            elif kind == "other row":
                detail = _damage_row(conn, generator)
            else:
                table = "_colbert_posts_codec" if kind == "codec row" else "_colbert_indexes"
                detail = _damage_value(conn, generator, table)
        if forged:
            forge_checksums(conn, "posts")
            kind += ", forged"
        return kind, detail


def _damage_blob(conn: sqlite3.Connection, generator: random.Random) -> str:
    part, column = generator.choice(BLOBS)
    table = f"_colbert_posts_{part}"
    rows = conn.execute(f"SELECT {column} FROM {table} ORDER BY 1").fetchall()
    (blob,) = generator.choice(rows)
    changed, how = _changed(bytearray(blob), generator, [row[0] for row in rows])
    if changed == blob:
        return ""
    # Equal BLOBs are damaged together, but for centroid lists, most of which are empty.
    sql = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"
    if part not in {"outliers"}:
        sql = f"UPDATE {table} SET {column} = ? WHERE rowid = (SELECT min(rowid) FROM {table} WHERE {column} = ?)"
    return f"{part}.{column} {how}" if conn.execute(sql, (changed, blob)).rowcount else ""


def _changed(blob: bytearray, generator: random.Random, others: list[bytes]) -> tuple[object, str]:
    at = generator.randrange(len(blob)) if blob else 0
    to = min(len(blob), at + generator.choice([1, 2, 4, 16, 300]))
    how = generator.choice(["flip", "overwrite", "ones", "zero", "truncate", "cut", "extend", "swap", "text", "number"])
    if how == "flip" and blob:
        blob[at] ^= 1 << generator.randrange(8)
    elif how == "overwrite":
        blob[at:to] = generator.randbytes(to - at)
    elif how == "ones":
        blob[at:to] = b"\xff" * (to - at)
    elif how == "zero":
        blob[at:to] = bytes(to - at)
    elif how == "truncate":
        del blob[at:]
    elif how == "cut":
        del blob[at:to]
    elif how == "extend":
        blob += generator.randbytes(generator.choice([1, 2, 17, 18, 64, 5000]))
    elif how == "swap":
        return bytes(generator.choice(others)), how
    elif how == "text":
        return generator.choice(["", "text", "\0", "ü" * 50]), how
    elif how == "number":
        return generator.choice([0, -1, 1.5, 2**63 - 1]), how
    return bytes(blob), how


def _damage_value(conn: sqlite3.Connection, generator: random.Random, table: str) -> str:
    columns = [name for (name,) in conn.execute("SELECT name FROM pragma_table_info(?)", (table,))]
    column = generator.choice(columns)
    values = conn.execute(f'SELECT rowid, "{column}" FROM {table}').fetchall()
    rowid, value = generator.choice(values)
    changed = _other_value(value, generator)
    try:
        conn.execute(f'UPDATE {table} SET "{column}" = ? WHERE rowid = ?', (changed, rowid))
    except sqlite3.IntegrityError:
        return ""
    (stored,) = conn.execute(f'SELECT "{column}" FROM {table} WHERE rowid = ?', (rowid,)).fetchone() or (None,)
    if (type(stored), stored) == (type(value), value):
        return ""
    return f"{table.rpartition('_')[2]}.{column} = {changed!r}"[:200]


def _other_value(value: object, generator: random.Random) -> object:
    if isinstance(value, str) and generator.random() < 0.6:
        if value.startswith(("{", "[")) and generator.random() < 0.6:
            return _other_json(json.loads(value), generator)
        text = list(value)
        at = generator.randrange(len(text) + 1)
        text[at : at + generator.choice([0, 1, 5])] = generator.choice(["", "x", "7", '"', "ü", "\0", "'", "}"])
        return "".join(text)
    if isinstance(value, int) and generator.random() < 0.6:
        return value + generator.choice([-1, 1, 2, 100, -value, -2 * value - 1, 2**16, 2**31, 2**40])
    if isinstance(value, float) and generator.random() < 0.6:
        return value * generator.choice([-1.0, 0.0, 2.0, 1e30, 1e300, 1e-30])
    return generator.choice(
        [0, 1, -1, 3, 255, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 0.5, -1e300, float("inf"), "", "x", "7", "\0"]
        + [b"", b"\xff", bytes(16), bytes(5000), "x" * 5000]
    )


def _other_json(tree: Any, generator: random.Random) -> str:
    names = [*tree] if isinstance(tree, dict) else [*range(len(tree))]
    name = generator.choice(names)
    if isinstance(tree[name], (dict, list)) and tree[name] and generator.random() < 0.5:
        tree[name] = json.loads(_other_json(tree[name], generator))
    else:
        tree[name] = generator.choice(
            [None, 0, 1, -1, 16, 2**70, 0.5, float("nan"), True, "", "x", "id", "title", "\0", "\ud800", [], {}, [[]]]
        )
    return json.dumps(tree)


def _damage_row(conn: sqlite3.Connection, generator: random.Random) -> str:
    part = generator.choice(["passages", "passages", "queue", "outliers", "ivf", "codes", "residuals", "centroids"])
    table = f"_colbert_posts_{part}"
    keys = [name for (name,) in conn.execute("SELECT name FROM pragma_table_info(?) WHERE pk", (table,))]
    rows = conn.execute(f"SELECT {', '.join(keys)} FROM {table}").fetchall()
    row = generator.choice(rows)
    equals = " AND ".join(f"{key} IS ?" for key in keys)
    if generator.random() < 0.15:
        conn.execute(f"DELETE FROM {table} WHERE {equals}", row)
        return f"{part}: a row less"
    columns = [name for (name,) in conn.execute("SELECT name FROM pragma_table_info(?)", (table,))]
    column = generator.choice(columns)
    (value,) = conn.execute(f'SELECT "{column}" FROM {table} WHERE {equals}', row).fetchone()
    changed = _other_value(value, generator)
    try:
        conn.execute(f'UPDATE {table} SET "{column}" = ? WHERE {equals}', (changed, *row))
    except sqlite3.Error:
        return ""
    return f"{part}.{column} = {changed!r}"[:200]


def child(path: Path, first: int, end: int) -> None:
    """Print a line before and after each piece of damage, so that the parent knows which one ended the process."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except ImportError:
        pass
    encoder = load_encoder("hashing-32")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        right = expected(path, folder, encoder)
        for seed in range(first, end):
            print(json.dumps({"seed": seed}), flush=True)
            outcome = run(seed, path, folder, encoder, right)
            print(json.dumps(outcome._asdict()), flush=True)


def outcomes(path: Path, first: int, n: int, program: Path = Path(__file__)) -> Iterator[Outcome]:
    """Yield what comes of *n* pieces of damage, in a child that is begun again when one has ended it."""
    seed, end = first, first + n
    while seed < end:
        process = subprocess.Popen(
            [sys.executable, str(program), "--child", str(path), str(seed), str(end)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        running = None
        while True:
            timer = threading.Timer(SECONDS, process.kill)
            timer.start()
            line = process.stdout.readline()
            hung = not timer.is_alive()
            timer.cancel()
            if not line:
                break
            told = json.loads(line)
            running = told["seed"]
            if "kind" in told:
                yield Outcome(**told)
                seed, running = told["seed"] + 1, None
        process.stdout.close()
        code = process.wait()
        if running is None and seed < end:
            raise RuntimeError(f"the child ended with {code} before it began")
        if running is not None:
            yield Outcome(running, *_described(path, running), {"process": "hang" if hung else "crash"})
            seed = running + 1


def _described(path: Path, seed: int) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        return damage(Path(shutil.copy(path, folder)), random.Random(seed))


def table(found: list[Outcome]) -> str:
    """Kinds of damage by the worst that came of each, as Markdown."""
    columns = ["right", "error", "other", "wrong", "crash", "hang"]
    counts = collections.Counter((outcome.kind, outcome.summary) for outcome in found)
    lines = [f"| damage | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for kind in sorted({outcome.kind for outcome in found}):
        lines.append(f"| {kind} | {' | '.join(str(counts[kind, column]) for column in columns)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    if arguments[0] == "--child":
        child(Path(arguments[1]), int(arguments[2]), int(arguments[3]))
        return
    n, first = int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 0
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound.db"
        make_sound(path)
        for outcome in outcomes(path, first, n):
            found.append(outcome)
            if outcome.wrong:
                print(outcome.seed, outcome.kind, outcome.detail, outcome.wrong, flush=True)
    print(table(found))


if __name__ == "__main__":
    main(sys.argv[1:])
