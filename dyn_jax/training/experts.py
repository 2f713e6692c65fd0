"""How networks of experts are trained: cross-entropy, and losses that keep all experts in use."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax.gates.experts import balance_losses
from dyn_jax.training.recipe import AdamW, Images, Loss, Progress, Recipe, mean_cross_entropy
from dyn_jax.types import Output


def balanced(weight: float) -> Loss:
    """``cross-entropy + weight sum_units (importance + GShard's loss - 1)``, a batch being a group.

    Both losses are at their least, 0 and 1, where every expert gets the same.
    """

    def loss(output: Output, labels: jax.Array, progress: Progress) -> jax.Array:
        total = mean_cross_entropy(output, labels)
        for unit in output.trace.units:
            p = unit.extras["weight"]
            losses = balance_losses(p.reshape(1, -1, p.shape[-1]))
            total += weight * jnp.sum(losses.importance + losses.gshard - 1)
        return total

    return loss


def vmoe_recipe(epochs: int = 60) -> Recipe:
    """`vmoe-digits`: AdamW from scratch; the router learns through the weights of its experts.

    Source: Riquelme et al. 2021, section 2.3 (importance; no noise here, GShard's loss instead of the load loss).
    """
    return Recipe(epochs, 64, AdamW(2e-3, 5e-2), loss=balanced(0.02), source=Images(2))


def moe_recipe(epochs: int = 30) -> Recipe:
    """`moe-digits`: AdamW from scratch, the released straight-through choice of the expert.

    The authors tell the router what to choose (label modulo experts) and train it against attacks in turns with the
    experts; here it is free, but for the balance.
    """
    return Recipe(epochs, 64, AdamW(3e-3), loss=balanced(0.2), source=Images(2))
