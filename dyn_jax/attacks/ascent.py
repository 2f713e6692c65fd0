"""The loop of every projected gradient attack."""

from __future__ import annotations

import jax
import optax

from dyn_jax.attacks.base import Found, Problem


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
