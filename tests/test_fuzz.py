"""No damage to an index ends the process, hangs it or is taken for sound. ``COLBERT_FUZZ`` says how much is tried."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from colbert_sqlite.encoders import load_encoder
from colbert_sqlite.index import Index
from tests.fuzz import Outcome, damage, expected, make_sound, outcomes, run, table

N = int(os.environ.get("COLBERT_FUZZ", 150))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "sound.db"
    make_sound(path)
    return path


@pytest.mark.slow
def test_damage_gives_right_results_or_a_clear_error(sound: Path) -> None:
    found = list(outcomes(sound, 0, N))
    print(table(found))
    assert [outcome.seed for outcome in found] == [*range(N)]
    assert [outcome for outcome in found if outcome.wrong] == []


def test_the_sound_index_has_everything_there_is_to_damage(sound: Path) -> None:
    conn = sqlite3.connect(sound)
    tables = "passages codes residuals centroids ivf codec outliers queue".split()
    counts = {part: conn.execute(f"SELECT count(*) FROM _colbert_posts_{part}").fetchone()[0] for part in tables}
    assert all(counts.values())
    assert counts["passages"] > 100 and counts["residuals"] > 20 and counts["queue"] == 3
    index = Index.open(conn, "posts", model="hashing-32")
    assert index.verify() == []
    assert index.info().bytes_reclaimable > 0


CRASHES_ON_1 = """
import json, os, sys
for seed in range(int(sys.argv[3]), int(sys.argv[4])):
    print(json.dumps({"seed": seed}), flush=True)
    if seed == 1:
        os._exit(3)
    print(json.dumps({"seed": seed, "kind": "BLOB", "detail": "", "results": {"open": "right"}}), flush=True)
"""


def test_the_harness_notices_a_process_that_ends(sound: Path, tmp_path: Path) -> None:
    program = tmp_path / "child.py"
    program.write_text(CRASHES_ON_1)
    found = list(outcomes(sound, 0, 3, program))
    assert [(outcome.seed, outcome.summary) for outcome in found] == [(0, "right"), (1, "crash"), (2, "right")]
    assert found[1].wrong == {"process": "crash"}


def test_the_harness_notices_results_that_are_wrong() -> None:
    results = {
        "search": "other",
        "sync": "ColbertError",
        "list": "sqlite3.Error",
        "info": "KeyError: 3",
        "open": "right",
    }
    for kind in ("BLOB", "codec row", "registry row"):
        outcome = Outcome(0, kind, "", results)
        assert outcome.wrong == {name: results[name] for name in ("search", "list", "info")}
        assert outcome.summary == "wrong"
    for kind in ("other row", "BLOB, forged", "codec row, forged", "registry row, forged"):
        assert Outcome(0, kind, "", results).wrong == {"info": "KeyError: 3"}
    assert Outcome(0, "BLOB", "", {"open": "right", "sync": "ColbertError"}).wrong == {}


@pytest.mark.slow
def test_what_is_found_is_compared_with_what_a_sound_index_gives(sound: Path, tmp_path: Path) -> None:
    encoder = load_encoder("hashing-32")
    right = expected(sound, tmp_path, encoder)
    tried = (run(seed, sound, tmp_path, encoder, right) for seed in range(N))
    harmless = next(outcome for outcome in tried if outcome.is_strict and outcome.results["search k=10"] == "right")
    assert harmless.wrong == {}
    for name in ("search k=10", "info"):
        outcome = run(harmless.seed, sound, tmp_path, encoder, right | {name: "something else"})
        assert outcome.results == harmless.results | {name: "other"}
        assert outcome.wrong == {name: "other"}


def test_the_same_seed_does_the_same_damage(sound: Path, tmp_path: Path) -> None:
    dumps = []
    for seed in (5, 5, 6):
        copy = Path(shutil.copy(sound, tmp_path))
        what = damage(copy, random.Random(seed))
        dumps.append((what, "\n".join(sqlite3.connect(copy).iterdump())))
    assert dumps[0] == dumps[1] != dumps[2]
