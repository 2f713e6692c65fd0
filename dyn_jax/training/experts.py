"""How networks of experts are trained: cross-entropy, and losses that keep all experts in use."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import objectives
from dyn_jax.gates.experts import balance_losses
from dyn_jax.occupancy import hard
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


def routed(weight: float) -> Loss:
    """``cross-entropy + weight * cross-entropy of the router's logits against label mod experts``.

    Classes that share an expert are fixed by their number, so that every expert has its share of any balanced data.

    Source: Zhang et al. 2023, released code.
    """
    target = objectives.router_target()

    def loss(output: Output, labels: jax.Array, progress: Progress) -> jax.Array:
        return mean_cross_entropy(output, labels) + weight * jnp.mean(target(output, labels, None))

    return loss


def moe_recipe(epochs: int = 100) -> Recipe:
    """`moe-digits`: AdamW from scratch, the router by the released target alone, with the released weight.

    Through the released straight-through choice the answer's gradient would reach the router too, and is larger than
    the target's: on held-back training digits that network was worse at every learning rate, and with a loss of balance
    instead of the target experts died or it stayed inaccurate. Here the choice is hard in training as well. The authors
    also attack router and experts in turns.
    """
    hard_choice = hard()
    return Recipe(epochs, 64, AdamW(3e-3), loss=routed(6.0), source=Images(2), occupancy=lambda epoch: hard_choice)
