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


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("n_query_tokens", [1, 5, 32, 33])
@pytest.mark.parametrize("threshold", [-np.inf, 0.3, 2])
def test_sum_of_best_quantised_scores(dtype, n_query_tokens, threshold):
    codes, offsets = ragged(20, dtype)
    scores = np.random.default_rng(2).uniform(-1, 0.5, (20, n_query_tokens)).astype(np.float32)
    table = kernels.quantise_scores(scores, np.float32(1000), np.float32(threshold))
    whole = np.rint(scores * np.float32(1000))
    pruned = scores.max(axis=1) < threshold
    assert table.tolist() == np.where(pruned[:, None], kernels.PRUNED, whole).tolist()
    slow = reference.interact(codes, offsets, whole, np.inf if threshold == 2 else -np.inf)
    if threshold == 0.3:
        slow = reference.interact(codes, offsets, np.where(pruned[:, None], kernels.PRUNED, whole))
    nothing = int(kernels.PRUNED) * n_query_tokens
    assert kernels.sum_best(codes, offsets, table).tolist() == np.where(np.isinf(slow), nothing, slow).tolist()


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("dim", [1, 5, 16, 33, 128])
def test_pack_and_decompress(nbits, dim):
    rng = np.random.default_rng(dim)
    codes, offsets = ragged(6, np.uint32)
    centroids = rng.standard_normal((6, dim), np.float32)
    embeddings = rng.standard_normal((len(codes), dim), np.float32)
    cutoffs = np.sort(rng.standard_normal(2**nbits - 1).astype(np.float32))
    weights = np.sort(rng.standard_normal(2**nbits).astype(np.float32))
    embeddings[0, 0] = centroids[codes[0], 0] + cutoffs[0]
    n_bytes = -(-dim * nbits // 8)
    packed = np.empty((len(codes), n_bytes), np.uint8)
    kernels.pack_residuals(embeddings, codes, centroids, cutoffs, nbits, packed)
    buckets = reference.buckets(embeddings, codes, centroids, cutoffs)
    assert packed.tolist() == reference.pack(buckets, nbits).tolist()
    assert reference.unpack(packed, nbits, dim).tolist() == buckets.tolist()

    # Passages last first, with a foreign row between them, and only those from the third on.
    order = range(len(LENGTHS))[::-1]
    rows = np.concatenate([np.insert(packed[offsets[p] : offsets[p + 1]], 0, 255, axis=0) for p in order])
    starts = np.empty(len(LENGTHS), np.int64)
    starts[list(order)] = np.cumsum([0] + [LENGTHS[p] + 1 for p in order])[:-1] + 1
    n_tokens = offsets[-1] - offsets[2]
    out = np.empty((n_tokens, n_bytes * 8 // nbits), np.float32)
    inverse_norms = np.empty(n_tokens, np.float32)
    table = weights[(np.arange(256)[:, None] >> np.arange(0, 8, nbits)) & (2**nbits - 1)]
    kernels.decompress_passages(
        codes, offsets[2:], rows, starts[2:], centroids, table, (0,) * (8 // nbits), out, inverse_norms
    )
    slow = reference.decompress(codes, buckets, centroids, weights)[offsets[2] :]
    np.testing.assert_allclose(out[:, :dim] * inverse_norms[:, None], slow, atol=1e-6)


@pytest.mark.parametrize("n_query_tokens", [1, 32, 35])
def test_sum_of_best_similarities(n_query_tokens):
    _, offsets = ragged(1, np.uint16)
    rng = np.random.default_rng(3)
    similarities = rng.standard_normal((offsets[-1], n_query_tokens), np.float32)
    inverse_norms = rng.uniform(0.5, 2, offsets[-1]).astype(np.float32)
    scores = np.empty(len(LENGTHS) - 1, np.float32)
    kernels.sum_best_similarities(similarities[offsets[1] :], inverse_norms[offsets[1] :], offsets[1:], scores)
    scaled = similarities * inverse_norms[:, None]
    slow = [
        reference.maxsim(np.eye(n_query_tokens), scaled[a:b]) for a, b in zip(offsets[1:-1], offsets[2:], strict=True)
    ]
    np.testing.assert_allclose(scores, slow, rtol=1e-5)


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
