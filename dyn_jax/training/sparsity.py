"""DynConv's budget loss, for SkipNet too: the executed share of the gated multiply-adds is drawn to a target."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax import metrics
from dyn_jax.occupancy import gumbel_sigmoid, straight_through
from dyn_jax.training.recipe import Loss, Progress, Recipe, mean_cross_entropy
from dyn_jax.types import Output, Trace

RELAXED_AFTER = 0.33  # share of training after which the block bounds are [0, 1]


class SparsityParts(NamedTuple):
    """The two terms, the bounds on each block's share, each block's share, and the network's."""

    network: jax.Array
    block: jax.Array
    upper: jax.Array
    lower: jax.Array
    block_share: jax.Array
    share: jax.Array


def sparsity_loss(
    trace: Trace, *, target: float, epoch: jax.typing.ArrayLike, epochs: int
) -> tuple[jax.Array, SparsityParts]:
    """``(sum c / sum T - t)^2 + mean_b [max(0, c_b/T_b - upper)^2 + max(0, lower - c_b/T_b)^2]``.

    c_b are the multiply-adds that unit b's occupancies let run in the whole batch, T_b those of all its elements. The
    bounds start at the target and open as ``q = cos^2(pi/2 epoch / (0.33 epochs))`` falls to 0:
    ``upper = 1 - q (1 - t)``, ``lower = q t``. As released, no gradient passes through the dilated mask of a hard or
    sampled occupancy.

    Args:
      trace: of any network with units; DynConv's and SkipNet's are trained with it here.
      target: t in [0, 1], share of the gated multiply-adds.
      epoch: current epoch, from 0 to `epochs`; may be traced.

    Source: Verelst and Tuytelaars 2020, section 3.4 (eq. 6 to 9), and their released code.
    """
    costs = jnp.stack([jnp.sum(metrics.executed_unit_macs(unit)) for unit in trace.units])
    dense = [float(metrics.dense_unit_macs(unit) * unit.score.shape[0]) for unit in trace.units]
    totals = jnp.asarray(dense, costs.dtype)
    share, block_share = jnp.sum(costs) / jnp.sum(totals), costs / totals
    progress = jnp.clip(epoch / (RELAXED_AFTER * epochs), 0.0, 1.0)
    q = jnp.cos(0.5 * jnp.pi * progress) ** 2
    upper, lower = 1 - q * (1 - target), q * target
    network = (share - target) ** 2
    block = jnp.mean(jax.nn.relu(block_share - upper) ** 2 + jax.nn.relu(lower - block_share) ** 2)
    return network + block, SparsityParts(network, block, upper, lower, block_share, share)


def with_budget(target: float, epochs: int, weight: float = 10.0) -> Loss:
    """Mean cross-entropy plus `weight` times `sparsity_loss`."""

    def loss(output: Output, labels: jax.Array, progress: Progress) -> jax.Array:
        budget, _ = sparsity_loss(output.trace, target=target, epoch=progress.epoch, epochs=epochs)
        return mean_cross_entropy(output, labels) + weight * budget

    return loss


def skipnet_recipe(epochs: int = 40, target: float = 0.5) -> Recipe:
    """SkipNet SP (straight-through gates) with the budget loss, and no weight decay on the gates.

    Departure from the paper, whose SP stage has no penalty and leaves every gate open on data this easy: the budget's
    block bounds, which stay tight, make each gate decide by the input. (Gumbel noise on the gates, which is DynConv's
    way, was tried: it made every gate constant.)
    """
    loss, gate = with_budget(target, 3 * epochs), straight_through(1.0)
    return Recipe(epochs, loss=loss, occupancy=lambda epoch: gate, decay_gates=False)


def dynconv_recipe(epochs: int = 40, target: float = 0.5) -> Recipe:
    """DynConv as published: Gumbel noise (off in the last fifth), temperature 1, budget loss with weight 10."""
    noise = lambda epoch: gumbel_sigmoid(1.0, noise=epoch <= 0.8 * epochs)
    return Recipe(epochs, loss=with_budget(target, epochs), occupancy=noise)
