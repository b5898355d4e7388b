from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from colbert_sqlite.engine.codec import (
    MATCH_COSINE,
    ResidualCodec,
    from_directions,
    least_squares_buckets,
    n_centroids_for,
    quantile_buckets,
    to_directions,
)
from colbert_sqlite.errors import IndexCorrupt, ShapeError
from tests import reference
from tests.reference import Array

DIMS = [1, 5, 16, 48, 64, 96, 128, 256]
NBITS = [1, 2, 4, 8]


def directions(n: int, dim: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    groups = rng.standard_normal((10, dim))
    points = groups[rng.integers(0, 10, n)] + 0.5 * rng.standard_normal((n, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("dim", DIMS)
def test_compress_and_decompress_agree_with_the_slow_twin(nbits: int, dim: int) -> None:
    points = directions(300, dim)
    codec = ResidualCodec.train(points, nbits=nbits, n_centroids=20)
    codes, residuals = codec.compress(points)
    assert (codes.dtype, residuals.dtype, residuals.shape) == (np.uint32, np.uint8, (300, codec.bytes_per_token))
    assert codes.tolist() == reference.nearest(points, codec.vectors).tolist()
    buckets = reference.unpack(residuals[:, 1:], nbits, dim)
    assert residuals[:, 1:].tolist() == reference.pack(buckets, nbits).tolist()
    rest = points - codec.vectors[codes]
    sizes = np.sqrt((rest**2).mean(axis=1, keepdims=True))
    slow = np.searchsorted(codec.bucket_cutoffs, rest / np.where(sizes > 0, sizes, 1))
    # A value at a cutoff may fall on either side, as sums are taken in another order.
    assert (buckets != slow).mean() < 0.001
    scales = residuals[:, 0] * np.float32(codec.scale_step)
    reconstructed = codec.reconstruct(codes, residuals)
    assert reconstructed.dtype == np.float32
    expected = reference.reconstruct(codes, buckets, codec.vectors, codec.bucket_weights, scales)
    np.testing.assert_allclose(reconstructed, expected, atol=1e-6)
    np.testing.assert_allclose(codec.decompress(codes, residuals), reference.normalized(expected), atol=1e-6)


def test_scales_leave_the_least_error_that_counts() -> None:
    points = directions(60, 32)
    codec = ResidualCodec.train(points, nbits=1, n_centroids=4)
    codes, residuals = codec.compress(points)
    assert codec.scale_step is not None
    weight = (32 - 1) * MATCH_COSINE**2 / (1 - MATCH_COSINE**2) - 1
    for point, code, row in zip(points, codes, residuals, strict=True):
        rounded = codec.bucket_weights[reference.unpack(row[None, 1:], 1, 32)[0]]
        best = reference.best_scale(point, codec.vectors[code], rounded, weight)
        assert row[0] * codec.scale_step == pytest.approx(min(best, 255 * codec.scale_step), abs=codec.scale_step)


def test_reconstructions_point_the_way_of_their_embeddings() -> None:
    points = directions(2000, 64)
    codec = ResidualCodec.train(points, nbits=2, n_centroids=32)
    along = (codec.reconstruct(*codec.compress(points)) * points).sum(axis=1)
    assert abs(along.mean() - 1) < 0.01


def test_weights_are_whole_levels() -> None:
    codec = ResidualCodec.train(directions(500, 16), nbits=4, n_centroids=8)
    levels = codec.bucket_weights / codec.level_step
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert np.abs(np.rint(levels)).max() == 127
    assert codec.levels_of_byte.view(np.int8).reshape(256, 2)[0x21].tolist() == np.rint(levels[[1, 2]]).tolist()


def test_more_bits_lose_less() -> None:
    points = directions(2000, 64)
    losses = []
    for nbits in NBITS:
        codec = ResidualCodec.train(points, nbits=nbits, n_centroids=32)
        losses.append(1 - float((codec.decompress(*codec.compress(points)) * points).sum(axis=1).mean()))
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1e-4


def test_float16_compresses_like_its_float32_value() -> None:
    points = directions(100, 32).astype(np.float16)
    codec = ResidualCodec.train(points, nbits=2, n_centroids=16)
    codes, residuals = codec.compress(points)
    same_codes, same_residuals = codec.compress(points.astype(np.float32))
    assert codes.tolist() == same_codes.tolist()
    assert residuals.tolist() == same_residuals.tolist()


def test_same_seed_same_codec() -> None:
    points = directions(900, 16)
    first, again = (ResidualCodec.train(points, nbits=4, n_centroids=64, seed=5) for _ in range(2))
    for name in ("centroids", "bucket_cutoffs", "bucket_weights", "avg_residual", "scale_step"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("n_tokens", [1, 2, 3, 19, 20, 399, 400])
def test_codec_can_be_trained_on_any_number_of_tokens(nbits: int, n_tokens: int) -> None:
    points = directions(n_tokens, 16)
    codec = ResidualCodec.train(points, nbits=nbits, n_centroids=n_centroids_for(n_tokens, 16, nbits))
    decompressed = codec.decompress(*codec.compress(points))
    assert decompressed.shape == points.shape and np.isfinite(decompressed).all()
    assert 1 <= codec.n_centroids <= n_centroids_for(n_tokens, 16, nbits)


@pytest.mark.parametrize("token", [[0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]])
def test_equal_tokens_have_one_centroid_and_come_back(token: list[float]) -> None:
    points = np.tile(np.array(token, np.float16), (50, 1))
    codec = ResidualCodec.train(points, nbits=2, n_centroids=10)
    assert codec.n_centroids == 1
    np.testing.assert_allclose(codec.decompress(*codec.compress(points)), points, atol=1e-6)


def test_no_two_centroids_are_equal() -> None:
    points = np.repeat(directions(5, 8), 20, axis=0)
    codec = ResidualCodec.train(points, nbits=2, n_centroids=30)
    assert len(np.unique(codec.centroids, axis=0)) == codec.n_centroids <= 5


def test_storing_the_centroids_of_a_codec_loses_nothing() -> None:
    codec = ResidualCodec.train(directions(500, 48), nbits=2, n_centroids=64)
    assert codec.centroids.dtype == np.int8
    np.testing.assert_array_equal(to_directions(codec.vectors), codec.directions)
    np.testing.assert_array_equal(from_directions(codec.directions), codec.vectors)
    np.testing.assert_allclose(codec.directions * codec.inverse_norms[:, None], codec.vectors, atol=1e-6)


def test_centroids_that_are_no_directions_keep_their_length() -> None:
    codec = small_codec(centroids=np.array([[3, 0, 0, 0], [0, 0.1, 0.2, 0], [0, 0, 0, 0]], np.float32))
    np.testing.assert_allclose(codec.directions * codec.inverse_norms[:, None], codec.vectors, atol=0.01)


finite = st.floats(-1e6, 1e6, width=32)


@given(arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=finite))
def test_snapped_centroids_survive_storage_exactly(centroids: Array) -> None:
    snapped = from_directions(to_directions(centroids))
    np.testing.assert_array_equal(from_directions(to_directions(snapped)), snapped)


@given(arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=finite))
def test_snapped_centroids_have_unit_length_or_none(centroids: Array) -> None:
    norms = np.linalg.norm(from_directions(to_directions(centroids)), axis=1)
    np.testing.assert_allclose(norms, np.where(centroids.any(axis=1), 1, 0), atol=1e-6)


@settings(max_examples=60)
@given(st.data())
def test_any_embeddings_round_trip_without_nan(data: st.DataObject) -> None:
    nbits, dim = data.draw(st.sampled_from(NBITS)), data.draw(st.integers(1, 12))
    shape = (data.draw(st.integers(1, 30)), dim)
    points = data.draw(arrays(np.float32, shape, elements=st.floats(-2, 2, width=16)))
    codec = ResidualCodec.train(points, nbits=nbits, n_centroids=data.draw(st.integers(1, 40)))
    codes, residuals = codec.compress(points)
    assert codes.max() < codec.n_centroids and residuals.shape == (len(points), codec.bytes_per_token)
    norms = np.linalg.norm(codec.decompress(codes, residuals).astype(np.float64), axis=1)
    assert np.all((np.abs(norms - 1) < 1e-5) | (norms < 1e-5))


@pytest.mark.parametrize("nbits", NBITS)
def test_least_squares_buckets_round_closer_than_quantiles(nbits: int) -> None:
    values = np.random.default_rng(0).standard_t(5, (2000, 8)).astype(np.float32)
    errors = []
    for cutoffs, weights in (least_squares_buckets(values, nbits), quantile_buckets(values, nbits)):
        assert (cutoffs.dtype, weights.dtype) == (np.float32, np.float32)
        assert np.all(np.diff(cutoffs) >= 0) and np.all(np.diff(weights) >= 0)
        errors.append(np.mean((weights[np.searchsorted(cutoffs, values)] - values) ** 2))
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize(
    ("n_tokens", "nbits", "expected"),
    [
        (1, 4, 1),
        (7, 4, 1),
        (8, 4, 2),
        (2156, 4, 539),
        (42_190, 4, 2_464),
        (1_231_699, 4, 31_273),
        (1_231_699, 2, 15_877),
        (7_000_000, 4, 52_428),
        (70_000_000, 4, 131_072),
    ],
)
def test_number_of_centroids_for_an_index(n_tokens: int, nbits: int, expected: int) -> None:
    assert n_centroids_for(n_tokens, 128, nbits) == expected


def test_number_of_centroids_needs_a_token() -> None:
    with pytest.raises(ValueError, match="at least 1 token"):
        n_centroids_for(0, 128, 4)


def small_codec(**changes: Any) -> ResidualCodec:
    arguments: dict[str, Any] = {
        "nbits": 2,
        "centroids": np.eye(4, dtype=np.float32),
        "bucket_cutoffs": np.zeros(3, np.float32),
        "bucket_weights": np.zeros(4, np.float32),
        "avg_residual": 0.1,
    }
    return ResidualCodec(**arguments | changes)


def test_codec_tells_its_measures() -> None:
    codec = small_codec(centroids=np.zeros((7, 5), np.float32))
    assert (codec.dim, codec.n_centroids, codec.bytes_per_token) == (5, 7, 2)
    assert small_codec(centroids=np.zeros((7, 5), np.float32), scale_step=1.0).bytes_per_token == 3


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"nbits": 3}, ValueError, "1, 2, 4 or 8, not 3"),
        ({"centroids": np.zeros(4, np.float32)}, ShapeError, r"n_centroids, dim"),
        ({"centroids": np.zeros((0, 4), np.float32)}, ShapeError, r"n_centroids, dim"),
        ({"bucket_cutoffs": np.zeros(4, np.float32)}, ShapeError, "3 cutoffs"),
        ({"bucket_weights": np.zeros(3, np.float32)}, ShapeError, "4 weights"),
    ],
)
def test_codec_refuses_arrays_that_do_not_fit(changes: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        small_codec(**changes)


@pytest.mark.parametrize(
    ("embeddings", "arguments", "error"),
    [
        (np.zeros((0, 4)), {"nbits": 2, "n_centroids": 1}, ShapeError),
        (np.zeros(4), {"nbits": 2, "n_centroids": 1}, ShapeError),
        (np.zeros((3, 4)), {"nbits": 5, "n_centroids": 1}, ValueError),
        (np.zeros((3, 4)), {"nbits": 2, "n_centroids": 0}, ValueError),
    ],
)
def test_training_refuses_wrong_arguments(embeddings: Array, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        ResidualCodec.train(embeddings, **arguments)


def test_compress_refuses_another_dim() -> None:
    with pytest.raises(ShapeError, match="dim 4"):
        small_codec().compress(np.zeros((2, 5), np.float32))


@pytest.mark.parametrize(
    ("codes", "residuals"),
    [
        (np.array([4], np.uint32), np.zeros((1, 1), np.uint8)),
        (np.array([-1]), np.zeros((1, 1), np.uint8)),
        (np.array([0], np.uint16), np.zeros((2, 1), np.uint8)),
        (np.array([0], np.uint16), np.zeros((1, 2), np.uint8)),
        (np.array([0], np.uint16), np.zeros((1, 1), np.int64)),
    ],
)
def test_decompress_refuses_what_does_not_belong_to_the_codec(codes: Array, residuals: Array) -> None:
    with pytest.raises(IndexCorrupt):
        small_codec().decompress(codes, residuals)


def test_nothing_compresses_to_nothing() -> None:
    codec = small_codec()
    codes, residuals = codec.compress(np.zeros((0, 4), np.float32))
    assert codec.decompress(codes, residuals).shape == (0, 4)


def test_arrays_from_a_file_need_not_be_writable_or_aligned() -> None:
    codec = small_codec(bucket_weights=np.array([-1, 0, 1, 2], np.float32))
    blob = b"?" + np.array([3, 1], "<u2").tobytes()
    codes = np.frombuffer(blob, "<u2", offset=1)
    residuals = np.frombuffer(b"\x1b\xff", np.uint8).reshape(2, 1)
    buckets = [[3, 2, 1, 0], [3, 3, 3, 3]]
    expected = reference.reconstruct(codes, buckets, codec.vectors, codec.bucket_weights, [1, 1])
    np.testing.assert_allclose(codec.decompress(codes, residuals), reference.normalized(expected), atol=1e-6)
