"""Fewer and cheaper compilations, for tests that run what they compile once or twice."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from dyn_jax.occupancy.gate import Hard, Sigmoid, StraightThrough
from dyn_jax.testing._compare import quick_jit as quick_jit
from dyn_jax.types import Occupancy

_KINDS = (Hard, Sigmoid, StraightThrough)


@flax.struct.dataclass
class Switched:
    """One of the library's deterministic occupancies, chosen by data: a network compiles once for all of them.

    Values and derivatives are those of the chosen one (the others' are selected away), up to how XLA rounds: not for
    traces that are compared to the bit.
    """

    kind: jax.typing.ArrayLike
    lam: jax.typing.ArrayLike

    def __call__(self, score: jax.Array) -> jax.Array:
        soft = jnp.where(self.kind == 1, Sigmoid(self.lam)(score), StraightThrough(self.lam)(score))
        return jnp.where(self.kind == 0, Hard()(score), soft)


def switched(how: Occupancy) -> Switched:
    """`how`, one of `hard()`, `sigmoid(lam)` and `straight_through(lam)`, as data."""
    return Switched(_KINDS.index(type(how)), float(getattr(how, "lam", 1.0)))
