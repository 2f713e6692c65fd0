"""PGD (Madry et al. 2018): BIM from a random start, with restarts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from dyn_jax.attacks.ascent import ascent
from dyn_jax.attacks.base import Attack, Problem
from dyn_jax.attacks.restarts import best_of
from dyn_jax.attacks.threat import Ball, Bounds, Number, ball
from dyn_jax.objectives import Objective, resolve


def noise(problem: Problem, keys: jax.Array) -> jax.Array:
    """A draw from the ball, 0 where nothing may move."""
    return problem.domain.moving(problem.ball.noise(keys, problem.domain.clean))


def unclipped(threat: Ball, step_size: Number, steps: int, **fields: Any) -> Attack:
    """PGD whose start may lie outside the box, as several released codes have it; `fields` of `Attack`."""
    start_of = lambda problem, keys: problem.domain.clean + noise(problem, keys)
    return ascent(threat, step_size, steps, start_of=start_of, random=True, **fields)


def pgd(
    eps: Number,
    step_size: Number,
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

    Raises as `bim`; restarts not a positive integer; no ``key`` when called.
    """
    start_of = lambda problem, keys: problem.project(problem.domain.clean + noise(problem, keys))
    fields = {"objective": resolve(objective), "random": True, "attack_all": attack_all}
    one = ascent(ball(norm, eps, bounds), step_size, steps, start_of=start_of, **fields)
    return dataclasses.replace(one, search=best_of(one.search, restarts))
