"""Measures of routers: which experts were chosen, and how evenly. Units of experts have scores [batch, ..., expert]."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax.metrics.traces import same_units
from dyn_jax.types import Trace, UnitTrace


def expert_units(trace: Trace) -> list[UnitTrace]:
    """The units of a trace whose elements are experts; ValueError where there are none."""
    units = [unit for unit in trace.units if "kept" in unit.extras]
    if not units:
        raise ValueError("trace: got no units of experts, expected those of a network with a router (moe-*, vmoe-*)")
    return units


def ran(unit: UnitTrace) -> jax.Array:
    """[batch, ..., expert] bool: the expert was chosen and had room."""
    return unit.on & (unit.extras["kept"] >= 0.5)


def expert_iou(before: Trace, after: Trace, *, dropped: str = "same") -> jax.Array:
    """[unit], intersection over union of the experts that ran, mean over tokens and images: 1 where nothing changed.

    Args:
      before, after: traces of the clean and the adversarial batch.
      dropped: a token that ran no expert before and after: ``same`` counts 1; ``none`` counts 0, as released, so that
        an unchanged image with dropped tokens scores below 1.

    Source: V-MoE's released code for adversarial attacks ("routing change" is one minus this).
    """
    both = expert_units(before), expert_units(after)
    same_units(*both)
    if dropped not in ("same", "none"):
        raise ValueError(f"dropped: got {dropped!r}, expected 'same' or 'none'")

    def of(old: UnitTrace, new: UnitTrace) -> jax.Array:
        a, b = ran(old), ran(new)
        both, either = jnp.sum(a & b, axis=-1), jnp.sum(a | b, axis=-1)
        return jnp.mean(jnp.where(either > 0, both / jnp.maximum(either, 1), float(dropped == "same")))

    return jnp.stack([of(*pair) for pair in zip(*both)])


def expert_load(trace: Trace) -> list[jax.Array]:
    """[expert] for every unit: share of its executions that each expert gets, over tokens and batch; sums to 1."""

    def of(unit: UnitTrace) -> jax.Array:
        count = jnp.sum(ran(unit).reshape(-1, unit.score.shape[-1]), axis=0)
        return count / jnp.maximum(jnp.sum(count), 1)

    return [of(unit) for unit in expert_units(trace)]


def load_imbalance(trace: Trace) -> jax.Array:
    """[unit], standard deviation over mean of the experts' load: 0 is even, ``sqrt(E / k - 1)`` all to the same k.

    NaN where none ran.
    """
    return jnp.stack([jnp.std(load) / jnp.mean(load) for load in expert_load(trace)])
