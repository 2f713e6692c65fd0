"""Points -> voxels -> MinkUNet14A -> points against LGM's released pipeline: scores, loss, gradient, next step."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_minkunet import drawn

import weights_convert
from dyn_jax import networks
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d import RELEASE, capacity_for
from dyn_jax.types import PointCloud, Reach
from weights_convert.engine import target_shapes

IGNORED = 255
SETTINGS = {
    "lgm_10_10_10": voxel.lgm(voxel.sigmoid(10.0)),
    "lgm_10_25_10": voxel.lgm(voxel.sigmoid(25.0), input=voxel.sigmoid(10.0), output=voxel.sigmoid(10.0)),
    "fgm_20_0_20": voxel.fgm(voxel.sigmoid(20.0)),
}
LEAVES = {"scale": "weight", "mean": "running_mean", "var": "running_var"}


def torch_key(path):
    """The reference's name of a leaf: ('params', 'block2_0', 'norm1', 'scale') -> block2.0.norm1.bn.weight."""
    *layers, leaf = path[1:]
    name = re.sub(r"_(\d)", r".\1", ".".join(layers))
    if re.search(r"(^|\.)(bn|norm)\w*$|downsample\.1$", name):
        name += ".bn"
    return f"{name}.{LEAVES.get(leaf, leaf)}"


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("mink_e2e_MinkUNet14A")


@pytest.fixture(scope="module")
def net(arrays):
    return networks.create("minkunet-14a-scannet", voxel_size=float(arrays["voxel_size"]))


@pytest.fixture(scope="module")
def variables(net):
    state = {}
    for path, leaf in target_shapes(net).items():
        key = torch_key(path)
        state[key] = drawn(key, (1, *leaf.shape) if key == "final.bias" else leaf.shape)
    return weights_convert.convert(net, state)


def cloud_of(arrays, dtype):
    xyz, colours = (jnp.asarray(arrays[name], dtype) for name in ("points", "rgb"))
    return PointCloud(xyz, colours, jnp.ones(len(xyz), bool))


def reach_of(arrays, dtype):
    return Reach(float(arrays["step"]), jnp.asarray(arrays["p0"], dtype), float(arrays["budget"]), "any")


@pytest.fixture(scope="module")
def run(net, variables, arrays):
    """occupancy -> (loss, output, gradient) in float64; slopes are leaves: two settings share a compilation."""
    with jax.enable_x64(True):
        cloud, reach = cloud_of(arrays, jnp.float64), reach_of(arrays, jnp.float64)
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
    reached = reach_of(arrays, jnp.float32)
    capacity = capacity_for(cloud_of(arrays, jnp.float32), net.voxel_size, net.levels, reach=reached)
    labels = jnp.asarray(arrays["labels"], jnp.int32)

    def loss(xyz, variables, cloud, reach, occupancy):
        here = cloud.replace(xyz=xyz)
        output = net.apply(variables, here, reach=reach, occupancy=occupancy, capacity=capacity, form=RELEASE)
        counted = labels != IGNORED
        scores = jax.nn.log_softmax(output.logits)
        picked = jnp.take_along_axis(scores, jnp.where(counted, labels, 0)[:, None], axis=1)[:, 0]
        return -jnp.sum(picked * counted) / jnp.sum(counted), output

    jitted = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})

    def call(occupancy):
        with jax.enable_x64(True):
            (value, output), gradient = jax.tree.map(np.asarray, jitted(cloud.xyz, double, cloud, reach, occupancy))
        return value, output, gradient

    return call


def close(got, want, tolerance):
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("name", SETTINGS)
def test_release(run, arrays, name):
    loss, output, gradient = run(SETTINGS[name])
    want = {key: arrays[f"{name}/{key}"] for key in ("point_logits", "loss", "grad_points", "next_points")}
    assert not bool(output.trace.overflow)
    close(output.logits, want["point_logits"], 1e-12)
    close(loss, want["loss"], 1e-12)
    close(gradient, want["grad_points"], 1e-12)
    step = gradient / (np.abs(gradient).max(axis=1, keepdims=True) + 1e-8)
    moved = arrays["points"].astype(np.float64) + arrays["step"] * step
    moved = np.clip(moved, arrays["p0"] - arrays["budget"], arrays["p0"] + arrays["budget"])
    np.testing.assert_allclose(moved, want["next_points"], atol=1e-7)
    assert int(np.sum(output.trace.units[0].macs > 0)) == len(arrays[f"{name}/voxels"])


def test_slope_matters(run, arrays):
    """The control: another slope in the network misses the numbers."""
    loss, _, gradient = run(voxel.lgm(voxel.sigmoid(12.0), input=voxel.sigmoid(10.0), output=voxel.sigmoid(10.0)))
    assert abs(float(loss) - arrays["lgm_10_10_10/loss"]) > 1e-4
    difference = np.abs(gradient - arrays["lgm_10_10_10/grad_points"]).max()
    assert difference > 0.01 * np.abs(arrays["lgm_10_10_10/grad_points"]).max()


def test_hard(net, variables, arrays):
    cloud = cloud_of(arrays, jnp.float32)
    capacity = capacity_for(cloud, net.voxel_size, net.levels)
    forward = jax.jit(
        lambda variables, cloud: net.apply(variables, cloud, capacity=capacity),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    output = forward(variables, cloud)
    np.testing.assert_array_equal(np.argmax(output.logits, axis=1), arrays["hard/point_pred"])
    assert int(np.sum(output.trace.units[0].occupancy)) == len(arrays["hard/voxels"])
