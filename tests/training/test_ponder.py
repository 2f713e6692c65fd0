"""The ponder loss by hand, its gradient, and one epoch of training that it drives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import occupancy
from dyn_jax.gates.halting import EPSILON, halting_scores, ponder_of_trace, prior_target, with_ponder
from dyn_jax.networks.sact import SACT
from dyn_jax.training.ponder import avit_loss, avit_recipe, ponder_loss, sact_recipe
from dyn_jax.training.recipe import Progress
from dyn_jax.types import Output, Trace, UnitTrace

LABELS = jnp.array([0, 1])


def halted(blocks):
    """Output whose blocks have the h [unit, batch, ...] given; uniform over 4 classes."""
    units = []
    for number, halting in enumerate(blocks):
        for u, score in enumerate(halting_scores(list(halting))):
            units.append(UnitTrace(score, occupancy.hard()(score), 1, name=f"block{number + 1}_unit{u + 2}"))
        units[-1] = with_ponder(units[-len(halting) :])
    return Output(jnp.zeros((2, 4)), Trace(tuple(units)))


# Block 1, two units: every example runs both (cost 2 + 0.7), or halts at once (1 + 1).
# Block 2, three units, two positions an image: costs 2 + 0.1, 3 + 0.8 (the authors' vector), 1 + 1, 2 + 0.5.
BLOCKS = (
    jnp.array([[0.3, 0.99]]),
    jnp.array([[[0.9, 0.1], [1.0, 0.5]], [[0.5, 0.1], [0.2, 0.5]]]),
)
COST = (2.7 + 2) / 2 + (2.1 + 3.8 + 2 + 2.5) / 4


def test_loss_by_hand():
    np.testing.assert_allclose(ponder_loss(halted(BLOCKS), LABELS, 0.1), np.log(4) + 0.1 * COST, rtol=1e-6)
    np.testing.assert_allclose(ponder_loss(halted(BLOCKS), LABELS, 0.0), np.log(4), rtol=1e-6)


def test_gradient_by_hand():
    """-tau / (batch x positions) for every unit before the last that runs, else 0."""
    first, second = jax.grad(lambda blocks: ponder_loss(halted(blocks), LABELS, 0.1))(BLOCKS)
    np.testing.assert_allclose(first, [[-0.05, 0]], rtol=1e-6)
    np.testing.assert_allclose(second, -0.025 * np.array([[[1, 1], [0, 1]], [[0, 1], [0, 0]]]), rtol=1e-6)


def test_blocks_by_name_and_a_trace_without_units():
    blocks = ponder_of_trace(halted(BLOCKS).trace)
    assert list(blocks) == ["block1_unit2", "block2_unit3"]
    np.testing.assert_array_equal(blocks["block2_unit3"].units, [[2, 3], [1, 2]])
    with pytest.raises(ValueError, match="trace without units"):
        ponder_loss(Output(jnp.zeros((2, 4))), LABELS, 0.1)


def test_what_the_price_does_to_a_network():
    """A unit of tau adds -mean(h (1 - h)) over the running positions to the derivative by the halting bias."""
    net = SACT(depths=(2,), widths=(2,), num_classes=4)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 4, 4, 3)), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), images)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)
    variables["batch_stats"] = jax.tree.map(lambda leaf: jnp.abs(leaf) + 1, variables["batch_stats"])
    variables["params"]["block1_unit1_halting"]["local_conv"]["bias"] += 3

    def loss(params, tau):
        out = net.apply({**variables, "params": params}, images)
        return sact_recipe(tau=tau).loss(out, LABELS, Progress(tau, tau)), out.trace.units[0].score

    run = jax.jit(jax.grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
    (priced, score), (free, _) = (run(variables["params"], jnp.float32(tau)) for tau in (2.0, 0.0))
    h = 1 - EPSILON - score
    assert 0.1 < jnp.mean(score >= 0) < 0.9  # some positions have halted, and have no derivative
    expected = -2 * jnp.mean(jnp.where(score >= 0, h * (1 - h), 0))
    bias = lambda gradient: gradient["block1_unit1_halting"]["local_conv"]["bias"][0]
    np.testing.assert_allclose(bias(priced) - bias(free), expected, rtol=1e-3)


def test_an_avits_loss_by_hand():
    """Two layers of one class token and two patches: h of the patches 0.2, 0.6 and 0.4, 0.4, so shares 1/2 and 1/2."""
    halting = jnp.asarray([[[0.9, 0.2, 0.6], [0.1, 0.4, 0.4]]] * 2)
    score = halting_scores([halting[:, 0]])[0]
    unit = with_ponder([UnitTrace(score, occupancy.hard()(score), 1, name="blocks_1")])
    unit = unit.replace(extras={**unit.extras, "halting": halting})
    output, target = Output(jnp.zeros((2, 4)), Trace((unit,))), jnp.asarray([0.7, 0.3])
    prior = (0.7 * np.log(0.7 / 0.5) + 0.3 * np.log(0.3 / 0.5)) / 2
    got = avit_loss(0.1, 2.0, target)(output, LABELS, Progress(jnp.zeros(()), jnp.zeros(())))
    cost = np.mean(2 + 1 - np.array([0.9, 0.2, 0.6]))
    np.testing.assert_allclose(got, np.log(4) + 0.1 * cost + 2 * prior, rtol=1e-5)


def test_where_tokens_should_halt():
    target = np.asarray(prior_target(6, 3))
    assert target.argmax() == 3 and target[:3].sum() == pytest.approx(0.98)
    np.testing.assert_allclose(target[4] / target[3], np.exp(-0.5), rtol=1e-5)
    assert [stage.epochs for stage in avit_recipe(4).stages] == [4, 4]
