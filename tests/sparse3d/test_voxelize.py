"""Points to voxels: by hand, against loops over the 27 moves, against LGM's pairs, and what is flagged."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from levels import quick

from dyn_jax.sparse3d import near_voxels
from dyn_jax.sparse3d.allocate import near_coordinates
from dyn_jax.sparse3d.segments import segments
from dyn_jax.sparse3d.voxelize import (
    MOVES,
    first_of,
    hard_voxels,
    mean_over,
    own_voxel,
    point_scores,
    soft_features,
    weighted_mean,
)
from dyn_jax.types import PointCloud, Reach

L = 0.1
near = quick(near_voxels, static_argnames=("voxel_size", "voxels", "pairs"))


def cloud_of(xyz, valid=None, batch=None) -> PointCloud:
    xyz = jnp.asarray(xyz, jnp.float32)
    valid = jnp.ones(len(xyz), bool) if valid is None else jnp.asarray(valid)
    return PointCloud(xyz, jnp.ones((len(xyz), 1)), valid, batch)


def listed(pairs, points: int) -> list[tuple[int, tuple[int, ...], bool]]:
    """(point, voxel, inside) of every pair in use, in order."""
    point, row = np.asarray(pairs.points.group), np.asarray(pairs.voxels.group)
    assert ((point < points) == (row < pairs.sites.capacity)).all()
    coordinates, inside = np.asarray(pairs.sites.coordinates), np.asarray(pairs.inside)
    assert not inside[point >= points].any()
    return [(int(p), tuple(coordinates[r].tolist()), bool(i)) for p, r, i in zip(point, row, inside) if p < points]


def twin(xyz, step, origin=None, budget=None, rule="none"):
    """The same list by a loop over points and moves, in float32 with a budget test per axis."""
    found, size = [], np.float32(L)
    for point, p in enumerate(np.asarray(xyz, np.float32)):
        own = np.floor(p / size)
        for move in MOVES:
            q = own + move
            corner = np.floor((p + move.astype(np.float32) * np.float32(step)) / size)
            if (corner[move != 0] == own[move != 0]).any():
                continue
            if rule != "none" and move.any():
                low, high = q * size, (q + 1) * size
                if rule == "any":
                    fits = ((np.abs(low - origin[point]) < budget) | (np.abs(high - origin[point]) < budget)).any()
                else:
                    fits = ((low - origin[point] < budget) & (origin[point] - high < budget)).all()
                if not fits:
                    continue
            found.append((point, (0, *q.astype(int).tolist()), not move.any()))
    return found


def test_by_hand():
    """x = 0.09 reaches voxel 1 with a step of 0.02, y = 0.02 reaches -1 only with more than 0.02."""
    cloud = cloud_of([[0.09, 0.02, 0.05], [-0.05, 0.05, 0.05]])
    pairs = near(cloud, voxel_size=L, reach=0.02, voxels=8, pairs=8)
    assert listed(pairs, 2) == [(0, (0, 0, 0, 0), True), (0, (0, 1, 0, 0), False), (1, (0, -1, 0, 0), True)]
    np.testing.assert_allclose(pairs.distance[:3], [[0.4, 0.3, 0], [0.6, 0.3, 0], [0, 0, 0]], atol=1e-6)
    assert pairs.sites.coordinates[:3].tolist() == [[0, -1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert pairs.exists.tolist() == [True, True] + [False] * 6 and not pairs.overflow
    further = near(cloud, voxel_size=L, reach=Reach(0.021), voxels=8, pairs=8)
    assert [voxel for point, voxel, _ in listed(further, 2) if not point] == [
        *((0, 0, 0, 0), (0, 0, -1, 0), (0, 1, 0, 0), (0, 1, -1, 0))
    ]
    alone = near(cloud, voxel_size=L)
    assert listed(alone, 2) == [(0, (0, 0, 0, 0), True), (1, (0, -1, 0, 0), True)]


@pytest.mark.parametrize("rule", ["none", "all", "any"])
@pytest.mark.parametrize("step", [0.0, 0.03, 0.1])
def test_equals_a_loop(rule, step):
    rng = np.random.default_rng(1)
    xyz = rng.uniform(-0.4, 0.4, (60, 3)).astype(np.float32)
    origin = (xyz + rng.uniform(-0.05, 0.05, (60, 3))).astype(np.float32)
    reach = Reach(step, jnp.asarray(origin), 0.06, rule)
    pairs = near(cloud_of(xyz), voxel_size=L, reach=reach, voxels=1500, pairs=1700)
    expected = twin(xyz, step, origin, np.float32(0.06), rule)
    assert listed(pairs, 60) == expected and not pairs.overflow
    assert int(pairs.sites.count) == len({voxel for _, voxel, _ in expected})
    real = {voxel for _, voxel, inside in expected if inside}
    exists = np.asarray(pairs.sites.coordinates)[np.asarray(pairs.exists)]
    assert {tuple(site) for site in exists.tolist()} == real
    assert len(expected) == 60 if step == 0 else len(expected) > 80


@pytest.mark.parametrize("case", "abcd")
def test_golden_pairs(golden, case):
    arrays = golden("mink_lgm_voxels")
    sizes = []
    for rule in ("none", "all", "any"):
        reach = Reach(float(arrays[f"{case}/step"]), jnp.asarray(arrays["p0"]), float(arrays[f"{case}/budget"]), rule)
        cloud, size = cloud_of(arrays[f"{case}/points"]), float(arrays["voxel_size"])
        pairs = near(cloud, voxel_size=size, reach=reach, voxels=4000, pairs=14000)
        voxels = arrays[f"{case}/{rule}/voxels"]
        expected = zip(
            arrays[f"{case}/{rule}/pair_point"].tolist(), voxels[arrays[f"{case}/{rule}/pair_voxel"]].tolist()
        )
        got = listed(pairs, 500)
        assert sorted((p, v[1:]) for p, v, _ in got) == sorted((p, tuple(v)) for p, v in expected)
        assert sum(np.asarray(pairs.exists)) == arrays[f"{case}/{rule}/n_real"] and not pairs.overflow
        sizes.append(len(got))
    assert sizes[1] < sizes[2] <= sizes[0]  # control: the rules differ


@pytest.mark.parametrize("size", [0.1, 0.05, 0.02])
def test_the_voxel_is_the_floor_of_the_float32_quotient(size):
    """Also for points on the faces of the grid, eagerly, compiled and batched: NumPy counts the same voxels."""
    faces = (np.concatenate([np.arange(-300, 0), np.arange(1, 301)]) * size).astype(np.float32)
    xyz = np.stack([faces, np.nextafter(faces, np.float32(9e9)), np.nextafter(faces, np.float32(-9e9))], 1)
    expected = np.floor(xyz / np.float32(size)).astype(int)
    own = lambda xyz: own_voxel(cloud_of(xyz), size)[0]
    np.testing.assert_array_equal(own(xyz), expected)
    np.testing.assert_array_equal(jax.jit(own)(xyz), expected)
    np.testing.assert_array_equal(jax.jit(jax.vmap(own))(xyz.reshape(6, 100, 3)), expected.reshape(6, 100, 3))


def test_one_too_small_is_flagged_and_an_exact_fit_is_not():
    cloud = cloud_of(np.random.default_rng(2).uniform(-0.3, 0.3, (40, 3)))
    whole = near(cloud, voxel_size=L, reach=0.03, voxels=500, pairs=500)
    voxels, count = int(whole.sites.count), int(whole.points.count.sum())
    for (v, p), flagged in {(voxels, count): False, (voxels - 1, count): True, (voxels, count - 1): True}.items():
        assert bool(near(cloud, voxel_size=L, reach=0.03, voxels=v, pairs=p).overflow) == flagged
    hard = quick(hard_voxels, static_argnames=("voxel_size", "capacity"))
    needed = int(hard(cloud, voxel_size=L)[0].count)
    assert [bool(hard(cloud, voxel_size=L, capacity=needed - less)[2]) for less in (0, 1)] == [False, True]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, 6e4])
@pytest.mark.parametrize("reach", [None, 0.03])
def test_coordinates_that_are_no_place_are_flagged(bad, reach):
    xyz = np.random.default_rng(2).uniform(-0.3, 0.3, (8, 3)).astype(np.float32)
    spoilt = xyz.copy()
    spoilt[3, 1] = bad
    with jax.debug_nans(False):
        at = lambda xyz, valid=None: near(cloud_of(xyz, valid), voxel_size=L, reach=reach)
        pairs = at(spoilt)
        assert bool(pairs.overflow) and not at(xyz).overflow
        unused = np.arange(8) != 3
        assert not at(spoilt, unused).overflow
        clean = at(xyz, unused)
    kept = lambda pairs: [entry for entry in listed(pairs, 8) if entry[0] != 3] if reach else None
    assert kept(pairs) == kept(clean)


def test_points_too_far_apart_are_flagged():
    far = cloud_of([[0.0, 0, 0], [100.0, 100, 100]])
    assert not near(far, voxel_size=L).overflow  # 1e9 cells
    assert near(far.replace(xyz=far.xyz * 2), voxel_size=L).overflow


def test_batch_items_stay_apart():
    cloud = cloud_of([[0.05, 0.05, 0.05]] * 2, batch=jnp.array([0, 3]))
    assert [voxel for _, voxel, _ in listed(near(cloud, voxel_size=L, reach=0.0), 2)] == [(0, 0, 0, 0), (3, 0, 0, 0)]


@pytest.mark.parametrize(
    ("reach", "message"),
    [
        (Reach(0.11), "reach.step: got 0.1.*, expected at most one voxel"),
        (0.11, "reach.step: got 0.1.*, expected at most one voxel"),
        (-0.01, "reach: got -0.01, expected at least 0"),
        (Reach(jnp.zeros(2)), r"reach.step: got shape \(2,\), expected a number or \(1,\)"),
        (Reach(0.1, jnp.zeros((2, 3)), 0.1, "any"), r"reach.origin: got shape \(2, 3\), expected \(1, 3\)"),
        (Reach(-0.01), "reach.step: got -0.0"),
        (Reach(float("nan")), "reach.step: got nan"),
        (Reach(0.1, rule="any"), "reach: got no origin and budget"),
        (Reach(0.1, jnp.zeros((1, 3)), rule="all"), "reach: got no origin and budget"),
        (Reach(0.1, rule="some"), "reach.rule: got 'some'"),
    ],
)
def test_bad_reach(reach, message):
    with pytest.raises(ValueError, match=message):
        near_voxels(cloud_of([[0.0, 0, 0]]), L, reach=reach)


@pytest.mark.parametrize(
    ("step", "flagged"), [(0.1, False), (0.1001, True), (5.0, True), (-0.01, True), (np.nan, True)]
)
def test_a_traced_step_beyond_a_voxel_is_flagged(step, flagged):
    """Nothing is looked up beyond the 27 voxels, so the numbers would be wrong in silence."""
    with jax.debug_nans(False):
        assert bool(near(cloud_of([[0.05, 0.05, 0.05]]), voxel_size=L, reach=step).overflow) == flagged


def test_a_step_for_each_point():
    """As when every cloud of a batch has a step of its own: each point's pairs are those of its step."""
    xyz = np.random.default_rng(4).uniform(-0.4, 0.4, (30, 3))
    steps = np.where(np.arange(30) % 2, 0.09, 0.02).astype(np.float32)
    of = lambda step: listed(near(cloud_of(xyz), voxel_size=L, reach=Reach(step), voxels=810, pairs=810), 30)
    expected = sorted([e for e in of(0.09) if e[0] % 2] + [e for e in of(0.02) if not e[0] % 2])
    assert sorted(of(steps)) == expected
    assert len(expected) == len(near_coordinates(cloud_of(xyz), L, Reach(steps)))


def test_weighted_mean_by_hand():
    groups = segments(jnp.array([1, 1, 0, 4, 2, 2]), 4)
    values, weights = jnp.array([[1.0], [4], [5], [9], [1], [3]]), jnp.array([1.0, 2, 0, 1, 1e-30, 3e-30])
    np.testing.assert_allclose(weighted_mean(values, weights, groups), [[0], [3], [2.5], [0]], rtol=1e-6)
    gradient = jax.grad(lambda w: weighted_mean(values, w, groups)[1, 0])(weights)
    np.testing.assert_allclose(gradient, [-2 / 3, 1 / 3, 0, 0, 0, 0], rtol=1e-5)
    assert first_of(values, groups).ravel().tolist() == [5, 1, 1, 0]
    assert mean_over(values, groups).ravel().tolist() == [5, 2.5, 2, 0]


def test_soft_features_and_scores_by_hand():
    """Two points in one voxel weigh 1 and 3: their mean, and each point's share of the voxel's score."""
    pairs = near(cloud_of([[0.05, 0.05, 0.05], [0.02, 0.05, 0.05]]), voxel_size=L)
    relation = jnp.array([0.25, 0.75])
    assert soft_features(jnp.array([[1.0], [5.0]]), relation, pairs).tolist() == [[4], [0]]
    scores = jnp.array([[8.0], [0]])
    assert point_scores(scores, relation, pairs).tolist() == [[8], [8]]
    assert point_scores(scores, relation, pairs, normalise=False).tolist() == [[2], [6]]


def test_one_trace_and_batches():
    clouds = [
        (cloud_of(np.random.default_rng(seed).uniform(-0.2, 0.2, (20, 3))), jnp.float32(step))
        for seed, step in ((1, 0.0), (2, 0.03), (3, 0.1))
    ]

    def whole(cloud, step):
        return near_voxels(cloud, L, reach=step, voxels=300, pairs=500)

    once = quick(chex.assert_max_traces(whole, 1))
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    loop = [once(*given) for given in clouds]
    assert len({int(pairs.points.count.sum()) for pairs in loop}) == 3
    chex.assert_trees_all_close(quick(jax.vmap(whole))(*stack(clouds)), stack(loop), atol=1e-6)
