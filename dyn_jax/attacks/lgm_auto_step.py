"""LGM's "AutoAttack": BIM whose step is halved by two rules, as its released code has it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.bim import release_bounds
from dyn_jax.attacks.threat import Bounds, ball
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
    eps: jax.typing.ArrayLike | str,
    step_size: jax.typing.ArrayLike | str,
    steps: int,
    *,
    objective: str | Objective = "ce",
    bounds: Bounds = (0.0, 1.0),
    protocol: str = "paper",
    attack_all: bool = False,
) -> Attack:
    """A simplified APGD-CE; *not* the AutoAttack ensemble. One step size and one loss for the whole batch.

    Every step compares the batch-mean loss (to be minimised, minus the objective) with the step before. When fewer
    than three quarters of the steps since the last reset improved it, or at the third step that is not below the loss
    of the last improvement, the step size is halved, the iterate goes back to the one after the last improvement, and
    this step makes no update. Otherwise x moves three quarters of the way to the projected step (the release's
    momentum term is identically zero). Results depend on the composition of the batch.

    Args:
      eps, step_size, steps, objective, bounds, protocol, attack_all: see `dyn_jax.attacks.bim`.

    Raises:
      ValueError, TypeError: as `dyn_jax.attacks.bim`.

    Source: the rows "AutoAttack" of LGM's table II, released code; the idea is Croce and Hein 2020.
    """
    threat = ball("linf", eps, release_bounds(bounds, protocol))
    step_size = _validate.number("step_size", step_size, minimum=0)
    _validate.positive_int("steps", steps)

    def search(problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        start = problem.images if start is None else start
        attacked = jnp.maximum(jnp.sum(problem.attacked), 1)

        def step(state: _State, _: None) -> tuple[_State, tuple]:
            losses, gradient, bad = problem.losses_and_gradient(state.x)
            loss = -jnp.sum(jnp.where(problem.attacked, losses, 0)) / attacked
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
            back = _State(
                state.best,
                state.best,
                state.step_size / 2,
                jnp.full_like(loss, _START_LOSS),
                state.lowest,
                zero,
                zero,
                zero,
            )
            state = jax.tree.map(lambda a, b: jnp.where(reset, a, b), back, onward)
            return state, (losses, bad)

        dtype, zero = start.dtype, jnp.zeros((), jnp.int32)
        initial = jnp.asarray(_START_LOSS, dtype)
        state = _State(start, start, jnp.asarray(step_size, dtype), initial, initial, zero, zero, zero)
        state, (history, bad) = jax.lax.scan(step, state, None, length=steps)
        return Found(state.x, history, jnp.sum(bad, axis=0, dtype=jnp.int32))

    return Attack(search, threat, resolve(objective), attack_all=attack_all)
