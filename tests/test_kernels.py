"""Every kernel agrees with its slow twin."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from colbert_sqlite.engine import kernels

LENGTHS = [3, 0, 1, 70, 0, 33, 5, 0]


def ragged(n_values, dtype, seed=0):
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    return np.random.default_rng(seed).integers(0, n_values, offsets[-1]).astype(dtype), offsets


@pytest.mark.parametrize("n_best", [1, 2, 7, 40])
@pytest.mark.parametrize("n_columns", [1, 3, 32])
def test_top_rows(n_best, n_columns):
    scores = np.random.default_rng(n_best).integers(-9, 9, (40, n_columns)).astype(np.float32)
    assert kernels.top_rows(scores, n_best).tolist() == reference.top_rows(scores, n_best).tolist()


@pytest.mark.parametrize("n_best", [1, 3, 40])
@pytest.mark.parametrize("n_columns", [1, 5, 32])
@pytest.mark.parametrize("block", [1, 7, 40])
def test_score_centroids(n_best, n_columns, block):
    rng = np.random.default_rng(n_best)
    products = rng.integers(-9, 9, (40, n_columns)).astype(np.int32)
    norms, scales = rng.uniform(0.5, 2, 40).astype(np.float32), rng.uniform(0.5, 2, n_columns).astype(np.float32)
    table = np.empty((40, n_columns), np.int16)
    best, rows = np.full((n_columns, n_best), kernels.NOTHING), np.zeros((n_columns, n_best), np.int64)
    for first in range(0, 40, block):
        kernels.score_centroids(products[first : first + block], first, norms, scales, table, best, rows)
    expected = np.rint(products * norms[:, None] * scales).astype(np.int64)
    assert table.tolist() == expected.tolist()
    assert rows.tolist() == reference.top_rows(expected, n_best).tolist()
    assert best.tolist() == expected[rows, np.arange(n_columns)[:, None]].tolist()


@pytest.mark.parametrize("n_query_tokens", [1, 4])
def test_sum_listed(n_query_tokens):
    rng = np.random.default_rng(n_query_tokens)
    lists = [np.flatnonzero(rng.random(30) < 0.2) for _ in range(6)]
    offsets = np.cumsum([0, *map(len, lists)])
    probed = np.stack([rng.permutation(6)[:3] for _ in range(n_query_tokens)])
    gains = np.sort(rng.integers(0, 99, (n_query_tokens, 3)), axis=1)[:, ::-1].astype(np.int32)
    sums = kernels.sum_listed(np.concatenate(lists), offsets, probed, np.ascontiguousarray(gains), 30)
    for passage in range(30):
        named = [[gains[t, i] for i, c in enumerate(row) if passage in lists[c]] for t, row in enumerate(probed)]
        assert sums[passage] == (sum(max(row, default=0) for row in named) if any(named) else -1)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("n_query_tokens", [1, 5, 32, 33])
def test_sum_best(dtype, n_query_tokens):
    codes, offsets = ragged(20, dtype)
    table = np.random.default_rng(2).integers(-32_767, 32_767, (20, n_query_tokens)).astype(np.int16)
    slow = reference.interact(codes, offsets, table)
    slow = np.where(np.isinf(slow), int(kernels.NOTHING) * n_query_tokens, slow)
    order = np.random.default_rng(5).permutation(len(LENGTHS))
    assert kernels.sum_best(codes, offsets[order], offsets[order + 1], table).tolist() == slow[order].tolist()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("dim", [1, 5, 16, 33, 128])
def test_pack_residuals(nbits, dim, scaled):
    rng = np.random.default_rng(dim)
    codes, _ = ragged(6, np.uint32)
    centroids = rng.standard_normal((6, dim), np.float32)
    embeddings = rng.standard_normal((len(codes), dim), np.float32)
    embeddings[1] = centroids[codes[1]]
    cutoffs = np.sort(rng.standard_normal(2**nbits - 1).astype(np.float32))
    weights = np.sort(rng.standard_normal(2**nbits).astype(np.float32))
    packed = np.empty((len(codes), -(-dim * nbits // 8)), np.uint8)
    scales = np.empty(len(codes), np.float32)
    kernels.pack_residuals(
        embeddings, codes, centroids, cutoffs, weights, nbits, scaled, np.float32(50), packed, scales
    )
    residuals = embeddings - centroids[codes]
    sizes = np.sqrt((residuals**2).mean(axis=1, keepdims=True))
    numbers = np.searchsorted(cutoffs, residuals / np.where(sizes > 0, sizes, 1) if scaled else residuals)
    assert reference.unpack(packed, nbits, dim).tolist() == numbers.tolist()
    assert packed.tolist() == reference.pack(numbers, nbits).tolist()
    if not scaled:
        assert scales.tolist() == [1] * len(codes)
        return
    for token in range(0, len(codes), 7):
        rounded, embedding = weights[numbers[token]].astype(np.float64), embeddings[token].astype(np.float64)
        errors = [s * rounded - residuals[token] for s in (scales[token] + 1e-3, scales[token] - 1e-3, scales[token])]
        losses = [float((e**2).sum() + 50 * (e @ embedding) ** 2) for e in errors]
        assert losses[2] <= min(losses[:2])


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("n_bytes", [1, 5, 16])
def test_unpack_levels(nbits, n_bytes):
    rng = np.random.default_rng(n_bytes)
    levels = rng.integers(-127, 128, 2**nbits).astype(np.int8)
    of_byte = levels[(np.arange(256)[:, None] >> np.arange(0, 8, nbits)) & (2**nbits - 1)]
    residuals = rng.integers(0, 256, (30, 1 + n_bytes)).astype(np.uint8)
    starts, ends = np.array([20, 3, 7, 0]), np.array([30, 8, 7, 1])
    words = np.empty((16, n_bytes), f"u{8 // nbits}")
    kernels.unpack_levels(residuals, starts, ends, np.ascontiguousarray(of_byte).view(words.dtype).reshape(256), words)
    rows = [*range(20, 30), *range(3, 8), 0]
    expected = levels[reference.unpack(residuals[rows, 1:], nbits, n_bytes * 8 // nbits)]
    assert words.view(np.int8).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("n_query_tokens", [1, 32, 35])
def test_sum_best_similarities(dtype, n_query_tokens):
    rng = np.random.default_rng(3)
    residuals = rng.integers(0, 256, (40, 3)).astype(np.uint8)
    codes = rng.integers(0, 20, 50).astype(dtype)
    table = rng.integers(-32_767, 32_767, (20, n_query_tokens)).astype(np.int16)
    starts, lengths, first_codes = np.array([30, 0, 5, 7]), np.array([10, 3, 0, 20]), np.array([0, 40, 9, 11])
    products = rng.integers(-9999, 9999, (33, n_query_tokens)).astype(np.int32)
    token_scales, step = rng.uniform(1e-6, 1e-5, n_query_tokens).astype(np.float32), np.float32(1e-4)
    scores = np.empty(4, np.float32)
    kernels.sum_best_similarities(
        products, token_scales, residuals, starts, starts + lengths, codes, first_codes, table, step, scores
    )
    first = 0
    for start, length, code, score in zip(starts, lengths, first_codes, scores, strict=True):
        of_residuals = products[first : first + length] * token_scales * residuals[start : start + length, :1]
        similarities = table[codes[code : code + length]] * step + of_residuals
        assert score == pytest.approx(similarities.max(axis=0).sum() if length else -np.inf, rel=1e-5)
        first += length


@pytest.mark.parametrize("shape", [(), (3,)])
def test_gather_ranges(shape):
    values = np.random.default_rng(4).integers(0, 255, (20, *shape)).astype(np.uint8)
    out = np.empty((6, *shape), np.uint8)
    kernels.gather_ranges(values, np.array([17, 5, 2]), np.array([0, 3, 3, 6]), out)
    assert out.tolist() == values[[17, 18, 19, 2, 3, 4]].tolist()


def test_improve_nearest_keeps_the_smaller_id_on_ties():
    nearest, best = np.array([7, 7, 7, 1], np.uint32), np.array([0.5, 0.5, 0.5, 0.5], np.float32)
    similarities = np.array([[0.9, 0.9], [0.5, 0.1], [0.1, 0.4], [0.5, 0.5]], np.float32)
    kernels.improve_nearest(similarities, np.array([0, 1, 2, 3]), np.array([3, 4]), nearest, best)
    assert nearest.tolist() == [3, 3, 7, 1]
    np.testing.assert_array_equal(best, np.array([0.9, 0.5, 0.5, 0.5], np.float32))


def test_add_to_clusters():
    points = np.arange(12, dtype=np.float32).reshape(4, 3)
    sums, counts = np.zeros((3, 3), np.float32), np.zeros(3, np.int64)
    kernels.add_to_clusters(points, np.array([2, 0, 2, 2], np.uint32), sums, counts)
    assert sums.tolist() == [[3, 4, 5], [0, 0, 0], [15, 18, 21]]
    assert counts.tolist() == [1, 0, 3]


def test_fixed_is_the_same_array_read_only():
    values = np.arange(6)
    view = kernels.fixed(values)
    assert view.base is values and not view.flags.writeable and values.flags.writeable


def test_fixed_copies_what_a_kernel_cannot_read():
    unaligned = np.frombuffer(b"x" + np.arange(4, dtype=">u2").tobytes(), ">u2", 4, 1)
    view = kernels.fixed(unaligned)
    assert view.flags.aligned and view.dtype == np.dtype("=u2") and view.tolist() == [0, 1, 2, 3]
