"""Objectives of sponge examples: the more activations are not zero, the more an accelerator that skips zeros works."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax._precision import single
from dyn_jax.objectives.answers import Objective
from dyn_jax.types import Output, Trace, UnitTrace


def _activations(trace: Trace) -> list[jax.Array]:
    """``occupancy x score`` of every unit, [batch, element]."""
    if not trace.units:
        raise ValueError("forward: got a network without units, expected one of activations (sparse-resnet-*)")
    value = lambda unit: single(unit.occupancy) * single(unit.score)
    return [value(unit).reshape(len(unit.score), -1) for unit in trace.units]


def _of(each: jax.Array, unit: UnitTrace) -> jax.Array:
    return jnp.sum(each, axis=1) * (1.0 if not isinstance(unit.macs, int) else float(unit.macs))


def activation_norm() -> Objective:
    """``sum_units ||a||_2``, [batch]: what sponge examples ascend.

    Raises:
      ValueError: when called, a network without units.

    Source: Shumailov et al. 2021, section 4.4 (white box, computer vision).
    """

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        squares = [jnp.sum(a * a, axis=1) for a in _activations(output.trace)]
        length = lambda s: jnp.where(s > 0, jnp.sqrt(jnp.where(s > 0, s, 1)), 0)
        return sum((length(s) for s in squares), start=jnp.zeros_like(squares[0]))

    return objective


def activation_density(sigma: jax.typing.ArrayLike = 1e-4) -> Objective:
    """``sum_units macs sum a^2 / (a^2 + sigma)`` over the same with all on, [batch]: a smooth count of what is not 0.

    Args:
      sigma: positive; the smaller, the sharper the count.

    Raises:
      ValueError, TypeError: sigma out of range; when called, a network without units.

    Source: Cinà et al. 2022 (sponge poisoning), eq. 3, there without the weights.
    """
    sigma = _validate.positive("sigma", sigma)

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        units, values = output.trace.units, _activations(output.trace)
        zero = jnp.zeros_like(values[0][:, 0])
        count = sum((_of(a**2 / (a**2 + sigma), unit) for a, unit in zip(values, units)), start=zero)
        return count / sum((_of(jnp.ones_like(a), unit) for a, unit in zip(values, units)), start=zero)

    return objective
