"""PGD (Madry et al. 2018): BIM from a random start, with restarts."""

from __future__ import annotations

from typing import Any

import jax
import optax

from dyn_jax import _validate
from dyn_jax.attacks.ascent import ascend
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.restarts import best_of
from dyn_jax.attacks.threat import Ball, Bounds, ball
from dyn_jax.attacks.transforms import steepest
from dyn_jax.objectives import Objective, resolve


def noise(problem: Problem, keys: jax.Array) -> jax.Array:
    """A draw from the ball, 0 where nothing may move."""
    drawn = problem.ball.noise(keys, problem.domain.clean)
    return drawn if problem.domain.free is None else drawn * problem.domain.free


def unclipped(threat: Ball, step_size: jax.typing.ArrayLike | str, steps: int, **fields: Any) -> Attack:
    """PGD whose start may lie outside the box, as several released codes have it; one start, the last iterate.

    Args:
      threat: a ball.
      step_size, steps: see `bim`.
      **fields: of `Attack`.
    """
    step_size = _validate.number("step_size", step_size, minimum=0)
    _validate.positive_int("steps", steps)
    chain = optax.chain(steepest(threat), optax.scale(step_size))

    def search(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        start = problem.domain.clean + noise(problem, keys) if start is None else start
        return ascend(problem, start, chain, steps)

    return Attack(search, threat, random=True, reach=step_size, **fields)


def pgd(
    eps: jax.typing.ArrayLike | str,
    step_size: jax.typing.ArrayLike | str,
    steps: int,
    *,
    restarts: int = 1,
    norm: str = "linf",
    objective: str | Objective = "ce",
    bounds: Bounds = (0.0, 1.0),
    attack_all: bool = False,
) -> Attack:
    """`bim` from a point drawn uniformly from the ball (clipped to the box).

    Args:
      eps, step_size, steps, norm, objective, bounds, attack_all: see `bim`.
      restarts: independent starts; per example the first success on the victim is kept, else the largest loss. With a
        ``start`` given to the attack, that start is the first.

    Raises:
      ValueError, TypeError: as `bim`; restarts not a positive integer; no ``key`` when called.
    """
    threat = ball(norm, eps, bounds)
    step_size = _validate.number("step_size", step_size, minimum=0)
    _validate.positive_int("steps", steps)
    _validate.positive_int("restarts", restarts)
    chain = optax.chain(steepest(threat), optax.scale(step_size))

    def run(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        if start is None:
            start = problem.project(problem.domain.clean + noise(problem, keys))
        return ascend(problem, start, chain, steps)

    def search(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        return best_of(run, problem, keys, start, restarts)

    return Attack(search, threat, resolve(objective), random=True, attack_all=attack_all, reach=step_size)
