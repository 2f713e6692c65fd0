"""Hand values for every metric."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import metrics
from dyn_jax.types import Dilated, Trace, UnitTrace


def gates(*rows, macs=10):
    """A trace of one-element units; rows are units, columns examples."""
    units = [UnitTrace(jnp.asarray(r, jnp.float32) - 0.5, jnp.asarray(r, jnp.float32), macs) for r in rows]
    return Trace(tuple(units), static_macs=7)


def masks(occupancy, dilated):
    occupancy, dilated = jnp.asarray(occupancy, jnp.float32), jnp.asarray(dilated, jnp.float32)
    return Trace((UnitTrace(occupancy - 0.5, occupancy, 3, Dilated(dilated, 2)),), static_macs=100)


def test_accuracy_counts_nan_as_wrong():
    with jax.debug_nans(False):
        logits = jnp.array([[1.0, 2.0], [3.0, 0.0], [0.0, np.nan], [0.0, 1.0]])
        assert metrics.accuracy(logits, jnp.array([1, 0, 1, 0])) == 0.5


def test_success_rate_is_over_the_attacked():
    success = jnp.array([True, True, False, True])
    assert metrics.success_rate(success, jnp.array([True, True, True, False])) == pytest.approx(2 / 3)


def test_architecture_change_of_gates():
    before, after = gates([1, 0], [1, 1]), gates([0, 0], [1, 0])
    assert metrics.architecture_change(before, after) == 0.5
    assert metrics.architecture_change(before, after, where=jnp.array([True, False])) == 0.5
    after = gates([0, 0], [0, 1])
    assert metrics.architecture_change(before, after, where=jnp.array([True, False])) == 1.0
    np.testing.assert_allclose(metrics.unit_change(before, after), [0.5, 0.5])
    np.testing.assert_allclose(metrics.occupancy_rate(before), [0.5, 1.0])


def test_architecture_change_counts_masks_on_request():
    before = masks([[[1, 0], [0, 0]]], [[[1, 1], [1, 1]]])
    after = masks([[[0, 0], [0, 1]]], [[[1, 1], [1, 0]]])
    assert metrics.architecture_change(before, after) == 2 / 4
    assert metrics.architecture_change(before, after, count="masks") == 3 / 8


def test_executed_and_dense_macs():
    trace = gates([1, 0], [1, 1])
    np.testing.assert_array_equal(metrics.executed_macs(trace), [27, 17])
    assert metrics.dense_macs(trace) == 27
    trace = masks([[[1, 0], [0, 1]]], [[[1, 1], [1, 0]]])
    np.testing.assert_array_equal(metrics.executed_macs(trace), [100 + 2 * 3 + 3 * 2])
    assert metrics.dense_macs(trace) == 100 + 4 * 3 + 4 * 2


def test_psnr():
    image = jnp.zeros((2, 2, 2, 3))
    other = image.at[0].set(0.1)
    np.testing.assert_allclose(metrics.psnr(other, image), [20.0, np.inf], rtol=1e-6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: metrics.architecture_change(Trace(), Trace()), "without units"),
        (lambda: metrics.unit_change(gates([1, 0]), gates([1, 0], [0, 0])), "one network"),
        (lambda: metrics.architecture_change(gates([1.0]), gates([1.0]), count="unit"), "'units'"),
        (lambda: metrics.executed_macs(Trace()), "static network"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
