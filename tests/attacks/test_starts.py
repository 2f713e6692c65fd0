"""Starts that the threat set, the box or the mask does not allow: they neither win nor spoil a search."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import attacks
from dyn_jax.testing._compare import quick_jit
from tests.attacks.linear import images, linear

KEY = jax.random.key(0)
X = images(0.3, 0.7)
LABELS = jnp.argmax(linear(X).logits, axis=1)
UPHILL = jax.grad(lambda x: attacks.as_forward(linear)(x).logits[:, 0].sum())(X)
MASK = jnp.zeros((4, 4)).at[0, 0].set(1.0)


@pytest.mark.parametrize("norm, eps", [("linf", 0.02), ("l2", 0.1), ("l1", 0.5)])
@pytest.mark.parametrize("keep", ["loss", "error"])
def test_a_start_outside_the_ball_is_not_the_best_of_apgd(norm, eps, keep):
    attack = attacks.apgd(eps, 10, norm=norm, course=attacks.Course(keep=keep), attack_all=True)
    run = quick_jit(lambda start: attack(linear, X, LABELS, key=KEY, start=start))
    far = jnp.clip(X + 0.3 * jnp.sign(jax.random.normal(KEY, X.shape)), 0, 1)
    inside = attack.threat.project(far, X)
    np.testing.assert_allclose(run(far).loss, run(inside).loss, rtol=1e-5)
    assert np.all(run(far).loss >= run(far).steps.loss.max(axis=1) - 1e-4)  # nothing better was seen and lost


MINIMAL = {
    "fmn": lambda: attacks.fmn(3),
    "fmn l2": lambda: attacks.fmn(3, norm="l2"),
    "ddn": lambda: attacks.ddn(3),
    "fab": lambda: attacks.fab(1.0, 3),
    "fab_t": lambda: attacks.fab_t(1.0, 3, target_classes=2),
}


@pytest.mark.parametrize("name", MINIMAL)
def test_a_norm_that_only_a_forbidden_start_reaches_is_none(name):
    attack = MINIMAL[name]()
    masked = quick_jit(lambda start: attack(linear, X, LABELS, start=start, mask=MASK))
    for result in (masked(jnp.clip(X + UPHILL, 0, 1)), masked(jnp.clip(X - UPHILL, 0, 1))):
        found = np.isfinite(result.record.smallest)
        np.testing.assert_array_equal(result.success[found], True)
        np.testing.assert_allclose(result.distance[found], result.record.smallest[found], atol=1e-5)
        np.testing.assert_array_equal(np.asarray(result.adversarial)[:, 1:], X[:, 1:])
    result = quick_jit(lambda start: attack(linear, X, LABELS, start=start))(X + 5 * UPHILL)
    found = np.isfinite(result.record.smallest)
    np.testing.assert_allclose(result.distance[found], result.record.smallest[found], rtol=1e-4)


def test_a_start_outside_the_box_has_a_free_variable():
    attack = attacks.carlini_wagner(steps=20, search_steps=1, initial_constant=10.0, learning_rate=0.1)
    run = quick_jit(lambda start: attack(linear, X, LABELS, start=start))
    outside = X + 0.8 * jnp.sign(UPHILL)
    result = run(outside)
    assert np.isfinite(result.steps.loss).all() and not result.steps.nonfinite.any()
    np.testing.assert_array_equal(result.success, run(jnp.clip(outside, 0, 1)).success)
