"""Pooling: by hand, against a dictionary of voxels, and against MinkowskiEngine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from levels import quick

from dyn_jax.sparse3d import coarsen, from_numpy, kernel_map, offsets
from dyn_jax.sparse3d.pooling import (
    batch_items,
    global_average,
    global_max,
    global_sum,
    pool_average,
    pool_max,
    pool_sum,
)

POOLS = {"sum": pool_sum, "average": pool_average, "max": pool_max}
GLOBAL = {"gsum": global_sum, "gavg": global_average, "gmax": global_max}
sites_in = quick(lambda tensor: tensor.sites())


def level(coordinates, features, capacity=None):
    """(sites, features in the order of the sites, row of every given coordinate)."""
    tensor = from_numpy(np.asarray(coordinates), np.asarray(features, np.float32), capacity=capacity)
    sites = sites_in(tensor)
    row = np.asarray(sites.find(jnp.asarray(coordinates, jnp.int32))[0])
    return sites, jnp.zeros((sites.capacity, tensor.features.shape[1])).at[row].set(jnp.asarray(features)), row


def cloud(seed, voxels=60, extent=6, channels=3):
    rng = np.random.default_rng(seed)
    cells = rng.choice(2 * extent**3, voxels, replace=False)
    batch, rest = np.divmod(cells, extent**3)
    xyz = np.stack(np.unravel_index(rest, (extent,) * 3), axis=1) - extent // 2
    return np.concatenate([batch[:, None], xyz], axis=1), rng.integers(-3, 4, (voxels, channels)).astype(np.float32)


def line():
    """Voxels at x = 0, 1, 2, 5 with values 1, 5, 5, -2."""
    return level([[0, x, 0, 0] for x in (0, 1, 2, 5)], [[1.0], [5.0], [5.0], [-2.0]])


def test_on_a_line():
    sites, x, _ = line()

    @quick
    def run(x):
        below = coarsen(sites, 2)
        maps = kernel_map(sites, sites, 3), kernel_map(sites, below, 2)
        return below, {kind: [pool(x, pairs)[:, 0] for pairs in maps] for kind, pool in POOLS.items()}

    below, got = run(x)
    assert below.coordinates[:3, 1].tolist() == [0, 2, 4]
    for kind, same_level, strided in [
        ("sum", [6, 11, 10, -2], [6, 5, -2]),
        ("average", [3, 11 / 3, 5, -2], [3, 5, -2]),
        ("max", [5, 5, 5, -2], [5, 5, -2]),
    ]:
        np.testing.assert_allclose(got[kind][0], same_level, rtol=1e-6)
        np.testing.assert_allclose(got[kind][1][:3], strided)


def test_the_first_of_equal_maxima_has_the_derivative():
    sites, x, _ = line()
    weights = jnp.array([1.0, 10, 100, 1000])
    gradient = quick(jax.grad(lambda x: jnp.sum(weights * pool_max(x, kernel_map(sites, sites, 3))[:, 0])))
    # rows 0 and 1 take x = 1 (offsets +1 and 0 before +1), row 2 takes x = 1 too (offset -1 before 0)
    assert gradient(x)[:, 0].tolist() == [0, 111, 0, 1000]


def by_dictionary(kind, coordinates, values, targets, steps, where):
    """(out, gradient of sum(out * cotangent) as a function of the cotangent) by looking every neighbour up."""
    place = {tuple(c): row for row, c in enumerate(coordinates)}
    out = np.zeros((len(targets), values.shape[1]))
    shares = np.zeros((len(targets), len(values), values.shape[1]))  # d out / d in
    for j, target in enumerate(targets):
        found = [place.get((target[0], *(target[1:] + step))) for step in steps]
        found = [row for row in found if row is not None and where[row]]
        for channel in range(values.shape[1] if found else 0):
            x = values[found, channel]
            if kind == "max":
                out[j, channel] = x.max()
                shares[j, found[int(np.argmax(x))], channel] = 1
            else:
                weight = 1 / len(found) if kind == "average" else 1
                out[j, channel] = x.sum() * weight
                shares[j, found, channel] = weight
    return out, lambda cotangent: np.einsum("jic,jc->ic", shares, cotangent)


MAPS = [
    (3, 1, "cube"),
    (2, 1, "cube"),
    (3, 1, "hybrid"),
    (2, 2, "cube"),
    (3, 2, "cube"),
    (2, 3, "cube"),
    (3, 2, "cross"),
]


@pytest.mark.parametrize("size, stride, region", MAPS)
def test_against_a_dictionary(size, stride, region):
    coordinates, features = cloud(seed=size + 10 * stride)
    sites, x, row = level(coordinates, features, capacity=70)
    where = np.arange(70) % 5 > 0
    cotangent = np.random.default_rng(1).normal(size=(70, 3)).astype(np.float32)

    @quick
    def run(x):
        target = sites if stride == 1 else coarsen(sites, stride)
        pairs = kernel_map(sites, target, size, region=region, block=16)
        pools = {**POOLS, "max": lambda x, pairs: pool_max(x, pairs, jnp.asarray(where))}
        results = {kind: jax.vjp(lambda x, pool=pool: pool(x, pairs), x) for kind, pool in pools.items()}
        in_use = jnp.asarray(cotangent) * target.valid[:, None]
        return target, {kind: (out, vjp(in_use)[0]) for kind, (out, vjp) in results.items()}

    target, results = run(x)
    count, ordered = int(target.count), np.argsort(row)
    for kind, (out, gradient) in results.items():
        want, back = by_dictionary(
            kind, coordinates[ordered], features[ordered], np.asarray(target.coordinates)[:count],
            offsets(size, region), where if kind == "max" else where | True,
        )  # fmt: skip
        np.testing.assert_allclose(out[:count], want, atol=1e-5)
        np.testing.assert_allclose(gradient[:60], back(cotangent[:count]), atol=1e-5)
        assert np.abs(want).max() > 1


@pytest.fixture(scope="module")
def layers(golden):
    return golden("mink_layers")


POOLED = [f"{kind}pool_k{k}s2" for kind in ("max", "avg", "sum") for k in (2, 3)] + sorted(GLOBAL)


@pytest.fixture(scope="module")
def pooled(layers):
    """Layer of the file -> (pooled features, gradient) of our function, in the file's order; compiled once."""
    sites, x, row = level(layers["coords"], layers["feats"])

    @quick
    def run(x):
        below, items = coarsen(sites, 2), batch_items(sites, 2)
        maps = {k: kernel_map(sites, below, k) for k in (2, 3)}

        def one(name):
            if name in GLOBAL:
                order = layers[f"{name}/out_coords"][:, 0]
                got, vjp = jax.vjp(lambda x: GLOBAL[name](x, items), x)
            else:
                order, _ = below.find(jnp.asarray(layers[f"{name}/out_coords"]))
                kind = {"maxpool": "max", "avgpool": "average", "sumpool": "sum"}[name[:7]]
                got, vjp = jax.vjp(lambda x: POOLS[kind](x, maps[int(name[9])]), x)
            cotangent = jnp.zeros_like(got).at[order].set(layers[f"{name}/cotangent"])
            return got[order], vjp(cotangent)[0][row]

        return {name: one(name) for name in POOLED}

    return run(x)


@pytest.mark.parametrize("name", POOLED)
def test_against_minkowski_engine(layers, pooled, name):
    got, gradient = pooled[name]
    np.testing.assert_allclose(got, layers[f"{name}/out_feats"], atol=3e-6)
    np.testing.assert_allclose(gradient, layers[f"{name}/grad_feats"], atol=1e-6)


def test_dividing_by_the_volume_is_noticed(layers, pooled):
    """Control."""
    assert np.abs(pooled["sumpool_k3s2"][0] / 27 - layers["avgpool_k3s2/out_feats"]).max() > 0.1


def test_jit_vmap_and_repetition():
    """Also over two sets of coordinates with different numbers of blocks."""

    def maps(coordinates, valid):
        sites = base.replace(coordinates=coordinates, valid=valid).sites()
        return kernel_map(sites, coarsen(sites, 2), 3, block=16)

    def run(coordinates, valid, features, cotangent):
        pairs = maps(coordinates, valid)
        results = [jax.vjp(lambda x, pool=pool: pool(x, pairs), features) for pool in POOLS.values()]
        return pairs.blocks, [(out, vjp(cotangent)[0]) for out, vjp in results]

    base = from_numpy(*cloud(3))
    other = from_numpy(*cloud(4, voxels=30), capacity=60)
    cotangent = jnp.asarray(np.random.default_rng(0).normal(size=(60, 3)), jnp.float32)
    cases = [(t.coordinates, t.valid, t.features, cotangent) for t in (base, other)]
    jitted = quick(run)
    together = quick(jax.vmap(run))(*(jnp.stack(parts) for parts in zip(*cases)))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)
    for number, case in enumerate(cases):
        got = jitted(*case)
        jax.tree.map(np.testing.assert_array_equal, got, jitted(*case))
        jax.tree.map(close, jax.tree.map(lambda a, number=number: a[number], together), got)
    pairs = quick(maps)(*cases[1][:2])
    for pool, (out, _) in zip(POOLS.values(), got[1]):
        close(pool(cases[1][2], pairs), out)
    assert int(together[0][0]) > int(together[0][1]) > 15


def test_global_by_hand():
    """Item 1 has no voxels; the last row is not in use."""
    coordinates = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 3, 0, 0], [2, 0, 0, 0]]
    sites, x, _ = level(coordinates, [[-4.0], [-1], [-1], [7]], capacity=5)
    items = batch_items(sites, 3)
    assert global_sum(x, items)[:, 0].tolist() == [-6, 0, 7]
    assert global_average(x, items)[:, 0].tolist() == [-2, 0, 7]
    assert global_max(x, items)[:, 0].tolist() == [-1, 0, 7]
    weights = jnp.array([0.5, 0.0, 0.5, 0.25, 9.0])
    assert global_average(x, items, weights)[:, 0].tolist() == [-2.5, 0, 7]
    some = batch_items(sites, 3, jnp.array([True, False, False, True, True]))
    assert global_max(x, some)[:, 0].tolist() == [-4, 0, 7]
    gradient = jax.grad(lambda x: jnp.sum(jnp.array([1.0, 10.0, 100.0]) * global_max(x, items)[:, 0]))
    assert gradient(x)[:, 0].tolist() == [0, 1, 0, 100, 0]


def test_global_vmap_is_a_loop():
    sites, x, _ = level(*cloud(5))
    items = batch_items(sites, 2)
    stack = jnp.stack([x, -x, x * 0])
    for function in GLOBAL.values():
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(function(x, items))))  # noqa: B023
        for transformed in (lambda x: function(x, items), gradient):  # noqa: B023
            loop = quick(transformed)
            for one, row in zip(quick(jax.vmap(transformed))(stack), stack):
                np.testing.assert_allclose(one, loop(row), atol=1e-5)


def test_a_nan_stays():
    sites, x, _ = line()
    with jax.debug_nans(False):
        got = pool_max(x.at[1, 0].set(jnp.nan), kernel_map(sites, sites, 3))
        assert np.isnan(got[:, 0]).tolist() == [True, True, True, False]
        assert np.isnan(global_max(x.at[1, 0].set(jnp.nan), batch_items(sites, 1))[0, 0])


def test_bad_input():
    sites, x, _ = level(*cloud(6))
    pairs = kernel_map(sites, coarsen(sites, 2, 40), 2)
    for pool in POOLS.values():
        with pytest.raises(ValueError, match=r"features: got shape \(59, 3\), expected \[60, channels\]"):
            pool(x[1:], pairs)
    with pytest.raises(ValueError, match="not swapped"):
        pool_average(x[:40], pairs.swap())
    with pytest.raises(ValueError, match="items: got 0"):
        batch_items(sites, 0)
