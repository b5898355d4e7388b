"""Token pooling: a passage's tokens become fewer, and stay what the passage is about."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from colbert_sqlite.encoders import Encoder
from colbert_sqlite.engine.pooling import pool
from colbert_sqlite.errors import MissingDependency
from colbert_sqlite.index import Index
from colbert_sqlite.indexes import list_indexes
from colbert_sqlite.progress import Progress
from tests import reference

pytest.importorskip("scipy", reason="pip install 'colbert-sqlite[pooling]'")


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@st.composite
def passages(draw: st.DrawFn, distinct: bool = False) -> NDArray[np.float32]:
    """Embeddings of any number of tokens, many of them equal unless they are to be distinct."""
    n_tokens, dim, seed = draw(st.integers(0, 40)), draw(st.sampled_from([2, 3, 16])), draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    words = unit(generator.standard_normal((max(1, n_tokens), dim)))
    if distinct:
        return words[:n_tokens]
    return words[generator.integers(0, draw(st.integers(1, len(words))), n_tokens)]


@given(passages(), st.integers(1, 5))
def test_about_one_token_in_factor_is_left_and_all_have_unit_length(
    embeddings: NDArray[np.float32], factor: int
) -> None:
    pooled = pool(embeddings, factor)
    assert pooled.dtype == np.float32
    assert np.linalg.norm(pooled, axis=1) == pytest.approx(np.ones(len(pooled)), abs=1e-5)
    assert np.array_equal(pooled[:1], embeddings[:1])
    most = 1 + max(1, (len(embeddings) - 1) // factor)
    assert min(len(embeddings), 2) <= len(pooled) <= min(len(embeddings), most)


@given(passages(distinct=True), st.integers(2, 5))
@settings(max_examples=50)
def test_pooled_tokens_are_the_mean_directions_of_wards_clusters(embeddings: NDArray[np.float32], factor: int) -> None:
    clusters = reference.ward_clusters(embeddings[1:], max(1, (len(embeddings) - 1) // factor))
    expected = [embeddings[0], *(unit(embeddings[1:][c].mean(axis=0)) for c in clusters)] if len(embeddings) else []
    pooled = pool(embeddings, factor)
    assert np.array(sorted(pooled.tolist())) == pytest.approx(np.array(sorted(np.array(expected).tolist())), abs=1e-4)


@given(passages())
def test_factor_one_changes_nothing(embeddings: NDArray[np.float32]) -> None:
    assert pool(embeddings, 1) is embeddings


@pytest.mark.parametrize("n_tokens", [0, 1, 2])
def test_so_few_tokens_stay(n_tokens: int) -> None:
    embeddings = np.eye(4, dtype=np.float32)[:n_tokens]
    assert pool(embeddings, 3) is embeddings


def test_equal_tokens_become_one() -> None:
    first, dog, cat = np.eye(3, dtype=np.float32)
    pooled = pool(np.stack([first, dog, cat, dog, cat, dog, cat]), 3)
    assert pooled[0].tolist() == first.tolist()
    assert sorted(pooled[1:].tolist()) == [cat.tolist(), dog.tolist()]


def test_opposite_tokens_become_the_first_of_them() -> None:
    first, there = np.eye(2, dtype=np.float32)
    assert pool(np.stack([first, there, -there]), 2).tolist() == [first.tolist(), there.tolist()]


def test_sentence_transformers_pools_the_same() -> None:
    modules = pytest.importorskip("sentence_transformers.multi_vector_encoder.modules.token_pooling")
    torch = pytest.importorskip("torch")
    embeddings = unit(np.random.default_rng(1).standard_normal((150, 32)))
    for factor in (2, 3):
        theirs = modules.HierarchicalTokenPooling(factor).pool_one(torch.from_numpy(embeddings)).numpy()
        assert pool(embeddings, factor) == pytest.approx(theirs, abs=1e-5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "t.db"
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)")
    bodies = [f"topic{i} is told at length, topic{i} and no other: word{i % 7} after word{i % 5}." for i in range(60)]
    conn.executemany("INSERT INTO t VALUES (?, ?)", enumerate(bodies))
    conn.commit()
    conn.close()
    return path


def test_an_index_of_half_the_tokens_is_sound_and_finds_the_row(path: Path, encoder: Encoder) -> None:
    whole = Index.create(path, "t", ["body"], name="whole", model=encoder)
    half = Index.create(path, "t", ["body"], model=encoder, pool_factor=2)
    doclens = [
        len(e) for e in encoder.encode_passages([row for (row,) in sqlite3.connect(path).execute("SELECT body FROM t")])
    ]
    assert whole.counts().tokens == sum(doclens)
    assert half.counts().tokens == sum(1 + (n - 1) // 2 for n in doclens)
    assert (half.verify(), half.info().pool_factor, whole.info().pool_factor) == ([], 2, 1)
    for i in (0, 33, 59):
        assert half.search(f"topic{i}", k=1)[0].pk == i


def test_a_rebuild_pools_as_before(path: Path, encoder: Encoder) -> None:
    with Index.create(path, "t", ["body"], model=encoder, pool_factor=3) as index:
        counts = index.counts()
    with Index.open(path, "t") as index:
        assert index.rebuild() == counts
        assert index.settings.pool_factor == 3


def test_an_interrupted_build_goes_on_pooling(path: Path, encoder: Encoder) -> None:
    def stop(now: Progress) -> None:
        if now.stage == "train":
            raise KeyboardInterrupt

    with Index.create(path, "t", ["body"], name="whole", model=encoder, pool_factor=2) as index:
        counts = index.counts()
    with pytest.raises(KeyboardInterrupt):
        Index.create(path, "t", ["body"], model=encoder, pool_factor=2, progress=stop)
    with Index.create(path, "t", ["body"], model=encoder, pool_factor=2) as index:
        assert index.counts() == counts
        assert index.build_report is not None and index.build_report.n_tokens == 0


@pytest.mark.parametrize("factor", [0, -1, 1.5, True])
def test_a_factor_that_is_none_is_refused(path: Path, encoder: Encoder, factor: int) -> None:
    with pytest.raises(ValueError, match=f"pool_factor must be a whole number of at least 1, not {factor}"):
        Index.create(path, "t", ["body"], model=encoder, pool_factor=factor)


def test_without_scipy_nothing_is_begun(path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.cluster", None)
    with pytest.raises(MissingDependency, match=r"token pooling needs scipy: pip install 'colbert-sqlite\[pooling\]'"):
        Index.create(path, "t", ["body"], model=encoder, pool_factor=2)
    assert list_indexes(path) == []
    Index.create(path, "t", ["body"], model=encoder).close()
