"""Keeps, per example, the best of several runs of a search."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax.attacks.base import Found, Problem, Search


def best_of(run: Search, problem: Problem, keys: jax.Array, start: jax.Array | None, restarts: int) -> Found:
    """Runs `run` `restarts` times (one after the other, in one compiled loop), run r with ``fold_in(key, r)``.

    Per example a success on the victim beats none, then the larger loss wins; the history is that of the kept run.
    Run 0 uses the keys as they are, so that one restart and the first of many are the same.
    """
    first = run(problem, keys, start)
    if restarts == 1:
        return first

    def rank(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = problem.victim(problem.project(x))
        return problem.succeeds(output.logits), problem.objective(output, problem.labels, problem.targets)

    def body(state: tuple, number: jax.Array) -> tuple[tuple, None]:
        best, success, loss = state
        found = run(problem, jax.vmap(jax.random.fold_in, (0, None))(keys, number), None)
        new_success, new_loss = rank(found.x)
        better = (new_success & ~success) | ((new_success == success) & (new_loss > loss))
        best = Found(
            jnp.where(better[:, None, None, None], found.x, best.x),
            jnp.where(better[None, :], found.loss_history, best.loss_history),
            jnp.where(better, found.nonfinite_gradients, best.nonfinite_gradients),
        )
        return (best, success | new_success, jnp.where(better, new_loss, loss)), None

    (best, _, _), _ = jax.lax.scan(body, (first, *rank(first.x)), jnp.arange(1, restarts))
    return best
