"""Training of networks that halt (SACT, ACT): cross-entropy plus the ponder cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax.gates.halting import ponder_of_trace
from dyn_jax.training.recipe import SGD, Recipe, mean_cross_entropy
from dyn_jax.types import Output


def ponder_loss(output: Output, labels: jax.Array, tau: float) -> jax.Array:
    """``cross-entropy + tau * sum over blocks of mean over batch and positions of (N + R)``.

    Args:
      output: of a network whose units halt, see `dyn_jax.gates.halting`.
      labels: [batch].
      tau: the price of a unit; the released models have 0.01 (CIFAR) and 0.005 (ImageNet).

    Raises:
      ValueError: the trace has no units.

    Source: Figurnov et al. 2017, and released code.
    """
    costs = [jnp.mean(ponder.cost) for ponder in ponder_of_trace(output.trace).values()]
    return mean_cross_entropy(output, labels) + tau * sum(costs)


def sact_recipe(epochs: int = 15, tau: float = 0.05) -> Recipe:
    """The small network on digits, with the published loss and L2 coefficient.

    Departures from the paper's CIFAR recipe: the price of a unit is five times as high (at 0.02 the digits network
    saves 4 % of its multiply-adds, at 0.05 a third, at 0.1 a half), the learning rate falls as a cosine, and the decay
    acts on biases and normalisation too, as in all recipes of this package.
    """
    loss = lambda output, labels, progress: ponder_loss(output, labels, tau)
    return Recipe(epochs, optimizer=SGD(weight_decay=2e-4), loss=loss)
