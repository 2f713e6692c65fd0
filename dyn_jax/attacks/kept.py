"""Which iterate of APGD is returned: the one of the largest loss, or one that fools, as AutoAttack's code does."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from dyn_jax.attacks.base import Problem, Steps


class Kept(flax.struct.PyTreeNode):
    """What a run has found so far."""

    best: jax.Array  # the iterate of the largest objective
    gradient: jax.Array  # there
    loss: jax.Array  # that objective [example]
    last: jax.Array | None = None  # the last iterate on which the network errs; None where nobody asks
    fooled: jax.Array | None = None  # whether there is one [example]

    @classmethod
    def nothing(cls, problem: Problem, like: jax.Array, errors: bool) -> Kept:
        """Before the first iterate."""
        none = jnp.zeros_like(problem.losses(problem.clean))
        kept = cls(like, jnp.zeros_like(like), none)
        return kept.replace(last=like, fooled=none > 0) if errors and problem.same else kept

    def after(self, problem: Problem, x: jax.Array, first: jax.Array) -> tuple[Kept, jax.Array, Steps]:
        """(after x is evaluated, the gradient there, record); the `first` x is the best so far."""
        gradient, output, record = problem.evaluate(x)
        better = first | (record.loss > self.loss)
        last, fooled = self.last, self.fooled
        if last is not None and fooled is not None:
            fools = problem.succeeds(output.logits)
            last, fooled = problem.pick(fools, x, last), fooled | fools
        best, best_gradient = problem.pick(better, x, self.best), problem.pick(better, gradient, self.gradient)
        return Kept(best, best_gradient, jnp.where(better, record.loss, self.loss), last, fooled), gradient, record

    def x(self, problem: Problem) -> jax.Array:
        """What the run returns."""
        if self.last is None or self.fooled is None:
            return self.best
        return problem.pick(self.fooled, self.last, self.best)
