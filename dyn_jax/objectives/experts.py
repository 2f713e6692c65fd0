"""Objectives of routers: what an attack on the choice of experts ascends. The number that run stays what it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.objectives.answers import Objective, cross_entropy, without_targets
from dyn_jax.types import Output, Trace, UnitTrace


def _routers(trace: Trace) -> list[UnitTrace]:
    routers = [unit for unit in trace.units if "kept" in unit.extras]
    if not routers:
        raise ValueError("forward: got a network without units of experts, expected a router (moe-*, vmoe-*)")
    return routers


def expert_load(expert: int = 0) -> Objective:
    """``sum_units mean_tokens min(score_e, 0)``: all tokens to expert e; 0, its largest value, where all choose it.

    Args:
      expert: e, the same in every unit.

    Raises:
      TypeError, ValueError: no integer, or below 0; when called, no such expert, no units of experts, or targets.
    """
    _validate.positive_int("expert", expert, 0)

    def value(output: Output, labels: jax.Array) -> jax.Array:
        total = jnp.zeros_like(output.logits[:, 0])
        for score in (unit.score for unit in _routers(output.trace)):
            if expert >= score.shape[-1]:
                raise ValueError(f"expert: got {expert}, expected one of {score.shape[-1]} experts, from 0")
            own = score[..., expert].reshape(len(score), -1)
            total += jnp.mean(jnp.minimum(own, 0), axis=1)
        return total

    return without_targets(value, "an attack on the load has no target class")


def other_experts() -> Objective:
    """``-sum_units mean_tokens sum_e max(score_e, 0)``: every token leaves the experts that run now.

    Its largest value is 0, where all logits are equal. Raises as `expert_load`.
    """

    def value(output: Output, labels: jax.Array) -> jax.Array:
        scores = (unit.score for unit in _routers(output.trace))
        sums = (jnp.sum(jnp.maximum(score, 0), axis=-1).reshape(len(score), -1) for score in scores)
        return -sum((jnp.mean(each, axis=1) for each in sums), start=jnp.zeros_like(output.logits[:, 0]))

    return without_targets(value, "an attack on the routes has no target class")


def router_target(experts: int | None = None) -> Objective:
    """Cross-entropy of the router's logits against expert ``label mod experts``, of routers that choose once an image.

    Robust-MoE-CNN trains its router on it; ascended, it misleads a router that was.

    Args:
      experts: E; default all that the router has.

    Raises:
      TypeError, ValueError: no integer in [2, experts]; when called, no units of experts, units that choose for every
        token, or targets.

    Source: Zhang et al. 2023, section 4, and its released code (there with weight 6 beside the cross-entropy).
    """
    if experts is not None:
        _validate.positive_int("experts", experts, 2)

    def value(output: Output, labels: jax.Array) -> jax.Array:
        total = jnp.zeros_like(output.logits[:, 0])
        for logits in (unit.extras["logits"] for unit in _routers(output.trace)):
            if logits.ndim != 2:
                raise ValueError(
                    f"forward: got a router's logits {logits.shape}, expected [batch, expert]: one an image"
                )
            if experts is not None and experts > logits.shape[1]:
                raise ValueError(f"experts: got {experts}, expected at most {logits.shape[1]}, the router's")
            total += cross_entropy(Output(logits), labels % (experts or logits.shape[1]), None)
        return total

    return without_targets(value, "an attack on the router has its own target")
