"""Measures of exits, by hand, and the objectives on exits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import objectives
from dyn_jax.metrics import exits
from dyn_jax.testing._compare import quick_jit
from dyn_jax.types import Output, Trace, UnitTrace


def trace_of(says, stages=None):
    """Trace of two examples a column: says[exit][example] is the class, stages[example] the last stage run."""
    says = np.asarray(says)
    logits = 5 * jax.nn.one_hot(says.T, 4)
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
    np.testing.assert_array_equal(exits.exit_index(Trace(units, 1, jnp.zeros((1, 3, 2)))), [0])


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


def test_an_exit_of_nan_says_no_class():
    with jax.debug_nans(False):
        broken = BEFORE.replace(exits=BEFORE.exits.at[0].set(jnp.nan))
        for before, after in ((BEFORE, broken), (broken, BEFORE), (broken, broken)):
            assert exits.first_changed_exit(before, after)[0] == 3
            parts = exits.early_parts(before, after)
            assert not parts.kept[0] and not parts.changed[0]


def test_saved_macs():
    np.testing.assert_allclose(exits.saved_macs(BEFORE), [1 - 5 / 35, 0], atol=1e-6)  # 5 + 10 + 20 in all


def test_multiply_adds_of_exits_beyond_32_bits():
    large = BEFORE.replace(units=tuple(u.replace(macs=2**33, dense_macs=2**33) for u in BEFORE.units))
    np.testing.assert_allclose(exits.saved_macs(large), [1, 0], atol=1e-6)
    for costs in ([5 * 10**9, 6 * 10**9], np.array([5 * 10**9, 6 * 10**9])):
        np.testing.assert_allclose(exits.exit_curve(jnp.array([0.2, 0.8]), costs).cost, [0, 5 / 6, 1], rtol=1e-6)


def test_shares_of_exits_are_no_counts():
    with pytest.raises(ValueError, match="expected parts of 1"):
        exits.exit_curve(jnp.array([10, 5, 85]), [1.0, 2.0, 3.0])


def test_transfer_rate():
    logits = jnp.eye(3)[jnp.array([0, 1, 1, 2])]
    labels = jnp.array([0, 0, 0, 0])
    generated = jnp.array([True, True, False, True])
    np.testing.assert_allclose(exits.transfer_rate(generated, logits, labels), 2 / 3, atol=1e-6)


def test_decide_at_several_thresholds_is_a_vmap():
    logits = jnp.log(jnp.asarray([[[0.5, 0.5], [0.7, 0.3], [0.4, 0.6]]]))
    got = quick_jit(jax.vmap(lambda t: exits.decide(logits, t)))(jnp.array([0.4, 0.65, 0.9]))
    np.testing.assert_array_equal(got.exit[:, 0], [0, 1, 1])  # at 0.9 nobody is sure: the surest answers
    np.testing.assert_array_equal(got.prediction[:, 0], [0, 0, 0])
    np.testing.assert_array_equal(got.stage[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(got.early[:, 0], [True, True, False])
    last = exits.decide(logits, 0.9, answer="last")
    assert (last.exit[0], last.prediction[0], last.early[0]) == (2, 1, False)
    each = quick_jit(lambda t: exits.decide(logits, (0.9, t)))(0.7 - 1e-6)
    assert (each.exit[0], each.stage[0], each.early[0]) == (1, 1, True)


def forward(x):
    """Three linear exits on 4 pixels."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4)), jnp.float32)
    every = jnp.einsum("bp,epc->bec", x.reshape(x.shape[0], 4), weights)
    return Output(every[:, -1], Trace((), 1, every))


def test_objectives_on_one_exit_and_on_the_sum():
    images, labels = jnp.full((5, 2, 2, 1), 0.5), jnp.arange(5) % 4

    def gradient(loss):
        return quick_jit(jax.grad(lambda x: jnp.sum(loss(x))))(images)

    found = []
    for index in (0, 1, -1):
        logits = objectives.at_exit(forward, index)(images).logits
        np.testing.assert_array_equal(logits, forward(images).trace.exits[:, index])
        at, ce = objectives.exit_objective(index), objectives.cross_entropy
        found.append(gradient(lambda x, at=at: at(forward(x), labels)))
        same = gradient(lambda x, i=index, ce=ce: ce(objectives.at_exit(forward, i)(x), labels))
        np.testing.assert_array_equal(found[-1], same)
    total = gradient(lambda x: objectives.sum_of_exits("ce")(forward(x), labels))
    np.testing.assert_allclose(total, sum(found), atol=1e-6)
    assert not np.allclose(found[0], found[2])


def test_networks_without_exits():
    static = Trace((), 5)
    for function in (exits.exit_index, exits.predictions, exits.saved_macs):
        with pytest.raises(ValueError, match="early-exit|early exits"):
            function(static)
    for function in (exits.exit_change, exits.first_changed_exit, exits.early_parts, exits.early_success):
        with pytest.raises(ValueError, match="early exits"):
            function(BEFORE, static)
        with pytest.raises(ValueError, match=r"\(2, 3, 4\) and \(1, 3, 4\)"):
            function(BEFORE, trace_of([[0], [1], [1]]))
    with pytest.raises(ValueError, match="early exits"):
        objectives.sum_of_exits()(Output(jnp.zeros((1, 3))), jnp.array([0]))


def test_units_that_are_no_stages():
    with pytest.raises(ValueError, match=r"got units \[\(2,\)\] for exits \(2, 3, 4\)"):
        exits.exit_index(BEFORE.replace(units=BEFORE.units[:1]))
    masks = tuple(UnitTrace(jnp.ones((2, 4)), jnp.ones((2, 4)), 1) for _ in range(2))
    with pytest.raises(ValueError, match="got units"):
        exits.exit_index(BEFORE.replace(units=masks))


def test_exits_out_of_range():
    images, labels = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    with pytest.raises(ValueError, match="got 3.*3 exits"):
        objectives.at_exit(forward, 3)(images)
    with pytest.raises(ValueError, match="got -4"):
        objectives.exit_objective(-4)(forward(images), labels)
    with pytest.raises(TypeError, match="exit"):
        objectives.at_exit(forward, 0.5)


def test_bad_decisions():
    good = BEFORE.exits
    for threshold in (0.0, 1.5, (0.5, 0.0), float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            exits.decide(good, threshold)
    with pytest.raises(ValueError, match="got 3 numbers, expected one, or 2"):
        exits.decide(good, np.full(3, 0.5))
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        exits.decide(good, np.full((2, 1), 0.5))
    with pytest.raises(ValueError, match="patience"):
        exits.decide(good, 0.5, rule="patience")
    for fields in ({"rule": "sure"}, {"answer": "first"}):
        with pytest.raises(ValueError, match="expected one of"):
            exits.decide(good, 0.5, **fields)
    for shape in ((2, 1, 4), (2, 3), (0, 3, 4)):
        with pytest.raises(ValueError, match="at least two exits"):
            exits.decide(jnp.zeros(shape), 0.5)


@pytest.mark.parametrize(
    "generated,labels,word",
    [
        (np.ones((4, 1), bool), np.zeros(4, int), r"generated: got shape \(4, 1\)"),
        (np.ones(3, bool), np.zeros(4, int), r"generated: got shape \(3,\)"),
        (np.arange(4), np.zeros(4, int), "generated: got dtype"),
        (np.ones(4, bool), np.zeros((4, 1), int), r"labels: got shape \(4, 1\)"),
        (np.ones(4, bool), np.eye(4, 3, dtype=int), r"labels: got shape \(4, 3\)"),
        (np.ones(4, bool), np.zeros(4), "labels: got dtype"),
        (np.ones(4, bool), np.full(4, 3), "labels: got labels in"),
    ],
)
def test_bad_flags_and_labels(generated, labels, word):
    logits = jnp.eye(4, 3)
    with pytest.raises((ValueError, TypeError), match=word):
        exits.transfer_rate(generated, logits, labels)
    if "in" not in word.split():  # shapes and dtypes are seen under jit as well
        with pytest.raises((ValueError, TypeError), match=word):
            jax.jit(exits.transfer_rate)(generated, logits, labels)


def test_measures_work_under_jit_and_vmap():
    both = quick_jit(lambda a, b: (exits.exit_change(a, b), exits.early_parts(a, b), exits.first_changed_exit(a, b)))
    change, parts, first = both(BEFORE, AFTER)
    np.testing.assert_array_equal(change, [1, -1])
    np.testing.assert_array_equal(parts.changed, [True, False])
    np.testing.assert_array_equal(first, [0, 2])
    logits, labels = jnp.eye(3)[jnp.array([0, 1, 1, 2])], jnp.zeros(4, int)
    flags = jnp.array([[True, True, False, True], [True, False, False, False]])
    rates = jax.vmap(lambda f: exits.transfer_rate(f, logits, labels))(flags)
    np.testing.assert_allclose(rates, [2 / 3, 0], atol=1e-6)
