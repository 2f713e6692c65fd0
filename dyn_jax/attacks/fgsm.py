"""FGSM (Goodfellow et al. 2015): one step."""

from __future__ import annotations

import jax

from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.bim import bim
from dyn_jax.attacks.threat import Bounds
from dyn_jax.objectives import Objective


def fgsm(
    eps: jax.typing.ArrayLike | str,
    *,
    step_size: jax.typing.ArrayLike | str | None = None,
    norm: str = "linf",
    objective: str | Objective = "ce",
    bounds: Bounds = (0.0, 1.0),
    protocol: str = "paper",
    attack_all: bool = False,
) -> Attack:
    """``x + eps * sign(gradient)``, projected; `bim` with a single step.

    Args:
      eps: radius of the ball in pixel units of [0, 1] images, e.g. "8/255".
      step_size: length of the step; default `eps`.
      norm: ``linf`` or ``l2``.
      objective: ``ce``, ``margin``, ``dlr`` or a callable, see `dyn_jax.objectives`.
      bounds, protocol, attack_all: see `bim`.

    Raises:
      ValueError, TypeError: eps or step negative or not parseable; unknown norm, objective or protocol.
    """
    return bim(
        eps,
        step_size=eps if step_size is None else step_size,
        steps=1,
        norm=norm,
        objective=objective,
        bounds=bounds,
        protocol=protocol,
        attack_all=attack_all,
    )
