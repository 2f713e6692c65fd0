"""FGSM (Goodfellow et al. 2015): one step."""

from __future__ import annotations

from typing import Any

from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.bim import bim
from dyn_jax.attacks.threat import Number


def fgsm(eps: Number, *, step_size: Number | None = None, **options: Any) -> Attack:
    """``x + eps * sign(gradient)``, projected; `bim` with a single step.

    Args:
      eps: radius of the ball, see `bim`.
      step_size: length of the step; default `eps`.
      **options: ``norm``, ``objective``, ``bounds``, ``attack_all`` of `bim`.

    Raises as `bim`.
    """
    return bim(eps, eps if step_size is None else step_size, 1, **options)
