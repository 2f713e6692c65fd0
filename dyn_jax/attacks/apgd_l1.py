"""APGD in the L1 ball (Croce and Hein 2021): sparse steps whose number of pixels follows the best perturbation's."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax.attacks.base import Found, Problem, Steps
from dyn_jax.attacks.kept import Kept

PERIOD = 0.04  # of the steps, between two looks at the sparsity
FIRST_SHARE = 0.2  # of the numbers that the first steps change, from a random start
SPARSER = 1.5  # how much sparser a step is than the best perturbation, and what the step size is divided by
SHORTEST = 10.0  # the step size is eps over this at least
CHANGED = (19, 20)  # a perturbation of fewer numbers than this share of before is begun from anew


def whole(numbers: jax.Array) -> jax.Array:
    """Rounded up; a third or fifth that should be whole is, whatever XLA makes of the division."""
    return jnp.ceil(numbers - 0.1)


class _State(NamedTuple):
    x: jax.Array
    gradient: jax.Array
    step_size: jax.Array  # [example]
    move: jax.Array  # [example], how many of its numbers a step changes
    count: jax.Array  # [example], numbers that the best perturbation changed at the last look
    kept: Kept


def maximise(problem: Problem, start: jax.Array, steps: int, *, drawn: bool, errors: bool) -> Found:
    """Algorithm 1 of the paper from `start`, whose sparsity says nothing where it is `drawn`; errors: see `Kept`."""
    domain = problem.domain
    axes = tuple(range(1, domain.split(domain.clean).ndim))
    values = jnp.sum(domain.split(jnp.ones_like(domain.clean)), axis=axes)
    count_of = lambda x: jnp.sum(domain.split(x - domain.clean) != 0, axis=axes).astype(x.dtype)
    every = max(int(PERIOD * steps), 1)

    def sparse_sign(gradient: jax.Array, most: jax.Array) -> jax.Array:
        """Signs of the `most` largest numbers of every example, over their count in each row."""
        parts = domain.split(gradient)
        ranked = jnp.sort(jnp.abs(parts).reshape(parts.shape[0], -1), axis=1)
        total = ranked.shape[1]  # of which those of other examples are 0, and come first
        place = jnp.clip(total - most, 0, total - 1).astype(jnp.int32)
        least = jnp.take_along_axis(ranked, place[:, None], axis=1).reshape(-1, *(1,) * len(axes))
        signs = domain.join(jnp.where(jnp.abs(parts) >= least, jnp.sign(parts), 0))
        count = jnp.sum(jnp.abs(signs), axis=tuple(range(1, signs.ndim)), keepdims=True)
        return signs / jnp.maximum(count, 1)

    def step(state: _State, number: jax.Array) -> tuple[_State, Steps]:
        first = number < 0  # the start is evaluated by the body of the loop, so that the network is compiled once
        signs = sparse_sign(state.gradient, state.move)
        x = problem.project(state.x + domain.spread(state.step_size) * signs)
        x = jnp.where(first, start, x)
        kept, gradient, record = state.kept.after(problem, x, first)

        look = ~first & (number % every == every - 1)
        count = count_of(kept.best)
        sparser = CHANGED[1] * count < CHANGED[0] * state.count
        least = eps / SHORTEST
        size = jnp.clip(jnp.where(sparser, eps, state.step_size / SPARSER), least, eps)
        back = look & sparser
        return _State(
            x=problem.pick(back, kept.best, x),
            gradient=problem.pick(back, kept.gradient, gradient),
            step_size=jnp.where(look, size, state.step_size),
            move=jnp.where(look, whole(count / SPARSER), state.move),
            count=jnp.where(look, count, state.count),
            kept=kept,
        ), record

    eps = jnp.asarray(problem.ball.eps, start.dtype)
    count = values if drawn else count_of(start)
    move = whole(values * FIRST_SHARE if drawn else count / SPARSER)
    kept = Kept.nothing(problem, start, errors)
    state = _State(start, kept.gradient, jnp.zeros_like(values) + eps, move, count, kept)
    state, records = jax.lax.scan(step, state, jnp.arange(-1, steps))
    return Found(state.kept.x(problem), records)
