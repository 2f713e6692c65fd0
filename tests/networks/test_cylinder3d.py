"""Cylinder3D against the authors' network on a reduced grid: scores, gradients, statistics, LGM's released step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import ALL_ATTACKS, CLASSES, CLOUD_NETWORKS, POINT_ATTACKS, drawn
from compiled import quick_jit

import dyn_jax
import weights_convert
from dyn_jax.attacks.released import lgm_outdoor
from dyn_jax.datasets import streets
from dyn_jax.networks import cylinder3d
from dyn_jax.objectives import lovasz_softmax
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d import OUTDOOR_RELEASE, Capacity, Cylinder, Partition, capacity_for, partition, point_cloud
from dyn_jax.types import PointCloud, Reach

CYLINDER = Cylinder(grid=(48, 36, 32))
REDUCED = {"cylinder": CYLINDER, "features": 8, "point_features": (64, 128, 256, 32), "cell_features": 8}
CAPACITY = Capacity((1408, 1536, 640, 384, 160))
BLOCKS = (cylinder3d.ResBlock, cylinder3d.UpBlock, cylinder3d.ReconBlock)


def network(**fields):
    return dyn_jax.networks.create("cylinder3d-semantickitti", **REDUCED, **fields)


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("cyl_cylinder_reduced")


@pytest.fixture(scope="module")
def state(arrays):
    return {key[5:]: value for key, value in arrays.items() if key.startswith("sd12/")}


def points_of(arrays, batch, size=None):
    """(partition, xyz and intensity) of a batch of the file, with `size` points."""
    numbers = range(2 if batch == "b2" else 1)
    gather = lambda key: np.concatenate([arrays[f"{batch}/{key}_{number}"] for number in numbers])
    cells = np.concatenate([np.repeat(numbers, 2000)[:, None], gather("grid_ind")], axis=1).astype(np.int32)
    scan = np.concatenate([arrays[f"{batch}/points{number}_xyzi"] for number in numbers])
    features, rows = gather("pt_features9"), np.arange(len(scan) if size is None else size)
    used, rows = rows < len(scan), np.minimum(rows, len(scan) - 1)
    points = Partition(jnp.asarray(features[rows]), jnp.asarray(cells[rows]), jnp.asarray(used), 2)
    return points, jnp.asarray(scan[rows])


def scores_of(output):
    return jnp.sum(output.trace.units[0].extras["scores"], axis=0)


@pytest.fixture(scope="module")
def run(state):
    """run(points, labels of cells, share of the cross-entropy) -> (gradient by features, (loss, output, blocks))."""
    net = network()
    variables = weights_convert.convert(net, state)
    given = {"capture_intermediates": lambda module, _: isinstance(module, BLOCKS), "mutable": ["intermediates"]}

    @quick_jit
    def run(variables, points, labels, share):
        def loss(features):
            output, kept = net.apply(variables, points.replace(features=features), capacity=CAPACITY, **given)
            log_probability, counted = jax.nn.log_softmax(scores_of(output)), labels != 0
            own = jnp.take_along_axis(log_probability, labels[:, None], axis=1)[:, 0]
            entropy = -jnp.sum(jnp.where(counted, own, 0)) / jnp.sum(counted)
            value = share * entropy + (1 - share) * lovasz_softmax(jnp.exp(log_probability), labels, counted)
            return value, (value, output, kept["intermediates"])

        return jax.grad(loss, has_aux=True)(points.features)

    return functools.partial(run, variables)  # an argument: twelve million numbers inside a program take seconds


def labels_of(arrays, batch):
    found = arrays[f"{batch}/voxel_labels"].astype(np.int32)
    return jnp.asarray(np.concatenate([found, np.zeros(CAPACITY.levels[0] - len(found), np.int32)]))


@quick_jit
def to_coordinates(scan, gradient):
    """The gradient by xyz of a scan [point, 4], from that by the nine features."""
    features = lambda xyz: partition(PointCloud(xyz, scan[:, 3:], jnp.ones(len(scan), bool)), CYLINDER).features
    return jax.vjp(features, scan[:, :3])[1](gradient)[0]


@pytest.mark.parametrize("batch", ["b1", "b2"])
def test_scores_losses_and_gradients(arrays, run, batch):
    points, scan = points_of(arrays, batch, 4000)
    for loss, share in (("ce", 1.0), ("lovasz", 0.0)):
        gradient, (value, output, _) = run(points, labels_of(arrays, batch), share)
        assert not output.trace.overflow
        count = len(arrays[f"{batch}/voxel_labels"])
        np.testing.assert_allclose(scores_of(output)[:count], arrays[f"{batch}/voxel_logits"], atol=1e-5)
        np.testing.assert_allclose(value, arrays[f"{batch}/{loss}"], atol=1e-6)
        for number in range(2 if batch == "b2" else 1):
            mine = gradient[2000 * number : 2000 * (number + 1)]
            np.testing.assert_allclose(mine, arrays[f"{batch}/grad_{loss}_ptfeat_{number}"], atol=2e-8)
        row = np.asarray(output.trace.units[0].extras["cell"])[0]
        used = np.asarray(points.valid)
        np.testing.assert_array_equal(output.logits[used], scores_of(output)[row[used]])
        if batch == "b1":
            slope = to_coordinates(scan[:2000], gradient[:2000])
            name, sign = ("ce", 1) if loss == "ce" else ("neg_lovasz", -1)
            np.testing.assert_allclose(sign * slope, arrays[f"b1/fgm/grad_{name}_xyz"], atol=1e-6)


def test_what_every_block_gives(arrays, run):
    """Sites in the order of their coordinates; a block that pools gives the pooled values and those before."""
    points, _ = points_of(arrays, "b1", 4000)
    _, (_, output, kept) = run(points, labels_of(arrays, "b1"), 1.0)
    compared = set()
    for key in [key for key in arrays if key.startswith("b1/act/") and key.endswith("/feats")]:
        _, _, block, number, _ = key.split("/")
        got = scores_of(output) if block == "logits" else kept[block]["__call__"][0]
        got = got[int(number)] if isinstance(got, tuple) else got
        expected = arrays[key]
        np.testing.assert_allclose(got[: len(expected)], expected, atol=2e-5 * np.abs(expected).max(), err_msg=key)
        compared.add(block)
    assert len(compared) == 11


def test_costs_of_the_trace(arrays, run):
    """Multiply-adds of every kernel map: pairs times channels."""
    points, _ = points_of(arrays, "b1", 4000)
    _, (_, output, _) = run(points, labels_of(arrays, "b1"), 1.0)
    units = {unit.name: unit for unit in output.trace.units}
    assert all(unit.score.shape[0] == 2 for unit in output.trace.units)
    sites = {tuple(site) for site in arrays["b1/voxel_coords_bxyz"].tolist()}
    count = lambda steps: sum((b, x + i, y + j, z + k) in sites for b, x, y, z in sites for i, j, k in steps)
    plane = [(0, j, k) for j in (-1, 0, 1) for k in (-1, 0, 1)]
    cube = [(i, j, k) for i in (-1, 0, 1) for _, j, k in plane]
    got = lambda name: float(jnp.sum(units[name].occupancy * units[name].macs))
    # downCntx: 8 to 8 channels four times; upBlock3: 32 to 16 channels thrice on the same neighbourhood
    assert got("level0_k1x3x3") == pytest.approx(count(plane) * (4 * 64 + 3 * 256))
    assert got("level0_k3x3x3") == pytest.approx(count(cube) * 32 * 20)
    layers = 9 * 64 + 64 * 128 + 128 * 256 + 256 * 32
    assert got("points") == pytest.approx(2000 * layers + len(sites) * 32 * 8, rel=1e-5)


def test_step_of_the_released_attack(golden, arrays, state):
    """Rows, scores, loss and gradient of the soft network, and where one step leads."""
    expected = {k.removeprefix("e2e/"): v for k, v in golden("cyl_lgm_outdoor").items() if k.startswith("e2e/")}
    net, settings, loss = network(), lgm_outdoor.settings(0.01), lgm_outdoor.cell_lovasz()
    variables = weights_convert.convert(net, state)
    points, scan = points_of(arrays, "b1")
    cloud = PointCloud(jnp.asarray(expected["xyz"]), scan[:, 3:], jnp.ones(2000, bool))
    labels, reach = jnp.asarray(arrays["b1/pt_labels_0"][:, 0], jnp.int32), Reach(settings.step_size)
    capacity = capacity_for(cloud, CYLINDER, 5, reach=reach, form=OUTDOOR_RELEASE)
    assert capacity is not None and capacity.pairs == 2048

    @quick_jit
    def run(xyz, variables):
        def total(xyz):
            output = net.apply(
                variables,
                cloud.replace(xyz=xyz),
                reach=reach,
                occupancy=settings.occupancy(),
                capacity=capacity,
                form=OUTDOOR_RELEASE,
            )
            return loss(output, labels)[0], output

        gradient, output = jax.grad(total, has_aux=True)(xyz)
        step = lgm_outdoor.normalised().update(gradient, None)[0]
        return gradient, output, loss(output, labels)[0], xyz + settings.step_size * step

    with jax.debug_nans(False):
        gradient, output, value, moved = run(cloud.xyz, variables)
    assert not output.trace.overflow
    np.testing.assert_allclose(-value, expected["lgm_neg_lovasz"], atol=1e-6)
    cells = {tuple(cell): row for row, cell in enumerate(arrays["b1/voxel_coords_bxyz"].tolist())}
    rows = [cells[tuple(cell)] for cell in np.asarray(points.cells).tolist()]
    np.testing.assert_allclose(output.logits, expected["lgm_voxel_logits"][rows], atol=2e-4)  # occupancies: 5e-5
    gradient, wanted = np.asarray(gradient), -expected["lgm_grad_xyz"]
    np.testing.assert_array_equal(np.isnan(gradient), np.isnan(wanted))
    assert np.linalg.norm(np.nan_to_num(gradient - wanted)) < 1e-4 * np.linalg.norm(np.nan_to_num(wanted))
    away = np.abs(np.asarray(moved) - expected["x_after_1_lgm_step"]).max(axis=1)
    assert np.sort(away)[-20:].max() < 5e-5 and np.median(away) < 1e-6
    plain = np.abs(expected["fgm_grad_xyz"] + gradient)
    assert np.nanmax(plain) > 1e-2  # the control: without the relation's derivative it is another gradient


def small_cloud(count=60):
    rng = np.random.default_rng(1)
    angle, radius = rng.uniform(0, 1, count), rng.uniform(3, 9, count)
    xyz = np.stack([radius * np.cos(angle), radius * np.sin(angle), rng.uniform(-2, 1, count)], axis=1)
    xyz = jnp.asarray(xyz, jnp.float32)
    return PointCloud(xyz, jnp.asarray(rng.random((count, 1)), jnp.float32), jnp.ones(count, bool))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"xyz": np.full((60, 3), np.nan, np.float32)}, "NaN or infinite"),
        ({"xyz": jnp.full((60, 3), 400.0)}, "no point within 50 m of the sensor"),
        ({"xyz": small_cloud().xyz + jnp.array([[4.5e5, 5.4e6, 0.0]])}, "subtract an origin"),
        ({"features": jnp.zeros((60, 4))}, r"features: got shape \(60, 4\), expected \[60, 1\]"),
        ({"valid": jnp.zeros(60, bool)}, "no valid point"),
    ],
)
def test_scans_that_are_refused(change, message):
    net = dyn_jax.networks.create("cylinder3d-streets")
    with jax.debug_nans(False), pytest.raises(ValueError, match=message):
        net.apply({}, small_cloud().replace(**change))


def test_options_that_are_refused():
    net, cloud = dyn_jax.networks.create("cylinder3d-streets"), small_cloud()
    with pytest.raises(TypeError, match="got a soft one with a Partition"):
        net.apply({}, partition(cloud, net.cylinder), occupancy=voxel.lgm())
    with pytest.raises(ValueError, match="neighbourhoods: got 'nominal'"):
        dyn_jax.networks.create("cylinder3d-streets", neighbourhoods="nominal").apply({}, cloud)
    with pytest.raises(ValueError, match="capacity: got 1 levels"):
        net.apply({}, cloud, capacity=Capacity((8,)))


@pytest.fixture(scope="module")
def tiny():
    """(network with cells of a metre, its variables, capacities for 60 points within a step of one)."""
    net = CLOUD_NETWORKS["cylinder3d"].clone(cylinder=Cylinder(grid=(24, 24, 6)))
    variables = drawn(jax.eval_shape(net.init, jax.random.key(0), net.example_input()))
    return net, variables, capacity_for(small_cloud(), net.voxel_size, net.levels, reach=Reach(1.0))


def test_too_small_a_capacity_is_an_error_outside_jit_and_data_inside(tiny):
    """So are a NaN, no valid point and no point near the sensor; outside, before any convolution and any weight."""
    net, variables, _ = tiny
    cloud = small_cloud()
    near = cloud.replace(xyz=cloud.xyz[:1] + 0 * cloud.xyz)
    capacity = Capacity((16, 64, 64, 64, 64))
    with pytest.raises(ValueError, match="voxels or pairs did not fit"):
        net.apply({}, cloud, capacity=capacity)
    flagged = quick_jit(lambda cloud: net.apply(variables, cloud, capacity=capacity).trace.overflow)
    spoilt = np.where(np.arange(60)[:, None] == 3, np.float32(np.nan), near.xyz)
    with jax.debug_nans(False):
        assert not flagged(near) and flagged(cloud)
        assert flagged(near.replace(xyz=spoilt)) and flagged(near.replace(valid=jnp.zeros(60, bool)))
        assert flagged(near.replace(xyz=near.xyz + 400))


@pytest.fixture(scope="module")
def forwards(tiny):
    """(LGM's forward, the victim), each traced once however many attacks differentiate it."""
    net, variables, capacity = tiny
    soft = jax.jit(
        lambda cloud, reach: net.apply(variables, cloud, occupancy=voxel.lgm(), reach=reach, capacity=capacity)
    )
    hard = jax.jit(lambda cloud: net.apply(variables, cloud, capacity=capacity))
    return lambda cloud, reach=None: soft(cloud, reach), hard


MOVES = {name: (case.make, case.eps) for name, case in (ALL_ATTACKS | POINT_ATTACKS).items() if case.clouds}
MOVES["scan_bim"] = lambda eps: lgm_outdoor.scan_bim(eps, 3), 0.01
REFUSED = {
    "apgd_t": "a segmented cloud",
    "fab": "a segmented cloud",
    "fab_t": "a segmented cloud",
    "point_bim release": "reach.rule: got 'any'",
}


@pytest.mark.parametrize("name", MOVES)
def test_every_attack_takes_it(name, forwards):
    """Traced, not compiled: all that move points do, but for those at the class of a whole cloud and the indoor release
    (outdoors it is `scan_bim`), which say so."""
    (make, eps), cloud, labels = MOVES[name], small_cloud(), jnp.arange(60) % CLASSES
    run = lambda cloud, key: make(eps)(forwards[0], cloud, labels, victim=forwards[1], key=key)
    refused = next((words for start, words in REFUSED.items() if name.startswith(start)), None)
    if refused is not None:
        with pytest.raises(ValueError, match=refused):
            jax.eval_shape(run, cloud, jax.random.key(0))
        return
    result = jax.eval_shape(run, cloud, jax.random.key(0))
    assert result.adversarial.shape == (60, 3) and result.success.shape == (60,)


def test_the_shipped_network_knows_its_streets():
    net, variables = dyn_jax.networks.pretrained("cylinder3d-streets")
    scan = streets("test", 1)[0]
    cloud = point_cloud(scan.xyz, scan.intensity[:, None])
    capacity = capacity_for(cloud, net.voxel_size, net.levels)
    logits = quick_jit(lambda variables: net.apply(variables, cloud, capacity=capacity).logits)(variables)
    assert np.mean(np.asarray(logits).argmax(axis=1) == scan.labels) > 0.88
