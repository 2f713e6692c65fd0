"""Procedural objects: surfaces with known areas, and what the description promises."""

from __future__ import annotations

import numpy as np
import pytest

from dyn_jax.datasets.objects import OBJECT_CLASSES, _leave_out, objects
from dyn_jax.datasets.objects_shapes import SHAPES, Shape, _arc, sample, turned
from dyn_jax.datasets.points import into_unit_sphere


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.fixture(scope="module")
def train():
    return objects("train")


@pytest.fixture(scope="module")
def test():
    return objects("test")


def test_unit_sphere_by_hand():
    """Points 0 and 4 along x: mean 2, radius 2."""
    np.testing.assert_array_equal(into_unit_sphere(np.array([[0.0, 1, 1], [4, 1, 1]])), [[-1, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(into_unit_sphere(np.full((3, 3), 2.0)), np.zeros((3, 3)))


def test_cylinder_by_hand():
    """Radius 1, height 2: the areas are 4 pi (side), pi and pi: two thirds, one sixth each end."""
    xyz = sample(generator(0), Shape(frustums=turned((0, 0), (1, 0), (1, 2), (0, 2))), 20_000)
    radius = np.hypot(xyz[:, 0], xyz[:, 1])
    bottom, top = xyz[:, 2] == 0, xyz[:, 2] == 2
    np.testing.assert_allclose(radius[~bottom & ~top], 1, atol=1e-12)
    np.testing.assert_allclose([bottom.mean(), top.mean()], 1 / 6, atol=0.01)
    assert np.mean(radius[top] ** 2) == pytest.approx(0.5, abs=0.02)  # uniform on a disc
    assert xyz[~bottom & ~top, 2].mean() == pytest.approx(1, abs=0.02)


def test_cone_by_hand():
    """The side of a cone of radius 3 and height 4 has area 15 pi, its base 9 pi; the side's mean height is 4 / 3."""
    xyz = sample(generator(1), Shape(frustums=turned((0, 0), (3, 0), (0, 4))), 20_000)
    side = xyz[:, 2] > 0
    assert side.mean() == pytest.approx(15 / 24, abs=0.01)
    assert xyz[side, 2].mean() == pytest.approx(4 / 3, abs=0.03)
    np.testing.assert_allclose(np.hypot(xyz[side, 0], xyz[side, 1]), 3 - 0.75 * xyz[side, 2], atol=1e-9)


def test_sphere_and_torus():
    """Archimedes: heights on a sphere are uniform. Torus: mean distance from the axis R + r^2 / 2R (R = 1)."""
    z = sample(generator(2), Shape(frustums=_arc(1.0, 0.0, -np.pi / 2, np.pi / 2)), 20_000)[:, 2]
    np.testing.assert_allclose(np.quantile(z, [0.1, 0.25, 0.5, 0.9]), [-0.8, -0.5, 0, 0.8], atol=0.03)
    xyz = sample(generator(3), Shape(frustums=_arc(0.4, 0.0, 0.0, 2 * np.pi, distance=1.0)), 20_000)
    assert np.hypot(xyz[:, 0], xyz[:, 1]).mean() == pytest.approx(1 + 0.08, abs=0.01)


def test_flat_pieces():
    """A triangle and a parallelogram of twice its area: one third and two thirds, means at their centroids."""
    corner = np.array([[(0, 0, 0), (3, 0, 0), (0, 3, 0)]], float)
    xyz = sample(
        generator(4), Shape(patches=corner + np.array([[[0, 0, 1], [0] * 3, [0] * 3]]), triangles=corner), 20_000
    )
    low = xyz[:, 2] == 0
    assert low.mean() == pytest.approx(1 / 3, abs=0.02)
    assert np.all(xyz[low, :2].sum(1) <= 3) and xyz[~low, :2].sum(1).max() > 5
    np.testing.assert_allclose(xyz[low].mean(0), [1, 1, 0], atol=0.04)
    np.testing.assert_allclose(xyz[~low].mean(0), [1.5, 1.5, 1], atol=0.04)


@pytest.mark.parametrize("name", OBJECT_CLASSES)
def test_shapes_are_surfaces(name):
    for seed in range(5):
        xyz = sample(generator(seed), SHAPES[name](generator(seed)), 500)
        assert xyz.shape == (500, 3) and np.isfinite(xyz).all()
        assert np.all(np.ptp(xyz, axis=0) > 0.2) and len(np.unique(xyz, axis=0)) == 500


def test_left_out_patches_are_holes():
    """A third at most is missing, all of it near a few places; what is left are points of the cloud."""
    cloud = generator(0).random((1500, 3))
    index = {tuple(p): i for i, p in enumerate(cloud.tolist())}
    holes = []
    for seed in range(30):
        left = _leave_out(generator(seed), cloud, 1000)
        assert left.shape == (1000, 3) and len({index[tuple(p)] for p in left.tolist()}) == 1000
        last = index[tuple(left[-1].tolist())]
        holes.append(last + 1 - 1000)
    assert min(holes) == 0 and 300 < max(holes) <= 500


def test_shape_and_range(train, test):
    for data, count in ((train, 800), (test, 200)):
        assert data.xyz.shape == (count, 1024, 3) and data.xyz.dtype == np.float32
        assert data.labels.shape == (count,) and data.labels.dtype == np.int32
        assert np.bincount(data.labels).tolist() == [count // 10] * 10 == [count // 10] * len(OBJECT_CLASSES)
        np.testing.assert_allclose(np.linalg.norm(data.xyz, axis=2).max(1), 1, atol=1e-6)
        np.testing.assert_allclose(data.xyz.mean(1), 0, atol=1e-6)


def test_deterministic_and_disjoint(train, test):
    few = objects("train", 12)
    np.testing.assert_array_equal(few.xyz, train.xyz[:12])
    np.testing.assert_array_equal(few.labels, train.labels[:12])
    clouds = [cloud.tobytes() for cloud in (*train.xyz, *test.xyz, *objects("train", 20, seed=1).xyz)]
    assert len(set(clouds)) == 1020
    assert objects("test", 11, points=300).xyz.shape == (11, 300, 3)


def test_objects_are_fixed(test):
    """Weights are trained on them: a change would show test objects to the networks."""
    np.testing.assert_allclose(test.xyz[3, 0], [-0.111376, -0.706977, -0.062679], atol=1e-5)
    np.testing.assert_allclose(test.xyz[19, 1023], [0.295323, 0.025925, 0.040019], atol=1e-5)


def test_classes_can_be_learnt(train, test):
    """Nearest neighbours in a histogram over (distance from the axis, height); with shuffled labels: chance."""
    from sklearn.neighbors import KNeighborsClassifier

    def features(xyz):
        radius = np.hypot(xyz[..., 0], xyz[..., 1])
        cell = np.clip(radius * 10, 0, 9).astype(int) * 10 + np.clip(xyz[..., 2] * 5 + 5, 0, 9).astype(int)
        return np.sqrt(np.stack([np.bincount(row, minlength=100) for row in cell]))

    x, y = features(train.xyz), features(test.xyz)
    assert KNeighborsClassifier(3).fit(x, train.labels).score(y, test.labels) > 0.8
    shuffled = generator(0).permutation(train.labels)
    assert KNeighborsClassifier(3).fit(x, shuffled).score(y, test.labels) < 0.25


def test_refusals():
    with pytest.raises(ValueError, match="split: got 'valid'"):
        objects("valid")
    with pytest.raises(ValueError, match="points: got 1, expected at least 2"):
        objects(points=1)
    with pytest.raises(TypeError, match="count: got 2.0"):
        objects(count=2.0)
