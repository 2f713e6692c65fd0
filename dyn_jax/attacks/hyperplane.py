"""The nearest point of a hyperplane inside a box, in the Linf, L2 and L1 norm: FAB's projections, pure functions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.threat import Bounds

STILL = 1e-8  # a weight at most this large does not move its coordinate (L2 and L1)
_FAR = 1e20


def project(
    points: jax.Array, w: jax.Array, b: jax.Array, *, norm: str = "linf", bounds: Bounds = (0.0, 1.0)
) -> jax.Array:
    """The point of ``{z: w.z = b}`` inside the box that is nearest to every point; out of reach, the nearest corner.

    Args:
      points, w: [row, n], points inside the box, one plane each.
      b: [row].
      norm: ``linf``, ``l2`` or ``l1``.
      bounds: of every coordinate.

    Raises:
      ValueError: unknown norm, shapes that differ.

    Source: Croce and Hein 2020 (FAB), section 3 and appendix: the dual problem is a piecewise linear equation in one
    variable.
    """
    _validate.same_shape("points, w", points, w)
    _validate.same_shape("b", b, points[:, 0])
    _validate.choice("norm", norm, STEPS)
    return points + step(norm, points, w, jnp.sum(w * points, axis=1) - b, bounds)


def step(norm: str, x: jax.Array, w: jax.Array, gap: jax.Array, bounds: Bounds) -> jax.Array:
    """`project` less the point itself, for rows of any rank, ``gap = w.x - b`` [row]."""
    low, high = bounds
    down = w * gap.reshape(-1, *(1,) * (w.ndim - 1)) > 0  # values that decrease on the way to the plane
    return STEPS[norm](w, gap, jnp.where(down, x - low, high - x))


def _filled(w: jax.Array, gap: jax.Array, room: jax.Array, speed: jax.Array, moves: jax.Array) -> jax.Array:
    """``min(t speed, room)`` with t such that ``sum |w| min(t speed, room) = |gap|``.

    The sum is concave and piecewise linear in t, so Newton's steps from 0 rise to the solution and end there, after as
    many steps as the set of full coordinates changes (a few, where sorting would cost thousands of comparisons).
    """
    axes = tuple(range(1, w.ndim))
    weight = jnp.where(moves, jnp.abs(w), 0)
    room = jnp.where(moves, room, 0)
    needed = jnp.where(jnp.isfinite(gap), jnp.abs(gap), 0)
    full_at = room / jnp.where(moves, speed, 1)
    spread = lambda t: t.reshape(-1, *(1,) * (w.ndim - 1))

    def newton(state: tuple) -> tuple:
        t, full, _ = state
        slope = jnp.sum(jnp.where(full, 0, weight * speed), axis=axes)
        rest = needed - jnp.sum(jnp.where(full, weight * jnp.where(full, room, 0), 0), axis=axes)
        # nothing is left to move, or rounding says that too much moved: t stays
        t = jnp.maximum(t, jnp.where(slope > 0, rest / jnp.where(slope > 0, slope, 1), 0))
        now = spread(t) >= full_at
        return t, now, jnp.any(now != full)

    t = jnp.zeros_like(needed)
    full = jnp.zeros_like(t).reshape(spread(t).shape) >= full_at
    t, _, _ = jax.lax.while_loop(lambda state: state[2], newton, (t, full, jnp.any(t >= 0)))
    return -jnp.sign(w) * spread(jnp.sign(gap)) * jnp.minimum(spread(t) * speed, room)


def _l1(w: jax.Array, gap: jax.Array, room: jax.Array) -> jax.Array:
    """The coordinates of the largest ``|w|`` move to the box one after the other, the last one part of the way."""
    flat = lambda x: x.reshape(x.shape[0], -1)
    weight, space = flat(jnp.abs(w)), jnp.minimum(flat(room), _FAR)
    moves = weight > STILL
    order = jnp.argsort(-weight, axis=1)
    gain = jnp.take_along_axis(jnp.where(moves, weight * space, 0), order, axis=1)
    before = jnp.cumsum(gain, axis=1) - gain
    needed = jnp.where(jnp.isfinite(gap), jnp.abs(gap), 0)[:, None]
    ranked = jnp.take_along_axis(jnp.where(moves, weight, 1), order, axis=1)
    part = jnp.clip(needed - before, 0, gain) / ranked
    length = jnp.take_along_axis(part, jnp.argsort(order, axis=1), axis=1)
    return -jnp.sign(w) * jnp.sign(gap).reshape(-1, *(1,) * (w.ndim - 1)) * length.reshape(w.shape)


STEPS = {
    "linf": lambda w, gap, room: _filled(w, gap, room, jnp.ones_like(w), jnp.abs(w) > 0),
    "l2": lambda w, gap, room: _filled(w, gap, room, jnp.abs(w), jnp.abs(w) > STILL),
    "l1": _l1,
}
