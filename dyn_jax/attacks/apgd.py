"""APGD (Croce and Hein 2020): PGD with momentum whose step size adapts, for each example, at checkpoints."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.pgd import noise
from dyn_jax.attacks.restarts import best_of
from dyn_jax.attacks.threat import Bounds, ball
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
    best_x: jax.Array
    best_gradient: jax.Array
    best_loss: jax.Array
    increases: jax.Array  # since the last checkpoint
    checked_loss: jax.Array  # best loss at the last checkpoint
    just_halved: jax.Array  # at the last checkpoint


def apgd(
    eps: jax.typing.ArrayLike | str,
    steps: int = 100,
    *,
    restarts: int = 1,
    norm: str = "linf",
    objective: str | Objective = "ce",
    bounds: Bounds = (0.0, 1.0),
    attack_all: bool = False,
) -> Attack:
    """Auto-PGD: APGD-CE with ``objective="ce"``, APGD-DLR with ``"dlr"``; no step size to choose.

    Args:
      eps, norm, bounds, attack_all: see `dyn_jax.attacks.bim`.
      steps: gradient steps; one more gradient is taken at the start.
      restarts: random starts, see `dyn_jax.attacks.pgd`.
      objective: ``ce``, ``dlr``, ``margin`` or a callable.

    Returns:
      An `Attack` that needs a ``key``. Per example, the iterate with the largest objective is returned.

    Raises:
      ValueError, TypeError: as `dyn_jax.attacks.bim`; no ``key`` when called.

    Source: Croce and Hein 2020, algorithm 1 and section 3 (alpha 0.75, rho 0.75, first step size 2 eps).
    """
    threat = ball(norm, eps, bounds)
    _validate.positive_int("steps", steps)
    _validate.positive_int("restarts", restarts)

    def run(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        return maximise(problem, random_start(problem, keys) if start is None else start, steps)

    def search(problem: Problem, keys: jax.Array, start: jax.Array | None) -> Found:
        return best_of(run, problem, keys, start, restarts)

    return Attack(search, threat, resolve(objective), random=True, attack_all=attack_all, reach=threat.eps)


def random_start(problem: Problem, keys: jax.Array) -> jax.Array:
    """A point on the surface of the ball, clipped to the box: noise of norm exactly eps."""
    clean, threat = problem.domain.clean, problem.ball
    drawn = noise(problem, keys)
    length = threat.distance(clean + drawn, clean).reshape(-1, *(1,) * (clean.ndim - 1))
    return problem.project(clean + drawn * (threat.eps / jnp.where(length > 0, length, 1)))


def maximise(problem: Problem, start: jax.Array, steps: int) -> Found:
    """Algorithm 1 of the paper from `start`; returns each example's iterate with the largest loss."""
    threat = problem.ball
    marks = checkpoints(steps)
    at_mark = np.isin(np.arange(1, steps + 1), marks)
    periods = np.zeros(steps)
    periods[marks - 1] = np.diff(marks, prepend=0)

    def step(state: _State, schedule: tuple) -> tuple[_State, Steps]:
        number, check, period = schedule
        first = number < 0  # the start is evaluated by the body of the loop, so that the network is compiled once
        size = problem.domain.spread(state.step_size)
        target = problem.project(state.x + size * threat.direction(state.gradient))
        alpha = jnp.where(number == 0, 1.0, MOMENTUM).astype(target.dtype)
        x = state.x + alpha * (target - state.x) + (1 - alpha) * (state.x - state.previous)
        x = jnp.where(first, start, problem.project(x))
        gradient, record = problem.gradient(x)
        better = first | (record.loss > state.best_loss)
        increases = state.increases + (record.loss > state.loss)
        best_x, best_gradient = (
            problem.pick(better, x, state.best_x),
            problem.pick(better, gradient, state.best_gradient),
        )
        best_loss = jnp.where(better, record.loss, state.best_loss)

        few_increases = increases < RHO * period
        no_progress = ~state.just_halved & (state.checked_loss >= best_loss)
        halve = check & (few_increases | no_progress)
        return _State(
            x=problem.pick(halve, best_x, x),
            previous=state.x,
            gradient=problem.pick(halve, best_gradient, gradient),
            step_size=jnp.where(halve, state.step_size / 2, state.step_size),
            loss=record.loss,
            best_x=best_x,
            best_gradient=best_gradient,
            best_loss=best_loss,
            increases=jnp.where(check, 0, increases),
            checked_loss=jnp.where(check | first, best_loss, state.checked_loss),
            just_halved=jnp.where(check, halve, state.just_halved),
        ), record

    loss = jnp.zeros_like(problem.losses(problem.clean))
    state = _State(
        x=start,
        previous=start,
        gradient=jnp.zeros_like(start),
        step_size=jnp.full_like(loss, 2 * jnp.asarray(threat.eps, start.dtype)),
        loss=loss + jnp.inf,
        best_x=start,
        best_gradient=jnp.zeros_like(start),
        best_loss=loss,
        increases=jnp.zeros_like(loss, jnp.int32),
        checked_loss=loss,
        just_halved=jnp.ones_like(loss, bool),
    )
    before = lambda values, first: jnp.concatenate([jnp.full(1, first, values.dtype), values])
    schedule = (
        jnp.arange(-1, steps),
        before(jnp.asarray(at_mark), False),
        before(jnp.asarray(periods, start.dtype), 0),
    )
    state, records = jax.lax.scan(step, state, schedule)
    return Found(state.best_x, records)
