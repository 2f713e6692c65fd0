"""BIM (Kurakin et al. 2017): FGSM iterated, the last iterate is returned."""

from __future__ import annotations

import jax
import optax

from dyn_jax import _validate
from dyn_jax.attacks.ascent import ascend
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.threat import Bounds, ball
from dyn_jax.attacks.transforms import steepest
from dyn_jax.objectives import Objective, resolve

PROTOCOLS = ("paper", "release")
RELEASE_BOUNDS: Bounds = (-1.0, 1.0)


def release_eps(units: float) -> float:
    """LGM's released eps and step units, "8" -> 16/255: the scale of a [-1, 1] image, applied to [0, 1] images."""
    return units * 2.0 / 255.0


def release_bounds(bounds: Bounds, protocol: str) -> Bounds:
    """The box of a protocol: LGM's release clips [0, 1] images to (-1, 1), so that pixels go below 0."""
    return RELEASE_BOUNDS if _validate.choice("protocol", protocol, PROTOCOLS) == "release" else bounds


def bim(
    eps: jax.typing.ArrayLike | str,
    step_size: jax.typing.ArrayLike | str,
    steps: int,
    *,
    norm: str = "linf",
    objective: str | Objective = "ce",
    bounds: Bounds = (0.0, 1.0),
    protocol: str = "paper",
    attack_all: bool = False,
) -> Attack:
    """``x <- project(x + step_size * sign(gradient))`` from the clean image.

    Args:
      eps: radius of the ball in pixel units of [0, 1] images: a number, "8/255", or an array inside a vmap.
      step_size: length of one step, same units.
      steps: number of steps, at least 1.
      norm: ``linf`` or ``l2`` (then the gradient is divided by its L2 norm instead of taking the sign).
      objective: ``ce``, ``margin``, ``dlr`` or a callable, see `dyn_jax.objectives`.
      bounds: lowest and highest pixel value.
      protocol: ``paper``; ``release`` is LGM's code, with the box (-1, 1) in place of `bounds`. eps is in pixel units
        in both; the release's own units are `release_eps`.
      attack_all: also perturb images that are misclassified to begin with.

    Raises:
      ValueError, TypeError: eps or step negative or not parseable; steps not a positive integer; unknown norm,
        objective or protocol.
    """
    threat = ball(norm, eps, release_bounds(bounds, protocol))
    step_size = _validate.number("step_size", step_size, minimum=0)
    _validate.positive_int("steps", steps)
    chain = optax.chain(steepest(threat), optax.scale(step_size))

    def search(problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        return ascend(problem, problem.images if start is None else start, chain, steps)

    return Attack(search, threat, resolve(objective), attack_all=attack_all)
