"""Capacities counted on the host: what they hold, how few they are, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from levels import quick

from dyn_jax.sparse3d import allocate, bucket, capacity_for, from_numpy, near_voxels, point_cloud
from dyn_jax.sparse3d.allocate import Capacity, level_counts
from dyn_jax.sparse3d.passage import pyramid
from dyn_jax.types import Reach

L, LEVELS = 0.1, 4


def made(seed: int, count: int, reach: Reach | None = None):
    rng = np.random.default_rng(seed)
    return point_cloud(rng.uniform(-1, 1, (count, 3)), rng.random((count, 3)), reach=reach)


def test_buckets_by_hand():
    expected = {0: 32, 1: 32, 32: 32, 33: 40, 40: 40, 41: 48, 57: 64, 64: 64, 65: 80, 81: 96, 128: 128, 129: 160}
    assert {count: bucket(count) for count in expected} == expected


@given(st.integers(0, 10**7), st.integers(0, 10**4))
def test_buckets_hold_grow_and_waste_little(count, more):
    size = bucket(count)
    assert size >= max(count, 32) and bucket(size) == size
    assert bucket(count + more) >= size
    assert size == 32 or size < 1.25 * count  # four sizes per doubling
    assert len({bucket(n) for n in range(1024, 2049)}) == 5


@pytest.mark.parametrize(("count", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_counts(count, error):
    with pytest.raises(error, match="count: got"):
        bucket(count)


def test_level_counts_by_hand():
    line = np.array([[0, x, 0, 0] for x in (-3, -1, 0, 1, 2, 2)] + [[1, 0, 0, 0]])
    assert level_counts(line, 4) == [6, 5, 3, 3]  # x of batch 0: {-4, -2, 0, 2}, {-4, 0}, {-8, 0}


@pytest.mark.parametrize("step", [None, 0.0, 0.04, 0.1])
def test_a_capacity_holds_what_it_was_counted_for(step):
    """Counts by NumPy equal those under jit on every level, for points on the grid's faces too."""
    rng = np.random.default_rng(3)
    xyz = np.where(rng.random((90, 3)) < 0.5, rng.uniform(-1, 1, (90, 3)), rng.integers(-10, 10, (90, 3)) * L)
    cloud = point_cloud(xyz, np.zeros((90, 1)), points=100, reach=None if step is None else Reach(step))
    capacity = capacity_for(cloud, L, LEVELS)
    assert (capacity.pairs is None) == (step is None) and len(capacity.levels) == LEVELS

    @quick
    def count(cloud):
        pairs = near_voxels(cloud, L, voxels=2500, pairs=2500)
        levels = pyramid(pairs.sites, (2,) * (LEVELS - 1))
        return pairs.points.count.sum(), [level.count for level in levels], levels[-1].overflow | pairs.overflow

    pairs, counts, overflow = count(cloud)
    assert not overflow and [bucket(int(n)) for n in counts] == list(capacity.levels)
    assert step is None or bucket(int(pairs)) == capacity.pairs
    assert capacity_for(cloud, L, LEVELS, extends=False).pairs is None


def test_slack_and_bounds():
    cloud = made(1, 100, Reach(0.05))
    exact, roomy = (capacity_for(cloud, L, LEVELS, slack=slack) for slack in (1.0, 2.0))
    assert all(a <= b for a, b in zip(exact.levels, roomy.levels)) and roomy.pairs > 1.5 * exact.pairs
    bounds = []
    jax.jit(lambda c: bounds.append([capacity_for(c, L, 3), capacity_for(c.replace(reach=None), L, 3)]))(cloud)
    assert bounds == [[Capacity((400,) * 3, 400), Capacity((100,) * 3)]]
    tensor = from_numpy(np.array([[0, x, 0, 0] for x in range(50)]), np.zeros((50, 1), np.float32))
    assert capacity_for(tensor, None, 3) == Capacity((56, 32, 32))
    jax.jit(lambda t: bounds.append(capacity_for(t, None, 3)))(tensor)
    assert bounds[1] is None


@pytest.mark.parametrize("reach", [None, Reach(0.05)])
@pytest.mark.parametrize("shapes", [1, 3])
def test_twelve_clouds_share_few_shapes(reach, shapes):
    """At most `shapes` distinct (points, capacity), and every cloud's need is met."""
    clouds = [made(seed, 40 + 37 * seed, reach) for seed in (5, 1, 9, 11, 0, 2, 7, 4, 10, 3, 8, 6)]
    given = allocate(clouds, L, LEVELS, shapes=shapes)
    assert len({(cloud.xyz.shape[0], capacity) for cloud, capacity in given}) <= shapes
    for before, (cloud, capacity) in zip(clouds, given):
        count = before.xyz.shape[0]
        assert cloud.xyz.shape[0] >= count and int(cloud.valid.sum()) == count
        np.testing.assert_array_equal(cloud.xyz[:count], before.xyz)
        np.testing.assert_array_equal(cloud.features[:count], before.features)
        need = capacity_for(before, L, LEVELS, slack=1.2)
        assert all(a >= b for a, b in zip(capacity.levels, need.levels))
        assert capacity_for(cloud, L, LEVELS) == capacity_for(before, L, LEVELS)  # what fills up needs nothing
        assert capacity.pairs is None if reach is None else capacity.pairs >= need.pairs


def test_a_single_cloud_and_an_origin_and_a_batch():
    cloud = made(1, 33)
    cloud = cloud.replace(batch=jnp.arange(33), reach=Reach(0.01, cloud.xyz + 0.001, 0.1, "any"))
    ((filled, _),) = allocate([cloud], L, LEVELS)
    assert filled.xyz.shape == filled.reach.origin.shape == (40, 3) and filled.batch.shape == (40,)
    np.testing.assert_array_equal(filled.reach.origin[:33], cloud.reach.origin)


def test_no_clouds():
    assert allocate([], L, LEVELS) == []


def test_point_cloud_fills_up():
    cloud = point_cloud([[1, 2, 3], [4, 5, 6]], [[7], [8]], points=4)
    assert cloud.xyz.tolist() == [[1, 2, 3], [4, 5, 6], [1, 2, 3], [1, 2, 3]] and cloud.xyz.dtype == jnp.float32
    assert cloud.features.ravel().tolist() == [7, 8, 7, 7] and cloud.valid.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("xyz", "features", "points", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 1)), None, r"xyz: got shape \(3, 2\)"),
        (np.zeros((0, 3)), np.zeros((0, 1)), None, r"xyz: got shape \(0, 3\)"),
        (np.zeros((3, 3)), np.zeros((2, 1)), None, r"features: got shape \(2, 1\), expected \[3, channels\]"),
        (np.zeros((3, 3)), np.zeros(3), None, r"features: got shape \(3,\)"),
        (np.full((3, 3), np.nan), np.zeros((3, 1)), None, "xyz: got 3 points with NaN"),
        (np.zeros((3, 3)), np.array([[0], [np.inf], [0]]), None, "features: got 1 points with NaN"),
        (np.zeros((3, 3)), np.zeros((3, 1)), 2, "points: got 2, expected at least 3"),
    ],
)
def test_bad_points(xyz, features, points, message):
    with pytest.raises(ValueError, match=message):
        point_cloud(xyz, features, points=points)


@pytest.mark.parametrize(("options", "message"), [({"slack": 0.9}, "slack: got 0.9"), ({"shapes": 0}, "shapes: got 0")])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        allocate([made(1, 10)], L, LEVELS, **options)
    with pytest.raises(ValueError, match="levels: got 0"):
        capacity_for(made(1, 10), L, 0)
