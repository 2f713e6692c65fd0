"""MI-FGSM (Dong et al. 2018): BIM with momentum on the normalised gradient."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dyn_jax import _validate
from dyn_jax.attacks.ascent import ascent, each_step
from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.threat import Ball, Bounds, Number, ball
from dyn_jax.objectives import Objective, resolve


def mi_fgsm(
    eps: Number,
    step_size: Number,
    steps: int,
    *,
    decay: float = 1.0,
    norm: str = "linf",
    objective: str | Objective = "ce",
    bounds: Bounds = (0.0, 1.0),
    attack_all: bool = False,
) -> Attack:
    """``g <- decay * g + gradient / ||gradient||_1``, ``x <- project(x + step_size * sign(g))`` (eq. 6 and 7).

    The norm is that of an image's gradient, or of a point's.

    Args:
      eps, step_size, steps, norm, objective, bounds, attack_all: see `dyn_jax.attacks.bim`.
      decay: mu, weight of the accumulated gradient, at least 0.

    Raises as `dyn_jax.attacks.bim`; a negative decay.
    """
    threat = ball(norm, eps, bounds)
    fields = {"objective": resolve(objective), "attack_all": attack_all}
    return ascent(threat, step_size, steps, *momentum(threat, decay, l1_normalised), **fields)


def l1_normalised(gradient: jax.Array) -> jax.Array:
    """``g / ||g||_1`` per row (image or point); 0 stays 0 (Dong et al. 2018, eq. 6)."""
    norm = jnp.sum(jnp.abs(gradient), axis=tuple(range(1, gradient.ndim)), keepdims=True)
    return gradient / jnp.where(norm > 0, norm, 1)


def momentum(threat: Ball, decay: float, normalised: Callable[[jax.Array], jax.Array]) -> tuple:
    """The steps of `mi_fgsm` along what `normalised` makes of a gradient."""
    trace = optax.trace(_validate.number("decay", decay, minimum=0))
    return each_step(normalised), trace, each_step(threat.direction)
