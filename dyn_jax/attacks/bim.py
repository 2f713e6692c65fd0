"""BIM (Kurakin et al. 2017): iterated FGSM from the clean value."""

from __future__ import annotations

import jax
import optax

from dyn_jax import _validate
from dyn_jax.attacks.ascent import ascend
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.threat import Bounds, ball
from dyn_jax.attacks.transforms import steepest
from dyn_jax.objectives import Objective, resolve


def bim(
    eps: jax.typing.ArrayLike | str,
    step_size: jax.typing.ArrayLike | str,
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
    step_size = _validate.number("step_size", step_size, minimum=0)
    _validate.positive_int("steps", steps)
    chain = optax.chain(steepest(threat), optax.scale(step_size))

    def search(problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        return ascend(problem, problem.domain.clean if start is None else start, chain, steps)

    return Attack(search, threat, resolve(objective), attack_all=attack_all, reach=step_size)
