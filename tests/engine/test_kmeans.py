from __future__ import annotations

import numpy as np
import pytest

from colbert_sqlite.engine import kmeans
from tests import reference
from tests.reference import Array


def directions(n: int, dim: int, seed: int = 0, n_groups: int = 40) -> Array:
    rng = np.random.default_rng(seed)
    groups = rng.standard_normal((n_groups, dim))
    points = groups[rng.integers(0, n_groups, n)] + 0.6 * rng.standard_normal((n, dim))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def test_nearest_is_the_exact_argmax() -> None:
    points, centroids = directions(500, 12), directions(70, 12, seed=1)
    ids, similarities = kmeans.nearest(points, centroids)
    assert ids.tolist() == reference.nearest(points, centroids).tolist()
    np.testing.assert_allclose(similarities, (points @ centroids.T).max(axis=1), rtol=1e-6)


def test_nearest_of_equal_centroids_is_the_first() -> None:
    assert kmeans.nearest(np.ones((3, 4), np.float32), np.ones((9, 4), np.float32))[0].tolist() == [0, 0, 0]


def test_centroids_have_unit_length_and_the_number_asked_for() -> None:
    centroids = kmeans.train(directions(3000, 16), np.arange(3000), 100, seed=7)
    assert centroids.shape == (100, 16) and centroids.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)


def test_same_seed_same_centroids_and_another_seed_others() -> None:
    points = directions(2000, 8).astype(np.float16)
    first, again, other = (kmeans.train(points, np.arange(2000), 50, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_only_the_rows_named_are_learnt_from() -> None:
    points = directions(400, 8)
    points[1::2] = np.nan
    centroids = kmeans.train(points, np.arange(0, 400, 2), 20, seed=1)
    np.testing.assert_array_equal(centroids, kmeans.train(points[::2], np.arange(200), 20, seed=1))


def test_clusters_fit_better_than_random_points() -> None:
    points = directions(4000, 16)
    fit = kmeans.nearest(points, kmeans.train(points, np.arange(4000), 40, seed=1))[1].mean()
    assert fit > kmeans.nearest(points, points[:40])[1].mean() + 0.03


@pytest.mark.parametrize("n_points", [1, 2, 5])
def test_fewer_points_than_centroids_give_one_centroid_each(n_points: int) -> None:
    points = directions(n_points, 6)
    centroids = kmeans.train(points, np.arange(n_points), 8, seed=1)
    np.testing.assert_allclose(np.sort(centroids, axis=0), np.sort(points, axis=0), atol=1e-6)


def test_equal_points_and_zeros_give_no_nan() -> None:
    points = np.zeros((30, 4), np.float32)
    points[10:] = [0.5, 0.5, 0.5, 0.5]
    centroids = kmeans.train(points, np.arange(30), 7, seed=1)
    assert centroids.shape == (7, 4) and np.isfinite(centroids).all()


def test_empty_cluster_starts_again_where_points_fit_worst() -> None:
    points = np.repeat(np.eye(6, dtype=np.float32), [50, 1, 1, 1, 1, 1], axis=0)
    centroids = kmeans.train(points, np.arange(55), 6, seed=3)
    np.testing.assert_allclose(kmeans.nearest(points, centroids)[1], 1, atol=1e-6)


@pytest.fixture(scope="module")
def many_centroids() -> tuple[Array, Array]:
    points = directions(12_000, 16, n_groups=300)
    return points, kmeans.train(points, np.arange(len(points)), 5000, seed=1)


def test_two_levels_give_exactly_as_many_centroids(many_centroids: tuple[Array, Array]) -> None:
    _, centroids = many_centroids
    assert centroids.shape == (5000, 16)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)


def test_two_levels_find_nearly_the_nearest_centroid(many_centroids: tuple[Array, Array]) -> None:
    points, centroids = many_centroids
    found = kmeans.NearestCentroid(centroids, kmeans.cells_of(centroids)).of(points)
    exact, best = kmeans.nearest(points, centroids)
    assert np.mean(found == exact) > 0.95
    assert np.mean(best - (points * centroids[found]).sum(axis=1)) < 0.002


def test_the_nearest_centroid_depends_on_the_centroids_alone(many_centroids: tuple[Array, Array]) -> None:
    points, centroids = many_centroids
    whole = kmeans.NearestCentroid(centroids, kmeans.cells_of(centroids)).of(points)
    parts = kmeans.NearestCentroid(centroids.copy(), kmeans.cells_of(centroids))
    assert np.concatenate([parts.of(points[9000:]), parts.of(points[:9000])]).tolist() == (
        np.concatenate([whole[9000:], whole[:9000]]).tolist()
    )


def test_no_embeddings_have_no_centroids(many_centroids: tuple[Array, Array]) -> None:
    _, centroids = many_centroids
    assert kmeans.NearestCentroid(centroids, kmeans.cells_of(centroids)).of(np.empty((0, 16), np.float32)).shape == (0,)


@pytest.mark.parametrize(
    ("sizes", "total", "shares"),
    [([10, 10], 4, [2, 2]), ([97, 1, 0, 2], 5, [3, 1, 0, 1]), ([5, 1, 1], 6, [4, 1, 1]), ([1, 1, 1], 3, [1, 1, 1])],
)
def test_centroids_are_shared_out_by_cell_size(sizes: list[int], total: int, shares: list[int]) -> None:
    assert kmeans._shares(np.array(sizes), total).tolist() == shares
