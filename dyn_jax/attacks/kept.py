"""Which iterate of APGD is returned: the one of the largest loss, or one that fools, as AutoAttack's code does."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from dyn_jax.attacks.base import Problem
from dyn_jax.types import Output


class Kept(flax.struct.PyTreeNode):
    """What a run has found so far."""

    best: jax.Array  # the iterate of the largest objective
    loss: jax.Array  # that objective [example]
    last: jax.Array | None = None  # the last iterate on which the network errs; None where nobody asks
    fooled: jax.Array | None = None  # whether there is one [example]

    @classmethod
    def nothing(cls, problem: Problem, like: jax.Array, errors: bool) -> Kept:
        """Before the first iterate."""
        none = jnp.zeros_like(problem.losses(problem.clean))
        return cls(like, none, like, none > 0) if errors and problem.same else cls(like, none)

    def after(
        self, problem: Problem, x: jax.Array, output: Output, loss: jax.Array, first: jax.Array
    ) -> tuple[Kept, jax.Array]:
        """(after one more, where its objective is the largest so far); the `first` one is the best so far."""
        better = first | (loss > self.loss)
        last, fooled = self.last, self.fooled
        if last is not None and fooled is not None:
            fools = problem.succeeds(output.logits)
            last, fooled = problem.pick(fools, x, last), fooled | fools
        return Kept(problem.pick(better, x, self.best), jnp.where(better, loss, self.loss), last, fooled), better

    def x(self, problem: Problem) -> jax.Array:
        """What the run returns."""
        if self.last is None or self.fooled is None:
            return self.best
        return problem.pick(self.fooled, self.last, self.best)
