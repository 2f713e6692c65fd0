"""Networks that compute in half precision: what they say is counted, compared and attacked in single precision."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import attacks, metrics, objectives
from dyn_jax.testing._compare import quick_jit
from dyn_jax.types import Output, Trace, UnitTrace
from tests.attacks.linear import WEIGHTS, images

HALVES = [jnp.float16, jnp.bfloat16]
X = images(0.3, 0.7)
MACS = 100_000  # above the largest float16


def network(dtype, x):
    """Three classes and one gate for every row of the image."""
    rows = (x - 0.5).astype(dtype)
    score = jnp.mean(rows, axis=(2, 3)) * 8
    on = jax.nn.sigmoid(4 * score)
    unit = UnitTrace(score, on, MACS, extras={"probability": on})
    return Output(rows.reshape(-1, 48) @ WEIGHTS.astype(dtype) + on.mean(1, keepdims=True), Trace((unit,), 12_345))


def half(dtype):
    return lambda x: network(dtype, x)


@pytest.mark.parametrize("dtype", HALVES)
def test_multiply_adds_and_losses_are_those_of_the_same_numbers_in_single_precision(dtype):
    exact = lambda output: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), output)
    before, after = network(dtype, X), network(dtype, 1 - X)
    pairs = exact(before), exact(after)
    for measure in (metrics.recovery, metrics.increase):
        got, wanted = measure(before.trace, after.trace), measure(*(one.trace for one in pairs))
        assert got.dtype == jnp.float32 and np.isfinite(got).all()
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    labels = jnp.arange(5) % 3
    for loss in (objectives.energy(), objectives.cross_entropy, objectives.margin, objectives.dlr):
        np.testing.assert_allclose(loss(before, labels, None), loss(pairs[0], labels, None), rtol=1e-3, atol=1e-6)
    for density in (objectives.activation_density(), objectives.activation_norm()):
        np.testing.assert_allclose(density(before, labels, None), density(pairs[0], labels, None), rtol=1e-6)
    np.testing.assert_allclose(
        objectives.logit_drift(before, 300 * pairs[0].logits), objectives.logit_drift(pairs[0], 300 * pairs[0].logits)
    )


ATTACKS = {
    "bim": attacks.bim(0.05, 0.02, 3),
    "apgd": attacks.apgd(0.05, 3),
    "square": attacks.square(0.05, 5),
    "fmn": attacks.fmn(3, norm="l2"),
    "ddn": attacks.ddn(3),
    "fab_t": attacks.fab_t(0.05, 3, target_classes=2),
    "carlini_wagner": attacks.carlini_wagner(steps=3, search_steps=2),
    "grad_auto": attacks.grad_auto(steps=3, eps=0.05),
    "slower": attacks.bim(0.05, 0.02, 3, objective=objectives.energy(), attack_all=True),
}


@pytest.mark.parametrize("name, dtype", list(zip(ATTACKS, itertools.cycle(HALVES))))
def test_attacks(name, dtype):
    labels = jnp.argmax(network(dtype, X).logits, axis=1)
    result = quick_jit(lambda x: ATTACKS[name](half(dtype), x, labels, key=jax.random.key(0)))(X)
    assert result.logits_adversarial.dtype == result.loss.dtype == jnp.float32
    assert np.isfinite(result.loss).all() and not result.invalid.any() and np.isfinite(result.steps.work["macs"]).all()
    executed = metrics.executed_macs(result.trace_adversarial)
    assert np.all((executed >= 12_345) & (executed <= 12_345 + 4 * MACS))
