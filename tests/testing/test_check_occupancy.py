"""check_occupancy passes good approximations of the step and names the criterion that a bad one breaks."""

import re

import jax
import jax.numpy as jnp
import pytest

from dyn_jax import occupancy as oc
from dyn_jax.testing import check_occupancy


def arctan(score):
    return 0.5 + jnp.arctan(10 * score) / jnp.pi


def erf(score):
    return 0.5 * (1 + jax.lax.erf(3 * score))


def smoothstep(score):
    """A quintic ramp from -1/2 to 1/2: derivative exactly 0 beyond, and no jump in it."""
    u = jnp.clip(score + 0.5, 0, 1)
    return u * u * u * (10 - 15 * u + 6 * u * u)


GOOD = {"sigmoid 3": oc.sigmoid(3.0), "sigmoid 10": oc.sigmoid(10.0), "sigmoid 100": oc.sigmoid(100.0)}
GOOD |= {"sigmoid 400": oc.sigmoid(400.0), "arctan": arctan, "erf": erf, "smoothstep": smoothstep}


@pytest.mark.parametrize("name", GOOD)
def test_passes_good_ones(name):
    check_occupancy(GOOD[name])


def test_scale_and_boundary_are_arguments():
    check_occupancy(oc.sigmoid(1e-4), margin=4e4)
    check_occupancy(oc.sigmoid(0.3), margin=10.0)
    check_occupancy(lambda s: jax.nn.sigmoid(10 * (s - 2)), boundary=2.0)
    with pytest.raises(AssertionError, match="criterion 1"):
        check_occupancy(lambda s: jax.nn.sigmoid(10 * (s - 2)))
    with pytest.raises(AssertionError, match=re.escape("at score -4")):
        check_occupancy(oc.sigmoid(0.3))


@pytest.mark.parametrize("lam", [3.0, 10.0])
def test_surrogates(lam):
    check_occupancy(oc.straight_through(lam), surrogate=True)
    check_occupancy(oc.straight_through(lam))  # the step itself is close to the step
    with pytest.raises(AssertionError, match="criterion 1"):
        check_occupancy(oc.sigmoid(lam), surrogate=True)


@jax.custom_jvp
def step_with_box_derivative(score):
    return (score >= 0).astype(score.dtype)


@step_with_box_derivative.defjvp
def _(primals, tangents):
    (score,), (tangent,) = primals, tangents
    return step_with_box_derivative(score), tangent * (jnp.abs(score) < 0.5)


def nan_at_the_boundary(score):
    """The unsafe-where trap: the value is right, the derivative at 0 is NaN."""
    root = jnp.sqrt(score * score)
    return jnp.where(score == 0, 0.5, jax.nn.sigmoid(10 * score + 0 * root))


def overflowing(score):
    """exp overflows far from the boundary and inf * 0 = NaN in its derivative."""
    return 1 / (1 + jnp.exp(-10 * score))


def unbounded(score):
    safe = jnp.where(score == 0, 1.0, jnp.abs(score))
    root = jnp.sign(score) * jnp.where(score == 0, 0.0, jnp.sqrt(safe))
    return jnp.clip(0.5 + 0.5 * root, 0, 1) + 5 * score * (score == 0)


def flat_at_the_boundary(score):
    """Two steep slopes at -1/2 and 1/2 with a plateau between them."""
    return 0.5 * jax.nn.sigmoid(40 * (score - 0.5)) + 0.5 * jax.nn.sigmoid(40 * (score + 0.5))


def late_wiggle(score):
    """Close to the step everywhere, but steep far from the boundary."""
    return 0.98 * jax.nn.sigmoid(10 * score) + 0.01 * (1 + jnp.sin(300 * score)) * (score > 2)


BAD = {
    "constant": (lambda s: 0 * s + 0.5, "criterion 1"),
    "inverted": (lambda s: jax.nn.sigmoid(-10 * s), "criterion 1"),
    "too flat": (oc.sigmoid(1.0), "criterion 1"),
    "always on": (lambda s: 0 * s + 1, "criterion 1"),
    "no derivative": (oc.hard(), "criterion 2"),
    "zero slope at the boundary": (flat_at_the_boundary, "criterion 2"),
    "steep elsewhere": (late_wiggle, "criterion 2"),
    "NaN derivative": (nan_at_the_boundary, "criterion 3.*derivative not finite"),
    "overflow": (overflowing, "criterion 3.*derivative not finite"),
    "unbounded slope": (unbounded, "criterion 3"),
    "too steep": (oc.sigmoid(500.0), "criterion 3.*max_slope"),
    "ramp": (lambda s: jnp.clip(s + 0.5, 0, 1), "criterion 3.*jump"),
    "box surrogate": (step_with_box_derivative, "criterion 3.*jump"),
    "outside [0, 1]": (lambda s: 1.2 * jax.nn.sigmoid(10 * s) - 0.1, r"values in \[0, 1\]"),
    "NaN value": (lambda s: jnp.where(s > 3, jnp.nan, jax.nn.sigmoid(10 * s)), r"values in \[0, 1\].*nan"),
    "sees the batch": (lambda s: jax.nn.sigmoid(10 * (s - s.mean())), "elementwise"),
    "reverses": (lambda s: jax.nn.sigmoid(10 * s)[::-1], "elementwise"),
    "changes the shape": (lambda s: jax.nn.sigmoid(10 * s).reshape(-1), "shape, dtype"),
    "changes the dtype": (lambda s: jax.nn.sigmoid(10 * s).astype(jnp.float32), "shape, dtype"),
    "stochastic": (oc.bernoulli(), "stochastic"),
}


@pytest.mark.parametrize("name", BAD)
def test_names_what_a_bad_one_breaks(name):
    occupancy, message = BAD[name]
    with pytest.raises(AssertionError, match=message):
        check_occupancy(occupancy)


def test_a_derivative_that_couples_elements_is_found():
    @jax.custom_vjp
    def coupled(score):
        return jax.nn.sigmoid(10 * score)

    coupled.defvjp(lambda s: (coupled(s), s), lambda s, bar: (jnp.full_like(s, bar.sum()),))
    with pytest.raises(AssertionError, match="derivative by another element"):
        check_occupancy(coupled)
