"""Point-BIM: iterated steps of every point's coordinates, along its gradient rather than its sign."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.ascent import ascent, each_step
from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.threat import ball
from dyn_jax.objectives import Objective, resolve

DIRECTIONS = ("linf", "sign", "l2")


def direction_of(gradient: jax.Array, kind: str) -> jax.Array:
    """Per-point direction of a gradient [point, 3]; 0 where it is 0.

    ``linf``: ``g / (max_i |g_i| + 1e-8)``, the direction kept, length 1 in the maximum norm (LGM's release);
    ``sign``: BIM's; ``l2``: ``g / (|g| + 1e-8)`` (Liu et al. 2019).
    """
    if kind == "sign":
        return jnp.sign(gradient)
    size = jnp.abs(gradient)
    if kind == "linf":
        return gradient / (jnp.max(size, axis=1, keepdims=True) + 1e-8)
    square = jnp.sum(gradient * gradient, axis=1, keepdims=True)
    return gradient / (jnp.sqrt(jnp.where(square > 0, square, 1)) + 1e-8)


def point_bim(
    eps: jax.typing.ArrayLike,
    step_size: jax.typing.ArrayLike,
    steps: int,
    *,
    direction: str = "linf",
    objective: str | Objective = "ce",
    attack_all: bool = True,
) -> Attack:
    """``p <- clip(p + step_size * direction(gradient))`` for every point, from the clean cloud.

    The forward pass is told how far a step leads (`Reach`), so that an occupancy that looks ahead sees the voxels
    that a point can get into next.

    Args:
      eps: half-width of the cube around every clean point, metres.
      step_size: largest coordinate change of one step, metres; at most one voxel.
      steps: evaluations of the gradient, at least 1.
      direction: ``linf``, ``sign`` or ``l2``, see `direction_of`.
      objective: ``ce``, ``margin``, ``dlr`` or a callable; mean over the rows that count.
      attack_all: also move clouds that are misclassified to begin with.

    Raises as `dyn_jax.attacks.bim`; an unknown direction.

    Source: LGM paper section VI.A, after Liu et al. 2019; released code for the direction.
    """
    along = partial(direction_of, kind=_validate.choice("direction", direction, DIRECTIONS))
    fields = {"objective": resolve(objective), "attack_all": attack_all}
    return ascent(ball("linf", eps), step_size, steps, each_step(along), **fields)
