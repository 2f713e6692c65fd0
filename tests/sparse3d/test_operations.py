"""Convolutions of sparse tensors against MinkowskiEngine's layers and against dictionaries, rows in any order."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from levels import quick

from dyn_jax.sparse3d import from_numpy, offsets, to_numpy
from dyn_jax.sparse3d.operations import convolution, transposed_convolution

# the other layers of the file are compared in test_convolution.py, map by map
LAYERS = {
    "conv_k1s1": {"kernel_size": 1},
    "conv_k3s1": {"kernel_size": 3},
    "conv_k2s2__convtr_k2s2": {"kernel_size": 2, "stride": 2},
}


STATIC = ("kernel_size", "stride", "dilation", "region", "capacity")
conv = quick(convolution, static_argnames=STATIC)
transposed = quick(transposed_convolution, static_argnames=STATIC[:-1])


def rows_in_order_of(got: np.ndarray, wanted: np.ndarray) -> list[int]:
    where = twins.table(got)
    assert len(where) == len(wanted)
    return [where[tuple(site)] for site in wanted.tolist()]


@pytest.mark.parametrize("name", LAYERS)
def test_golden_layers(golden, name):
    """Output and all gradients, by coordinates; the tensor has rows to spare and one layer may follow another."""
    arrays = golden("mink_layers")
    layer = {k.removeprefix(name + "/"): v for k, v in arrays.items() if k.startswith(name + "/")}
    tensor = from_numpy(arrays["coords"], arrays["feats"], capacity=320)
    wanted = layer["out_coords"]

    @jax.jit
    def run(features, kernel, bias):
        given = tensor.replace(features=features)
        inner = given
        if "down_kernel" in layer:
            inner = convolution(given, layer["down_kernel"], kernel_size=2, stride=2, capacity=190)
        if "convtr" in name:
            return transposed_convolution(inner, kernel, given, bias=bias, **LAYERS[name])
        return convolution(inner, kernel, bias=bias, **LAYERS[name])

    bias = layer["bias"][0] if "bias" in layer else np.zeros(wanted.shape[0] and layer["kernel"].shape[-1], np.float32)
    out, pullback = jax.vjp(run, tensor.features, layer["kernel"], bias)
    assert not out.overflow and out.stride == tuple(layer["out_tensor_stride"].tolist())
    rows = rows_in_order_of(np.asarray(out.coordinates)[np.asarray(out.valid)], wanted)
    np.testing.assert_allclose(np.asarray(out.features)[rows], layer["out_feats"], atol=1e-5)
    cotangent = np.zeros(out.features.shape, np.float32)
    cotangent[rows] = layer["cotangent"]
    flat = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), out)
    to_features, to_kernel, to_bias = pullback(flat.replace(features=cotangent))
    np.testing.assert_allclose(to_features[:300], layer["grad_feats"], atol=2e-5)
    np.testing.assert_array_equal(to_features[300:], 0)
    np.testing.assert_allclose(to_kernel, layer["grad_kernel"], atol=5e-5)
    if "bias" in layer:
        np.testing.assert_allclose(to_bias, layer["grad_bias"][0], atol=5e-5)


def made(seed: int, count: int = 60, capacity: int = 72, stride: int = 1, channels: int = 3):
    """(tensor, coordinates, features): rows in random order, valid ones first."""
    coordinates = twins.random_sites(seed, count, -4, 4) * np.array([1, stride, stride, stride], np.int32)
    features = np.random.default_rng(seed).normal(size=(count, channels)).astype(np.float32)
    return from_numpy(coordinates, features, capacity=capacity, stride=stride), coordinates, features


def test_three_voxels_by_hand():
    """Voxels x = 3, 0, 1 in this order with features 100, 1, 10; slices -1, 0, +1 weigh 2, 3, 5."""
    tensor = from_numpy(
        np.array([[0, 3, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]), np.array([[100.0], [1], [10]], np.float32), capacity=4
    )
    kernel = jnp.array([2.0, 3.0, 5.0]).reshape(3, 1, 1)
    out = conv(tensor, kernel, kernel_size=(3, 1, 1), bias=jnp.array([0.5]))
    assert out.features.ravel().tolist() == [300.5, 53.5, 32.5, 0]
    down = conv(tensor, kernel[:2], kernel_size=(2, 1, 1), stride=2)
    assert to_numpy(down)[0].tolist() == [[0, 0, 0, 0], [0, 2, 0, 0]] and down.stride == (2, 2, 2)
    assert to_numpy(down)[1].ravel().tolist() == [2 * 1 + 3 * 10, 3 * 100]
    up = transposed(down, kernel[:2], tensor, kernel_size=(2, 1, 1), stride=2)
    assert up.features.ravel().tolist() == [3 * 300, 2 * 32, 3 * 32, 0]
    point = conv(tensor, jnp.array([[2.0]]), kernel_size=1, bias=jnp.array([1.0]))
    assert point.features.ravel().tolist() == [201, 3, 21, 0]


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "region", "own_stride"),
    [(3, 1, 2, "cube", 2), ((1, 3, 3), (2, 2, 1), 1, "cube", 1)],
)
def test_equals_dictionaries(size, stride, dilation, region, own_stride):
    tensor, coordinates, features = made(1, stride=own_stride)
    steps = twins.scaled(offsets(size, region).tolist(), dilation, own_stride)
    kernel = np.random.default_rng(2).normal(size=(len(steps), 3, 2)).astype(np.float32)
    run = functools.partial(convolution, kernel_size=size, stride=stride, dilation=dilation, region=region)
    out = quick(run)(tensor, kernel)
    below = tuple(own_stride * s for s in twins.three(stride))
    sites = coordinates if stride == 1 else np.array(twins.coarse(coordinates, below))
    got_sites, got = to_numpy(out)
    np.testing.assert_array_equal(got_sites, sites)
    expected = twins.convolve(features, kernel, twins.pairs(coordinates, sites, steps), len(sites))
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert out.stride == below
    if stride != 1:
        back = jax.jit(
            functools.partial(transposed_convolution, kernel_size=size, stride=stride, dilation=dilation, region=region)
        )(out, kernel.transpose(0, 2, 1), tensor)
        reverse = [(j, i, k) for i, j, k in twins.pairs(coordinates, sites, steps)]
        np.testing.assert_array_equal(to_numpy(back)[0], coordinates)
        expected = twins.convolve(got, kernel.transpose(0, 2, 1), reverse, len(coordinates))
        np.testing.assert_allclose(to_numpy(back)[1], expected, atol=5e-5)


def test_the_order_of_the_rows_goes_with_them():
    """Rows shuffled, also between valid and spare ones: the output is the same, shuffled alike."""
    tensor, _, _ = made(3)
    order = np.random.default_rng(0).permutation(72)
    shuffled = jax.tree.map(lambda leaf: leaf[order] if leaf.ndim else leaf, tensor)
    kernel = np.random.default_rng(4).normal(size=(27, 3, 2)).astype(np.float32)
    run = quick(functools.partial(convolution, kernel_size=3))
    np.testing.assert_array_equal(run(tensor, kernel).features[order], run(shuffled, kernel).features)
    np.testing.assert_array_equal(run(shuffled, kernel).coordinates, shuffled.coordinates)


def test_one_trace_and_batches():
    tensors = [made(seed, count)[0] for seed, count in ((1, 60), (2, 30), (3, 72))]
    kernel = np.random.default_rng(4).normal(size=(8, 3, 2)).astype(np.float32)
    run = functools.partial(convolution, kernel_size=2, stride=2)

    def whole(tensor, kernel):
        return run(tensor, kernel)

    once = quick(chex.assert_max_traces(whole, 1))
    loop = [once(tensor, kernel) for tensor in tensors]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    chex.assert_trees_all_close(quick(jax.vmap(run, (0, None)))(stack(tensors), kernel), stack(loop), atol=1e-5)


def test_overflow_is_flagged_and_handed_on():
    tensor, coordinates, _ = made(1)
    needed = len(twins.coarse(coordinates, 2))
    kernel = jnp.ones((8, 3, 3))
    tight, small = (conv(tensor, kernel, kernel_size=2, stride=2, capacity=c) for c in (needed, needed - 1))
    assert (bool(tight.overflow), bool(small.overflow)) == (False, True)
    assert conv(small, jnp.ones((1, 3, 3)), kernel_size=1).overflow
    assert transposed(small, kernel, tensor, kernel_size=2, stride=2).overflow
    with pytest.raises(ValueError, match="overflow"):
        to_numpy(small)


@pytest.mark.parametrize(
    ("arguments", "shape", "error", "message"),
    [
        ({"kernel_size": 3}, (26, 3, 2), ValueError, r"kernel: got shape \(26, 3, 2\), expected \[27, 3, out\]"),
        ({"kernel_size": 3}, (27, 4, 2), ValueError, "kernel: got shape"),
        ({"kernel_size": 3}, (3, 2), ValueError, "kernel: got shape"),
        ({"kernel_size": 1}, (4, 2), ValueError, r"expected \[1, 3, out\] or \[3, out\]"),
        (
            {"kernel_size": 1, "bias": np.zeros((1, 2))},
            (3, 2),
            ValueError,
            r"bias: got shape \(1, 2\), expected \(2,\)",
        ),
        ({"kernel_size": 1, "capacity": 80}, (3, 2), ValueError, "capacity: got 80 with stride 1"),
        ({"kernel_size": 2, "stride": 2, "capacity": 0}, (8, 3, 2), ValueError, "capacity: got 0"),
        ({"kernel_size": 2, "stride": 0}, (8, 3, 2), ValueError, "stride: got 0"),
        ({"kernel_size": 2, "region": "cross"}, (8, 3, 2), ValueError, "expected odd sizes"),
    ],
)
def test_bad_arguments(arguments, shape, error, message):
    with pytest.raises(error, match=message):
        convolution(made(1)[0], jnp.zeros(shape), **arguments)


def test_bad_tensors():
    fine, coarse = made(1)[0], made(1, stride=4)[0]
    kernel = jnp.zeros((8, 3, 2))
    with pytest.raises(ValueError, match=r"tensor: got stride \(4, 4, 4\), expected \(2, 2, 2\)"):
        transposed_convolution(coarse, kernel, fine, kernel_size=2, stride=2)
    with pytest.raises(TypeError, match="tensor: got ndarray, expected a SparseTensor"):
        convolution(np.zeros((3, 3)), kernel, kernel_size=2)
    with pytest.raises(TypeError, match="like: got NoneType"):
        transposed_convolution(coarse, kernel, None, kernel_size=2, stride=2)
