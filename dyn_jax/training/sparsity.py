"""DynConv's budget loss: the executed share of the gated multiply-adds is drawn to a target."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax.types import Trace

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

    c_b are the multiply-adds that unit b's occupancies (and dilated ones) let run in the whole batch, T_b those of all
    its elements. The bounds start at the target and open as ``q = cos^2(pi/2 epoch / (0.33 epochs))`` falls to 0:
    ``upper = 1 - q (1 - t)``, ``lower = q t``. The gradient goes through the occupancies only, not the dilated ones.

    Args:
      trace: of any network with units; DynConv's and SkipNet's are trained with it here.
      target: t in [0, 1], share of the gated multiply-adds.
      epoch: current epoch, from 0; may be traced.
      epochs: length of training.

    Returns:
      (loss, `SparsityParts`).

    Source: Verelst and Tuytelaars 2020, section 3.4 (eq. 6 to 9), and their released code.
    """
    costs, totals = [], []
    for unit in trace.units:
        cost = unit.macs * jnp.sum(unit.occupancy)
        total = unit.macs * unit.occupancy.size
        if unit.dilated is not None:
            cost += unit.dilated.macs * jnp.sum(jax.lax.stop_gradient(unit.dilated.occupancy))
            total += unit.dilated.macs * unit.dilated.occupancy.size
        costs.append(cost)
        totals.append(float(total))
    costs, totals = jnp.stack(costs), jnp.asarray(totals, costs[0].dtype)
    share, block_share = jnp.sum(costs) / jnp.sum(totals), costs / totals
    progress = jnp.clip(epoch / (RELAXED_AFTER * epochs), 0.0, 1.0)
    q = jnp.cos(0.5 * jnp.pi * progress) ** 2
    upper, lower = 1 - q * (1 - target), q * target
    network = (share - target) ** 2
    block = jnp.mean(jax.nn.relu(block_share - upper) ** 2 + jax.nn.relu(lower - block_share) ** 2)
    return network + block, SparsityParts(network, block, upper, lower, block_share, share)
