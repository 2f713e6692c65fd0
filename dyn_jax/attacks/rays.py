"""RayS (Chen and Gu 2020): a decision-based attack, which only learns whether a criterion holds on the victim."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.base import Attack, Found, Problem, Steps
from dyn_jax.attacks.criteria import Criterion, checked
from dyn_jax.attacks.minimal import MinimalNorm, closest, length, within
from dyn_jax.attacks.threat import Bounds, Number, ball


class _State(NamedTuple):
    signs: jax.Array  # like x, -1 or 1: the best direction
    radius: jax.Array  # [example], along it
    searching: jax.Array  # [example] bool: the radius of a new direction is being bisected
    low: jax.Array  # [example], no success there
    level: jax.Array  # [example], the direction is cut into 2^level blocks
    block: jax.Array  # [example], the one whose sign is tried next
    best: tuple[jax.Array, jax.Array]  # x and its norm


def rays(
    eps: Number,
    queries: int = 1000,
    *,
    criterion: Criterion | None = None,
    largest: jax.typing.ArrayLike = 1.0,
    tolerance: jax.typing.ArrayLike = 1e-3,
    bounds: Bounds = (0.0, 1.0),
) -> Attack:
    """The direction of signs in which the criterion holds at the smallest Linf radius, from yes and no alone.

    The sign of one block of values after the other is flipped, of the whole, of halves, of quarters, ...; where the
    criterion holds at the best radius so far, the radius in the new direction is bisected. eps decides at the end, and
    ``result.record.smallest`` is the radius found, as of `dyn_jax.attacks.fab_t`. Deterministic.

    Args:
      eps, bounds: see `dyn_jax.attacks.bim`.
      queries: evaluations of an example.
      criterion: of `dyn_jax.attacks.criteria`; default ``misclassified()``; ``recovered(0.5)`` needs no more than
        whether that much runs.
      largest: radius of the first query; of points in metres.
      tolerance: at which a bisection ends, same unit.

    The signs of ``start - clean`` are the first direction (default: +1). Raises as `dyn_jax.attacks.bim`; largest or
    tolerance not positive. Source: Chen and Gu 2020, algorithms 1 to 3. Blocks follow the order of the array: an
    image's are bands of rows.
    """
    threat = ball("linf", eps, bounds)
    _validate.positive_int("queries", queries)
    criterion = checked(criterion)
    largest, tolerance = _validate.positive("largest", largest), _validate.positive("tolerance", tolerance)

    def search(problem: Problem, keys: None, start: jax.Array | None) -> Found:
        domain, threat = problem.domain, problem.ball
        flat = lambda parts: parts.reshape(parts.shape[0], -1)
        # blocks are runs of the values that may move, in the order of the array
        free = domain.split(domain.moving(jnp.ones_like(domain.clean)))
        rank = (jnp.cumsum(flat(free), axis=1, dtype=jnp.int32) - 1).reshape(free.shape)
        count = jnp.sum(flat(free), axis=1).astype(jnp.int32)
        each = lambda values: values.reshape(-1, *(1,) * (free.ndim - 1))

        def step(state: _State, _: None) -> tuple[_State, tuple[Steps, MinimalNorm]]:
            size = -(-count // jnp.left_shift(1, state.level))
            first = each(state.block * size)
            flipped = (rank >= first) & (rank < first + each(size)) & (free > 0)
            flip = domain.join(jnp.where(flipped, -1.0, 0.0).astype(domain.clean.dtype))
            trial = jnp.where(flip < 0, -state.signs, state.signs)
            signs = problem.pick(state.searching, state.signs, trial)
            middle = (state.low + state.radius) / 2
            radius = jnp.where(state.searching, middle, state.radius)
            x = jnp.clip(domain.clean + domain.spread(radius) * signs, *threat.bounds)
            x = domain.unmoved(x)
            held, steps = criterion.asked(problem, x)[1:]
            held |= ~problem.attacked
            norm = jnp.where(problem.attacked, length(threat, domain.split(x - domain.clean)), 0)

            low = jnp.where(state.searching & ~held, middle, jnp.where(state.searching, state.low, 0))
            outer = jnp.where(held, radius, state.radius)
            searching = jnp.where(state.searching, True, held) & (outer - low > tolerance)
            onward = ~searching
            last = (state.block + 1) * size >= count
            # where every block is a single value already, the next round begins with halves
            deepest = size <= 1
            level = jnp.where(onward & last, jnp.where(deepest, 1, state.level + 1), state.level)
            block = jnp.where(onward, jnp.where(last, 0, state.block + 1), state.block)
            kept = problem.pick(state.searching | held, signs, state.signs)
            best = closest(problem, (x, norm, held), state.best)
            return _State(kept, outer, searching, low, level, block, best), (steps, MinimalNorm(norm, held))

        none = jnp.full_like(length(threat, domain.split(domain.clean)), jnp.inf)
        signs = jnp.ones_like(domain.clean) if start is None else jnp.where(start < domain.clean, -1.0, 1.0)
        zero, number = jnp.zeros_like(none), jnp.zeros_like(count)
        radius = zero + jnp.asarray(largest, zero.dtype)
        searching = jnp.zeros_like(problem.attacked)
        first = _State(signs.astype(none.dtype), radius, searching, zero, number, number, (domain.clean, none))
        state, (steps, record) = jax.lax.scan(step, first, None, length=queries)
        return Found(within(problem, state.best[0]), steps, record)

    return criterion.attack(search, threat)
