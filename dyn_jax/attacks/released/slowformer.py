"""SlowFormer's code on A-ViT: its loss, its rounding, and how it reports compute."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import gates
from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.slowformer import at_level, position
from dyn_jax.attacks.slowformer import slowformer as paper
from dyn_jax.objectives import Objective
from dyn_jax.types import Output

TINY, SMALL = (0.873e9, 1.258e9), (3.676e9, 4.608e9)
"""Multiply-adds on clean images, and of all tokens: what attack success is measured between."""


def floor_level(patch: jax.Array, low: np.ndarray, high: np.ndarray) -> jax.Array:
    """The level below, of 256: not idempotent, a value that is on a level can fall to the next by rounding."""
    return at_level(jnp.floor(position(patch, low, high)), low, high)


def ponder_objective(prior: float = 1e-3, target: jax.Array | None = None, weight: float = 5e-4) -> Objective:
    """``weight * mean(N + R) - prior * max(halting prior, 0)``; the prior looks at all images but the first.

    Args:
      prior: 0 leaves it out.
      target: [layer]; None: centre 8 of the network's layers.
      weight: of the ponder cost.
    """

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        (cost,) = gates.ponder_of_trace(output.trace).values()
        value = weight * jnp.mean(cost.cost, axis=1)
        if not prior or len(value) == 1:  # the prior of no images is NaN, which its "> 0" drops
            return value
        halting = gates.halting_of_trace(output.trace)
        centre = gates.prior_target(halting.shape[1], 8) if target is None else target.astype(halting.dtype)
        return value - prior * jax.nn.relu(gates.halting_prior(jnp.mean(halting[1:], axis=(0, 2)), centre))

    return objective


def slowformer(
    size: tuple[int, int] = (64, 64),
    steps: int = 1000,
    *,
    batch_size: int | None = None,
    prior: float = 1e-3,
    target: jax.Array | None = None,
) -> Attack:
    """`attacks.slowformer` with the released loss and rounding; arguments as there and in `ponder_objective`.

    The released training also mixes images (mixup), and its cosine schedule leaves the rate constant.
    """
    return paper(size, steps, batch_size=batch_size, objective=ponder_objective(prior, target), levels=floor_level)


def reported_macs(tokens: Sequence[float], width: int, patches: int = 196, classes: int = 1000) -> float:
    """The multiply-adds that the release reports for the mean number of tokens that each layer runs on.

    ``patches 768 D + sum_l (3 D^2 m_l + 9 D^2 n_l + D m_l (m_l + n_l) + 5 D (m_l + n_l)) + 5 D n_L + classes D`` with
    m_l = n_{l-1}, m_0 all: qkv is charged at the number of the layer before, unlike in `metrics.executed_macs`.

    Args:
      tokens: n_l, rounded to integers as there.
      width: D.
      patches, classes: of the network.
    """
    rounded = [round(float(n)) for n in tokens]
    before = [patches + 1, *rounded[:-1]]
    total = patches * 768 * width + 5 * width * rounded[-1] + classes * width
    for m, n in zip(before, rounded):
        total += 3 * width**2 * m + 9 * width**2 * n + width * m * (m + n) + 5 * width * (m + n)
    return float(total)


def success(macs: float, span: tuple[float, float]) -> float:
    """``(macs - lowest) / (highest - lowest)``, see `TINY` and `SMALL`."""
    return (macs - span[0]) / (span[1] - span[0])
