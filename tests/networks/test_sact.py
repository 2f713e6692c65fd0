"""SACT and ACT: the authors' test vectors, a numpy twin of loop and network, their FLOPs totals, SAME padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import metrics, nn, occupancy
from dyn_jax.gates import halting as gate
from dyn_jax.networks import sact
from dyn_jax.testing import check_network
from dyn_jax.types import Trace

HARD = occupancy.hard()
SMALL = {
    "sact": sact.SACT(depths=(4, 3), widths=(4, 8), num_classes=5),
    "act": sact.SACT(depths=(4, 3), widths=(4, 8), num_classes=5, mode="act"),
    "sact imagenet": sact.imagenet(50, depths=(4, 3), widths=(2, 4), num_classes=5),
}
TINY = {name: net.clone(depths=(2, 1)) for name, net in SMALL.items()}
FAST = {"xla_backend_optimization_level": 0}


def size_of(net):
    return 32 if net.stem == "imagenet" else 8


def images_of(net, batch=3):
    shape = (batch, size_of(net), size_of(net), 3)
    return jnp.asarray(np.random.default_rng(1).uniform(size=shape), jnp.float32)


def variables_of(net, seed=1):
    """Random variables; halting gates whose biases are near 0, so that positions halt everywhere in a block."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), images_of(net))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind, noise = path[-1].key, rng.normal(size=leaf.shape)
        if kind in ("scale", "var"):
            value = 1 + 0.1 * np.abs(noise)
        elif kind in ("bias", "mean"):
            value = 0.1 * noise - (1.0 if "halting" in path[1].key and "conv" in path[-2].key else 0.0)
        else:
            value = noise * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def columns(*values):
    """One [1] array for each unit."""
    return [jnp.asarray([v], jnp.float32) for v in values]


def hard_weights(halting):
    return gate.halting_weights(halting, [HARD(s) for s in gate.halting_scores(halting)])


def output(halting, states):
    return sum(w * s for w, s in zip(hard_weights(halting), states))


# --- the authors' vectors


@pytest.mark.parametrize(
    "h, cost, units, answer, weights, slopes",
    [
        ((0.01, 0.5, 0.6, 0.7), 3.49, 3, 1.48, (0.01, 0.5, 0.49, 0, 0), (-1, -1, 0, 0)),
        ((0.01,) * 4, 5.96, 5, 3.9, (0.01,) * 4 + (0.96,), (-1,) * 4),
        ((0.999,) * 4, 2, 1, 0, (1, 0, 0, 0, 0), (0,) * 4),
    ],
)
def test_the_authors_vectors(h, cost, units, answer, weights, slopes):
    halting, states = columns(*h), columns(0, 1, 2, 3, 4)
    got = gate.ponder(gate.halting_scores(halting))
    np.testing.assert_allclose(got.cost, [cost], atol=1e-6)
    assert got.units == units
    np.testing.assert_allclose(np.ravel(hard_weights(halting)), weights, atol=1e-6)
    np.testing.assert_allclose(output(halting, states), [answer], atol=1e-6)
    slope = jax.grad(lambda h: gate.ponder(gate.halting_scores(h)).cost.sum())(halting)
    np.testing.assert_array_equal(np.ravel(slope), slopes)


def test_the_authors_spatial_vector():
    halting = [jnp.array([[0.9, 0.1]]), jnp.array([[0.5, 0.1]])]
    states = [jnp.array([[a, a + 1.0]]) for a in (1.0, 3.0, 5.0)]
    scores = gate.halting_scores(halting)
    got = gate.ponder(scores)
    np.testing.assert_allclose(got.cost, [[2.1, 3.8]], atol=1e-6)
    np.testing.assert_array_equal(got.units, [[2, 3]])
    np.testing.assert_allclose(output(halting, states), [[1.2, 5.4]], atol=1e-6)
    np.testing.assert_array_equal(HARD(scores[-1]), [[0, 1]])  # the third unit's mask


def test_reaching_the_limit_exactly_has_finished():
    limit = np.float32(1 - gate.EPSILON)
    at, below = (gate.halting_score(jnp.float32(v)) for v in (limit, np.nextafter(limit, np.float32(0))))
    assert at < 0 < below
    assert jax.grad(gate.halting_score)(jnp.float32(limit)) == -1


# --- the loop, in numpy


def reference_loop(halting, states, epsilon=0.01):
    """One block as a loop over units: (output, cost, units), all [position]; h [unit - 1, position]."""
    shape = np.shape(halting[0])
    total, left, cost, units = np.zeros(shape), np.ones(shape), np.ones(shape), np.zeros(shape, int)
    answer, finished = np.zeros(shape), np.zeros(shape, bool)
    for h, state in zip([*halting, np.ones(shape)], states):
        units += ~finished
        total = total + h
        now = total >= 1 - epsilon
        h = np.where(now, 0.0, h)
        newly = now & ~finished
        answer = answer + np.where(newly, left, h) * state
        cost = cost + np.where(newly, left, np.where(now, 0.0, 1.0))
        left, finished = left - h, now
    return answer, cost, units


def test_random_halting_equals_the_loop_with_its_derivatives():
    rng = np.random.default_rng(0)
    h, states = rng.uniform(0, 0.6, (4, 60)), rng.normal(size=(5, 60))
    h[:, :6] *= 0.1  # positions that never halt by themselves

    @jax.jit
    def ours(h):
        listed = list(h)
        return output(listed, list(jnp.asarray(states, jnp.float32))), gate.ponder(gate.halting_scores(listed))

    answer, cost, units = reference_loop(h, states)
    got, got_ponder = ours(jnp.asarray(h, jnp.float32))
    assert set(units) == {2, 3, 4, 5}
    np.testing.assert_array_equal(got_ponder.units, units)
    np.testing.assert_allclose(got, answer, atol=1e-5)
    np.testing.assert_allclose(got_ponder.cost, cost, atol=1e-5)
    for number, pick in enumerate((lambda v: v[0], lambda v: v[1].cost)):
        slope = jax.grad(lambda h, pick=pick: pick(ours(h)).sum())(jnp.asarray(h, jnp.float32))
        for unit in range(4):
            step = np.zeros_like(h)
            step[unit] = 1e-6
            high, low = (reference_loop(h + s, states)[number] for s in (step, -step))
            np.testing.assert_allclose(slope[unit], (high - low) / 2e-6, atol=1e-4)


def test_sum_of_the_weights():
    """1 for a chain of ones and zeros; the docstring's formula for any occupancies."""
    rng = np.random.default_rng(2)
    h, o = rng.uniform(0, 0.5, (3, 7)), rng.uniform(size=(3, 7))
    weights = gate.halting_weights(list(jnp.asarray(h)), list(jnp.asarray(o)))
    left = 1 - np.cumsum(h, 0)
    before = np.concatenate([np.ones((1, 7)), o[:-1]])
    np.testing.assert_allclose(sum(weights), 1 + np.sum(o * (1 - before) * left, 0), atol=1e-6)
    np.testing.assert_allclose(sum(hard_weights(list(jnp.asarray(h)))), 1, atol=1e-6)
    with pytest.raises(ValueError, match="got 1 and 2"):
        gate.halting_weights([jnp.ones(1)], [jnp.ones(1)] * 2)


# --- the whole network, in numpy


def pad_tf(x, k, stride):
    """``SAME``: ceil(n / stride) outputs, the odd row of zeros behind."""
    edges = []
    for n in x.shape[1:3]:
        total = max((-(-n // stride) - 1) * stride + k - n, 0)
        edges.append((total // 2, total - total // 2))
    return np.pad(x, ((0, 0), *edges, (0, 0)))


def conv(x, layer, stride=1, pad=pad_tf):
    kernel = layer["kernel"]
    k = kernel.shape[0]
    x = pad(x, k, stride)
    out = [(n - k) // stride + 1 for n in x.shape[1:3]]
    y = np.zeros((len(x), *out, kernel.shape[3]))
    for i in range(out[0]):
        for j in range(out[1]):
            y[:, i, j] = np.einsum("bhwc,hwcd->bd", x[:, i * stride :, j * stride :][:, :k, :k], kernel)
    return y + layer.get("bias", 0.0)


def pad_both(x, k, stride):
    del stride
    return np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))


class Twin:
    """The released network by the facts, in float64, a loop over everything; counts FLOPs by the released rule."""

    def __init__(self, net, variables, stride_pad=pad_tf, twice=True):
        self.net, self.stride_pad, self.twice = net, stride_pad, twice
        self.variables = jax.tree.map(np.float64, variables)
        self.cifar = net.stem == "cifar"
        self.slope, self.stabiliser = (0.1, 1e-3) if self.cifar else (0.0, 1e-5)

    def norm(self, x, *path, slope=None):
        params, stats = self.variables["params"], self.variables["batch_stats"]
        for name in path:
            params, stats = params[name], stats[name]
        v = {**params, **stats}
        y = (x - v["mean"]) / np.sqrt(v["var"] + self.stabiliser) * v["scale"] + v["bias"]
        slope = self.slope if slope is None else slope
        return np.where(y < 0, slope * y, y)

    def halting(self, state, name):
        """h per position; FLOPs of the local convolution at a position, and of the global one."""
        params, slope = self.variables["params"][name], 0.1 if self.cifar else 1.0
        channels = state.shape[-1]
        mean = self.norm(state.mean((1, 2), keepdims=True), name, "global_bn", slope=slope)
        logit = conv(mean, params["global_conv"])
        if self.net.mode == "sact":
            logit = logit + conv(self.norm(state, name, "local_bn", slope=slope), params["local_conv"])
        h = np.broadcast_to(1 / (1 + np.exp(-logit[..., 0])), state.shape[:3])
        return h, 2 * 9 * channels if self.net.mode == "sact" else 0, 2 * channels

    def unit(self, x, name, width, stride, first):
        """(shortcut, branch), FLOPs of conv1 at a position, of the rest at one, and how much is static."""
        params = self.variables["params"][name]
        active = self.norm(x, name, "bn1")
        if self.cifar:
            y = conv(active, params["conv1"], stride, self.stride_pad)
            y = self.norm(y, name, "bn2", slope=0.01 if self.twice else 0.1)
            y = conv(y, params["conv2"])
            shortcut = active if first else x
            if x.shape[-1] != width:
                b, h, w, c = x.shape
                shortcut = x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
                shortcut = np.pad(shortcut, ((0, 0), (0, 0), (0, 0), ((width - c) // 2,) * 2))
            positions = y.shape[1] * y.shape[2]
            one, rest = 2 * 9 * x.shape[-1] * width, 2 * 9 * width * width
            return shortcut, y, one, rest, (one + rest) * positions
        y = self.norm(conv(active, params["conv1"]), name, "bn2")
        y = self.norm(conv(y, params["conv2"], stride, pad_both), name, "bn3")
        y = conv(y, params["conv3"])
        positions, before = y.shape[1] * y.shape[2], x.shape[1] * x.shape[2]
        one, rest = 2 * x.shape[-1] * width, 2 * 9 * width * width + 2 * width * 4 * width
        static = one * before + rest * positions
        if x.shape[-1] == 4 * width:
            return x, y, one, rest, static
        static += 2 * x.shape[-1] * 4 * width * positions
        return conv(active, params["shortcut"], stride, lambda x, k, s: x), y, one, rest, static

    def run(self, images):
        """Logits, units per block and position, FLOPs per image."""
        params, x = self.variables["params"], np.asarray(images, np.float64)
        if self.cifar:
            v = 255 * x
            mean, std = v.mean((1, 2, 3), keepdims=True), v.std((1, 2, 3), keepdims=True)
            x = conv((v - mean) / np.maximum(std, 1 / np.sqrt(v[0].size)), params["conv1"])
            flops = np.full(len(x), 2 * 9 * 3 * x.shape[-1] * x.shape[1] * x.shape[2])
        else:
            x = conv(2 * x - 1, params["conv1"], 2, pad_both)
            flops = np.full(len(x), 2 * 49 * 3 * x.shape[-1] * x.shape[1] * x.shape[2])
            n = x.shape[1] // 2
            x = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-np.inf)
            windows = [x[:, i : i + 2 * n : 2, j : j + 2 * n : 2] for i in range(3) for j in range(3)]
            x = np.max(windows, axis=0)
        units = []
        for block, (depth, width) in enumerate(zip(self.net.depths, self.net.widths)):
            x, n, cost = self.block(x, block, depth, width)
            units.append(n)
            flops = flops + cost
        x = self.norm(x.mean((1, 2)), "bn") if self.cifar else self.norm(x, "bn").mean((1, 2))
        flops = flops + 2 * x.shape[-1] * self.net.num_classes
        return x @ params["fc"]["kernel"] + params["fc"]["bias"], units, flops

    def block(self, x, block, depth, width):
        states, halting, flops, finished, total = [], [], 0, None, 0.0
        for u in range(depth):
            name = f"block{block + 1}_unit{u + 1}"
            stride = 2 if block > 0 and u == 0 else 1
            shortcut, branch, one, rest, static = self.unit(x, name, width, stride, block == u == 0)
            active = np.ones(branch.shape[:3], bool) if u == 0 else ~finished
            x = shortcut + active[..., None] * branch
            states.append(x)
            local = wide = 0
            if u < depth - 1:
                h, local, wide = self.halting(x, f"{name}_halting")
                halting.append(h)
                total = total + h
                finished = total >= 0.99
            near = np.pad(active, ((0, 0), (1, 1), (1, 1)))
            height, length = active.shape[1:]
            shifts = [near[:, i : i + height, j : j + length] for i in range(3) for j in range(3)]
            count, dilated = active.sum((1, 2)), np.any(shifts, 0).sum((1, 2))
            if u == 0:
                flops = flops + static + local * count + wide
            elif self.net.mode == "sact":
                flops = flops + one * dilated + (rest + local) * count + wide
            else:
                flops = flops + np.where(count > 0, static + wide, 0)
        spread = lambda a: np.broadcast_to(a[..., None], states[0].shape)
        answer, _, _ = reference_loop([spread(h) for h in halting], states)
        units = reference_loop(halting, [s[..., 0] for s in states])[2]
        return answer, units, flops


@pytest.mark.parametrize("name", SMALL)
def test_network_equals_its_twin(name):
    net = SMALL[name]
    variables, images = variables_of(net), images_of(net)
    got = jax.jit(net.apply, compiler_options=FAST)(variables, images)
    logits, units, flops = Twin(net, variables).run(images)
    np.testing.assert_allclose(got.logits, logits, atol=2e-5 * np.abs(logits).max())
    blocks = gate.ponder_of_trace(got.trace)
    assert list(blocks) == [f"block{n + 1}_unit{depth}" for n, depth in enumerate(net.depths)]
    for block, n in zip(blocks.values(), units):
        assert len(np.unique(n)) > 1
        np.testing.assert_array_equal(block.units, n if net.mode == "sact" else n[:, 0, 0])
    executed = np.rint(metrics.executed_macs(got.trace))  # a dilated position is shared out in float32
    np.testing.assert_array_equal(2 * executed, flops)
    if net.stem == "cifar":  # controls: the comparison sees torch's padding, and an activation applied once
        for wrong in ({"stride_pad": pad_both}, {"twice": False}):
            assert np.abs(Twin(net, variables, **wrong).run(images)[0] - logits).max() > 1e-3 * np.abs(logits).max()


# --- what the forms promise


def test_the_check_sees_a_trace_that_lies():
    class Lying(sact.SACT):
        def _block(self, *args):
            x, units, cost = super()._block(*args)
            return x, [u.replace(occupancy=1 - u.occupancy) for u in units], cost

    net = Lying(depths=(2,), widths=(4,), num_classes=3)
    with pytest.raises(AssertionError, match="occupancy function of the score"):
        check_network(net, variables_of(net), images_of(net))


@pytest.mark.parametrize(
    "net, size, flops",
    [
        (sact.cifar(110, mode="none"), 32, 505_775_360),
        (sact.cifar(32, mode="none"), 32, 137_725_184),
        (sact.imagenet(101, mode="none"), 224, 15_602_814_976),
    ],
)
def test_published_flops(net, size, flops):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    out, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), images)
    assert out.trace.units == () and 2 * out.trace.static_macs == flops
    assert out.logits.shape == (1, 10 if size == 32 else 1001)


def test_straight_through_has_the_values_of_hard_and_another_gradient():
    net = TINY["sact"]
    variables, images = variables_of(net), images_of(net)

    def run(how):
        def total(x):
            logits = net.apply(variables, x, occupancy=how).logits
            return jnp.sum(logits[:, 0]), logits

        return jax.jit(jax.grad(total, has_aux=True), compiler_options=FAST)(images)

    (fgm, logits), (lgm, same) = run(HARD), run(occupancy.straight_through(10.0))
    np.testing.assert_allclose(same, logits, atol=1e-5)
    assert np.abs(lgm - fgm).max() > 0.01 * np.abs(fgm).max()


@pytest.mark.parametrize("size, stride", [(8, 2), (7, 2), (8, 1), (7, 1)])
def test_same_padding(size, stride):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, size, size, 3)), rng.normal(size=(3, 3, 3, 4))
    padded, padding = sact.pad_same(jnp.asarray(x, jnp.float32), 3, stride)
    got = nn.conv2d(padded, jnp.asarray(kernel, jnp.float32), stride, padding)
    np.testing.assert_allclose(got, conv(x, {"kernel": kernel}, stride), atol=1e-4)


def test_a_constant_image_has_a_gradient():
    x = jnp.full((1, 4, 4, 3), 0.5)
    np.testing.assert_array_equal(sact.standardize(x), 0)
    slope = jax.jit(jax.grad(lambda x: sact.standardize(x)[0, 0, 0, 0]))(x)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


def test_bad_input():
    images = jnp.ones((1, 8, 8, 3))
    for fields, word in (
        ({"mode": "scat"}, "sact"),
        ({"stem": "vgg"}, "stem"),
        ({"normalization": "per_img"}, "per_image"),
    ):
        with pytest.raises(ValueError, match=word):
            jax.eval_shape(sact.SACT(**fields).init, jax.random.key(0), images)
    with pytest.raises(ValueError, match="expected 50, 101 or 152"):
        sact.imagenet(18)
    with pytest.raises(ValueError, match="trace without units"):
        gate.ponder_of_trace(Trace())
