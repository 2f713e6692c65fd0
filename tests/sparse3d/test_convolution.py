"""Sparse convolution and its gradients: by hand, against one pair at a time, against MinkowskiEngine, under vmap."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.test_util import check_grads
from levels import below, level, pairs_of, quick, rows_of, sites_at

from dyn_jax.sparse3d import convolve, kernel_map, offsets, sites_of


@quick
def run(x, kernel, pairs, cotangent):
    """(out, gradient in x, gradient in the kernel)."""
    out, pullback = jax.vjp(lambda x, kernel: convolve(x, kernel, pairs), x, kernel)
    return out, *pullback(cotangent)


def numbers(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_three_voxels_by_hand():
    """Voxels x = 0, 1, 3 with features 1, 10, 100; slices -1, 0, +1 weigh 2, 3, 5."""
    sites = sites_at(jnp.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 3, 0, 0]], jnp.int32), jnp.ones(3, bool))
    pairs = pairs_of(sites, sites, (3, 1, 1))
    x, kernel = jnp.array([[1.0], [10.0], [100.0]]), jnp.array([2.0, 3.0, 5.0]).reshape(3, 1, 1)
    out, to_x, to_kernel = run(x, kernel, pairs, jnp.array([[1.0], [10.0], [100.0]]))
    assert out.ravel().tolist() == [3 * 1 + 5 * 10, 2 * 1 + 3 * 10, 300]
    assert to_x.ravel().tolist() == [3 * 1 + 2 * 10, 5 * 1 + 3 * 10, 300]
    assert to_kernel.ravel().tolist() == [1 * 10, 1 + 100 + 10000, 10 * 1]


CASES = [
    *((2, 1, "cube"), (3, 1, "cube"), ((1, 3, 3), 1, "cube"), (3, 1, "cross")),
    *((1, 2, "cube"), (2, 2, "cube"), (3, (2, 2, 1), "cube")),
]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("size", "stride", "region"), CASES)
def test_equals_one_pair_at_a_time(size, stride, region, swapped):
    source = level(7, 90, 100)
    target = source if stride == 1 else below(source, stride)
    pairs = pairs_of(source, target, size, region=region, block=16)
    listed = twins.pairs(rows_of(source), rows_of(target), offsets(size, region).tolist())
    if swapped:
        pairs, listed = pairs.swap(), [(j, i, k) for i, j, k in listed]
        source, target = target, source
    x, kernel, cotangent = numbers(1, 100, 3), numbers(2, pairs.volume, 3, 2), numbers(3, 100, 2)
    used_in, used_out = source.valid[:, None], target.valid[:, None]
    out, to_x, to_kernel = run(x * used_in, kernel, pairs, cotangent * used_out)
    np.testing.assert_allclose(out * used_out, twins.convolve(x, kernel, listed, 100), atol=2e-5)
    expected = twins.gradients(x * used_in, kernel, listed, cotangent * used_out)
    np.testing.assert_allclose(to_x * used_in, expected[0], atol=2e-5)
    np.testing.assert_allclose(to_kernel, expected[1], atol=5e-5)
    assert np.abs(expected[1]).max() > 1  # control: there is something to compare


def test_gradients_are_the_derivatives():
    """Numerically, in float64, through a submanifold, a strided and a transposed convolution."""
    fine = level(5, 14, 16)
    coarse = below(fine, 2)
    maps = pairs_of(fine, fine, 3, block=4), pairs_of(fine, coarse, 2, block=4)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, one, two, three = (jnp.asarray(rng.normal(size=s)) for s in ((16, 2), (27, 2, 2), (8, 2, 2), (8, 2, 2)))

        @jax.jit
        def network(x, one, two, three):
            y = jnp.sin(convolve(x * fine.valid[:, None], one, maps[0])) * fine.valid[:, None]
            y = jnp.sin(convolve(y, two, maps[1])) * coarse.valid[:, None]
            return convolve(y, three, maps[1].swap()) * fine.valid[:, None]

        check_grads(network, (x, one, two, three), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


# name -> maps of its convolutions: (level in, level out, kernel size, region); levels by stride
LAYERS = {
    "conv_k5s1": [(1, 1, 5, "cube")],
    "conv_k1s2": [(1, 2, 1, "cube")],
    "conv_k2s2": [(1, 2, 2, "cube")],
    "conv_k3s2": [(1, 2, 3, "cube")],
    "conv_k4s2": [(1, 2, 4, "cube")],
    "conv_k3s3": [(1, 3, 3, "cube")],
    "conv_cross_k3s1": [(1, 1, 3, "cross")],
    "conv_cross_k5s1": [(1, 1, 5, "cross")],
    "conv_k2s2__k3s1": [(1, 2, 2, "cube"), (2, 2, 3, "cube")],
    "conv_k3s2__convtr_k3s2": [(1, 2, 3, "cube"), (2, 1, 3, "cube")],
}


@pytest.fixture(scope="module")
def ladder(golden):
    """(arrays, levels by stride, row of every golden voxel)."""
    arrays = golden("mink_layers")
    fine = sites_at(jnp.asarray(arrays["coords"]), jnp.ones(300, bool))
    levels = {1: fine, 2: below(fine, 2), 3: below(fine, 3)}
    rows = {s: twins.table(np.asarray(level.coordinates)[: int(level.count)]) for s, level in levels.items()}
    return arrays, levels, rows


@pytest.mark.parametrize("name", LAYERS)
def test_golden_layers(ladder, name):
    """Output and gradients of MinkowskiEngine's layers, by coordinates; one layer may follow another."""
    arrays, levels, rows = ladder
    layer = {k.removeprefix(name + "/"): v for k, v in arrays.items() if k.startswith(name + "/")}
    maps = []
    for low, high, size, region in LAYERS[name]:
        fine, coarse = levels[min(low, high)], levels[max(low, high)]
        pairs = pairs_of(fine, coarse, size, region=region)
        maps.append(pairs if low <= high else pairs.swap())
    at = lambda stride, sites: [rows[stride][tuple(site)] for site in sites.tolist()]
    last = LAYERS[name][-1][1]
    there = at(last, layer["out_coords"])
    assert len(there) == len(rows[last])
    x = jnp.zeros((300, 4)).at[np.array(at(1, arrays["coords"]))].set(arrays["feats"])
    if len(maps) == 2:
        x, back = jax.vjp(lambda x: convolve(x, jnp.asarray(layer["down_kernel"]), maps[0]), x)
        x = x * levels[LAYERS[name][0][1]].valid[:, None]
    cotangent = jnp.zeros((300, layer["cotangent"].shape[1])).at[np.array(there)].set(layer["cotangent"])
    out, to_x, to_kernel = run(x, jnp.asarray(layer["kernel"]), maps[-1], cotangent)
    if len(maps) == 2:
        (to_x,) = back(to_x * levels[LAYERS[name][0][1]].valid[:, None])
    bias = layer["bias"] if "bias" in layer else 0
    np.testing.assert_allclose(np.asarray(out)[there] + bias, layer["out_feats"], atol=1e-5)
    np.testing.assert_allclose(np.asarray(to_x)[at(1, arrays["coords"])], layer["grad_feats"], atol=2e-5)
    np.testing.assert_allclose(to_kernel, layer["grad_kernel"], atol=5e-5)


def test_vmap_of_features_kernel_and_maps():
    """Values and gradients equal a loop: features alone, kernels alone, and everything with maps of unequal length."""
    scenes = [level(seed, count, 120) for seed, count in ((1, 120), (2, 60), (3, 0))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *scenes)
    x, kernels, cotangent = numbers(4, 3, 120, 3), numbers(5, 3, 27, 3, 2), numbers(6, 3, 120, 2)

    def whole(sites, x, kernel, cotangent):
        pairs = kernel_map(sites, sites, 3, block=8)
        out, pullback = jax.vjp(lambda x, k: convolve(x, k, pairs) * sites.valid[:, None], x, kernel)
        return out, *pullback(cotangent), pairs.blocks

    one = jax.jit(whole)
    for axes in ((None, 0, None, None), (0, 0, 0, 0)):
        given = [
            jax.tree.map(lambda leaf, axis=axis: leaf if axis == 0 else leaf[0], argument)
            for argument, axis in zip((stacked, x, kernels, cotangent), axes)
        ]
        at = lambda i, given=given, axes=axes: [
            jax.tree.map(lambda leaf: leaf[i], argument) if axis == 0 else argument
            for argument, axis in zip(given, axes)
        ]
        loop = [one(*at(i)) for i in range(3)]
        together = quick(jax.vmap(whole, axes))(*given)
        chex.assert_trees_all_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop), atol=2e-5)
        if axes[0] == 0:
            assert len(set(together[3].tolist())) == 3


def test_bitwise_repeatable_and_traced_once():
    def whole(coordinates, valid, x, kernel):
        sites = sites_of(coordinates, valid)
        pairs = kernel_map(sites, sites, 3, block=16)
        out, pullback = jax.vjp(lambda x, k: convolve(x, k, pairs), x * sites.valid[:, None], kernel)
        return out * sites.valid[:, None], *pullback(out)

    once = quick(chex.assert_max_traces(whole, 1))
    x, kernel = numbers(4, 100, 8), numbers(5, 27, 8, 8)
    results = []
    for seed, count in ((1, 100), (2, 60), (1, 100), (1, 100)):
        coordinates = jnp.asarray(twins.random_sites(seed, 100, low=-3, high=3))
        results.append(once(coordinates, jnp.arange(100) < count, x, kernel))
    chex.assert_trees_all_equal(results[0], results[2], results[3])
    assert (results[0][0] != results[1][0]).any()  # control


def test_features_behind_the_last_row_do_not_matter():
    sites = level(7, 90, 100)
    pairs = pairs_of(sites, sites, 3)
    x, kernel = numbers(1, 100, 3), numbers(2, 27, 3, 2)
    junk = jnp.where(sites.valid[:, None], x, 1e30)
    cotangent = jnp.where(sites.valid[:, None], 1.0, 0) * jnp.ones((1, 2))
    clean, dirty = (run(values, kernel, pairs, cotangent) for values in (x, junk))
    np.testing.assert_array_equal(clean[0][:90], dirty[0][:90])
    np.testing.assert_array_equal(clean[2], dirty[2])


@pytest.mark.parametrize(
    ("x", "kernel", "message"),
    [
        ((99, 3), (27, 3, 2), r"features: got shape \(99, 3\), expected \[100, channels\]"),
        ((100,), (27, 3, 2), "features: got shape"),
        ((100, 3), (26, 3, 2), r"kernel: got shape \(26, 3, 2\), expected \[27, 3, out\]"),
        ((100, 3), (27, 4, 2), "kernel: got shape"),
        ((100, 3), (27, 3), "kernel: got shape"),
        ((100, 3), (27, 3, 2, 1), "kernel: got shape"),
    ],
)
def test_bad_shapes(x, kernel, message):
    sites = level(7, 90, 100)
    pairs = pairs_of(sites, sites, 3)
    with pytest.raises(ValueError, match=message):
        convolve(jnp.zeros(x), jnp.zeros(kernel), pairs)
