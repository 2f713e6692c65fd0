"""The three attacks of RDI-Nets: PGD on one exit, on the average of all, and the worst of all single ones.

Starts are uniform in the ball and not clipped to the box before the first gradient; the last iterate is returned.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.pgd import unclipped
from dyn_jax.attacks.restarts import better_of, folded
from dyn_jax.attacks.threat import Number, ball
from dyn_jax.objectives import cross_entropy, exit_objective, exits_of, sum_of_exits
from dyn_jax.types import Output

EPS, STEP_SIZE, STEPS = 0.03137, 0.00784, 20


def single(exit: int, eps: Number = EPS, step_size: Number = STEP_SIZE, steps: int = STEPS) -> Attack:
    """PGD on the cross-entropy of one exit (negative: from the end).

    Args:
      exit: counted from 0.
      eps, step_size, steps: see `dyn_jax.attacks.bim`.

    Source: Hu et al. 2020, section 3.1; released code.
    """
    return unclipped(ball("linf", eps), step_size, steps, objective=exit_objective(exit), attack_all=True)


def average(eps: Number = EPS, step_size: Number = STEP_SIZE, steps: int = STEPS) -> Attack:
    """PGD on the mean of all exits' cross-entropies; arguments as of `single`."""
    return unclipped(ball("linf", eps), step_size, steps, objective=mean_of_exits, attack_all=True)


def mean_of_exits(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
    """The objective of `average`, [batch]."""
    return sum_of_exits()(output, labels, targets) / exits_of(output.trace).shape[1]


def max_average(eps: Number = EPS, step_size: Number = STEP_SIZE, steps: int = STEPS) -> Attack:
    """One run of `single` for every exit, each with its own start; per image the one with the largest sum over exits.

    A start given to the attack is that of every run. ``record`` is None; arguments as of `single`.
    """
    return worst_of_exits(unclipped(ball("linf", eps), step_size, steps, objective=sum_of_exits()))


def worst_of_exits(one: Attack) -> Attack:
    """`one` with the cross-entropy of each exit as its objective; per image the run with the largest sum is kept."""
    one = dataclasses.replace(one, objective=sum_of_exits())

    def search(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        def run(best: tuple, number: jax.Array) -> tuple:
            def of_exit(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
                exits = exits_of(output.trace)
                logits = jax.lax.dynamic_index_in_dim(exits, number, axis=1, keepdims=False)
                return cross_entropy(output.replace(logits=logits), labels, targets)

            found = one.search(dataclasses.replace(problem, objective=of_exit), folded(keys, number), start)
            score = problem.losses(problem.victim(problem.project(found.x)))
            return better_of(problem, (found.x, (score, score)), best), found.steps

        worst = jnp.full_like(problem.losses(problem.clean), -jnp.inf)
        count = exits_of(problem.clean.trace).shape[1]
        (best, _), steps_of = jax.lax.scan(run, (problem.domain.clean, (worst, worst)), jnp.arange(count))
        return Found(best, jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), steps_of))

    return dataclasses.replace(one, search=search, attack_all=True)
