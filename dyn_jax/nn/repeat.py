"""Equal blocks of a network in one loop, so that it is compiled once for all of them; variables stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Step = Callable[[Any, Mapping[str, Any]], tuple[Any, Any]]
"""(carry, {role: variables of that layer}) -> (carry, what the block leaves), pure."""


def scanned(
    owner: nn.Module, layers: Sequence[Mapping[str, str]], step: Step, carry: Any, remat: bool = False
) -> tuple[Any, list[Any]]:
    """`step` over blocks of one shape by ``lax.scan``: equal to the loop in Python up to how XLA rounds.

    The variables are stacked inside the traced program, so that a checkpoint and its names know nothing of it.

    Args:
      owner: the network, bound to its variables, not in training: nothing is written.
      layers: for every block, role -> name of the layer in the network.
      step: see `Step`.
      carry: of the first block.
      remat: keep the carries only for the backward pass, which evaluates every block once more: less memory, more time.
        (Outside a loop XLA's CPU backend merges the second evaluation with the first, and nothing is saved.)

    Returns:
      The last carry, and what every block left.
    """
    variables = owner.variables
    of_block = [
        {
            role: {kind: variables[kind][name] for kind in variables if name in variables[kind]}
            for role, name in b.items()
        }
        for b in layers
    ]
    step = jax.checkpoint(step, prevent_cse=False) if remat else step
    carry, left = jax.lax.scan(step, carry, jax.tree.map(_stacked, *of_block))
    return carry, [jax.tree.map(lambda leaf, k=k: leaf[k], left) for k in range(len(layers))]


def _stacked(*leaves: jax.Array) -> jax.Array:
    """`jnp.stack` of arrays that have axes, as one operation: a new axis for each leaf takes time to compile."""
    return jnp.concatenate(leaves).reshape(len(leaves), *leaves[0].shape)
