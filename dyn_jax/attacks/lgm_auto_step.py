"""LGM's "AutoAttack": BIM whose step is halved by two rules, as its released code has it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.threat import Bounds, Number, ball
from dyn_jax.objectives import Objective, resolve

_START_LOSS = 1e10


class _State(NamedTuple):
    x: jax.Array
    best: jax.Array  # the iterate after the last improving step
    step_size: jax.Array
    previous: jax.Array  # loss one step before; 1e10 after a reset
    lowest: jax.Array  # loss at the last improvement
    count: jax.Array  # steps since the last reset
    improved: jax.Array  # of which improved the loss
    stalled: jax.Array  # of which stayed above `lowest`


def lgm_auto_step(
    eps: Number,
    step_size: Number,
    steps: int,
    *,
    objective: str | Objective = "ce",
    bounds: Bounds = (0.0, 1.0),
    attack_all: bool = False,
) -> Attack:
    """A simplified APGD-CE; *not* the AutoAttack ensemble. One step size and one loss for the whole batch.

    Every step compares the batch-mean loss (to be minimised, minus the objective) with the step before. When fewer
    than three quarters of the steps since the last reset improved it, or at the third step that is not below the loss
    of the last improvement, the step size is halved, the iterate goes back to the one after the last improvement, and
    this step makes no update. Otherwise x moves three quarters of the way to the projected step (the release's
    momentum term is identically zero). Results depend on the composition of the batch.

    Args:
      eps, step_size, steps, objective, bounds, attack_all: see `dyn_jax.attacks.bim`.

    Raises as `dyn_jax.attacks.bim`. Source: the rows "AutoAttack" of LGM's table II, released code; the idea is Croce
    and Hein 2020.
    """
    threat = ball("linf", eps, bounds)
    step_size = _validate.number("step_size", step_size, minimum=0)
    _validate.positive_int("steps", steps)

    def search(problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        start = problem.domain.clean if start is None else problem.project(start)
        attacked = jnp.maximum(jnp.sum(problem.attacked), 1)

        def step(state: _State, _: None) -> tuple[_State, Steps]:
            gradient, record = problem.gradient(state.x)
            loss = -jnp.sum(jnp.where(problem.attacked, record.loss, 0)) / attacked
            better = loss < state.previous
            count, improved = state.count + 1, state.improved + better
            stalled = state.stalled + ((loss >= state.lowest) & (count != 1))
            reset = (improved < 0.75 * count) | (stalled >= 3)

            candidate = problem.project(state.x + state.step_size * threat.direction(gradient))
            moved = state.x + 0.75 * (candidate - state.x)
            onward = _State(
                x=problem.project(moved),
                best=jnp.where(better, problem.project(moved), state.best),
                step_size=state.step_size,
                previous=loss,
                lowest=jnp.where(better, loss, state.lowest),
                count=count,
                improved=improved,
                stalled=stalled,
            )
            zero = jnp.zeros((), jnp.int32)
            back = state._replace(x=state.best, step_size=state.step_size / 2, count=zero, improved=zero, stalled=zero)
            back = back._replace(previous=jnp.full_like(loss, _START_LOSS))
            return jax.tree.map(lambda a, b: jnp.where(reset, a, b), back, onward), record

        # counters and losses begin as constants of the batch's own device, also where the batch is sharded
        none = jnp.zeros_like(jnp.sum(problem.attacked), jnp.int32)
        initial = jnp.full_like(jnp.sum(problem.losses(problem.clean)), _START_LOSS)
        size = jnp.full_like(initial, jnp.asarray(step_size, start.dtype))
        state = _State(start, start, size, initial, initial, none, none, none)
        state, records = jax.lax.scan(step, state, None, length=steps)
        return Found(state.x, records)

    return Attack(search, threat, resolve(objective), attack_all=attack_all, reach=step_size)
