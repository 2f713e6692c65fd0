"""Hand values for every metric."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import metrics, occupancy
from dyn_jax.types import Trace, UnitTrace


def gates(*rows, macs=10):
    """A trace of one-element units; rows are units, columns examples."""
    return Trace(tuple(unit_of(row, macs) for row in rows), static_macs=7)


def unit_of(on, macs, dense_macs=None, **extras):
    on = jnp.asarray(on, jnp.float32)
    return UnitTrace(on - 0.5, on, macs, dense_macs, extras=extras)


def masks(mask, dilated, macs=3, dense_macs=None):
    return Trace((unit_of(mask, macs, dense_macs, dilated=jnp.asarray(dilated)),), static_macs=100)


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
    costs = jnp.array([[[5.0, 900], [900, 7]]])  # an element that is off costs nothing, whatever it would cost
    trace = masks([[[1, 0], [0, 1]]], [[[1, 1], [1, 0]]], costs, 9)
    np.testing.assert_array_equal(metrics.executed_macs(trace), [100 + 5 + 7])
    assert metrics.dense_macs(trace) == 100 + 4 * 9


def test_a_cost_that_broadcasts():
    """[batch, 1] over the elements, as of a convolution whose inputs are gated: each counts it."""
    trace = Trace((unit_of([[1, 1, 0], [0, 1, 0]], jnp.array([[10.0], [20.0]]), 30),), 1)
    np.testing.assert_array_equal(metrics.executed_macs(trace), [21, 21])
    assert metrics.dense_macs(trace) == 91
    np.testing.assert_array_equal(metrics.executed_unit_macs(trace.units[0]), [20, 20])


def test_costs_are_differentiable():
    """Through the occupancy and through what the cost depends on."""

    def executed(o, inner):
        unit = UnitTrace(o - 0.5, o, 2.0 * jnp.sum(inner, axis=1, keepdims=True), 4)
        return metrics.executed_macs(Trace((unit,), 5)).sum()

    o, inner = jnp.array([[0.25, 0.5]]), jnp.array([[1.0, 0.5]])
    assert executed(o, inner) == 5 + 3 * 0.75
    to_o, to_inner = jax.grad(executed, (0, 1))(o, inner)
    np.testing.assert_array_equal(to_o, [[3, 3]])
    np.testing.assert_array_equal(to_inner, [[1.5, 1.5]])


def test_more_than_an_int32_counts():
    """Multiply-adds of a large image, under jit too."""
    billion = 10**9
    trace = Trace((unit_of([[1, 0, 1], [0, 0, 0]], 2 * billion),), static_macs=3 * billion)
    np.testing.assert_allclose(jax.jit(metrics.executed_macs)(trace), [7e9, 3e9], rtol=1e-6)
    assert metrics.dense_macs(trace) == 9 * billion
    full = Trace((unit_of([[1, 1, 1]] * 2, 2 * billion),), static_macs=3 * billion)
    np.testing.assert_allclose(metrics.recovery(trace, full), 1, rtol=1e-6)
    np.testing.assert_allclose(metrics.increase(trace, full), [2 / 7, 2], rtol=1e-6)


def test_two_prices():
    """An element is cheap (5) or dear (12): the cheap price always runs, being on adds the difference."""
    cheap, dear = 5, 12
    trace = Trace((unit_of([[1, 0, 0, 1], [0, 0, 0, 0]], dear - cheap),), static_macs=4 * cheap)
    np.testing.assert_array_equal(metrics.executed_macs(trace), [2 * 12 + 2 * 5, 4 * 5])
    assert metrics.dense_macs(trace) == 4 * 12


def top_k(values, k):
    """The score is the distance to the k-th largest: k elements are on whatever the values (without ties)."""
    return values - jax.lax.top_k(values, k)[0][..., -1:]


def test_as_many_units_for_every_input():
    values = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)
    score = top_k(values, 3)
    trace = Trace((UnitTrace(score, occupancy.hard()(score), 10, name="experts"),), 7)
    np.testing.assert_array_equal(metrics.executed_macs(trace), [37] * 5)
    np.testing.assert_array_equal(metrics.example_shares(trace), [[3 / 8]] * 5)
    largest = np.asarray(values) >= np.sort(values, axis=1)[:, -3:-2]
    np.testing.assert_array_equal(trace.units[0].on, largest)
    slope = jax.grad(lambda v: occupancy.sigmoid(10.0)(top_k(v, 3)).sum())(values)
    assert np.isfinite(slope).all() and (slope != 0).any(axis=1).all()


COLUMN = np.array([[True], [False]])
LOGITS, LABELS = jnp.eye(2) * 5, np.arange(2)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: metrics.accuracy(LOGITS, LABELS[:, None]), r"labels: got shape \(2, 1\)"),
        (lambda: metrics.accuracy(LOGITS, np.eye(2, dtype=int)), r"labels: got shape \(2, 2\)"),
        (lambda: metrics.success_rate(jnp.ones(2, bool), COLUMN), r"attacked: got shape \(2, 1\)"),
        (lambda: metrics.recovery(gates([0, 0]), gates([1, 1]), where=COLUMN), r"where: got shape \(2, 1\)"),
        (
            lambda: metrics.architecture_change(gates([0, 0]), gates([1, 1]), where=COLUMN),
            r"where: got shape \(2, 1\)",
        ),
        (lambda: metrics.architecture_change(gates([0, 0]), gates([1, 1]), where=np.array([0])), "where: got dtype"),
        (lambda: metrics.confusion(jnp.arange(2), LABELS[:, None], 2), r"got shape"),
        (lambda: metrics.confusion(LABELS, LABELS + 2**32, 2), r"labels: got values in \[4294967296, 4294967297\]"),
        (lambda: metrics.confusion(LABELS - 1, LABELS, 2), r"predictions: got values in \[-1, 0\], expected \[0, 1\]"),
        (lambda: metrics.iou(np.ones((2, 3))), r"matrix: got shape \(2, 3\)"),
        (lambda: metrics.mean_iou(np.full((2, 2), np.nan)), "matrix: got negative, NaN"),
        (lambda: metrics.dense_macs(Trace((unit_of([[1]], jnp.ones((1, 1))),))), "depends on the input"),
    ],
)
def test_what_would_broadcast_or_has_no_answer_is_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()


def test_psnr():
    image = jnp.zeros((2, 2, 2, 3))
    other = image.at[0].set(0.1)
    np.testing.assert_allclose(metrics.psnr(other, image), [20.0, np.inf], rtol=1e-6)
    bits = np.full((1, 2, 2, 3), 250, np.uint8)
    np.testing.assert_allclose(metrics.psnr(bits, 0 * bits, peak=255), 20 * np.log10(255 / 250), rtol=1e-5)
    np.testing.assert_allclose(metrics.psnr(bits, 0 * bits), 20 * np.log10(255 / 250), rtol=1e-5)
    with jax.debug_nans(False):
        assert np.isnan(metrics.psnr(other * np.nan, image)).all()  # not infinitely good


PIXELS = np.zeros((1, 2, 2, 1), np.float32)


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: metrics.psnr(PIXELS[0], PIXELS[0]),
            r"images, reference: got shape \(2, 2, 1\)",
        ),  # one image, no batch
        (lambda: metrics.psnr(PIXELS, PIXELS.astype(np.uint8)), "got float32 and uint8"),
        (lambda: metrics.psnr(PIXELS.astype(int), PIXELS.astype(int)), "peak: got None for int"),
        (lambda: metrics.psnr(PIXELS, PIXELS, peak=0), "peak: got 0"),
        (lambda: metrics.robust_accuracy_at(np.array([0.0, 1.0]), -1.0), "eps: got negative"),
        (lambda: metrics.robust_accuracy_at(np.array([0.0, 1.0]), [0.1, np.nan]), "eps: got negative ones or NaN"),
        (lambda: metrics.robust_accuracy_at(np.array([-1.0, 1.0]), 1.0), "norms: got negative"),
        (lambda: metrics.success_rate(True, True), r"success: got shape \(\)"),
    ],
)
def test_what_is_no_image_norm_or_radius_is_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()


def test_a_norm_of_exactly_eps_breaks_in_double_precision_too():
    norms = np.array([8 / 255, 9 / 255], np.float32)
    assert float(norms[0]) > 8 / 255  # rounded up
    with jax.enable_x64(True):
        assert metrics.robust_accuracy_at(norms, 8 / 255) == 0.5
    assert metrics.robust_accuracy_at(norms, "8/255") == 0.5


def test_counts_of_units_beyond_32_bits():
    trace = Trace((unit_of([1.0, 0.0], 2**40),), static_macs=2**40)
    energy = metrics.accelerator_energy(trace, 3 * 10**9)
    np.testing.assert_allclose(energy, 1950 * (3e9 + np.array([2, 0])) + 3.7 * 2.0**40 * np.array([2, 1]), rtol=1e-5)


@pytest.mark.parametrize("average", ["images", "ratio"])
def test_a_recovery_of_nan_is_unknown(average):
    before, after = gates([1, 0], [0, 0]), gates([1, 1], [0, 1])
    unknown = Trace((before.units[0], unit_of([np.nan, 0], 10)), 7)
    assert metrics.recovery(before, after, average=average) > 0
    with jax.debug_nans(False):
        assert np.isnan(metrics.recovery(unknown, after, average=average))
        assert np.isnan(metrics.recovery(before, unknown, average=average))
        assert not np.isnan(metrics.recovery(unknown, after, average=average, where=np.array([False, True])))


def test_experts_of_networks_with_other_numbers_of_routers():
    score = jnp.ones((2, 3))
    unit = UnitTrace(score, score, 1, extras={"kept": score})
    with pytest.raises(ValueError, match="expected one network and one batch"):
        metrics.expert_iou(Trace((unit,) * 3), Trace((unit,) * 2))


def test_counts_of_points_beyond_32_bits():
    assert float(metrics.mean_iou(np.array([[2**33, 2**33], [0, 2**33]]))) == pytest.approx(0.5)
    assert metrics.confusion(np.array([9, 0]), np.array([255, 0]), 2).sum() == 1  # what does not count may say anything


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
