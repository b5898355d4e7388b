"""Every kernel agrees with its slow twin, over random shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_sqlite.engine import kernels
from tests import reference
from tests.reference import Array

generators = st.integers(0, 2**32).map(np.random.default_rng)
query_lengths = st.sampled_from([1, 2, 5, 8, 31, 32, 33, 64])
code_types = st.sampled_from([np.uint16, np.uint32])
nbits_ = st.sampled_from([1, 2, 4, 8])
# Lengths of passages: many, none, all empty.
lengths_ = st.lists(st.integers(0, 40) | st.just(0), max_size=12)
several = settings(max_examples=50)


def offsets_of(lengths: list[int]) -> Array:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


@several
@given(generators, st.integers(1, 40), st.integers(1, 40), query_lengths)
def test_top_rows(rng: np.random.Generator, n_rows: int, n_best: int, n_columns: int) -> None:
    n_best = min(n_best, n_rows)
    scores = rng.integers(-9, 9, (n_rows, n_columns)).astype(np.float32)
    assert kernels.top_rows(scores, n_best).tolist() == reference.top_rows(scores, n_best).tolist()


@several
@given(generators, st.integers(1, 40), st.integers(1, 40), query_lengths, st.integers(1, 40))
def test_score_centroids(rng: np.random.Generator, n_centroids: int, n_best: int, n_columns: int, block: int) -> None:
    n_best = min(n_best, n_centroids)
    products = rng.integers(-9, 9, (n_centroids, n_columns)).astype(np.int32)
    norms = rng.uniform(0.5, 2, n_centroids).astype(np.float32)
    scales = rng.uniform(0.5, 2, n_columns).astype(np.float32)
    table = np.empty((n_centroids, n_columns), np.int16)
    best, rows = np.full((n_columns, n_best), kernels.NOTHING), np.zeros((n_columns, n_best), np.int64)
    for first in range(0, n_centroids, block):
        kernels.score_centroids(products[first : first + block], first, norms, scales, table, best, rows)
    expected = np.rint(products * norms[:, None] * scales).astype(np.int64)
    assert table.tolist() == expected.tolist()
    assert rows.tolist() == reference.top_rows(expected, n_best).tolist()
    assert best.tolist() == expected[rows, np.arange(n_columns)[:, None]].tolist()


@several
@given(generators, st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), query_lengths, st.floats(0, 1))
def test_sum_listed(
    rng: np.random.Generator, n_passages: int, n_lists: int, n_probed: int, n_query_tokens: int, density: float
) -> None:
    lists = [np.flatnonzero(rng.random(n_passages) < density) for _ in range(n_lists)]
    probed = np.stack([rng.permutation(n_lists)[:n_probed] for _ in range(n_query_tokens)])
    gains = -np.sort(-rng.integers(0, 99, probed.shape), axis=1).astype(np.int32)
    listed, offsets = np.concatenate(lists), offsets_of([len(of_centroid) for of_centroid in lists])
    sums = kernels.sum_listed(listed, offsets, probed, gains, n_passages)
    assert sums.tolist() == reference.sum_listed(lists, probed, gains, n_passages)


@several
@given(generators, lengths_, code_types, query_lengths, st.integers(1, 40))
def test_sum_best(
    rng: np.random.Generator, lengths: list[int], dtype: type[np.number[Any]], n_query_tokens: int, n_centroids: int
) -> None:
    offsets = offsets_of(lengths)
    codes = rng.integers(0, n_centroids, offsets[-1]).astype(dtype)
    table = rng.integers(-32_767, 32_767, (n_centroids, n_query_tokens)).astype(np.int16)
    slow = reference.interact(codes, offsets, table)
    slow = np.where(np.isinf(slow), int(kernels.NOTHING) * n_query_tokens, slow)
    order = rng.permutation(len(lengths))
    assert kernels.sum_best(codes, offsets[order], offsets[order + 1], table).tolist() == slow[order].tolist()


@several
@given(generators, st.booleans(), nbits_, st.integers(1, 40) | st.just(128), st.integers(1, 30))
def test_pack_residuals(rng: np.random.Generator, scaled: bool, nbits: int, dim: int, n_tokens: int) -> None:
    codes = rng.integers(0, 6, n_tokens).astype(np.uint32)
    centroids = rng.standard_normal((6, dim), np.float32)
    embeddings = rng.standard_normal((n_tokens, dim), np.float32)
    embeddings[0] = centroids[codes[0]]
    cutoffs = np.sort(rng.standard_normal(2**nbits - 1).astype(np.float32))
    weights = np.sort(rng.standard_normal(2**nbits).astype(np.float32))
    packed, scales = np.empty((n_tokens, -(-dim * nbits // 8)), np.uint8), np.empty(n_tokens, np.float32)
    arguments = embeddings, codes, centroids, cutoffs, weights, nbits, scaled, np.float32(50)
    kernels.pack_residuals(*arguments, packed, scales)
    residuals = embeddings - centroids[codes]
    sizes = np.sqrt((residuals**2).mean(axis=1, keepdims=True))
    # A value this close to a cutoff may fall on either side, as sums are rounded in another order.
    normal = residuals / np.where(sizes > 0, sizes, 1) if scaled else residuals
    numbers = reference.unpack(packed, nbits, dim)
    assert packed.tolist() == reference.pack(numbers, nbits).tolist()
    assert (np.searchsorted(cutoffs, normal - 1e-5) <= numbers).all()
    assert (np.searchsorted(cutoffs, normal + 1e-5) >= numbers).all()
    if not scaled:
        assert scales.tolist() == [1] * n_tokens
    for token in range(n_tokens if scaled else 0):
        rounded, embedding = weights[numbers[token]].astype(np.float64), embeddings[token].astype(np.float64)
        errors = [s * rounded - residuals[token] for s in (scales[token] + 1e-2, scales[token] - 1e-2, scales[token])]
        losses = [float((e**2).sum() + 50 * (e @ embedding) ** 2) for e in errors]
        assert losses[2] <= min(losses[:2])


@several
@given(generators, lengths_, nbits_, st.integers(1, 40))
def test_unpack_levels(rng: np.random.Generator, lengths: list[int], nbits: int, n_bytes: int) -> None:
    levels = rng.integers(-127, 128, 2**nbits).astype(np.int8)
    of_byte = levels[(np.arange(256)[:, None] >> np.arange(0, 8, nbits)) & (2**nbits - 1)]
    residuals = rng.integers(0, 256, (50, 1 + n_bytes)).astype(np.uint8)
    starts = np.array([rng.integers(0, 50 - n + 1) for n in lengths], np.int64)
    ends = starts + np.array(lengths, np.int64)
    words = np.empty((sum(lengths), n_bytes), f"u{8 // nbits}")
    kernels.unpack_levels(residuals, starts, ends, np.ascontiguousarray(of_byte).view(words.dtype).reshape(256), words)
    rows = [row for start, end in zip(starts, ends, strict=True) for row in range(start, end)]
    expected = levels[reference.unpack(residuals[rows, 1:], nbits, n_bytes * 8 // nbits)]
    assert words.view(np.int8).tolist() == expected.tolist()


@several
@given(generators, lengths_, code_types, query_lengths, st.integers(1, 40))
def test_sum_best_similarities(
    rng: np.random.Generator, lengths: list[int], dtype: type[np.number[Any]], n_query_tokens: int, n_centroids: int
) -> None:
    residuals = rng.integers(0, 256, (50, 3)).astype(np.uint8)
    codes = rng.integers(0, n_centroids, 60).astype(dtype)
    table = rng.integers(-32_767, 32_767, (n_centroids, n_query_tokens)).astype(np.int16)
    starts, first_codes = (np.array([rng.integers(0, n - m + 1) for m in lengths], np.int64) for n in (50, 60))
    products = rng.integers(-9999, 9999, (sum(lengths), n_query_tokens)).astype(np.int32)
    token_scales, step = rng.uniform(1e-6, 1e-5, n_query_tokens).astype(np.float32), np.float32(1e-4)
    scores = np.empty(len(lengths), np.float32)
    ends = starts + np.array(lengths, np.int64)
    kernels.sum_best_similarities(
        products, token_scales, residuals, starts, ends, codes, first_codes, table, step, scores
    )
    slow = reference.best_similarities(
        products, token_scales, residuals, starts, ends, codes, first_codes, table, float(step)
    )
    np.testing.assert_allclose(scores, slow, rtol=1e-5, atol=1e-5 * n_query_tokens)


@several
@given(generators, lengths_)
def test_gather_ranges(rng: np.random.Generator, lengths: list[int]) -> None:
    values, offsets = rng.integers(0, 255, 50).astype(np.uint16), offsets_of(lengths)
    starts = np.array([rng.integers(0, 50 - n + 1) for n in lengths], np.int64)
    out = np.empty(offsets[-1], np.uint16)
    kernels.gather_ranges(values, starts, offsets, out)
    assert out.tolist() == [v for start, n in zip(starts, lengths, strict=True) for v in values[start : start + n]]


@several
@given(generators, st.integers(1, 20), st.integers(1, 20), st.sampled_from([np.int32, np.float32]))
def test_improve_nearest(
    rng: np.random.Generator, n_embeddings: int, n_centroids: int, dtype: type[np.number[Any]]
) -> None:
    """In two calls, whose centroids alternate, so that the smaller id may come later."""
    similarities = rng.integers(-3, 3, (n_embeddings, n_centroids)).astype(dtype)
    scales = rng.integers(1, 4, n_centroids).astype(np.float32)
    nearest, best = np.zeros(n_embeddings, np.uint32), np.full(n_embeddings, -np.inf, np.float32)
    rows = rng.permutation(n_embeddings)
    for ids in (np.arange(1, n_centroids, 2), np.arange(0, n_centroids, 2)):
        if len(ids):
            part = np.ascontiguousarray(similarities[rows][:, ids])
            kernels.improve_nearest(part, scales[ids], rows, ids, nearest, best)
    scaled = similarities * scales
    assert nearest.tolist() == scaled.argmax(axis=1).tolist()
    assert best.tolist() == scaled.max(axis=1).tolist()


@several
@given(generators, st.integers(0, 30), st.integers(1, 5), st.integers(1, 5))
def test_add_to_clusters(rng: np.random.Generator, n_points: int, n_clusters: int, dim: int) -> None:
    points = rng.integers(-9, 9, (n_points, dim)).astype(np.float32)
    clusters = rng.integers(0, n_clusters, n_points).astype(np.uint32)
    sums, counts = np.zeros((n_clusters, dim), np.float32), np.zeros(n_clusters, np.int64)
    kernels.add_to_clusters(points, clusters, sums, counts)
    assert sums.tolist() == [points[clusters == i].sum(axis=0).tolist() for i in range(n_clusters)]
    assert counts.tolist() == np.bincount(clusters, minlength=n_clusters).tolist()


def test_fixed_is_the_same_array_read_only() -> None:
    values = np.arange(6)
    view = kernels.fixed(values)
    assert view.base is values and not view.flags.writeable and values.flags.writeable


@pytest.mark.parametrize("dtype", [">u2", "<u2"])
def test_fixed_copies_what_a_kernel_cannot_read(dtype: str) -> None:
    unaligned = np.frombuffer(b"x" + np.arange(4, dtype=dtype).tobytes(), dtype, 4, 1)
    view = kernels.fixed(unaligned)
    assert view.flags.aligned and view.dtype == np.dtype("=u2") and view.tolist() == [0, 1, 2, 3]
