"""Measures of exits, by hand, and the objectives on exits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import attacks, exits
from dyn_jax.types import Output, Trace, UnitTrace


def trace_of(says, stages=None):
    """Trace of two examples a column: says[exit][example] is the class, stages[example] the last stage run."""
    says = np.asarray(says)
    logits = 5 * jax.nn.one_hot(says, 4)
    last = len(says) - 1
    stages = [last] * says.shape[1] if stages is None else stages
    units = []
    for unit in range(1, last + 1):
        on = jnp.asarray([float(stage >= unit) for stage in stages])
        units.append(UnitTrace(on - 0.5, on, 10 * unit))
    return Trace(tuple(units), 5, logits)


BEFORE = trace_of([[1, 1], [1, 2], [1, 2]], stages=[0, 2])
AFTER = trace_of([[0, 1], [3, 2], [1, 3]], stages=[1, 1])


def test_exit_index_and_change():
    np.testing.assert_array_equal(exits.exit_index(BEFORE), [0, 2])
    np.testing.assert_array_equal(exits.exit_change(BEFORE, AFTER), [1, -1])


def test_a_stage_after_one_that_did_not_run_does_not_count():
    units = tuple(UnitTrace(jnp.array([s]), jnp.array([o]), 1) for s, o in ((-1.0, 0.0), (1.0, 1.0)))
    np.testing.assert_array_equal(exits.exit_index(Trace(units, 1, jnp.zeros((3, 1, 2)))), [0])


def test_first_changed_exit():
    np.testing.assert_array_equal(exits.first_changed_exit(BEFORE, AFTER), [0, 2])
    np.testing.assert_array_equal(exits.first_changed_exit(BEFORE, BEFORE), [3, 3])
    np.testing.assert_array_equal(exits.first_changed_exit(BEFORE, BEFORE, reference="final"), [3, 0])


def test_early_success_and_its_parts():
    parts = exits.early_parts(BEFORE, AFTER)
    np.testing.assert_array_equal(parts.kept, [True, False])
    np.testing.assert_array_equal(parts.changed, [True, False])
    np.testing.assert_array_equal(exits.early_success(BEFORE, AFTER), [True, False])
    with jax.debug_nans(False):
        broken = AFTER.replace(exits=AFTER.exits.at[0, 0, 2].set(jnp.nan))
        np.testing.assert_array_equal(exits.early_success(BEFORE, broken), [False, False])


def test_saved_macs():
    np.testing.assert_allclose(exits.saved_macs(BEFORE), [1 - 5 / 35, 0], atol=1e-6)  # 5 + 10 + 20 in all


def test_transfer_rate():
    logits = jnp.eye(3)[jnp.array([0, 1, 1, 2])]
    labels = jnp.array([0, 0, 0, 0])
    generated = jnp.array([True, True, False, True])
    np.testing.assert_allclose(exits.transfer_rate(generated, logits, labels), 2 / 3, atol=1e-6)


def test_decide_at_several_thresholds_is_a_vmap():
    logits = jnp.log(jnp.asarray([[[0.5, 0.5]], [[0.7, 0.3]], [[0.4, 0.6]]]))
    got = jax.vmap(lambda t: exits.decide(logits, t))(jnp.array([0.4, 0.65, 0.9]))
    np.testing.assert_array_equal(got.exit[:, 0], [0, 1, 1])  # at 0.9 nobody is sure: the surest answers
    np.testing.assert_array_equal(got.stage[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(got.early[:, 0], [True, True, False])
    last = exits.decide(logits, 0.9, answer="last")
    assert (last.exit[0], last.prediction[0], last.early[0]) == (2, 1, False)


def forward(x):
    """Three linear exits on 4 pixels."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4)), jnp.float32)
    every = jnp.einsum("bp,epc->ebc", x.reshape(x.shape[0], 4), weights)
    return Output(every[-1], Trace((), 1, every))


def test_attacks_on_one_exit_and_on_the_sum():
    images, labels = jnp.full((5, 2, 2, 1), 0.5), jnp.arange(5) % 4
    for index in (0, 1, -1):
        result = attacks.fgsm(0.2, attack_all=True)(exits.at_exit(forward, index), images, labels)
        same = attacks.fgsm(0.2, objective=exits.exit_objective(index), attack_all=True)(forward, images, labels)
        np.testing.assert_array_equal(result.adversarial, same.adversarial)
        np.testing.assert_allclose(result.logits_clean, forward(images).trace.exits[index])
    first = attacks.fgsm(0.2, objective=exits.exit_objective(0), attack_all=True)(forward, images, labels)
    last = attacks.fgsm(0.2, objective=exits.exit_objective(-1), attack_all=True)(forward, images, labels)
    assert (first.adversarial != last.adversarial).any()
    total = exits.sum_of_exits("ce")(forward(images), labels)
    each = sum(exits.exit_objective(i)(forward(images), labels) for i in range(3))
    np.testing.assert_allclose(total, each, rtol=1e-6)


def test_bad_input():
    static = Trace((), 5)
    images, labels = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    for function in (exits.exit_index, exits.predictions, exits.saved_macs):
        with pytest.raises(ValueError, match="early-exit"):
            function(static)
    with pytest.raises(ValueError, match="got 3.*3 exits"):
        exits.at_exit(forward, 3)(images)
    with pytest.raises(ValueError, match="got -4"):
        exits.exit_objective(-4)(forward(images), labels)
    with pytest.raises(TypeError, match="exit"):
        exits.at_exit(forward, 0.5)
    with pytest.raises(ValueError, match="early-exit"):
        exits.sum_of_exits()(Output(jnp.zeros((1, 3))), labels)
    with pytest.raises(ValueError, match="one network"):
        exits.first_changed_exit(BEFORE, trace_of([[0], [1]]))
    with pytest.raises(ValueError, match="threshold"):
        exits.decide(BEFORE.exits, 0.0)
    with pytest.raises(ValueError, match="at least two exits"):
        exits.decide(BEFORE.exits[:1], 0.5)
