"""LGM's "C&W": the hinge margin under Adam inside an Linf ball, as its released code has it."""

from __future__ import annotations

import optax

from dyn_jax.attacks.ascent import ascent
from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.threat import Bounds, Number, ball
from dyn_jax.objectives import Objective, hinge_margin


def lgm_carlini_wagner(
    eps: Number,
    step_size: Number,
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
      eps, steps, bounds, attack_all: see `dyn_jax.attacks.bim`; the norm is Linf.
      step_size: Adam's learning rate, same units as eps; betas 0.9 and 0.999, epsilon 1e-8 (PyTorch's defaults).
      objective: default ``hinge_margin(0)``; give a confidence in logits, `dyn_jax.objectives.hinge_margin`.

    Raises as `dyn_jax.attacks.bim`.
    """
    adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
    fields = {"objective": hinge_margin() if objective is None else objective, "attack_all": attack_all}
    return ascent(ball("linf", eps, bounds), step_size, steps, adam, **fields)
