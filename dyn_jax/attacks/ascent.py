"""The loop of every projected gradient attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.threat import Ball, Number


def each_step(direction: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
    """``direction(gradient)``, such as a threat set's, as a transform."""

    def update(updates: Any, params: Any = None) -> jax.Array:
        return direction(updates)

    return optax.stateless(update)


def ascend(problem: Problem, start: jax.Array, chain: optax.GradientTransformation, steps: int) -> Found:
    """``x <- project(x + chain(gradient))``, `steps` times from `start`; returns the last iterate.

    The chain receives the gradient of the objective (to be ascended) and returns what is added to x.
    """

    def step(state: tuple, _: None) -> tuple:
        x, chain_state = state
        gradient, record = problem.gradient(x)
        update, chain_state = chain.update(gradient, chain_state, x)
        return (problem.project(x + update), chain_state), record

    (x, _), record = jax.lax.scan(step, (start, chain.init(start)), None, length=steps)
    return Found(x, record)


def ascent(
    threat: Ball,
    step_size: Number,
    steps: int,
    *directions: optax.GradientTransformation,
    start_of: Callable[[Problem, Any], jax.Array] = lambda problem, keys: problem.domain.clean,
    **fields: Any,
) -> Attack:
    """The attack that `ascend`s by `step_size` times what `directions`, in a chain, make of the gradient.

    By default that is the steepest in the norm of `threat`. Begins at `start_of` unless a start is given; `fields` of
    `Attack`.
    """
    step_size = _validate.number("step_size", step_size, minimum=0)
    _validate.positive_int("steps", steps)
    chain = optax.chain(*(directions or [each_step(threat.direction)]), optax.scale(step_size))

    def search(problem: Problem, keys: Any, start: jax.Array | None) -> Found:
        return ascend(problem, start_of(problem, keys) if start is None else start, chain, steps)

    return Attack(search, threat, reach=step_size, **fields)
