"""Lovasz-softmax by hand and as an objective; the loss on cells of LGM's release, and the attack that descends IoU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import quick_jit

from dyn_jax.attacks.released import lgm_outdoor
from dyn_jax.objectives import lovasz, lovasz_softmax
from dyn_jax.types import Output, PointCloud, Trace, UnitTrace


def twin(probabilities, labels, counted):
    """One class and one row at a time: from the largest error, what IoU is lost when that row turns wrong."""
    losses = []
    for c in range(probabilities.shape[1]):
        truth = (labels == c)[counted]
        if not truth.any():
            continue
        errors = np.abs(truth - probabilities[counted, c])
        loss, wrong, before = 0.0, np.zeros(len(truth), bool), 0.0
        for row in np.argsort(-errors, kind="stable"):
            wrong[row] = True
            union = truth.sum() + (wrong & ~truth).sum()
            lost = 1 - (truth & ~wrong).sum() / union
            loss, before = loss + errors[row] * (lost - before), lost
        losses.append(loss)
    return np.mean(losses) if losses else 0.0


def test_against_its_definition():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(5), 30).astype(np.float32)
    labels, counted = rng.integers(0, 4, 30), rng.random(30) < 0.7  # class 4 does not occur
    got, slope = jax.value_and_grad(lovasz_softmax)(jnp.asarray(probabilities), jnp.asarray(labels), counted)
    assert float(got) == pytest.approx(twin(probabilities, labels, counted), abs=1e-6)
    assert (np.asarray(slope)[~counted] == 0).all() and np.abs(slope).max() > 0
    moved = probabilities - 1e-3 * np.asarray(slope)
    assert twin(moved, labels, counted) < float(got)
    perfect = jax.nn.one_hot(labels, 5)
    assert float(lovasz_softmax(perfect, jnp.asarray(labels), counted)) == 0
    assert float(lovasz_softmax(perfect, jnp.asarray(labels), counted & False)) == 0


def test_objective():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(12, 4)), jnp.float32)
    labels = jnp.asarray([0, 1, 2, 3] * 3)
    got = lovasz()(Output(logits), labels)
    expected = lovasz_softmax(jax.nn.softmax(logits), labels, labels != 0)
    np.testing.assert_allclose(got, np.full(12, expected), rtol=1e-6)
    np.testing.assert_allclose(lovasz()(Output(logits), labels, labels), -got)


def test_labels_of_cells():
    labels, cell = jnp.asarray([3, 3, 1, 2, 1, 0, 0, 2]), jnp.asarray([0, 0, 0, 1, 1, 3, 3, 3])
    np.testing.assert_array_equal(lgm_outdoor.cell_labels(labels, cell, 4, 5), [3, 1, 0, 0])


def test_cells_are_judged_not_points():
    scores = jnp.asarray([[0.0, 2, 0], [0, 0, 3]])
    cell = jnp.asarray([[0, 0, 0, 1]], jnp.int32)
    unit = UnitTrace(jnp.zeros((1, 4)), jnp.ones((1, 4)), 1, extras={"cell": cell, "scores": scores[None]})
    got = lgm_outdoor.cell_lovasz()(Output(scores[cell[0]], Trace((unit,))), jnp.asarray([1, 1, 2, 2]))
    expected = lovasz_softmax(jax.nn.softmax(scores), jnp.asarray([1, 2]), jnp.ones(2, bool))
    np.testing.assert_allclose(got, np.full(4, expected), rtol=1e-6)
    own = jnp.asarray([[1.0, 1, 1, 1, 0], [0, 0, 0, 0, 1]])  # and beside another scan, of one cell
    other = jnp.asarray([[1.0, 0, 0]])
    both = jnp.stack([jnp.concatenate([scores, 0 * other]), jnp.concatenate([0 * scores, other])])
    unit = UnitTrace(own - 0.5, own, 1, extras={"cell": jnp.asarray([[0, 0, 0, 1, 2]] * 2), "scores": both})
    got = lgm_outdoor.cell_lovasz()(Output(jnp.zeros((5, 3)), Trace((unit,))), jnp.asarray([1, 1, 2, 2, 1]))
    alone = lovasz_softmax(jax.nn.softmax(other), jnp.asarray([1]), jnp.ones(1, bool))
    np.testing.assert_allclose(got, [*np.full(4, expected), alone], rtol=1e-6)
    with pytest.raises(ValueError, match="without the scores of cells"):
        lgm_outdoor.cell_lovasz()(Output(scores), jnp.asarray([1, 2]))


@pytest.mark.parametrize("eps, step, slope", [(0.005, 0.0025, 250), (0.01, 0.005, 200), (0.05, 0.005, 200)])
def test_settings(eps, step, slope):
    settings = lgm_outdoor.settings(eps)
    assert (settings.step_size, settings.input_lam, settings.network_lam) == (step, 10, slope)
    with pytest.raises(ValueError, match="expected one of 0.005, 0.01, 0.02, 0.05"):
        lgm_outdoor.scan_bim(0.03)


def test_direction_by_hand():
    with jax.debug_nans(False):
        gradient = jnp.asarray(np.array([[2e-9, -4e-9, np.nan], [0, 0, 0], [1, 1, -1]], np.float32))
        got, _ = lgm_outdoor.normalised().update(gradient, None)
    np.testing.assert_allclose(got, [[0.5, -1, 0], [0, 0, 0], [1, 1, -1]], rtol=1e-3)


def test_the_iterate_with_the_worst_mean_iou_is_kept():
    rng = np.random.default_rng(2)
    weights = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    xyz = jnp.asarray(rng.uniform(-1, 1, (40, 3)), jnp.float32)
    cloud = PointCloud(xyz, jnp.zeros((40, 1)), jnp.ones(40, bool))
    logits = lambda cloud: Output(200 * jnp.tanh(cloud.xyz @ weights))
    labels = jnp.argmax(logits(cloud).logits, axis=1)
    attack = lgm_outdoor.scan_bim(0.01, 6, objective=lovasz())
    result = quick_jit(lambda cloud: attack(logits, cloud, labels, ignore=0))(cloud)
    assert float(jnp.abs(result.adversarial - xyz).max()) <= 0.01 + 1e-6
    assert bool(result.success.any()) and result.steps.loss.shape == (1, 6)
