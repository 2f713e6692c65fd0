"""How points enter a network and how scores leave it: the soft forms against the original, on a small MinkUNet."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from levels import quick

from dyn_jax.networks.minkunet import MinkUNet
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d import PAPER, RELEASE, any_of, capacity_for, from_numpy, near_voxels, point_cloud
from dyn_jax.sparse3d.entry import (
    SoftPoints,
    default_capacity,
    enter,
    flag_overflow,
    soft_floor,
    soft_voxel_features,
)
from dyn_jax.types import PointCloud, Reach

L, POINTS = 0.1, 60
HALF, STILL = 0.05, 0.0  # steps
NET = MinkUNet(planes=(4,) * 8, layers=(1,) * 8, stem_features=4, stem_size=3, num_classes=3, voxel_size=L)


@flax.struct.dataclass
class Mixed:
    """A relation between the step (share 1) and a sigmoid (share 0): one structure, so one compilation."""

    share: jax.typing.ArrayLike

    def __call__(self, distance, inside):
        return self.share * inside + (1 - self.share) * voxel.sigmoid(10.0)(distance, inside)


HARD, SOFT = Mixed(jnp.float32(1)), Mixed(jnp.float32(0))


def colours(sites) -> np.ndarray:
    """A colour for every site, so that points of one voxel agree on it."""
    return np.sin(np.asarray(sites, np.float64) @ np.array([[12.9, 3.1, 7.7], [78.2, 1.3, 0.7], [37.7, 9.2, 5.5]]))


@pytest.fixture(scope="module")
def scene():
    """(cloud, voxel of every point, capacity for a reach of half a voxel); two points in some voxels."""
    rng = np.random.default_rng(0)
    sites = rng.integers(-5, 5, (45, 3))
    sites = np.concatenate([sites, sites[:15]])
    xyz = (sites + rng.uniform(0.2, 0.8, (POINTS, 3))) * L
    cloud = point_cloud(xyz, colours(sites), points=72)
    return cloud, sites, capacity_for(cloud, L, 5, reach=HALF, slack=1.3)


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(NET.init, jax.random.key(0), NET.example_input())
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32)
    drawn = jax.tree.map(draw, shapes)
    drawn["batch_stats"] = jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.5, drawn["batch_stats"])
    return drawn


@pytest.fixture(scope="module")
def hard_scores(scene, variables):
    """Scores of the original network on points; compiled once."""
    run = quick(lambda cloud: NET.apply(variables, cloud, capacity=scene[2]))
    return lambda cloud: run(cloud).logits


@pytest.fixture(scope="module")
def soft_scores(scene, variables):
    """Scores with a relation of every place, as the release computes them; compiled once."""
    run = quick(
        lambda cloud, relation, step: NET.apply(
            variables, cloud, reach=Reach(step), occupancy=voxel.lgm(relation), capacity=scene[2], form=RELEASE
        )
    )

    def scores(cloud, relation, step=HALF):
        output = run(cloud, relation, step)
        assert not output.trace.overflow
        return output.logits

    return scores


def test_points_equal_voxels_with_the_same_scores_on_every_point(scene, variables, hard_scores):
    """Floor, first point's colour, network on the sparse tensor, score of the point's voxel."""
    cloud, sites, capacity = scene
    tensor = from_numpy(
        np.concatenate([np.zeros((POINTS, 1), int), sites], 1), np.asarray(cloud.features)[:POINTS], capacity=64
    )
    scores = quick(lambda tensor: NET.apply(variables, tensor, capacity=capacity))(tensor).logits
    where = {
        tuple(site): row
        for row, site in enumerate(np.asarray(tensor.coordinates)[:, 1:][np.asarray(tensor.valid)].tolist())
    }
    expected = np.asarray(scores)[[where[tuple(site)] for site in sites.tolist()]]
    got = hard_scores(cloud)
    np.testing.assert_allclose(got[:POINTS], expected, atol=1e-4)
    np.testing.assert_array_equal(got[POINTS:], 0)
    assert expected.std(axis=0).min() > 1e-2  # control: the network sees its input


def test_extended_voxels_do_not_change_the_existing_network(scene, hard_scores, soft_scores):
    """With the step's value, voxels that are only near a point are there and change nothing."""
    cloud, _, _ = scene
    voxels = quick(lambda step: near_voxels(cloud, L, reach=step, voxels=900, pairs=900).sites.count)
    assert int(voxels(HALF)) > 1.5 * int(voxels(STILL))
    expected = hard_scores(cloud)
    np.testing.assert_allclose(soft_scores(cloud, HARD, STILL), expected, atol=1e-4)
    np.testing.assert_allclose(soft_scores(cloud, HARD), expected, atol=1e-4)
    assert np.abs(soft_scores(cloud, SOFT) - expected).max() > 1e-2  # control


@pytest.mark.slow
def test_the_same_in_the_papers_form(scene, variables, hard_scores):
    """Also with the paper's form and the straight-through relation itself, whose gradient is not 0."""
    cloud, _, capacity = scene

    @quick
    def run(xyz):
        given, occupancy = cloud.replace(xyz=xyz), voxel.straight_through()
        return NET.apply(variables, given, reach=HALF, occupancy=occupancy, capacity=capacity).logits

    np.testing.assert_allclose(run(cloud.xyz), hard_scores(cloud), atol=1e-4)


def test_the_order_of_the_points_does_not_matter(scene, hard_scores, soft_scores):
    cloud, _, _ = scene
    order = np.random.default_rng(2).permutation(72)
    shuffled = cloud.replace(xyz=cloud.xyz[order], features=cloud.features[order], valid=cloud.valid[order])
    np.testing.assert_allclose(hard_scores(shuffled), hard_scores(cloud)[order], atol=1e-5)
    np.testing.assert_allclose(soft_scores(shuffled, SOFT), soft_scores(cloud, SOFT)[order], atol=1e-4)


def test_points_that_fill_up_do_not_matter(scene, hard_scores, soft_scores):
    cloud, _, _ = scene
    junk = jnp.where(cloud.valid[:, None], cloud.xyz, 0.3), jnp.where(cloud.valid[:, None], cloud.features, 99.0)
    other = cloud.replace(xyz=junk[0], features=junk[1])
    np.testing.assert_array_equal(hard_scores(other), hard_scores(cloud))
    np.testing.assert_array_equal(soft_scores(other, SOFT)[:POINTS], soft_scores(cloud, SOFT)[:POINTS])


def test_a_move_by_sixteen_voxels_leaves_the_scores(scene, hard_scores):
    cloud, _, _ = scene
    moved = lambda voxels: cloud.replace(xyz=cloud.xyz + jnp.array(voxels)[None] * L)
    np.testing.assert_array_equal(hard_scores(moved([16.0, -32.0, 48.0])), hard_scores(cloud))
    assert np.abs(hard_scores(moved([1.0, 0.0, 0.0])) - hard_scores(cloud)).max() > 1e-3  # control


def test_fgm_is_lgm_with_the_constant_relation_in_the_network(scene):
    """The same voxels, features, occupancy 1, and scores on leaving, where points stay in their voxels."""
    cloud, _, capacity = scene
    one = lambda distance, inside: inside.astype(distance.dtype)  # not `hard`, so that the pipeline is LGM's
    soft = voxel.sigmoid(10.0)
    kinds = {"fgm": voxel.fgm(soft), "lgm": voxel.lgm(one, input=soft, output=soft)}

    @quick
    def through(step):
        entries = {
            kind: enter(cloud, given, capacity, reach=step, form=PAPER, levels=5, in_features=3, voxel_size=L)
            for kind, given in kinds.items()
        }
        scores = {k: e.back(jnp.sin(9 * e.features)) for k, e in entries.items()}
        return {k: (e.sites, e.features, e.exists, scores[k]) for k, e in entries.items()}, entries["lgm"].occupancy

    results, occupied = through(STILL)
    for fgm, lgm in zip(jax.tree.leaves(results["fgm"]), jax.tree.leaves(results["lgm"])):
        np.testing.assert_allclose(fgm, lgm, atol=1e-5)
    np.testing.assert_array_equal(occupied, results["lgm"][2])
    extended, _ = through(HALF)
    assert int(extended["lgm"][0].count) > int(extended["fgm"][0].count)  # control: there the voxels differ


def test_coordinate_features_by_hand():
    """Hard: voxel coordinates, x and y minus their mean over voxels; z as it is."""
    cloud = point_cloud([[0.05, 0.05, 0.25], [0.35, 0.15, 0.05], [0.36, 0.15, 0.05]], [[1.0], [2], [3]])
    capacity = capacity_for(cloud, L, 2)
    arguments = {"levels": 2, "in_features": 4, "voxel_size": L, "coordinate_features": True}
    features = quick(lambda cloud: enter(cloud, None, capacity, reach=None, form=PAPER, **arguments).features)(cloud)
    np.testing.assert_allclose(features[:2], [[1, -1.5, -0.5, 2], [2, 1.5, 0.5, 0]], atol=1e-6)


@pytest.mark.parametrize("occupancy", [None, voxel.lgm()])
def test_coordinate_features_are_centred_cloud_by_cloud(occupancy):
    """A cloud has the features that it has alone, wherever the others of the batch lie."""
    rng = np.random.default_rng(0)
    xyz, colour = rng.uniform(0, 1, (8, 3)), rng.random((8, 1)).astype(np.float32)
    one = point_cloud(xyz, colour)
    joined = point_cloud(np.r_[xyz, xyz + 7], np.r_[colour, colour])
    both = joined.replace(batch=jnp.repeat(jnp.arange(2, dtype=jnp.int32), 8), clouds=2)
    arguments = {"levels": 2, "in_features": 4, "voxel_size": L, "coordinate_features": True}

    def entered(cloud):
        capacity = capacity_for(cloud, L, 2, reach=L / 4)
        into = voxel.resolve(occupancy)

        @quick
        def through(cloud):
            entry = enter(cloud, into, capacity, reach=L / 4, form=PAPER, **arguments)
            return entry.sites.coordinates, entry.features, entry.sites.count

        coordinates, features, count = through(cloud)
        sites = np.asarray(coordinates).tolist()[: int(count)]
        return {tuple(site): row for site, row in zip(sites, np.asarray(features))}

    alone, among = entered(one), entered(both)
    assert alone.keys() == {site for site in among if site[0] == 0}
    for site, features in alone.items():
        np.testing.assert_allclose(among[site], features, atol=1e-5)


def test_soft_floor_rounds_half_up():
    values = jnp.array([-1.4, -0.6, 0.0, 0.49, 0.51, 2.0])
    np.testing.assert_allclose(soft_floor(values), [-1, -1, 0, 0, 1, 2], atol=5e-5)
    below = np.floor(np.asarray(values, np.float64) - 0.5)
    expected = below + 1 / (1 + np.exp(-4 * (np.asarray(values, np.float64) - below)))
    np.testing.assert_allclose(soft_floor(values, 4.0), expected, rtol=1e-5, atol=1e-6)


@jax.jit
def s3dis(points, colour, origin, step, budget, cotangent, voxels):
    """(features of the voxels asked for, gradient in the points)."""

    def features(points):
        cloud = PointCloud(points, colour, jnp.ones(len(points), bool))
        pairs = near_voxels(cloud, 0.05, reach=Reach(step, origin, budget, "any"), voxels=4000, pairs=14000)
        relation = voxel.sigmoid(45.0)(pairs.distance, pairs.inside)
        row, _ = pairs.sites.find(voxels)
        given = SoftPoints(pairs, None, relation, relation, any_of(relation, pairs.voxels), RELEASE)
        found = soft_voxel_features(cloud, given, 0.05, True)
        return found.at[row].get(mode="fill", fill_value=0)

    values, pullback = jax.vjp(features, points)
    return values, pullback(cotangent)[0]


@pytest.mark.parametrize("case", "abcd")
def test_golden_s3dis_features(golden, case):
    """Colours and centred coordinates, softly averaged, softly floored, times the occupancy; lambda 45, in float64.

    Voxels with an occupancy below 1e-9 are left out: there the release replaces the sum of the relations by 1.
    """
    arrays = golden("mink_lgm_voxels")
    part = lambda key: arrays[f"{case}/s3dis/{key}"].astype(np.float64)
    count, counted = len(part("o")), part("o") > 1e-9
    voxels, cotangent = np.full((4000, 4), 2**20, np.int32), np.zeros((4000, 6))
    voxels[:count, 0], voxels[:count, 1:] = 0, arrays[f"{case}/any/voxels"]
    cotangent[:count] = part("cot_f")
    assert counted.mean() > 0.4
    with jax.enable_x64(True), jax.debug_nans(False):
        sizes = [float(arrays[f"{case}/{key}"]) for key in ("step", "budget")]
        points, colour, origin = (arrays[key].astype(np.float64) for key in (f"{case}/points", "rgb", "p0"))
        values, gradient = jax.tree.map(np.asarray, s3dis(points, colour, origin, *sizes, cotangent, voxels))
    np.testing.assert_allclose(values[:count][counted], part("f")[counted], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(gradient, part("grad_f"), rtol=1e-6, atol=1e-7 * np.abs(part("grad_f")).max())


ARGUMENTS = {"reach": None, "form": PAPER, "levels": 2, "in_features": 3, "voxel_size": L}


def good(**changes) -> PointCloud:
    return point_cloud(np.zeros((4, 3)), np.zeros((4, 3))).replace(**changes)


BAD = {
    "type": (np.zeros((4, 3)), {}, TypeError, "inputs: got ndarray, expected a SparseTensor or a PointCloud"),
    "xyz": (good(xyz=jnp.zeros((4, 2))), {}, ValueError, r"xyz: got shape \(4, 2\)"),
    "integers": (good(xyz=jnp.zeros((4, 3), int)), {}, TypeError, "xyz: got dtype int32"),
    "rows": (
        good(features=jnp.zeros((3, 3))),
        {},
        ValueError,
        r"features: got shape \(3, 3\), expected \[4, 3\]",
    ),
    "channels": (
        good(features=jnp.zeros((4, 2))),
        {},
        ValueError,
        r"features: got shape \(4, 2\), expected \[4, 3\]",
    ),
    "valid": (good(valid=jnp.ones(3, bool)), {}, ValueError, r"valid: got shape \(3,\)"),
    "none valid": (good(valid=jnp.zeros(4, bool)), {}, ValueError, "valid: got no valid point"),
    "infinite": (good(xyz=jnp.full((4, 3), jnp.inf)), {}, ValueError, "xyz: got 4 points with NaN or infinite"),
    "half": (good(xyz=jnp.zeros((4, 3), jnp.float16)), {}, TypeError, "xyz: got dtype float16, expected float32"),
    "bytes": (good(features=jnp.zeros((4, 3), jnp.uint8)), {}, TypeError, "features: got dtype uint8"),
    "valid as numbers": (good(valid=jnp.ones(4)), {}, TypeError, "valid: got dtype float32, expected bool"),
    "lists": (good(xyz=[[0.0, 0, 0]] * 4), {}, TypeError, "xyz: got list, expected an array"),
    "features NaN": (
        good(features=np.full((4, 3), np.nan, np.float32)),
        {},
        ValueError,
        "features: got 4 points with NaN",
    ),
    "map coordinates": (
        good(xyz=jnp.full((4, 3), 4e6)),
        {},
        ValueError,
        r"coordinates of up to 4e\+06 m, which float32 rounds to 0.25 m.*subtract an origin",
    ),
    "no batch": (good(clouds=2), {}, ValueError, r"batch: got None with clouds=2, expected \[4\] integers"),
    "batch": (
        good(batch=jnp.arange(4), clouds=3),
        {},
        ValueError,
        r"batch: got indices in \[0, 3\], expected \[0, 2\]",
    ),
    "batch of floats": (good(batch=jnp.zeros(4)), {}, ValueError, r"batch: got float32\[4\], expected integers \[4\]"),
    "no clouds": (good(clouds=0), {}, ValueError, "clouds: got 0"),
    "protocol": (good(), {"form": "release"}, TypeError, "form: got 'release', expected a sparse3d.Form"),
    "levels": (good(), {"levels": 4}, ValueError, "capacity: got 4 levels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_inputs(variables, case):
    inputs, options, error, message = BAD[case]
    if "levels" in options:
        options = {"capacity": capacity_for(good(), L, options["levels"])}
    with jax.debug_nans(False), pytest.raises(error, match=message):
        NET.apply(variables, inputs, **options)


def test_what_only_run_time_can_see_is_flagged():
    """The same faults inside jit: features or coordinates that are not finite, no valid point, a stray batch index."""
    flagged = quick(lambda cloud: enter(cloud, None, None, **ARGUMENTS).overflow)
    xyz, some = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([True, True, False, False])
    sound = PointCloud(xyz, np.zeros((4, 3), np.float32), np.ones(4, bool), np.zeros(4, np.int32))
    spoilt = np.where(np.arange(4)[:, None] == 3, np.float32(np.nan), xyz)
    faults = {"features": spoilt, "xyz": spoilt, "batch": np.array([0, 0, 0, -1], np.int32)}
    with jax.debug_nans(False):
        assert not flagged(sound) and flagged(sound.replace(valid=~sound.valid))
        for field, values in faults.items():
            assert flagged(sound.replace(**{field: values})), field
            assert not flagged(sound.replace(**{field: values, "valid": some})), (
                field
            )  # rows not used may hold anything


def test_arrays_of_the_host_are_taken():
    """NumPy arrays in float64, as a user has them, give what JAX arrays give."""
    host = PointCloud(np.arange(12.0).reshape(4, 3), np.ones((4, 3)), np.ones(4, bool), np.zeros(4, np.int64))
    entries = [enter(cloud, None, None, **ARGUMENTS) for cloud in (host, jax.tree.map(jnp.asarray, host))]
    np.testing.assert_array_equal(entries[0].features, entries[1].features)
    assert entries[0].features.dtype == jnp.float32


def test_bad_tensors_and_too_small_a_capacity():
    rows = np.array([[0, 0, 0, 0], [0, 2, 0, 0]]), np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"stride: got \(2, 2, 2\)"):
        enter(from_numpy(*rows, stride=2), None, None, **ARGUMENTS)
    with pytest.raises(TypeError, match="expected a PointCloud: voxels have no points"):
        enter(from_numpy(*rows), voxel.lgm(), None, **ARGUMENTS)
    assert not flag_overflow(enter(from_numpy(*rows), None, None, **ARGUMENTS).overflow)
    with pytest.raises(ValueError, match="capacity: voxels or pairs did not fit"):
        flag_overflow(jnp.array(True))


@pytest.mark.parametrize("reach", ["far", -1.0, float("nan")])
def test_a_reach_is_looked_at_where_nothing_looks_ahead_too(reach):
    """Hard voxels do not use it; a mistake is one all the same."""
    with pytest.raises(ValueError, match="reach: got"):
        default_capacity(None, None, None, reach, 0.05, 1)
