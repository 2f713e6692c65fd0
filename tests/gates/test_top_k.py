"""Top-k scores, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import occupancy
from dyn_jax.gates import top_k_score

VALUES = jnp.asarray([[0.1, 0.7, 0.4, 0.2], [0.5, 0.5, 0.5, 0.1]])


def test_distance_to_the_kth():
    np.testing.assert_allclose(top_k_score(VALUES[:1], 2), [[-0.3, 0.3, 0.0, -0.2]], atol=1e-7)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_k_are_on_equal_ones_in_order(k):
    on = np.asarray(occupancy.hard()(top_k_score(VALUES, k)))
    assert (on.sum(1) == k).all()
    np.testing.assert_array_equal(on[1], np.arange(4) < k)
    for how in (occupancy.sigmoid(3.0), occupancy.straight_through(3.0)):
        np.testing.assert_array_equal(np.asarray(how(top_k_score(VALUES[:1], k))) >= 0.5, on[:1] == 1)


def test_derivative():
    """Straight-through: d o_i / d s_i - d o_i / d s_(k), by the sigmoid."""
    slope = jax.jacobian(lambda s: occupancy.straight_through(4.0)(top_k_score(s, 2)))(VALUES[0])
    soft = jax.nn.sigmoid(4.0 * top_k_score(VALUES[0], 2))
    expected = np.diag(4 * soft * (1 - soft))
    expected[:, 2] -= 4 * soft * (1 - soft)
    np.testing.assert_allclose(slope, expected, atol=1e-6)
    assert (np.asarray(jax.jacobian(lambda s: occupancy.hard()(top_k_score(s, 2)))(VALUES[0])) == 0).all()


@pytest.mark.parametrize("k, error", [(0, ValueError), (5, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_k(k, error):
    with pytest.raises(error, match="k: got"):
        top_k_score(VALUES, k)
