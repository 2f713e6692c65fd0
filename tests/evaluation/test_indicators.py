"""Indicators of attack failure: by hand, and against the stored values of thirteen models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import quick_jit
from test_checks import MODELS

from dyn_jax.attacks import bim
from dyn_jax.evaluation import from_attack, indicators


def test_by_hand():
    assert indicators.unavailable_gradients(np.float32([[0, 0], [0, 1e-30], [np.nan, 0]])).tolist() == [
        True,
        False,
        False,
    ]
    near = np.array([[1.1, 3.0, 1.0], [0.7, -1.0, np.nan]])
    assert indicators.unstable_predictions([1.0, 0.0, 1.0], near)[:2] == pytest.approx([0.2, 1.0])
    assert np.isnan(indicators.unstable_predictions([1.0, 0.0, 1.0], near)[2])
    path = np.array([[False, True, False], [False, False, False], [True, True, True]])
    assert indicators.silent_success(np.array([False, False, True]), path).tolist() == [True, False, False]
    assert indicators.transfer_failure(np.array([False, True]), np.array([True, True])).tolist() == [True, False]
    losses = np.array([[0.0] * 11 + [1.0], [0.0] + [1.0] * 11, [2.0] * 12, [0.0, 1.0, *np.linspace(1.0, 0.0, 10)]])
    assert indicators.incomplete_optimization(losses).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert indicators.incomplete_optimization(np.array([[0.0, 3.0]])).tolist() == [1.0]


def test_the_path_is_left_as_it_was():
    """The released code changes it in place."""
    losses = np.array([[0.0, 1.0, 3.0]])
    indicators.incomplete_optimization(losses)
    assert losses.tolist() == [[0.0, 1.0, 3.0]]


def test_bad_input():
    with pytest.raises(ValueError, match=r"loss_near: got shape \(3,\), expected \(draws, 3\)"):
        indicators.unstable_predictions(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match=r"losses: got shape \(4,\)"):
        indicators.incomplete_optimization(np.ones(4))
    with pytest.raises(TypeError, match="success: got dtype int64, expected bool"):
        indicators.silent_success(np.array([0, 1]), np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match=r"path_success: got shape \(3, 2\), expected \(2, steps\)"):
        indicators.silent_success(np.array([False, True]), np.zeros((3, 2), bool))


def test_incomplete_optimization_of_every_stored_path(golden):
    stored = golden("eval_failure_checks")
    for model in stored["models"]:
        path = -stored[f"{model}/pgd_loss"].T  # the margin, which was minimised
        got = indicators.incomplete_optimization(path) > 0.05
        np.testing.assert_array_equal(got, stored[f"{model}/incomplete_optimization"] > 0, err_msg=model)


@pytest.mark.torch
def test_paths_and_indicators_of_the_published_network(golden, published):
    """The same 20 sign steps give the same losses."""
    stored = golden("eval_failure_checks")
    forward, images, labels = published
    attack = bim("8/255", "2/255", 20, objective="margin")
    result = jax.jit(lambda x: attack(forward, x, labels), compiler_options={"xla_backend_optimization_level": 0})(
        images
    )
    losses, wanted = np.asarray(result.steps.loss).T, -stored["resnet20/pgd_loss"][:-1]
    close = np.abs(losses - wanted) <= 1e-3 * np.maximum(1, np.abs(wanted))
    assert close[:2].all() and close.mean() > 0.5  # a sign near 0 flips, and the path is another from there on
    np.testing.assert_array_equal(result.success, stored["resnet20/attack_success"])
    got = indicators.incomplete_optimization(np.asarray(result.steps.loss)) > 0.05
    assert np.mean(got == (stored["resnet20/incomplete_optimization"] > 0)) > 0.9


@pytest.mark.torch
@pytest.mark.parametrize("model", sorted(set(MODELS) - {"fresh_noise"}))  # whose draws are not stored
def test_instability_of_the_stored_models(golden, published, model):
    """Mean relative change of the margin under the same 100 draws around three images; NaN stays NaN."""
    stored, count = golden("eval_failure_checks"), 3
    forward, images, labels = published
    network = MODELS[model](lambda x: forward(x).logits)
    stream = np.random.RandomState(0)  # one stream over images, channels first
    noise = np.stack([stream.uniform(-4 / 255, 4 / 255, (100, 3, 32, 32)) for _ in range(count)])
    near = images[:count, None] + jnp.asarray(noise.transpose(0, 1, 3, 4, 2), jnp.float32)
    rows = jnp.concatenate([images[:count, None], near], axis=1)

    @quick_jit
    def margins(x, label):
        logits = network(x)
        own = jnp.arange(logits.shape[1])[None] == label
        return logits[:, label] - jnp.max(jnp.where(own, -jnp.inf, logits), axis=1)

    with jax.debug_nans(False):
        loss = np.stack([margins(rows[i], labels[i]) for i in range(count)], axis=1)
    got = indicators.unstable_predictions(loss[0], loss[1:])
    # one forward pass takes the sign of a gradient, which rounding flips where that is near 0
    tolerance = 1e-3 if model == "gradient_in_forward" else 1e-4
    np.testing.assert_allclose(got, stored[f"{model}/unstable_predictions"][:count], atol=tolerance)


def test_unconstrained_failure_and_points_near():
    images = jnp.full((2, 4, 4, 3), 0.5)
    climb = lambda x: jnp.stack([jnp.mean(x, axis=(1, 2, 3)) - 0.6, jnp.zeros(len(x))], axis=1)
    stuck = lambda x: climb(jax.lax.stop_gradient(x))
    labels = np.array([1, 1])
    assert not indicators.unconstrained_failure(climb, images, labels).any()
    assert indicators.unconstrained_failure(stuck, images, labels).all()
    points = indicators.near(jax.random.key(0), images, draws=50)
    assert points.shape == (50, *images.shape) and 3.5 / 255 < float(jnp.abs(points - 0.5).max()) <= 4 / 255 + 1e-6


def test_a_path_that_is_not_finite_is_no_path_that_ended():
    losses = np.array([[0.0, 1, 1], [0, np.nan, 1], [0, np.inf, np.inf], [np.nan, np.nan, np.nan]])
    reading = from_attack(np.array([False, False, False, True]), np.repeat(losses, 10, axis=1))
    assert [one.code for one in reading.findings] == ["nonfinite_logits"]
    np.testing.assert_array_equal(reading.findings[0].examples, [1, 2])  # the last one fooled all the same
    np.testing.assert_array_equal(np.isnan(reading.raw["incomplete_optimization"]), [False, True, True, True])
