"""APGD (Croce and Hein 2020): PGD with momentum whose step size adapts, for each example, at checkpoints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks import apgd_l1
from dyn_jax.attacks.base import Attack, Found, Problem, Search, Steps
from dyn_jax.attacks.kept import Kept
from dyn_jax.attacks.pgd import noise
from dyn_jax.attacks.restarts import best_of
from dyn_jax.attacks.threat import L1, Bounds, Number, ball, drawn
from dyn_jax.objectives import Objective, resolve

MOMENTUM = 0.75  # alpha, weight of the new step
RHO = 0.75  # share of improving steps below which the step size is halved


def checkpoints(steps: int) -> np.ndarray:
    """Steps (counted from 1) after which the step size may be halved.

    Periods of 0.22, then 0.03 shorter each time and at least 0.06, of `steps`, each at least one step (section 3).
    """
    period = max(int(0.22 * steps), 1)
    shorter, shortest = max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    marks = []
    at = period
    while at <= steps:
        marks.append(at)
        period = max(period - shorter, shortest)
        at += period
    return np.array(marks)


class _State(NamedTuple):
    x: jax.Array
    previous: jax.Array
    gradient: jax.Array
    step_size: jax.Array  # [batch]
    loss: jax.Array  # at x
    kept: Kept
    increases: jax.Array  # since the last checkpoint
    checked_loss: jax.Array  # best loss at the last checkpoint
    just_halved: jax.Array  # at the last checkpoint


@dataclasses.dataclass(frozen=True)
class Course:
    """How a run goes.

    Attributes:
      radii: multiples of eps, the last one 1: searches in balls of these radii one after the other, each from where the
        one before ended, all but the last with 30 % of the steps. AutoAttack's in L1 is (3, 2, 1).
      keep: ``loss``: per example the iterate with the largest objective is returned, as in the paper; ``error``: the
        last iterate on which the network errs, where there is one, as in AutoAttack's code (only where the network
        that is differentiated is the one that is judged).
    """

    radii: Sequence[float] = (1.0,)
    keep: str = "loss"


def apgd(
    eps: Number,
    steps: int = 100,
    *,
    restarts: int = 1,
    norm: str = "linf",
    objective: str | Objective = "ce",
    course: Course = Course(),
    bounds: Bounds = (0.0, 1.0),
    attack_all: bool = False,
) -> Attack:
    """Auto-PGD: APGD-CE with ``objective="ce"``, APGD-DLR with ``"dlr"``; no step size to choose.

    In the L1 ball steps are sparse, and their sparsity adapts instead, see `dyn_jax.attacks.apgd_l1`.

    Args:
      eps, norm, bounds, attack_all: see `dyn_jax.attacks.bim`.
      steps: gradient steps; one more gradient is taken at the start.
      restarts: random starts, see `dyn_jax.attacks.pgd`.
      objective: ``ce``, ``dlr``, ``margin`` or a callable.
      course: radii, and which iterate is kept, see `Course`.

    Needs a ``key``. Raises as `dyn_jax.attacks.bim`; no ``key`` when called; radii that do not end with 1 or leave no
    step for one. Source: Croce and Hein 2020, algorithm 1 and section 3 (alpha 0.75, rho 0.75, first step size 2 eps);
    Croce and Hein 2021 for L1 and radii.
    """
    threat = ball(norm, eps, bounds)
    search = best_of(runs(steps, course), restarts)
    return Attack(search, threat, resolve(objective), random=True, attack_all=attack_all, reach=threat.eps)


def runs(steps: int, course: Course) -> Search:
    """The search of one run, from a given or a random start; arguments as of `apgd`."""
    _validate.positive_int("steps", steps)
    radii = course.radii
    for radius in radii:
        _validate.positive("radii", radius)
    if not len(radii) or radii[-1] != 1:
        raise ValueError(f"radii: got {tuple(radii)}, expected multiples of eps that end with 1")
    parts = [math.ceil(0.3 * steps)] * (len(radii) - 1)
    parts.append(steps - sum(parts))
    if parts[-1] < 1:
        raise ValueError(f"radii: got {len(radii)} of them for {steps} steps, expected at least one step for each")
    errors = _validate.choice("keep", course.keep, ("loss", "error")) == "error"

    def run(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        x, random, records = start, start is None and len(radii) == 1, []
        for number, (radius, part) in enumerate(zip(radii, parts)):
            wide = problem if radius == 1 else problem.in_radius(radius * jnp.asarray(problem.ball.eps))
            if x is None:
                x = random_start(wide, keys)
            elif start is not None or len(radii) > 1:
                x = wide.project(x)  # the largest loss is kept, and that of a start outside the ball would stay so
            last = errors and number == len(radii) - 1  # a wider ball hands on where the loss is largest
            if isinstance(problem.ball, L1):
                found = apgd_l1.maximise(wide, x, part, drawn=random, errors=last)
            else:
                found = maximise(wide, x, part, errors=last)
            x = found.x
            records.append(found.steps)
        assert x is not None  # there is a radius
        return Found(x, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *records))

    return run


def random_start(problem: Problem, keys: jax.Array) -> jax.Array:
    """A point on the surface of the ball, clipped to the box: noise of norm exactly eps; L1: Gaussian, projected."""
    clean, threat = problem.domain.clean, problem.ball
    if isinstance(threat, L1):
        return problem.project(clean + drawn(jax.random.normal, keys, clean))
    moves = noise(problem, keys)
    length = threat.distance(clean + moves, clean).reshape(-1, *(1,) * (clean.ndim - 1))
    return problem.project(clean + moves * (threat.eps / jnp.where(length > 0, length, 1)))


def maximise(problem: Problem, start: jax.Array, steps: int, *, errors: bool = False) -> Found:
    """Algorithm 1 of the paper from `start`; returns each example's iterate with the largest loss, see `Kept`."""
    threat = problem.ball
    marks = checkpoints(steps)
    periods = np.zeros(steps + 1)  # 0 where nothing is looked at, the start first
    periods[marks] = np.diff(marks, prepend=0)

    def step(state: _State, schedule: tuple) -> tuple[_State, Steps]:
        number, period = schedule
        check = period > 0
        first = number < 0  # the start is evaluated by the body of the loop, so that the network is compiled once
        size = problem.domain.spread(state.step_size)
        target = problem.project(state.x + size * threat.direction(state.gradient))
        alpha = jnp.where(number == 0, 1.0, MOMENTUM).astype(target.dtype)
        x = state.x + alpha * (target - state.x) + (1 - alpha) * (state.x - state.previous)
        x = jnp.where(first, start, problem.project(x))
        kept, gradient, record = state.kept.after(problem, x, first)
        increases = state.increases + (record.loss > state.loss)

        few_increases = increases < RHO * period
        no_progress = ~state.just_halved & (state.checked_loss >= kept.loss)
        halve = check & (few_increases | no_progress)
        return _State(
            x=problem.pick(halve, kept.best, x),
            previous=state.x,
            gradient=problem.pick(halve, kept.gradient, gradient),
            step_size=jnp.where(halve, state.step_size / 2, state.step_size),
            loss=record.loss,
            kept=kept,
            increases=jnp.where(check, 0, increases),
            checked_loss=jnp.where(check | first, kept.loss, state.checked_loss),
            just_halved=jnp.where(check, halve, state.just_halved),
        ), record

    loss = jnp.zeros_like(problem.losses(problem.clean))
    state = _State(
        x=start,
        previous=start,
        gradient=jnp.zeros_like(start),
        step_size=jnp.full_like(loss, 2 * jnp.asarray(threat.eps, start.dtype)),
        loss=loss + jnp.inf,
        kept=Kept.nothing(problem, start, errors),
        increases=jnp.zeros_like(loss, jnp.int32),
        checked_loss=loss,
        just_halved=jnp.ones_like(loss, bool),
    )
    state, records = jax.lax.scan(step, state, (jnp.arange(-1, steps), jnp.asarray(periods, start.dtype)))
    return Found(state.kept.x(problem), records)
