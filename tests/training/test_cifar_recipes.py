"""What the CIFAR-10 recipes add: information of a gate about its input, gates spread over it, epochs of a part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import networks
from dyn_jax.datasets import ImageData
from dyn_jax.networks.manidp import ManiDP
from dyn_jax.networks.skipnet import SkipNet
from dyn_jax.training import cifar
from dyn_jax.training.manidp import threshold_hook
from dyn_jax.training.recipe import Images
from dyn_jax.types import Trace, UnitTrace


def trace_of(*scores):
    return Trace(tuple(UnitTrace(jnp.asarray(s, jnp.float32), jnp.asarray(s) * 0, 1) for s in scores), 0)


@pytest.mark.parametrize(
    "scores, expected",
    [
        ([[40.0, -40.0]], -np.log(2)),  # decided, and by the input
        ([[40.0, 40.0]], 0.0),  # decided, always alike
        ([[0.0, 0.0]], 0.0),  # undecided
        ([[40.0, -40.0], [0.0, 0.0]], -np.log(2) / 2),  # mean over units
        ([[40.0, 40.0, 40.0, -40.0]], 0.75 * np.log(0.75) + 0.25 * np.log(0.25)),
    ],
)
def test_information_by_hand(scores, expected):
    np.testing.assert_allclose(cifar.information_loss(trace_of(*scores)), expected, atol=1e-4)


def test_information_is_of_each_element_and_has_finite_slopes():
    apart = trace_of(np.array([[40.0, -40.0], [-40.0, 40.0]]))  # each element decides, their mean does not
    np.testing.assert_allclose(cifar.information_loss(apart), -np.log(2), atol=1e-4)
    slope = jax.grad(lambda s: cifar.information_loss(trace_of(s)))(jnp.array([100.0, -100.0, 0.0]))
    assert np.isfinite(slope).all()
    all_alike = jax.grad(lambda s: cifar.information_loss(trace_of(s)))(jnp.full(4, 100.0))
    assert np.isfinite(all_alike).all()


def test_gates_are_spread_over_the_images():
    net = SkipNet(depths=(2, 2), widths=(4, 8), image_size=16)
    x = np.random.default_rng(0).random((32, 16, 16, 3), np.float32)
    variables = net.init(jax.random.key(0), x)
    spread = cifar.spread_gates(net, variables, x, 1.5)
    on = lambda score: jnp.ones_like(score)
    before, after = (
        np.stack([unit.score for unit in net.apply(v, x, occupancy=on).trace.units]) for v in (variables, spread)
    )
    assert np.median(before.std(1)) < 0.3
    np.testing.assert_allclose(np.median(after.std(1)), 1.5, rtol=1e-3)
    np.testing.assert_allclose(after.mean(), 0, atol=1e-3)
    same = lambda v: {k: leaf for k, leaf in v["params"].items() if k.startswith(("conv", "fc")) or "layer" in k}
    jax.tree.map(np.testing.assert_array_equal, same(spread), same(variables))


def test_saliencies_are_spread_over_the_images():
    net = ManiDP(depths=(1, 1), widths=(4, 8))
    x = np.random.default_rng(0).random((24, 16, 16, 3), np.float32)
    variables = net.init(jax.random.key(0), x)
    spread = cifar.spread_saliencies(net, variables, x, 0.2)
    for unit in net.apply(spread, x).trace.units:
        saliency = np.asarray(unit.extras["value"])
        np.testing.assert_allclose(saliency.mean(0), 1, atol=1e-3)  # none is cut at 0
        np.testing.assert_allclose(saliency.std(0), 0.2, rtol=1e-3)
    layers = [name for name in variables["params"] if not name.startswith("stage_")]
    for name in layers:
        jax.tree.map(np.testing.assert_array_equal, spread["params"][name], variables["params"][name])
    block, was = spread["params"]["stage_1_0"], variables["params"]["stage_1_0"]
    jax.tree.map(np.testing.assert_array_equal, block["conv_a"], was["conv_a"])


def test_thresholds_go_on_at_the_share_that_they_have_come_to():
    saliencies = np.arange(1.0, 11.0)
    state = {"gate": {"thre": np.array([-1.0]), "mask_sum": saliencies * 3}}
    stays = threshold_hook(1, 0.7, first=0)
    for epoch in (0, 1, 5):
        np.testing.assert_array_equal(stays(state, epoch, 3)["gate"]["thre"], [4.0])  # seven of ten reach it
    falls = threshold_hook(4, 0.7)
    np.testing.assert_array_equal(falls(state, 0, 3)["gate"]["thre"], [-1.0])
    np.testing.assert_array_equal([falls(state, epoch, 3)["gate"]["thre"][0] for epoch in (1, 3)], [2.0, 4.0])


def test_an_epoch_of_a_part_is_drawn_anew():
    data = ImageData(np.zeros((50, 4, 4, 3), np.uint8), np.arange(50), "numbers")
    source = Images(most=20)
    assert source.count(data) == 20 and Images().count(data) == 50 and Images(most=99).count(data) == 50
    assert Images(most=0).count(data) == 0  # which training refuses
    first, second = ([y for _, y in source.batches(data, 8, 0, epoch)] for epoch in (0, 1))
    assert [len(y) for y in first] == [8, 8]
    assert set(np.concatenate(first)) != set(np.concatenate(second))
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate([y for _, y in source.batches(data, 8, 0, 0)]))
    assert len(list(source.in_order(data))) == 1


def test_names_of_recipes_are_those_of_networks():
    assert all(networks.untrained(name) for name in ("skipnet-32-cifar10", "sact-32-cifar10"))
    assert networks.untrained("sact-32-cifar10").stem == "resnet"


def test_readier_gates_halt_earlier():
    net = networks.create("sact-digits", depths=(3, 3), widths=(4, 8))
    x = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    variables = net.init(jax.random.key(0), x)
    score = lambda v: net.apply(v, x).trace.units[0].score  # 0.99 - h of the first unit
    h, after = (0.99 - score(v) for v in (variables, cifar.readier(variables, 2.0)))
    logit = lambda h: jnp.log(h / (1 - h))
    np.testing.assert_allclose(logit(after), logit(h) + 2, atol=1e-3)


def test_epochs_of_two_stages():
    of = lambda *epochs: [stage.epochs for stage in cifar.sact_recipe(*epochs).stages]
    assert of() == [22, 12] and of(3) == [3, 3] and of(4, 2) == [4, 2]
    with pytest.raises(ValueError, match=r"epochs: got \(1, 2, 3\), expected at most two"):
        of(1, 2, 3)
