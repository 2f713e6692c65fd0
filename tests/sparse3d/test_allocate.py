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
from dyn_jax.sparse3d.allocate import Capacity, level_counts, near_coordinates
from dyn_jax.sparse3d.passage import pyramid
from dyn_jax.types import PointCloud, Reach

L, LEVELS = 0.1, 4


def made(seed: int, count: int):
    rng = np.random.default_rng(seed)
    return point_cloud(rng.uniform(-1, 1, (count, 3)), rng.random((count, 3)))


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


def test_double_precision_is_counted_in_it():
    """A point this close below a face lies beyond it in float32, where another one is already."""
    faces = 3 * L * np.arange(1, 33)
    x = np.concatenate([faces, faces - 1e-10])
    with jax.enable_x64(True):
        xyz = jnp.stack([jnp.asarray(x), jnp.zeros(64), jnp.zeros(64)], axis=1)
        cloud = PointCloud(xyz, jnp.zeros((64, 1)), jnp.ones(64, bool))
        capacity = capacity_for(cloud, L, 1)
        sites = near_voxels(cloud, L, voxels=capacity.levels[0]).sites
    assert not bool(sites.overflow) and int(sites.count) > 32


@pytest.mark.parametrize(("count", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_counts(count, error):
    with pytest.raises(error, match="count: got"):
        bucket(count)


def test_level_counts_by_hand():
    line = np.array([[0, x, 0, 0] for x in (-3, -1, 0, 1, 2, 2)] + [[1, 0, 0, 0]])
    assert level_counts(line, 4) == [6, 5, 3, 3]  # x of batch 0: {-4, -2, 0, 2}, {-4, 0}, {-8, 0}


@quick
def counted(cloud, step):
    """(pairs, sites of every level, overflow) under jit, the step traced; compiled once with a step, once without."""
    pairs = near_voxels(cloud, L, reach=step, voxels=2500, pairs=2500)
    levels = pyramid(pairs.sites, (2,) * (LEVELS - 1))
    return (
        pairs.points.count.sum(),
        [level.count for level in levels],
        jnp.any(jnp.stack([pairs.overflow, *(level.overflow for level in levels)])),
    )


@pytest.mark.parametrize("step", [None, 0.0, 0.04, 0.1])
def test_a_capacity_holds_what_it_was_counted_for(step):
    """Counts by NumPy equal those under jit on every level, for points on the grid's faces too."""
    rng = np.random.default_rng(3)
    xyz = np.where(rng.random((90, 3)) < 0.5, rng.uniform(-1, 1, (90, 3)), rng.integers(-10, 10, (90, 3)) * L)
    cloud = point_cloud(xyz, np.zeros((90, 1)), points=100)
    capacity = capacity_for(cloud, L, LEVELS, reach=step)
    assert (capacity.pairs is None) == (step is None) and len(capacity.levels) == LEVELS

    pairs, counts, overflow = counted(cloud, step)
    assert not overflow and [bucket(int(n)) for n in counts] == list(capacity.levels)
    assert step is None or bucket(int(pairs)) == capacity.pairs
    assert capacity_for(cloud, L, LEVELS, reach=step, extends=False) == capacity_for(cloud, L, LEVELS)


def test_slack_and_bounds():
    cloud = made(1, 100)
    exact, roomy = (capacity_for(cloud, L, LEVELS, reach=0.05, slack=slack) for slack in (1.0, 2.0))
    assert all(a <= b for a, b in zip(exact.levels, roomy.levels)) and roomy.pairs > 1.5 * exact.pairs
    bounds = []
    given = [None, 0.0, 0.04, 0.05, Reach(0.1)]
    jax.jit(lambda c: bounds.append([capacity_for(c, L, 3, reach=reach) for reach in given]))(cloud)
    eight, all_moves = Capacity((800,) * 3, 800), Capacity((2700, 800, 800), 2700)
    assert bounds == [[Capacity((100,) * 3), Capacity((100,) * 3, 100), eight, all_moves, all_moves]]
    jax.jit(lambda step: bounds.append([capacity_for(cloud, L, 3, reach=step, extends=e) for e in (True, False)]))(0.01)
    assert bounds[1] == [all_moves, capacity_for(cloud, L, 3)]
    tensor = from_numpy(np.array([[0, x, 0, 0] for x in range(50)]), np.zeros((50, 1), np.float32))
    assert capacity_for(tensor, None, 3) == Capacity((56, 32, 32))
    jax.jit(lambda t: bounds.append(capacity_for(t, None, 3)))(tensor)
    assert bounds[2] is None


@pytest.mark.parametrize("step", [0.0049, 0.01, 0.0199])
def test_the_bound_always_fits(step):
    """Points at random, on the faces and in the middle of 2 cm voxels, none of which two share."""
    rng = np.random.default_rng(0)
    places = np.concatenate([rng.random((40, 3)), np.zeros((20, 3)), np.full((20, 3), 0.5)])
    cells = np.stack(np.unravel_index(rng.choice(1000, 80, replace=False), (10, 10, 10)), axis=1)
    xyz = (places + 3 * cells) * 0.02
    cloud = point_cloud(xyz, np.zeros((80, 1)))

    @quick
    def whole(cloud):
        capacity = capacity_for(cloud, 0.02, 3, reach=step)
        pairs = near_voxels(cloud, 0.02, reach=step, voxels=capacity.levels[0], pairs=capacity.pairs)
        levels = pyramid(pairs.sites, (2, 2), capacity.levels)
        return pairs.points.count.sum(), jnp.any(jnp.stack([pairs.overflow, *(level.overflow for level in levels)]))

    pairs, overflow = whole(cloud)
    assert not overflow and pairs == len(near_coordinates(cloud, 0.02, step))
    assert step < 0.01 or pairs > 4 * 80  # control: four pairs for each point would not do


def test_clouds_share_a_capacity():
    clouds = [made(seed, 40 + 30 * seed) for seed in range(4)]
    each = [capacity_for(cloud, L, LEVELS, reach=0.04, slack=1.5) for cloud in clouds]
    shared = capacity_for(clouds, L, LEVELS, reach=0.04, slack=1.5)
    assert shared.pairs == max(need.pairs for need in each)
    assert shared.levels == tuple(np.max([need.levels for need in each], axis=0))
    assert capacity_for(clouds, L, LEVELS).pairs is None
    with pytest.raises(ValueError, match="inputs: got no clouds"):
        capacity_for([], L, LEVELS)


@pytest.mark.parametrize("reach", [None, 0.05])
@pytest.mark.parametrize("shapes", [1, 3])
def test_twelve_clouds_share_few_shapes(reach, shapes):
    """At most `shapes` distinct (points, capacity), and every cloud's need is met."""
    clouds = [made(seed, 40 + 37 * seed) for seed in (5, 1, 9, 11, 0, 2, 7, 4, 10, 3, 8, 6)]
    given = allocate(clouds, L, LEVELS, reach=reach, shapes=shapes)
    assert len({(cloud.xyz.shape[0], capacity) for cloud, capacity in given}) <= shapes
    for before, (cloud, capacity) in zip(clouds, given):
        count = before.xyz.shape[0]
        assert cloud.xyz.shape[0] >= count and int(cloud.valid.sum()) == count
        np.testing.assert_array_equal(cloud.xyz[:count], before.xyz)
        np.testing.assert_array_equal(cloud.features[:count], before.features)
        need = capacity_for(before, L, LEVELS, reach=reach, slack=1.2)
        assert all(a >= b for a, b in zip(capacity.levels, need.levels))
        assert capacity_for(cloud, L, LEVELS) == capacity_for(before, L, LEVELS)  # what fills up needs nothing
        assert capacity.pairs is None if reach is None else capacity.pairs >= need.pairs


def test_a_single_cloud_and_a_batch():
    cloud = made(1, 33).replace(batch=jnp.arange(33), clouds=33)
    ((filled, _),) = allocate([cloud], L, LEVELS)
    assert filled.xyz.shape == (40, 3) and filled.batch.shape == (40,) and filled.clouds == 33
    np.testing.assert_array_equal(filled.batch[:33], cloud.batch)


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
