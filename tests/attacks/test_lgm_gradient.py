"""LGM's gradient is FGM's gradient plus the occupancy term, written out for eq. 5, 14 and 20, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import occupancy
from dyn_jax.networks.dynconv import DynConv
from dyn_jax.networks.skipnet import SkipNet
from dyn_jax.nn import BasicBranch, Projection

LAM = 4.0


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def random_variables(net, images, seed):
    shapes = jax.eval_shape(net.init, jax.random.key(0), images)
    rng = np.random.default_rng(seed)
    positive = lambda path: path[-1].key in ("scale", "var")
    draw = lambda path, leaf: jnp.asarray(
        1 + 0.3 * np.abs(rng.normal(size=leaf.shape)) if positive(path) else 0.5 * rng.normal(size=leaf.shape)
    )
    return jax.tree_util.tree_map_with_path(draw, shapes)


def sigmoid_slope(score):
    s = jax.nn.sigmoid(LAM * score)
    return LAM * s * (1 - s)


def test_equation_5():
    """d(o(x) Phi(f(x)))/dx = o-bar dPhi/dx + do/dx Phi, with the step's value and the sigmoid's derivative."""
    rng = np.random.default_rng(0)
    a, w = jnp.asarray(rng.normal(size=6)), jnp.asarray(rng.normal(size=(6, 6)))
    unit = lambda x: jnp.tanh(w @ x)
    score = lambda x: a @ x
    for x in jnp.asarray(rng.normal(size=(5, 6))):
        jacobian = lambda gate: jax.jacrev(lambda x: gate(score(x)) * unit(x))(x)  # noqa: B023
        fgm = jacobian(occupancy.hard())
        np.testing.assert_allclose(fgm, (score(x) >= 0) * jax.jacrev(unit)(x), rtol=1e-12)
        extra = unit(x)[:, None] * (sigmoid_slope(score(x)) * a)[None, :]
        np.testing.assert_allclose(jacobian(occupancy.straight_through(LAM)), fgm + extra, rtol=1e-10, atol=1e-14)


def test_equation_14_in_a_skipnet():
    """dF'/dX = o-bar dH(F)/dX + (1 - o-bar) dF/dX + do/dX (H(F) - F), for the one gated block of a small SkipNet."""
    net = SkipNet(depths=(1, 1), widths=(3, 4), num_classes=3, image_size=8, normalization=None)
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(4, 8, 8, 3)))
    variables = random_variables(net, images, 2)
    middle = jnp.median(net.apply(variables, images).trace.units[0].score)
    variables["params"]["control"]["proj"]["bias"] -= middle  # some images run the block, some skip it
    params, stats = variables["params"], variables["batch_stats"]
    part = lambda name: {"params": params[name], "batch_stats": stats[name]}
    direction = jnp.asarray(np.random.default_rng(3).normal(size=3))

    # The features before the gated block come from a network that ends there.
    first = SkipNet(depths=(1,), widths=(3,), num_classes=3, image_size=8, normalization=None)
    before = {
        "params": {k: params[k] for k in ("conv1", "bn1", "group1_layer0", "group1_gate0", "control")},
        "batch_stats": {k: stats[k] for k in ("bn1", "group1_layer0")},
    }
    before["params"]["fc"] = {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}

    def features(x):
        _, state = first.apply(before, x, capture_intermediates=True, mutable=["intermediates"])
        branch = state["intermediates"]["group1_layer0"]["__call__"][0]
        stem = jax.nn.relu(state["intermediates"]["bn1"]["__call__"][0])
        return jax.nn.relu(stem + branch)

    shortcut = Projection(4, 2)
    branch = BasicBranch(4, 2)
    skip = lambda x: shortcut.apply(part("group2_ds0"), features(x))
    run = lambda x: jax.nn.relu(skip(x) + branch.apply(part("group2_layer0"), features(x)))
    head = lambda f: jnp.mean(f, (1, 2)) @ params["fc"]["kernel"] @ direction
    score = lambda x: net.apply(variables, x).trace.units[0].score

    def gradient(gate):
        return jax.grad(lambda x: jnp.sum(net.apply(variables, x, occupancy=gate).logits @ direction))(images)

    o = (score(images) >= 0).astype(images.dtype)
    assert 0 < o.sum() < len(o), "both cases are wanted: run and skipped"
    fixed = jax.grad(lambda x: jnp.sum(o * head(run(x)) + (1 - o) * head(skip(x))))(images)
    np.testing.assert_allclose(gradient(occupancy.hard()), fixed, rtol=1e-9, atol=1e-12)
    gain = head(run(images)) - head(skip(images))  # <dL/dF', H(F) - F>: the head is linear
    extra = jax.grad(lambda x: jnp.sum(sigmoid_slope(score(images)) * gain * score(x)))(images)
    assert np.linalg.norm(extra) > 1e-3 * np.linalg.norm(fixed)
    lgm = gradient(occupancy.straight_through(LAM))
    np.testing.assert_allclose(lgm, fixed + extra, rtol=1e-8, atol=1e-12)


def test_equation_20_in_a_dynconv():
    """df'/dX = o-bar_p dPhi_p/dX + do_p/dX Phi_p at every position p, for a DynConv of one block."""
    net = DynConv(depths=(1,), widths=(3,), num_classes=3, normalization=None)
    images = jnp.asarray(np.random.default_rng(4).uniform(size=(2, 6, 6, 3)))
    variables = random_variables(net, images, 5)
    direction = jnp.asarray(np.random.default_rng(6).normal(size=3))
    weights = variables["params"]["fc"]["kernel"] @ direction / 36

    def parts(x):
        _, state = net.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])
        inner = state["intermediates"]
        score = inner["layer1_0_masker"]["__call__"][0]
        return jax.nn.relu(inner["bn1"]["__call__"][0]), inner["layer1_0"]["__call__"][0], score

    def gradient(gate):
        return jax.grad(lambda x: jnp.sum(net.apply(variables, x, occupancy=gate).logits @ direction))(images)

    stem, branch, score = parts(images)
    o = (score >= 0).astype(images.dtype)
    assert 0.1 < o.mean() < 0.9

    def fixed_loss(x):
        stem, branch, _ = parts(x)
        return jnp.sum(jax.nn.relu(stem + o[..., None] * branch) @ weights)

    fixed = jax.grad(fixed_loss)(images)
    np.testing.assert_allclose(gradient(occupancy.hard()), fixed, rtol=1e-9, atol=1e-12)
    received = jnp.where(stem + o[..., None] * branch > 0, jnp.broadcast_to(weights, branch.shape), 0)  # dL/df'_p
    strength = sigmoid_slope(score) * jnp.sum(received * branch, -1)
    extra = jax.grad(lambda x: jnp.sum(strength * parts(x)[2]))(images)
    assert np.linalg.norm(extra) > 1e-3 * np.linalg.norm(fixed)
    np.testing.assert_allclose(gradient(occupancy.straight_through(LAM)), fixed + extra, rtol=1e-8, atol=1e-12)


def test_soft_occupancy_is_the_exact_derivative_of_the_soft_network():
    """Control by finite differences, on a smooth unit: LGM soft is no surrogate."""
    rng = np.random.default_rng(7)
    a, w = jnp.asarray(rng.normal(size=6)), jnp.asarray(rng.normal(size=(6, 6)))
    fun = lambda x: jnp.sum(occupancy.sigmoid(LAM)(a @ x) * jnp.tanh(w @ x))
    x, v = jnp.asarray(rng.normal(size=(2, 6)))
    difference = (fun(x + 1e-6 * v) - fun(x - 1e-6 * v)) / 2e-6
    assert float(jax.grad(fun)(x) @ v) == pytest.approx(float(difference), rel=1e-6)
