"""Keeps, per example, the best of several runs of a search."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.base import Found, Problem, Search, Steps


def folded(keys: jax.Array, number: jax.typing.ArrayLike) -> jax.Array:
    """One key of run or step `number` for each of `keys`."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def best_of(run: Search, restarts: int) -> Search:
    """The search that runs `run` `restarts` times (in one compiled loop), run r with ``fold_in(key, r)``.

    Per example a success on the victim beats none, then the larger loss wins; the steps are those of the kept run.
    Run 0 uses the keys as they are, so that one restart and the first of many are the same.
    """
    if _validate.positive_int("restarts", restarts) == 1:
        return run

    def ranked(problem: Problem, keys: jax.Array, start: jax.Array | None) -> tuple[Found, Score]:
        found = run(problem, keys, start)
        output = problem.victim(problem.project(found.x))
        return found, (problem.succeeds(output.logits), problem.losses(output))

    def search(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        def body(_: None, number: jax.Array) -> tuple[None, tuple[Found, Score]]:
            return None, ranked(problem, jnp.where(number == 0, keys, folded(keys, number)), None)

        # a given start is the first run's alone, so that one is traced by itself
        _, runs = jax.lax.scan(body, None, jnp.arange(0 if start is None else 1, restarts))
        if start is not None:
            first = ranked(problem, keys, start)
            runs = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first, runs)

        def keep(best: tuple[Found, Score], one: tuple[Found, Score]) -> tuple[tuple[Found, Score], None]:
            better, score = beats(one[1], best[1])
            steps = jax.tree.map(lambda a, b: jnp.where(better[None, :], a, b), one[0].steps, best[0].steps)
            return (Found(problem.pick(better, one[0].x, best[0].x), steps), score), None

        first, others = (jax.tree.map(take, runs) for take in (lambda all: all[0], lambda all: all[1:]))
        return jax.lax.scan(keep, first, others)[0][0]

    return search


Score = tuple[jax.Array, jax.Array]
"""Two numbers or flags [example], compared one after the other."""


def beats(new: Score, old: Score) -> tuple[jax.Array, Score]:
    """(where `new` is better, the better of the two): the larger first number, then the second; NaN never wins."""
    better = (new[0] > old[0]) | ((new[0] == old[0]) & (new[1] > old[1]))
    return better, (jnp.where(better, new[0], old[0]), jnp.where(better, new[1], old[1]))


def nothing(problem: Problem) -> tuple[jax.Array, Score]:
    """The (x, score) that every finite one beats: no success."""
    worst = jnp.full_like(problem.losses(problem.clean), -jnp.inf)
    return problem.domain.clean, (jnp.zeros_like(problem.attacked), worst)


def better_of(problem: Problem, new: tuple[jax.Array, Score], old: tuple[jax.Array, Score]) -> tuple[jax.Array, Score]:
    """The better of two (x, score), per example."""
    better, score = beats(new[1], old[1])
    return problem.pick(better, new[0], old[0]), score


def recorded(records: Steps, number: jax.Array, new: Steps, done: jax.Array) -> Steps:
    """Records [step, example] with `new` at step `number`; an example that is done repeats what it last saw."""
    now = jax.tree.map(lambda new, old: jnp.where(done, old[number - 1], new), new, records)
    return jax.tree.map(lambda all, one: all.at[number].set(one), records, now)


def filled(records: Steps, number: jax.Array) -> Steps:
    """The first `number` of the records, and the last of them in place of the rest."""
    rows = jnp.arange(len(records.loss))[:, None] < number
    return jax.tree.map(lambda leaf: jnp.where(rows, leaf, leaf[number - 1][None]), records)
