"""LGM's "C&W": the hinge margin under Adam inside an Linf ball, as its released code has it."""

from __future__ import annotations

import jax
import optax

from dyn_jax import _validate
from dyn_jax.attacks.ascent import ascend
from dyn_jax.attacks.base import Attack, Found, Problem
from dyn_jax.attacks.threat import Bounds, ball
from dyn_jax.objectives import Objective, hinge_margin


def lgm_carlini_wagner(
    eps: jax.typing.ArrayLike | str,
    step_size: jax.typing.ArrayLike | str,
    steps: int,
    *,
    objective: Objective | None = None,
    bounds: Bounds = (0.0, 1.0),
    attack_all: bool = False,
) -> Attack:
    """Adam on the perturbation, minimising ``max(z_y - max_other z, -confidence)``, clipped to the ball at every step.

    Not the attack of Carlini and Wagner (`carlini_wagner`): no change of variables, no distance term, no search over
    a constant. It is what the "C&W" rows of LGM's table II were computed with.

    Args:
      eps: Linf radius in pixel units of [0, 1] images, or metres.
      step_size: Adam's learning rate, same units; betas 0.9 and 0.999, epsilon 1e-8 (PyTorch's defaults).
      steps: number of steps.
      objective: default ``hinge_margin(0)``; give a confidence in logits, `dyn_jax.objectives.hinge_margin`.
      bounds: lowest and highest pixel value.
      attack_all: also perturb examples that are misclassified to begin with.

    Raises:
      ValueError, TypeError: as `dyn_jax.attacks.bim`.
    """
    threat = ball("linf", eps, bounds)
    step_size = _validate.number("step_size", step_size, minimum=0)
    _validate.positive_int("steps", steps)
    adam = optax.adam(step_size, b1=0.9, b2=0.999, eps=1e-8)  # pyright: ignore[reportArgumentType]: as in bisection
    chain = optax.chain(optax.scale(-1.0), adam)

    def search(problem: Problem, keys: jax.Array | None, start: jax.Array | None) -> Found:
        return ascend(problem, problem.domain.clean if start is None else start, chain, steps)

    objective = hinge_margin() if objective is None else objective
    return Attack(search, threat, objective, attack_all=attack_all, reach=step_size)
