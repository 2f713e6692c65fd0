"""MI-FGSM (Dong et al. 2018): BIM with momentum on the normalised gradient."""

from __future__ import annotations

import optax

from dyn_jax import _validate
from dyn_jax.attacks.ascent import ascent
from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.threat import Bounds, Number, ball
from dyn_jax.attacks.transforms import l1_normalise, steepest
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

    Raises:
      ValueError, TypeError: as `dyn_jax.attacks.bim`; a negative decay.
    """
    threat = ball(norm, eps, bounds)
    directions = l1_normalise(), optax.trace(_validate.number("decay", decay, minimum=0)), steepest(threat)
    return ascent(threat, directions, step_size, steps, objective=resolve(objective), attack_all=attack_all)
