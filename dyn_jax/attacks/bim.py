"""BIM (Kurakin et al. 2017): iterated FGSM from the clean value."""

from __future__ import annotations

from dyn_jax.attacks.ascent import ascent
from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.threat import Bounds, Number, ball
from dyn_jax.objectives import Objective, resolve


def bim(
    eps: Number,
    step_size: Number,
    steps: int,
    *,
    norm: str = "linf",
    objective: str | Objective = "ce",
    bounds: Bounds = (0.0, 1.0),
    attack_all: bool = False,
) -> Attack:
    """``x <- project(x + step_size * sign(gradient))`` from the clean value.

    Args:
      eps: radius of the ball around every image in pixel units of [0, 1] images, or around every point in metres: a
        number, "8/255", or a scalar array inside a vmap.
      step_size: length of one step, same units.
      steps: number of steps, at least 1.
      norm: ``linf`` or ``l2`` (then the gradient is divided by its L2 norm instead of taking the sign).
      objective: ``ce``, ``margin``, ``dlr`` or a callable, see `dyn_jax.objectives`.
      bounds: lowest and highest pixel value.
      attack_all: also perturb examples that are misclassified to begin with.

    Raises:
      ValueError, TypeError: eps or step negative, an array or not parseable; steps not a positive integer; unknown
        norm or objective.
    """
    threat = ball(norm, eps, bounds)
    return ascent(threat, step_size, steps, objective=resolve(objective), attack_all=attack_all)
