"""Asymmetric kernels, shared neighbourhoods and growing strided levels, against spconv's layers and dictionaries."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from levels import pairs_of, quick, rows_of, sites_at

from dyn_jax.sparse3d import from_numpy, offsets, pool_any, reached, to_numpy
from dyn_jax.sparse3d.operations import convolution, reaching_convolution, transposed_convolution

SUBMANIFOLD = ("subm_133", "subm_313", "subm_333", "subm_311", "subm_131", "subm_113")
REUSED = (
    "reuse_133_for_313",
    "reuse_313_for_133",
    "reuse_133_for_333",
    "reuse_311_for_131",
    "reuse_311_for_113",
)
STRIDED = ("222", "221")
BOUNDS = (13, 14, 9)
reached_by = quick(reached, static_argnums=(1, 2), static_argnames=("bounds", "capacity"))


def size_of(text: str) -> tuple[int, int, int]:
    a, b, c = (int(digit) for digit in text)
    return a, b, c


def layer_of(arrays, name):
    return {k.removeprefix(name + "/"): v for k, v in arrays.items() if k.startswith(name + "/")}


def flat(kernel):
    """[x, y, z, in, out] -> [slice, in, out]."""
    return jnp.asarray(kernel.reshape(-1, *kernel.shape[3:]))


def from_second_layout(kernel):
    """spconv 2.x [out, x, y, z, in] -> [slice, in, out]."""
    return flat(np.moveaxis(kernel, 0, 4))


@functools.cache
def submanifold(size, neighbourhood):
    @quick
    def run(tensor, features, kernel, cotangent, bias):
        def layer(features, kernel):
            given = tensor.replace(features=features)
            return convolution(
                given, kernel, kernel_size=size, region="dense", neighbourhood=neighbourhood, bias=bias
            ).features

        out, pullback = jax.vjp(layer, features, kernel)
        return out, pullback(cotangent)

    return run


def run_layer(arrays, name, own=False):
    layer = layer_of(arrays, name)
    weight = name.split("_")[-1] if name.startswith("reuse") else name.split("_")[1]
    other = name.split("_")[1] if name.startswith("reuse") and not own else None
    tensor = from_numpy(arrays["coords"], arrays["feats"], capacity=320)
    kernel = from_second_layout(layer["weight_v2_KRSC"])
    bias = jnp.asarray(layer.get("bias", np.zeros(kernel.shape[2], np.float32)))
    cotangent = np.zeros((320, kernel.shape[2]), np.float32)
    cotangent[:300] = layer.get("gout", 0)
    run = submanifold(size_of(weight), None if other is None else size_of(other))
    return layer, kernel, *run(tensor, tensor.features, kernel, cotangent, bias)


@pytest.mark.parametrize("name", (*SUBMANIFOLD, *REUSED, "subm_333_bias"))
def test_layers_of_spconv(golden, name):
    arrays = golden("cyl_layers")
    layer, kernel, out, (to_features, to_kernel) = run_layer(arrays, name)
    np.testing.assert_allclose(out[:300], layer["out"], atol=1e-5)
    if "weight_v12_RSCK" in layer:
        np.testing.assert_array_equal(flat(layer["weight_v12_RSCK"]), kernel)
    if "grad_feats" in layer:
        np.testing.assert_allclose(to_features[:300], layer["grad_feats"], atol=1e-5)
    if "grad_weight_v2_KRSC" in layer:
        np.testing.assert_allclose(to_kernel, from_second_layout(layer["grad_weight_v2_KRSC"]), atol=5e-5)
    if name == "reuse_133_for_333":
        np.testing.assert_array_equal(to_kernel[9:], 0)


@pytest.mark.parametrize("name", [name for name in REUSED if name != "reuse_133_for_333"])
def test_the_own_neighbourhood_is_another_function(golden, name):
    """Control."""
    layer, _, out, _ = run_layer(golden("cyl_layers"), name, own=True)
    assert np.abs(np.asarray(out[:300]) - layer["out"]).max() > 0.1


@pytest.mark.parametrize("factor", STRIDED)
def test_strided_layers_grow_and_come_back(golden, factor):
    arrays, stride = golden("cyl_layers"), size_of(factor)
    down, up = layer_of(arrays, f"strided_{factor}"), layer_of(arrays, f"inverse_{factor}")
    fine = from_numpy(arrays["coords"], arrays["feats"], capacity=310)
    rows = len(down["out_sorted"])
    kernels = from_second_layout(down["weight_v2_KRSC"]), from_second_layout(up["weight_v2_KRSC"])

    def both(features, middle, first, second):
        given = fine.replace(features=features)
        coarse = reaching_convolution(given, first, kernel_size=3, stride=stride, bounds=BOUNDS, capacity=rows + 5)
        back = transposed_convolution(
            coarse.replace(features=middle), second, given, kernel_size=3, stride=stride, region="dense"
        )
        return coarse, back.features

    @quick
    def run(*given):
        coarse, back = both(*given)
        loss = lambda *inputs: sum(jnp.vdot(out, given) for out, given in zip(features_of(both(*inputs)), cotangents))
        return coarse, back, jax.grad(loss, (0, 1, 2, 3))(*given)

    features_of = lambda outs: (outs[0].features, outs[1])
    middle, gout, back_gout = (np.zeros(shape, np.float32) for shape in ((rows + 5, 5), (rows + 5, 5), (310, 4)))
    middle[:rows], gout[:rows], back_gout[:300] = up["in_feats_sorted"], down["gout_sorted"], up["gout"]
    cotangents = (gout, back_gout)
    coarse, back, grads = run(fine.features, middle, *kernels)
    assert coarse.stride == stride and not coarse.overflow
    at, features = to_numpy(coarse)
    np.testing.assert_array_equal(at // (1, *stride), down["out_coords_sorted"])
    assert len(at) > len(arrays["coords"])
    np.testing.assert_allclose(features, down["out_sorted"], atol=1e-5)
    np.testing.assert_allclose(back[:300], up["out"], atol=1e-5)
    np.testing.assert_allclose(grads[0][:300], down["grad_feats"], atol=1e-5)
    np.testing.assert_allclose(grads[1][:rows], up["grad_feats_sorted"], atol=1e-5)
    np.testing.assert_allclose(grads[2], from_second_layout(down["grad_weight_v2_KRSC"]), atol=5e-5)
    np.testing.assert_allclose(grads[3], from_second_layout(up["grad_weight_v2_KRSC"]), atol=5e-5)


@pytest.mark.parametrize("size", [(1, 3, 3), (3, 1, 1), (2, 3, 1), (3, 3, 3)])
def test_dense_offsets_by_hand(size):
    assert [tuple(row) for row in offsets(size, "dense").tolist()] == twins.dense(size)
    kernel = np.arange(np.prod(size)).reshape(size)
    for place, offset in enumerate(offsets(size, "dense")):
        at = tuple(int(o) + (s // 2 if s % 2 else 0) for o, s in zip(offset, size))
        assert kernel[at] == place


@pytest.mark.parametrize(
    "factor, size", [((2, 2, 2), 3), ((2, 2, 1), 3), ((3, 1, 2), (5, 1, 3)), ((1, 2, 3), (3, 3, 1))]
)
def test_reached_sites_are_those_of_a_search(factor, size):
    bounds = (5, 7, 4)
    coordinates = np.abs(twins.random_sites(3, 40, 0, 4, 2)).astype(np.int32)
    level = sites_at(jnp.asarray(coordinates), jnp.arange(40) < 37)
    got = reached_by(level, factor, size, bounds=bounds, capacity=200)
    expected = twins.reached(coordinates[:37], factor, twins.three(size), bounds)
    assert rows_of(got) == expected and not got.overflow
    assert got.stride == factor


def test_nothing_wraps_and_nothing_leaves_the_grid():
    """The first and the last cell of an axis are no neighbours."""
    coordinates = np.array([[0, 2, 0, 1], [0, 2, 9, 1], [1, 2, 0, 1]], np.int32)
    level = sites_at(jnp.asarray(coordinates), jnp.ones(3, bool))
    np.testing.assert_array_equal(pairs_of(level, level, (1, 3, 3), region="dense").neighbours, 1)
    small = {"bounds": (5, 10, 3), "capacity": 8}
    below = reached_by(level, (1, 2, 1), (1, 3, 1), **small)
    assert rows_of(below) == [(0, 2, 0, 1), (0, 2, 8, 1), (1, 2, 0, 1)] and not below.overflow
    assert reached_by(level, (1, 2, 1), (1, 3, 3), **small).overflow


def test_a_kernel_with_fewer_slices_than_the_neighbourhood_is_refused():
    tensor = from_numpy(np.zeros((1, 4), np.int32), np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match=r"neighbourhood: got \(3, 3, 3\), 27 sites, expected at most 9"):
        convolution(tensor, jnp.ones((9, 2, 2)), kernel_size=(1, 3, 3), neighbourhood=(3, 3, 3))
    with pytest.raises(ValueError, match="kernel_size: got 2, expected odd sizes"):
        reaching_convolution(tensor, jnp.ones((8, 2, 2)), kernel_size=2, stride=2, bounds=4)


def test_any_under_a_kernel():
    coordinates = twins.random_sites(5, 60, 0, 5, 2)
    level = sites_at(jnp.asarray(coordinates), jnp.ones(60, bool))
    pairs = pairs_of(level, reached_by(level, 2, 3, bounds=5, capacity=100), 3, region="dense", block=16)
    run = quick(lambda v: (pool_any(v, pairs), jax.grad(lambda v: jnp.sum(pool_any(v, pairs)))(v)))
    rng = np.random.default_rng(0)
    values = rng.uniform(0.05, 0.9, 60).astype(np.float32)
    for given in (values, np.where(rng.random(60) < 0.5, 1, values).astype(np.float32)):  # 1: nothing divides by 0
        got, slope = run(given)
        np.testing.assert_allclose(got, any_twin(given, pairs), atol=1e-6)
        np.testing.assert_allclose(slope, [sum_without(given, pairs, row) for row in range(60)], atol=1e-5)
    with pytest.raises(ValueError, match="a map of a level onto itself"):
        pool_any(values, pairs_of(level, level, 3, region="dense"))


def any_twin(occupancy, pairs):
    rows_in, rows_out = np.asarray(pairs.rows_in)[: int(pairs.blocks)], np.asarray(pairs.rows_out)[: int(pairs.blocks)]
    off = np.ones(pairs.size_out)
    for i, j in zip(rows_in.reshape(-1), rows_out.reshape(-1)):
        if i < len(occupancy) and j < pairs.size_out:
            off[j] *= 1 - occupancy[i]
    return 1 - off


def sum_without(values, pairs, row):
    """d sum(out) / d values[row]: the output is linear in it."""
    high, low = np.array(values, float), np.array(values, float)
    high[row], low[row] = 1, 0
    return float(any_twin(high, pairs).sum() - any_twin(low, pairs).sum())
