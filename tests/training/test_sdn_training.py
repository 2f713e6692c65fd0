"""Training of early-exit networks: schedules by hand, the first step written out, frozen trunks."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax.datasets import ImageData
from dyn_jax.networks import sdn_resnet
from dyn_jax.training import sdn
from dyn_jax.training.loop import fit
from dyn_jax.training.recipe import SGD

NET = sdn_resnet.resnet56(depths=(1, 1, 1), widths=(4, 4, 8), exit_after=(0, 1), image_size=8, num_classes=3)
OPTIMIZER = SGD(0.05, 1e-4, nesterov=False, milestones=())


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = np.arange(24, dtype=np.int32) % 3
    images = np.clip(0.3 * labels[:, None, None, None] + 0.1 * rng.random((24, 8, 8, 3)), 0, 1)
    return ImageData(images.astype(np.float32), labels, "made up")


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_learning_rates_by_hand():
    optimizer = sdn.published("full", "resnet56").optimizer
    rates = [optimizer.rate(epoch) for epoch in (1, 34, 35, 59, 60, 84, 85, 100)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4], rtol=1e-9)
    assert (optimizer.weight_decay, sdn.published("full", "vgg16").optimizer.weight_decay) == (1e-4, 5e-4)
    recipe = sdn.published("classifiers", "mobilenet")
    inner = recipe.optimizer
    assert (recipe.epochs, inner.momentum, inner.rate(14), inner.rate(15)) == (25, None, 1e-3, pytest.approx(1e-4))


def test_exit_weights_by_hand():
    np.testing.assert_allclose(sdn.exit_weights(1, 100, 6)[[0, 5]], [0.0115, 0.019], rtol=1e-5)
    for cap, classifier, reached in ((0.15, 0, 94), (0.9, 5, 99)):
        assert sdn.exit_weights(reached, 100, 6)[classifier] == np.float32(cap)
        assert sdn.exit_weights(reached - 1, 100, 6)[classifier] < np.float32(cap)
    assert len(sdn.exit_weights(1, 100, 5)) == 5


def test_the_first_step_written_out(data):
    """One batch, one epoch: params - lr (gradient + decay params), with the loss as a loop over exits."""
    data = ImageData(data.images[:8], data.labels[:8], "")
    recipe = sdn.sdn_recipe("full", 1, dataclasses.replace(OPTIMIZER, weight_decay=0.01), 8, shift=0, flip=False)
    start = jax.jit(NET.init)(jax.random.key(5), data.images[:1])
    got = fit(NET, data, recipe, initial=start)
    tau = np.minimum([0.15, 0.30], 0.01 + np.array([0.15, 0.30]))

    def loss(params):
        out, _ = NET.apply({**start, "params": params}, data.images, train=True, mutable=["batch_stats"])
        total = 0.0
        for weight, logits in zip([*tau, 1.0], out.trace.exits.swapaxes(0, 1)):
            picked = jax.nn.log_softmax(logits)[jnp.arange(8), data.labels]
            total = total - float(weight) * jnp.mean(picked)
        return total

    gradient = jax.jit(jax.grad(loss))(start["params"])
    expected = jax.tree.map(lambda p, g: p - 0.05 * (g + 0.01 * p), start["params"], gradient)
    for a, b in zip(leaves(got["params"]), leaves(expected)):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_full_training_learns(data):
    losses = []
    recipe = sdn.sdn_recipe("full", 12, dataclasses.replace(OPTIMIZER, milestones=(8,)), 8, shift=1)
    fit(NET, data, recipe, report=lambda epoch, loss: losses.append(loss))
    assert losses[-1] < 0.7 * losses[0]


def test_classifiers_only(data):
    twin = NET.clone(exit_after=())
    static = fit(twin, data, sdn.sdn_recipe("static", 1, OPTIMIZER, 8))
    start = sdn.with_classifiers(NET, static)
    recipe = sdn.sdn_recipe("classifiers", 1, dataclasses.replace(OPTIMIZER, momentum=None, learning_rate=0.01), 8)
    got = fit(NET, data, recipe, initial=start)
    moved = {
        name: any((a != b).any() for a, b in zip(leaves(got["params"][name]), leaves(start["params"][name])))
        for name in start["params"]
    }
    assert {name for name, did in moved.items() if did} == {"layers_0_output", "layers_1_output"}
    for name in static["params"]:
        for a, b in zip(leaves(start["params"][name]), leaves(static["params"][name])):
            np.testing.assert_array_equal(a, b)
    statistics = zip(leaves(got["batch_stats"]), leaves(start["batch_stats"]))
    assert any((a != b).any() for a, b in statistics)  # as released: running statistics move


def test_bad_input(data):
    twin = NET.clone(exit_after=())
    with pytest.raises(ValueError, match="without early exits"):
        fit(twin, data, sdn.sdn_recipe("full", 1, OPTIMIZER, 8))
    with pytest.raises(ValueError, match="initial"):
        fit(NET, data, sdn.sdn_recipe("classifiers", 1, OPTIMIZER, 8))
    with pytest.raises(ValueError, match="stage"):
        sdn.published("ic", "vgg16")
    with pytest.raises(ValueError, match="variant"):
        sdn.published("full", "vgg19")
    with pytest.raises(ValueError, match="at most 6"):
        sdn.exit_weights(1, 10, 7)
    with pytest.raises(ValueError, match="static"):
        sdn.with_classifiers(NET, {"params": {}, "batch_stats": {}})
    with pytest.raises(ValueError, match="static: got 1 NaN or infinite values at params/x"):
        sdn.with_classifiers(NET, {"params": {"x": np.array([np.nan, 0])}, "batch_stats": {}})
