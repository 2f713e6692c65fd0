"""ManiDP's losses against the authors' values and by hand; schedule, thresholds and the hook by hand; one run."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from catalogue import variables_for

from dyn_jax.datasets import ImageData
from dyn_jax.networks.manidp import ManiDP
from dyn_jax.training import manidp
from dyn_jax.training.loop import fit
from dyn_jax.training.recipe import SGD, Images, Progress, Recipe
from dyn_jax.types import Output, Trace, UnitTrace

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def trace_of(*pairs):
    """A trace of (saliencies [batch, channel], pooled features [batch, feature])."""
    units = [UnitTrace(s, s, 1, extras={"value": jnp.asarray(s), "pooled": jnp.asarray(f)}) for s, f in pairs]
    return Trace(tuple(units))


@pytest.fixture(scope="module")
def released(golden):
    """(trace, the authors' arrays) of the network in evaluation mode."""
    arrays = golden("manidp_resnet20_cifar10")
    numbers = range(len(arrays["gate_names"]))
    pairs = [(arrays[f"mask_before/{i:02d}"], arrays[f"avg_fea/{i:02d}"][:, :, 0, 0]) for i in numbers]
    return trace_of(*pairs), arrays


def test_losses_as_released(released):
    trace, arrays = released
    each = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(arrays["logits"]), arrays["labels"])
    np.testing.assert_allclose(each, arrays["reg/ce_per_sample"], rtol=1e-6)
    previous = float(arrays["reg/train_los_pre_mean"])
    lasso, graph = manidp.lasso_loss(trace, each, previous), manidp.graph_loss(trace)
    np.testing.assert_allclose(lasso, arrays["reg/lasso_loss"], rtol=2e-6)
    np.testing.assert_allclose(graph, arrays["reg/graph_loss"][0], rtol=2e-6)


def test_other_losses_are_noticed(released):
    """Control: another ratio, another gamma, the mask instead of the saliency."""
    trace, arrays = released
    each, previous = jnp.asarray(arrays["reg/ce_per_sample"]), float(arrays["reg/train_los_pre_mean"])
    for fields in ({"ratio": 0.51}, {"gamma": 1.1}):
        got = manidp.lasso_loss(trace, each, previous, **fields)
        assert abs(got / arrays["reg/lasso_loss"] - 1) > 1e-2
    masked = [
        unit.replace(extras={**unit.extras, "value": jnp.asarray(arrays[f"mask/{i:02d}"])})
        for i, unit in enumerate(trace.units)
    ]
    assert abs(manidp.graph_loss(Trace(tuple(masked))) / arrays["reg/graph_loss"][0] - 1) > 1e-2


def test_lasso_and_its_gradients_by_hand():
    """Limit 1/2: weights 0.6 and 0; mean saliency 2. The weight is not detached: d w_0 / d CE_0 = -2."""
    saliency, each = jnp.array([[1.0, 3.0], [5.0, 5.0]]), jnp.array([0.2, 3.0])

    def loss(saliency, each):
        return manidp.lasso_loss(trace_of((saliency, saliency)), each, 1.0)

    value, gradients = jax.value_and_grad(loss, (0, 1))(saliency, each)
    np.testing.assert_allclose(value, 0.6 * 2 / 2, rtol=1e-6)
    np.testing.assert_allclose(gradients[0], [[0.15, 0.15], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(gradients[1], [-2 * 2 / 2, 0], rtol=1e-6)
    np.testing.assert_array_equal(manidp.lasso_loss(trace_of((saliency, saliency)), each, 0.0), 0)


def test_graph_by_hand_and_at_zero():
    """Cosines of f: 0 off the diagonal; of s: 1. A zero row has cosine 0 even with itself, and no gradient."""
    f, s = jnp.array([[2.0, 0.0], [0.0, 3.0]]), jnp.array([[1.0, 1.0], [4.0, 4.0]])
    loss = lambda s, f: manidp.graph_loss(trace_of((s, f)))
    np.testing.assert_allclose(loss(s, f), 2 / 4, rtol=1e-6)
    np.testing.assert_allclose(loss(s.at[1].set(0), f), 1 / 4, rtol=1e-6)
    of_s, of_f = jax.grad(loss, (0, 1))(s.at[1].set(0), f)
    assert np.isfinite(of_s).all() and np.isfinite(of_f).all()
    np.testing.assert_array_equal(of_s[1], [0, 0])


def test_total_loss_caps_the_previous_cross_entropy_at_chance():
    logits, labels = jnp.array([[2.0, 0.0], [0.0, 0.5]]), jnp.array([0, 1])
    trace = trace_of((jnp.array([[1.0, 3.0], [5.0, 5.0]]), jnp.array([[2.0, 0.0], [0.0, 3.0]])))
    each = np.log(1 + np.exp([-2.0, -0.5]))
    total = manidp.manidp_loss(0.1, 10.0)

    def by_hand(previous):
        weight = np.maximum(previous / 2 - each, 0) / (previous / 2)
        return each.mean() + 0.1 * np.mean(weight * [2, 5]) + 10.0 * float(manidp.graph_loss(trace))

    for previous, counted in ((0.5, 0.5), (7.0, math.log(2)), (np.inf, math.log(2)), (np.nan, math.log(2))):
        progress = Progress(np.float32(0), np.float32(previous))
        np.testing.assert_allclose(total(Output(logits, trace), labels, progress), by_hand(counted), rtol=1e-5)


def test_schedule_by_hand():
    rates = [manidp.remain_rate(epoch, 4, 0.6) for epoch in range(4)]
    slope = 0.2 * math.sqrt(0.5)
    np.testing.assert_allclose(rates, [0.8 + slope, 0.8, 0.8 - slope, 0.6], rtol=1e-12)


def test_thresholds_by_hand():
    sums = np.array([10, 40, 20, 30, 50], np.float32)
    for rate, expected in ((0.2, 5), (0.6, 3), (manidp.remain_rate(9, 10, 0.6), 3), (0.61, 2), (1.0, 1), (0.01, 5)):
        got = manidp.thresholds(sums, 10, rate)
        assert got.shape == (1,) and got.dtype == np.float32 and got[0] == expected
    with pytest.raises(ValueError, match="rate: got 0"):
        manidp.thresholds(sums, 10, 0)


def test_hook_by_hand():
    """Rates 0.75 and 0.5 of two epochs; the first sets nothing."""
    gate = lambda *sums: {"thre": jnp.array([-10000.0]), "mask_sum": jnp.array(sums)}
    norm = {"mean": 1.0, "var": 2.0}
    stats = {"stage": {"bn": norm, "mb1": gate(2.0, 8.0, 4.0, 6.0), "mb2": gate(1.0, 0.0, 0.0, 0.0)}}
    hook = manidp.threshold_hook(2, 0.5)
    for epoch, first, second in ((0, -10000, -10000), (1, 3, 0)):
        got = hook(stats, epoch, 2)
        assert jax.tree.structure(got) == jax.tree.structure(stats)
        assert got["stage"]["bn"] == norm
        for name, expected in (("mb1", first), ("mb2", second)):
            np.testing.assert_array_equal(got["stage"][name]["thre"], [expected])
            np.testing.assert_array_equal(got["stage"][name]["mask_sum"], np.zeros(4))
    np.testing.assert_array_equal(stats["stage"]["mb1"]["mask_sum"], [2, 8, 4, 6])


def test_fit_sets_thresholds():
    """At learning rate 0 they are ranks of the mean saliencies that the start has on the training images."""
    net = ManiDP(depths=(1,), widths=(4,), num_classes=3)
    rng = np.random.default_rng(0)
    data = ImageData(rng.random((8, 8, 8, 3)).astype(np.float32), np.arange(8, dtype=np.int32) % 3, "made up")
    start = variables_for(net, 8)
    recipe = Recipe(
        epochs=2,
        batch_size=8,
        optimizer=SGD(0.0),
        source=Images(shift=0),
        measured=True,
        loss=manidp.manidp_loss(),
        after_epoch=manidp.threshold_hook(2, 0.5),
    )
    trained = fit(net, data, recipe, initial=start)
    output, _ = quick(lambda x: net.apply(start, x, train=True, mutable=["batch_stats"]))(data.images)
    for name, unit in zip(("mb1", "mb2"), output.trace.units):
        means = np.sort(np.mean(unit.extras["value"], axis=0))
        got = trained["batch_stats"]["stage_1_0"][name]
        np.testing.assert_allclose(got["thre"], means[-2:-1], rtol=1e-4)
        np.testing.assert_array_equal(got["mask_sum"], np.zeros(4))


def test_recipe_of_the_digits():
    recipe = manidp.manidp_recipe(epochs=3)
    assert recipe.epochs == 3 and not recipe.decay_gates and recipe.measured
