"""MinkowskiFCNN against a network of site lists in PyTorch, against MinkowskiEngine, and under soft occupancies."""

import itertools
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import weights_convert
from dyn_jax import occupancy as gates
from dyn_jax.networks import minkfcnn
from dyn_jax.occupancy import voxel
from dyn_jax.sparse3d import PAPER, RELEASE, Capacity, from_numpy
from dyn_jax.types import PointCloud

CLOUDS, POINTS = 4, 1024
NET = minkfcnn.modelnet40(channels=(8, 12, 16, 24, 32), embedding=64)
CAPACITY = Capacity((4096, 3072, 1024, 320, 96, 64, 48, 48))
TINY = minkfcnn.modelnet40(channels=(3, 4, 4, 5, 6), embedding=8, hidden=5, num_classes=3)
# the compiler's optimisations cost more time than they save here
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def drawn(net, seed=0):
    """Variables of which every norm does something."""
    rng = np.random.default_rng(seed)
    shapes = traverse_util.flatten_dict(jax.eval_shape(net.init, jax.random.key(0), net.example_input()))

    def leaf(path, shape):
        if path[-1] == "kernel":
            fan = shape[0] if len(shape) == 2 else shape[1] * 10
            return rng.normal(size=shape) / np.sqrt(fan)
        return rng.uniform(0.5, 1.5, shape) if path[-1] in ("scale", "var") else 0.2 * rng.normal(size=shape)

    flat = {path: leaf(path, value.shape).astype(np.float32) for path, value in shapes.items()}
    return traverse_util.unflatten_dict(flat)


def spheres(seed=0, clouds=CLOUDS, points=POINTS):
    """[cloud, point, 3], ellipsoids of radius about 1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(clouds, points, 3))
    x = x / np.linalg.norm(x, axis=2, keepdims=True) * rng.uniform(0.5, 1, (clouds, 1, 3))
    return x.astype(np.float32)


def number(sites):
    """One integer for sites [..., 3], which ascends as they do."""
    return (np.asarray(sites, np.int64) + 2**15) @ np.array([2**40, 2**20, 1])


def twin(variables, xyz, net):
    """(logits [class] of one cloud in float64 as a function of its features, coordinates and pairs of every level)."""
    torch = pytest.importorskip("torch")
    leaves = {
        "/".join(path[1:]): torch.tensor(np.asarray(value), dtype=torch.float64)
        for path, value in traverse_util.flatten_dict(variables).items()
    }
    cells = np.floor(xyz / np.float32(net.voxel_size)).astype(int)
    levels = [np.unique(cells // 2**level * 2**level, axis=0) for level in range(8)]
    keys = [number(sites) for sites in levels]  # ascending, as the sites are
    steps = np.array([step[::-1] for step in itertools.product((-1, 0, 1), repeat=3)])

    def rows(level, sites):
        """[...], rows of the level that hold sites [..., 3]; -1 where there is none."""
        row = np.minimum(np.searchsorted(keys[level], number(sites)), len(keys[level]) - 1)
        return torch.tensor(np.where(keys[level][row] == number(sites), row, -1))

    own = rows(0, cells)

    @lru_cache
    def neighbours(source, target):
        return rows(source, levels[target][:, None] + steps[None] * 2**source)

    def mean(x):
        total = torch.zeros(len(levels[0]), x.shape[1], dtype=x.dtype).index_add(0, own, x)
        return total / torch.bincount(own)[:, None]

    def norm(x, name):
        y = (x - leaves[f"{name}/mean"]) / torch.sqrt(leaves[f"{name}/var"] + 1e-5)
        return torch.nn.functional.leaky_relu(y * leaves[f"{name}/scale"] + leaves[f"{name}/bias"], 0.01)

    def convolution(x, source, target, name):
        padded = torch.cat([x, torch.zeros(1, x.shape[1], dtype=x.dtype)])  # row -1
        read = padded[neighbours(source, target)]
        return norm(torch.einsum("jki,kio->jo", read, leaves[f"{name}_0/kernel"]), f"{name}_1")

    def maximum(x, source, target):
        padded = torch.cat([x, torch.full((1, x.shape[1]), -torch.inf, dtype=x.dtype)])
        return padded[neighbours(source, target)].max(dim=1).values

    def sliced(x, level):
        return x[rows(level, cells // 2**level * 2**level)]

    def logits(features):
        x = mean(norm(features @ leaves["mlp1_0/kernel"], "mlp1_1"))
        points, level = [], 0
        for number in (1, 2, 3, 4):
            target = level + (number > 1)
            x = maximum(convolution(x, level, target, f"conv{number}"), target, target + 1)
            level = target + 1
            points.append(sliced(x, level))
        x = mean(torch.cat(points, dim=1))
        for number in range(3):
            x = convolution(x, number, number + 1, f"conv5_{number}")
        x = torch.cat([x.max(dim=0).values, x.mean(dim=0)])[None]
        for name in ("final_0", "final_2"):
            x = norm(x @ leaves[f"{name}_0/kernel"], f"{name}_1")
        return (x @ leaves["final_3/kernel"] + leaves["final_3/bias"])[0]

    pairs = {key: int((neighbours(*key) >= 0).sum()) for key in [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4), (5, 6)]}
    return logits, pairs


def by_twin(variables, xyz, labels):
    """(logits [cloud, class], gradient of the mean cross-entropy [cloud, point, 3], {levels: pairs of every cloud})."""
    torch = pytest.importorskip("torch")
    results, total = [], {}
    for one, label in zip(xyz, labels):
        function, pairs = twin(variables, one, NET)
        features = torch.tensor(one, dtype=torch.float64, requires_grad=True)
        logits = function(features)
        torch.nn.functional.cross_entropy(logits[None], torch.tensor([int(label)])).backward()
        results.append((logits.detach().numpy(), features.grad.numpy() / len(xyz)))
        total = {key: np.append(total.get(key, []), count) for key, count in pairs.items()}
    return np.stack([r[0] for r in results]), np.stack([r[1] for r in results]), total


def together(xyz):
    """Clouds [cloud, point, 3] in one `PointCloud`."""
    batch = np.repeat(np.arange(len(xyz)), xyz.shape[1])
    flat = jnp.asarray(xyz.reshape(-1, 3))
    return PointCloud(
        flat, jnp.zeros((len(flat), 0)), jnp.ones(len(flat), bool), jnp.asarray(batch, jnp.int32), len(xyz)
    )


def relative(got, want):
    return np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)


@pytest.fixture(scope="module")
def run():
    """(variables, cloud, labels) -> ((mean cross-entropy, output), gradient in xyz); compiled once."""

    def loss(xyz, cloud, variables, labels):
        output = NET.apply(variables, cloud.replace(xyz=xyz), capacity=CAPACITY)
        log_probability = jax.nn.log_softmax(output.logits)
        return -jnp.mean(jnp.take_along_axis(log_probability, labels[:, None], axis=1)), output

    jitted = quick(jax.value_and_grad(loss, has_aux=True))
    return lambda variables, cloud, labels: jitted(cloud.xyz, cloud, variables, jnp.asarray(labels, jnp.int32))


@pytest.fixture(scope="module")
def own():
    """(variables, clouds, labels), nothing from a file."""
    return drawn(NET), spheres(), np.array([3, 17, 0, 39])


def test_logits_gradient_and_pairs_of_a_network_in_pytorch(own, run):
    variables, xyz, labels = own
    (_, output), gradient = run(variables, together(xyz), labels)
    assert not output.trace.overflow
    logits, slope, pairs = by_twin(variables, xyz, labels)
    assert relative(output.logits, logits) < 2e-6
    assert relative(gradient.reshape(slope.shape), slope) < 2e-5
    first, *units = output.trace.units
    assert first.name == "points" and first.occupancy.sum(axis=1).tolist() == [POINTS] * CLOUDS
    np.testing.assert_array_equal(first.macs, 3 * 8 * first.occupancy)
    channels = [8 * 12, 12 * 16, 16 * 24, 24 * 32, 84 * 16, 16 * 32, 32 * 64]
    keys = [(0, 0), (1, 2), (3, 4), (5, 6), (0, 1), (1, 2), (2, 3)]
    expected = sum(pairs[key] * macs for key, macs in zip(keys, channels))
    executed = sum(np.sum(np.asarray(u.macs * u.occupancy, np.float64), axis=1) for u in units)
    np.testing.assert_array_equal(executed, expected)
    assert {unit.dense_macs for unit in output.trace.units} == {None}
    assert output.trace.static_macs == 128 * 512 + 512 * 512 + 512 * 40


def test_minkowski_engine(golden, run):
    """Logits and loss; the gradient is that of the network in PyTorch.

    The file's grad_feats is left out: it is not the derivative of the file's logits (central differences in float64
    show that), while the network in PyTorch and this one agree with both.
    """
    arrays = golden("mink_MinkowskiFCNN_small")
    state = {key[3:]: value for key, value in arrays.items() if key.startswith("sd/")}
    variables = weights_convert.convert(NET, state)
    xyz = arrays["feats"].reshape(CLOUDS, POINTS, 3)
    np.testing.assert_array_equal(
        np.floor(xyz.reshape(-1, 3) / np.float32(0.05)), np.floor(arrays["field_coords"][:, 1:])
    )
    (loss, output), gradient = run(variables, together(xyz), arrays["labels"])
    assert not output.trace.overflow
    assert relative(output.logits, arrays["logits64"]) < 2e-6
    np.testing.assert_allclose(loss, arrays["loss64"], rtol=1e-6)
    logits, slope, _ = by_twin(variables, xyz, arrays["labels"])
    np.testing.assert_allclose(logits, arrays["logits64"], atol=1e-8)
    assert relative(gradient.reshape(slope.shape), slope) < 2e-5
    # control: kernels in reverse order
    turned = jax.tree.map(lambda a: a[::-1] if np.ndim(a) == 3 else a, variables)
    (_, other), _ = run(turned, together(xyz), arrays["labels"])
    assert relative(other.logits, arrays["logits64"]) > 0.01


def test_clouds_do_not_see_each_other(own, run):
    variables, xyz, labels = own
    cloud = together(xyz)
    (_, everyone), slope = run(variables, cloud, labels)
    (_, again), repeated = run(variables, cloud, labels)
    np.testing.assert_array_equal(again.logits, everyone.logits)
    np.testing.assert_array_equal(repeated, slope)
    for number in (0, 3):
        alone = cloud.replace(valid=cloud.batch == number)
        (_, output), gradient = run(variables, alone, labels)
        assert relative(output.logits[number], np.asarray(everyone.logits[number])) < 2e-6
        mine = np.asarray(cloud.batch) == number
        for unit, all_units in zip(output.trace.units[1:], everyone.trace.units[1:]):
            cost = np.sum(unit.macs * unit.occupancy, axis=1)
            assert cost[number] == np.sum(all_units.macs[number] * all_units.occupancy[number]) > 0
            assert not np.delete(cost, number).any()
        assert relative(gradient[mine], np.asarray(slope[mine])) < 1e-5
        assert not np.asarray(gradient)[~mine].any()


def test_order_of_the_points_does_not_matter(own, run):
    variables, xyz, labels = own
    order = np.random.default_rng(1).permutation(CLOUDS * POINTS)
    cloud = together(xyz)
    mixed = cloud.replace(xyz=cloud.xyz[order], batch=cloud.batch[order])
    (_, expected), slope = run(variables, cloud, labels)
    (_, got), gradient = run(variables, mixed, labels)
    assert relative(got.logits, np.asarray(expected.logits)) < 2e-6
    assert relative(gradient, np.asarray(slope[order])) < 1e-5


def test_traced_batch_indices_out_of_range_are_flagged(own, run):
    variables, xyz, labels = own
    cloud = together(xyz)
    (_, output), _ = run(variables, cloud.replace(batch=cloud.batch.at[7].set(CLOUDS)), labels)
    assert output.trace.overflow


@pytest.mark.parametrize("form", [PAPER, RELEASE], ids=["paper", "release"])
def test_soft_occupancy(form):
    """With steep relations it is the original network, and the gradient is that of central differences.

    The paper's form has both clouds in one input, the release's each by itself under vmap (without the gradient, for
    time).
    """
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    cells = rng.integers(-4, 4, (2, 30, 3))
    points = (cells + 0.5 + rng.uniform(-0.35, 0.35, cells.shape)) * TINY.voxel_size
    variables = drawn(TINY, seed=2)
    with jax.enable_x64(True):
        doubles = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), variables)
        both = together(points)
        one = jax.tree.map(lambda a: a[:30] if jnp.ndim(a) else a, both).replace(batch=None, clouds=1)
        capacity = Capacity((384, 384, 192, 64, 32, 32, 32, 32), 512)

        def soft(xyz, lam):
            output = TINY.apply(
                doubles, (both if form == PAPER else one).replace(xyz=xyz), reach=0.02, occupancy=voxel.sigmoid(lam),
                capacity=capacity, form=form,
            )  # fmt: skip
            return jnp.sum(jnp.sin(output.logits)), output

        if form == PAPER:
            jitted, shape = quick(jax.value_and_grad(soft, has_aux=True)), (60, 3)
        else:
            jitted, shape = quick(jax.vmap(lambda *a: (soft(*a), None), (0, None))), points.shape
        run = lambda xyz, lam: jitted(jnp.asarray(xyz.reshape(shape)), lam)
        (_, output), gradient = run(points, 10.0)
        assert not output.trace.overflow.any()
        level = np.asarray(output.trace.units[1].occupancy)
        assert ((level > 0.01) & (level < 0.99)).sum() > 100  # voxels beyond those that hold points
        for seed in range(3 if form == PAPER else 0):
            move = 1e-6 * np.random.default_rng(seed).normal(size=points.shape)
            (up, _), (down, _) = run(points + move, 10.0)[0], run(points - move, 10.0)[0]
            np.testing.assert_allclose(np.sum(gradient * move.reshape(shape)), (up - down) / 2, rtol=1e-4)
        (_, steep), _ = run(points, 400.0)
        steep, usual = (np.asarray(o.logits).reshape(2, 3) for o in (steep, output))
    for number in range(2):
        logits, _ = twin(variables, points[number].astype(np.float32), TINY)
        want = logits(torch.tensor(points[number])).numpy()
        np.testing.assert_allclose(steep[number], want, atol=1e-8)
        assert np.abs(usual[number] - want).max() > 1e-3


def test_fgm_has_the_original_voxels_and_training_moves_the_norms():
    """One compilation for both: the dynamics-unaware occupancy, which ignores how far points may move, in training."""
    variables, xyz = drawn(TINY), spheres(clouds=3, points=40)
    cloud = together(xyz)

    @quick
    def train(occupancy, key):
        return TINY.apply(
            variables, cloud, reach=9.0, occupancy=occupancy, capacity=Capacity((128,) * 8), train=True,
            rngs={"dropout": key}, mutable=["batch_stats"],
        )  # fmt: skip

    output, updated = train(voxel.fgm(voxel.sigmoid(20.0)), jax.random.key(0))
    assert not output.trace.overflow
    cells = np.floor(xyz / np.float32(0.05)).astype(int)
    voxels = sum(len(np.unique(one, axis=0)) for one in cells)
    assert float(jnp.sum(output.trace.units[1].occupancy)) == voxels
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), updated["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(moved)) and np.isfinite(output.logits).all()
    points = variables["params"]["mlp1_0"]["kernel"]
    values = xyz.reshape(-1, 3) @ points
    expected = 0.9 * variables["batch_stats"]["mlp1_1"]["mean"] + 0.1 * values.mean(axis=0)
    np.testing.assert_allclose(updated["batch_stats"]["mlp1_1"]["mean"], expected, atol=1e-6)
    other, _ = train(voxel.fgm(voxel.sigmoid(20.0)), jax.random.key(1))
    assert np.abs(output.logits - other.logits).max() > 1e-3


def test_sizes():
    count = lambda net: sum(leaf.size for leaf in jax.tree.leaves(drawn(net)["params"]))
    channels, wide = (32, 48, 64, 96, 128), (336, 256, 512, 1024)
    kernels = sum(27 * a * b for sizes in (channels, wide) for a, b in zip(sizes, sizes[1:]))
    linear = 3 * 32 + 2048 * 512 + 512 * 512 + 512 * 40 + 40
    norms = 2 * (sum(channels) + sum(wide[1:]) + 512 + 512)
    assert count(minkfcnn.modelnet40()) == kernels + linear + norms
    assert 100_000 < count(minkfcnn.objects()) < 200_000
    assert (minkfcnn.objects().num_classes, minkfcnn.objects(num_classes=4).num_classes) == (10, 4)


def test_bad_input():
    variables = drawn(TINY)
    cloud = together(spheres(clouds=2, points=5))
    apply = lambda cloud, **arguments: TINY.apply(variables, cloud, **arguments)
    with pytest.raises(TypeError, match="inputs: got SparseTensor, expected a PointCloud"):
        apply(from_numpy(np.zeros((1, 4), int), np.zeros((1, 3))))
    with pytest.raises(ValueError, match=r"batch: got None with clouds=2, expected \[10\] integers"):
        apply(cloud.replace(batch=None))
    with pytest.raises(ValueError, match=r"batch: got indices in \[0, 1\], expected \[0, 0\]"):
        apply(cloud.replace(clouds=1))
    with pytest.raises(ValueError, match=r"batch: got float32\[10\], expected integers \[10\]"):
        apply(cloud.replace(batch=jnp.zeros(10)))
    with pytest.raises(ValueError, match="clouds: got 0"):
        apply(cloud.replace(clouds=0))
    with pytest.raises(ValueError, match="clouds: got 1 in training, expected at least 2"):
        apply(cloud.replace(batch=None, clouds=1), train=True)
    with pytest.raises(ValueError, match=r"features: got shape \(10, 0\), expected \[10, 3\]"):
        TINY.clone(coordinate_features=False).apply(variables, cloud)
    with pytest.raises(TypeError, match="form: got 'paper'"):
        apply(cloud, form="paper")
    with pytest.raises(TypeError, match="occupancy: got float, expected a relation"):
        apply(cloud, occupancy=0.5)
    with pytest.raises(ValueError, match="xyz: got 1 points with NaN or infinite values"):
        apply(cloud.replace(xyz=cloud.xyz.at[0, 0].set(jnp.inf)))
    assert voxel.resolve(gates.hard()) is None  # the gate's constant means the original network as well
