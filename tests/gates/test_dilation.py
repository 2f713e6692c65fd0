"""What a masked branch costs: by hand, against loops over the 3x3 neighbours, and with its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dyn_jax import occupancy
from dyn_jax.gates import dilation

FIRST, REST = 5, 3
HARD = occupancy.hard()


def by_loops(mask, stride=1):
    """[batch, stride * height, stride * width], how many of the outputs that read a position are in the mask."""
    batch, height, width = mask.shape
    count = np.zeros((batch, stride * height, stride * width))
    for i in range(height):
        for j in range(width):
            for y in range(max(stride * i - 1, 0), min(stride * i + 2, stride * height)):
                for x in range(max(stride * j - 1, 0), min(stride * j + 2, stride * width)):
                    count[:, y, x] += mask[:, i, j]
    return count


def executed(mask, how, stride=1):
    return jnp.sum(mask * dilation(mask, how, FIRST, REST, stride).macs, axis=(1, 2))


def test_one_position_by_hand():
    """A corner is read by itself alone and needs the four positions around it; the other elements cost nothing."""
    mask = jnp.zeros((1, 3, 3)).at[0, 0, 0].set(1)
    got = dilation(mask, HARD, FIRST, REST)
    np.testing.assert_array_equal(got.mask[0], [[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert got.macs[0, 0, 0] == REST + 4 * FIRST
    two = mask.at[0, 0, 1].set(1)  # the neighbour needs two more, and shares four
    got = dilation(two, HARD, FIRST, REST)
    np.testing.assert_array_equal(got.macs[0, 0, :2], [REST + 2 * FIRST, REST + 4 * FIRST])


@pytest.mark.parametrize("stride", [1, 2])
def test_hard_masks_count_every_dilated_position_once(stride):
    mask = np.random.default_rng(0).random((6, 5, 4)) < np.linspace(0, 1, 6)[:, None, None]
    assert not mask[0].any() and mask[-1].all()
    dilated = by_loops(mask, stride) > 0
    assert dilated[1:5].mean() < 1
    got = dilation(jnp.asarray(mask, jnp.float32), HARD, FIRST, REST, stride)
    np.testing.assert_array_equal(got.mask, dilated)
    assert got.macs.shape == mask.shape
    expected = REST * mask.sum((1, 2)) + FIRST * dilated.sum((1, 2))
    np.testing.assert_array_equal(np.rint(executed(jnp.asarray(mask, jnp.float32), HARD, stride)), expected)
    assert expected[-1] == mask[0].size * (REST + FIRST * stride**2)  # the dense price


@pytest.mark.parametrize("stride", [1, 2])
def test_soft_masks_have_the_values_and_derivatives_of_the_sum(stride):
    """Also where the occupancies are as small as 1e-20, and the square of their reciprocal has no float32."""
    soft = occupancy.sigmoid(3.0)
    noise = np.random.default_rng(1).normal(size=(3, 5, 4))
    logits = np.stack([noise[0], 8 * noise[1], -45 - 5 * np.tanh(noise[2])])  # the last image is all but off
    mask = jnp.asarray(1 / (1 + np.exp(-logits)), jnp.float32)
    assert mask[2].max() < 1e-17 and mask[2].min() > 1e-23

    def total(mask):
        dilated = dilation(mask, soft, FIRST, REST, stride).mask
        return REST * jnp.sum(mask) + FIRST * jnp.sum(dilated)

    expected = REST * mask.sum((1, 2)) + FIRST * jax.nn.sigmoid(3 * (by_loops(mask, stride) - 0.5)).sum((1, 2))
    np.testing.assert_allclose(executed(mask, soft, stride), expected, rtol=1e-6)
    score = jnp.asarray(logits, jnp.float32)  # what an attack moves
    got = jax.grad(lambda s: executed(jax.nn.sigmoid(s), soft, stride).sum())(score)
    np.testing.assert_allclose(got, jax.grad(lambda s: total(jax.nn.sigmoid(s)))(score), atol=2e-5)


def test_derivatives_are_those_of_the_values():
    mask = np.random.default_rng(2).uniform(0.05, 0.95, (1, 3, 3))
    with jax.enable_x64(True):
        check_grads(lambda m: executed(m, occupancy.sigmoid(3.0)), (jnp.asarray(mask),), order=1, rtol=1e-6)


@pytest.mark.parametrize("how", [HARD, occupancy.sigmoid(3.0), occupancy.straight_through(10.0)])
@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-20, 1.0])
def test_everything_off_or_on_has_finite_costs_and_gradients(how, value):
    mask = jnp.full((2, 4, 4), value, jnp.float32)
    value, pullback = jax.vjp(lambda m: executed(m, how), mask)
    assert np.isfinite(value).all() and np.isfinite(pullback(jnp.ones(2))[0]).all()
    assert np.isfinite(dilation(mask, how, FIRST, REST).macs).all()


def test_a_stochastic_occupancy_dilates_what_was_drawn():
    mask = jnp.zeros((1, 3, 3)).at[0, 1, 1].set(1)
    np.testing.assert_array_equal(dilation(mask, occupancy.bernoulli(), FIRST, REST).mask, np.ones((1, 3, 3)))


def test_prices_beyond_an_int32():
    got = dilation(jnp.ones((1, 2, 2)), HARD, 3 * 10**9, 10**9)
    np.testing.assert_allclose(got.macs, 4e9, rtol=1e-6)
