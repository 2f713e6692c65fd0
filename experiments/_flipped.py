"""Random flips: what a network loses when as many units change as under an attack, but not the worst ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import occupancy
from dyn_jax.occupancy import Stochastic


class Flipped(Stochastic):
    """The hard occupancy with every element flipped with probability `rate`."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, score: jax.Array, *, key: jax.Array) -> jax.Array:
        value = occupancy.hard()(score)
        return jnp.where(jax.random.bernoulli(key, self.rate, score.shape), 1 - value, value)
