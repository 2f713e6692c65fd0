"""ILFO (Haque et al., CVPR 2020): the first attack on the energy, by the gating values as they are."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate, objectives
from dyn_jax.attacks import rectify, tanh_space
from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.energy import KEEP, EnergySearch, Gradients, gate_losses
from dyn_jax.attacks.grad_auto import check_rate
from dyn_jax.attacks.threat import Box


def ilfo(
    *,
    weight: jax.typing.ArrayLike = 1e5,
    steps: int = 1000,
    learning_rate: jax.typing.ArrayLike = 5e-4,
    tau: jax.typing.ArrayLike | None = 0.5,
    weights: objectives.Weights = "equal",
    change: str = "exact",
    keep: str = "least_loss",
    normalization: tanh_space.MeanStd | None = tanh_space.IMAGENET_MEAN_STD,
) -> Attack:
    """Adam on delta, minimising ``||x' - x||^2 + c sum_l max(tau - G_l, 0)``; the iterate of least loss is returned.

    Neither its paper's settings nor its code belong to the papers this library follows: the defaults are those of a
    public script for SkipNet-110 on CIFAR-10 (c = 1e5, Adam at 5e-4, 1000 steps, least loss), on the exact change of
    variable. GradAuto's own baseline, eq. 7 without either correction, is ``grad_auto(magnitude=False,
    direction=False)``.

    Args:
      weight: c, of the complexity loss; may be traced.
      steps, learning_rate: of Adam.
      tau, weights, change, keep, normalization: see `grad_auto`.

    Raises:
      ValueError, TypeError: a number out of range, an unknown name; when called, a network without adaptive units.

    Source: GradAuto section 3 (eq. 5), which describes ILFO's loss.
    """
    weight = _validate.number("weight", weight, minimum=0)
    _validate.positive_int("steps", steps)
    check_rate(learning_rate)
    objectives.check_tau(tau)
    objectives.check_weights(weights)
    _validate.choice("keep", keep, KEEP)
    changed = tanh_space.change_of(change, normalization)
    squares = changed.distance if change == "release" else tanh_space.squares

    def combine(gradients: Gradients, number: jax.Array) -> rectify.Rectified:
        none = jnp.zeros(gradients.complexity.shape[0], bool)
        scale = jnp.asarray(weight, gradients.complexity.dtype)
        return rectify.Rectified(scale * gradients.complexity + gradients.distortion, none)

    losses = gate_losses(tau, weights)
    search = EnergySearch(combine, losses, changed, squares, steps, learning_rate, weight, keep=keep, tau=tau)
    return Attack(search, Box(changed.bounds), objectives.energy(tau=tau, weights=weights), attack_all=True)
