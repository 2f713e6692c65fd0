"""A new occupancy, and its property test. Any callable ``score -> value`` serves in every network and attack.

python -m pytest examples/new_occupancy.py
"""

import jax.numpy as jnp

from dyn_jax import testing


def arctan(score):
    return 0.5 + jnp.arctan(8.0 * score) / jnp.pi


def test_arctan():
    testing.check_occupancy(arctan, margin=2.0, tolerance=0.05)
