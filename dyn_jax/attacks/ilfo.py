"""ILFO (Haque et al., CVPR 2020): the first attack on the energy, by the gating values as they are."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate, objectives
from dyn_jax.attacks import rectify
from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.domains import squares
from dyn_jax.attacks.energy import PAPER, Combine, Form, Gradients, gate_attack
from dyn_jax.attacks.threat import Number

ILFO = PAPER.replace(distance=squares, keep="least_loss")


def weighted(weight: jax.typing.ArrayLike, distortion: jax.typing.ArrayLike = 1.0) -> Combine:
    """``weight * g_C + distortion * g_D``: gradients as they are."""

    def combine(gradients: Gradients) -> rectify.Rectified:
        dtype = gradients.complexity.dtype
        gradient = jnp.asarray(weight, dtype) * gradients.complexity
        return rectify.untouched(gradient + jnp.asarray(distortion, dtype) * gradients.distortion)

    return combine


def ilfo(
    *,
    weight: jax.typing.ArrayLike = 1e5,
    steps: int = 1000,
    learning_rate: jax.typing.ArrayLike = 5e-4,
    eps: Number | None = None,
    tau: jax.typing.ArrayLike | None = 0.5,
    weights: objectives.Weights = "equal",
    form: Form = ILFO,
) -> Attack:
    """Adam on delta, minimising ``||x' - x||^2 + c sum_l max(tau - G_l, 0)``; the iterate of least loss is returned.

    Neither its paper's settings nor its code belong to the papers this library follows: the defaults are those of a
    public script for SkipNet-110 on CIFAR-10 (c = 1e5, Adam at 5e-4, 1000 steps, least loss), on the exact change of
    variable. GradAuto's own baseline, eq. 7 without either correction, is ``grad_auto(rectify=Rectify(False, False))``.

    Args:
      weight: c, of the complexity loss; may be traced.
      steps, learning_rate: of Adam; of coordinates in metres.
      eps, tau, weights, form: see `grad_auto`.

    Raises as `grad_auto`. Source: GradAuto section 3 (eq. 5), which describes ILFO's loss.
    """
    weight = _validate.number("weight", weight, minimum=0)
    fields = {"form": form, "steps": steps, "learning_rate": learning_rate, "weight": weight}
    return gate_attack(weighted(weight), eps, tau, weights, **fields)
