"""Keeps, per example, the best of several runs of a search."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax.attacks.base import Found, Problem, Search


def best_of(run: Search, problem: Problem, keys: jax.Array, start: jax.Array | None, restarts: int) -> Found:
    """Runs `run` `restarts` times (one after the other, in one compiled loop), run r with ``fold_in(key, r)``.

    Per example a success on the victim beats none, then the larger loss wins; the steps are those of the kept run.
    Run 0 uses the keys as they are, so that one restart and the first of many are the same.
    """
    first = run(problem, keys, start)
    if restarts == 1:
        return first

    def rank(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        output = problem.victim(problem.project(x))
        return problem.succeeds(output.logits), problem.losses(output)

    def body(state: tuple, number: jax.Array) -> tuple[tuple, None]:
        best, score = state
        found = run(problem, jax.vmap(jax.random.fold_in, (0, None))(keys, number), None)
        better, score = beats(rank(found.x), score)
        steps = jax.tree.map(lambda a, b: jnp.where(better[None, :], a, b), found.steps, best.steps)
        return (Found(problem.pick(better, found.x, best.x), steps), score), None

    (best, _), _ = jax.lax.scan(body, (first, rank(first.x)), jnp.arange(1, restarts))
    return best


Score = tuple[jax.Array, jax.Array]
"""Two numbers or flags [example], compared one after the other."""


def beats(new: Score, old: Score) -> tuple[jax.Array, Score]:
    """(where `new` is better, the better of the two): the larger first number, then the second; NaN never wins."""
    better = (new[0] > old[0]) | ((new[0] == old[0]) & (new[1] > old[1]))
    return better, (jnp.where(better, new[0], old[0]), jnp.where(better, new[1], old[1]))


def better_of(problem: Problem, new: tuple[jax.Array, Score], old: tuple[jax.Array, Score]) -> tuple[jax.Array, Score]:
    """The better of two (x, score), per example."""
    better, score = beats(new[1], old[1])
    return problem.pick(better, new[0], old[0]), score
