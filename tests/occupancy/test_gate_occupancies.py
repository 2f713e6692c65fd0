"""Values by hand, derivatives by kind: smooth ones are checked numerically, surrogates against the stated formula."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dyn_jax import occupancy

SCORES = jnp.array([-2.0, -0.1, 0.0, 0.1, 2.0])


def test_hard_is_the_step_with_zero_derivative():
    np.testing.assert_array_equal(occupancy.hard()(SCORES), [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(jax.vmap(jax.grad(occupancy.hard()))(SCORES), np.zeros(5))


def test_sigmoid_is_equation_15():
    expected = 1 / (1 + np.exp(-3.0 * np.asarray(SCORES, np.float64)))
    np.testing.assert_allclose(occupancy.sigmoid(3.0)(SCORES), expected, rtol=1e-6)
    assert occupancy.sigmoid(1e4)(jnp.float32(-50.0)) == 0 and occupancy.sigmoid(1e4)(jnp.float32(50.0)) == 1


def test_sigmoid_is_smooth():
    with jax.enable_x64(True):
        check_grads(occupancy.sigmoid(3.0), (jnp.linspace(-2.0, 2.0, 9),), order=2)


@pytest.mark.parametrize("kind", [occupancy.sigmoid, occupancy.straight_through])
def test_a_whole_lambda_of_any_size_and_an_occupancy_made_of_another(kind):
    np.testing.assert_array_equal(kind(10**10)(jnp.array([-1.0, 1.0])), [0, 1])

    class Shifted(type(kind(1))):
        def __call__(self, score):
            return super().__call__(score - 1)

    np.testing.assert_array_equal(Shifted(2.0)(jnp.array([0.5, 2.0])), kind(2.0)(jnp.array([-0.5, 1.0])))


def test_straight_through_has_the_steps_value_and_the_sigmoids_derivative():
    gate = occupancy.straight_through(3.0)
    np.testing.assert_array_equal(gate(SCORES), occupancy.hard()(SCORES))
    value = np.asarray(occupancy.sigmoid(3.0)(SCORES))
    np.testing.assert_allclose(jax.vmap(jax.grad(gate))(SCORES), 3.0 * value * (1 - value), rtol=1e-5)


def test_lambda_is_a_leaf():
    """A sweep is one vmap, and a new value does not trace again."""
    lams = jnp.array([0.5, 1.0, 20.0])
    swept = jax.vmap(lambda lam: occupancy.sigmoid(lam)(SCORES))(lams)
    np.testing.assert_allclose(swept, np.stack([occupancy.sigmoid(float(lam))(SCORES) for lam in lams]), rtol=1e-6)

    @jax.jit
    @chex.assert_max_traces(1)
    def run(gate):
        return gate(SCORES)

    for lam in (1.0, 2.0, 3.0):
        run(occupancy.sigmoid(lam))


@pytest.mark.parametrize("factory", [occupancy.sigmoid, occupancy.straight_through])
def test_factories_work_while_tracing(factory):
    inside = jax.jit(lambda score: factory(2.0)(score))(SCORES)
    np.testing.assert_array_equal(inside, factory(2.0)(SCORES))


@pytest.mark.parametrize("lam", [0.0, -1.0, float("nan"), float("inf"), "steep", None, True])
def test_bad_lambda(lam):
    for factory in (occupancy.sigmoid, occupancy.straight_through):
        with pytest.raises((ValueError, TypeError), match="lam: got"):
            factory(lam)


def test_bernoulli_rate_and_reproducibility():
    score = jnp.full((4000,), 0.7)
    gate = occupancy.bernoulli()
    sample = gate(score, key=jax.random.key(0))
    probability = 1 / (1 + np.exp(-0.7))
    assert set(np.unique(sample)) == {0.0, 1.0}
    assert abs(float(sample.mean()) - probability) < 4 * (probability * (1 - probability) / 4000) ** 0.5
    np.testing.assert_array_equal(sample, gate(score, key=jax.random.key(0)))
    assert np.any(sample != gate(score, key=jax.random.key(1)))
    assert jax.grad(lambda s: gate(s, key=jax.random.key(0)).sum())(score).any() == False  # noqa: E712


@pytest.mark.parametrize("gate", [occupancy.bernoulli(), occupancy.gumbel_sigmoid(1.0)])
def test_noise_does_not_depend_on_the_batch_size(gate):
    score = jnp.linspace(-1, 1, 6).reshape(6, 1) * jnp.ones((1, 50))
    key = jax.random.key(3)
    np.testing.assert_array_equal(gate(score, key=key)[:2], gate(score[:2], key=key))


def test_gumbel_sigmoid_is_a_logistic_choice():
    """P(score + g1 - g2 >= 0) = sigmoid(score), whatever the temperature; its derivative is the tempered sigmoid's."""
    score = jnp.full((1, 20000), -0.4)
    gate = occupancy.gumbel_sigmoid(2.5)
    probability = 1 / (1 + np.exp(0.4))
    rate = float(gate(score, key=jax.random.key(0)).mean())
    assert abs(rate - probability) < 4 * (probability * (1 - probability) / 20000) ** 0.5
    quiet = occupancy.gumbel_sigmoid(2.5, noise=False)
    slope = jax.grad(lambda s: quiet(s, key=jax.random.key(0)).sum())(SCORES)
    value = 1 / (1 + np.exp(-np.asarray(SCORES) / 2.5))
    np.testing.assert_allclose(slope, value * (1 - value) / 2.5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, "hot"])
def test_bad_temperature(temperature):
    with pytest.raises((ValueError, TypeError), match="temperature: got"):
        occupancy.gumbel_sigmoid(temperature)
