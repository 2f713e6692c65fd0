"""Objectives of routers: what an attack on the choice of experts ascends. The number that run stays what it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.objectives.answers import Objective
from dyn_jax.types import Output, Trace


def _scores(trace: Trace) -> list[jax.Array]:
    scores = [unit.score for unit in trace.units if "kept" in unit.extras]
    if not scores:
        raise ValueError("forward: got a network without units of experts, expected a router (moe-*, vmoe-*)")
    return scores


def expert_load(expert: int = 0) -> Objective:
    """``sum_units mean_tokens min(score_e, 0)``: all tokens to expert e; 0, its largest value, where all choose it.

    Args:
      expert: e, the same in every unit.

    Raises:
      TypeError, ValueError: no integer, or below 0; when called, no such expert, no units of experts, or targets.
    """
    _validate.positive_int("expert", expert, 0)

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        if targets is not None:
            raise ValueError("targets: got some, expected None: an attack on the load has no target class")
        total = jnp.zeros_like(output.logits[:, 0])
        for score in _scores(output.trace):
            if expert >= score.shape[-1]:
                raise ValueError(f"expert: got {expert}, expected one of {score.shape[-1]} experts, from 0")
            own = score[..., expert].reshape(len(score), -1)
            total += jnp.mean(jnp.minimum(own, 0), axis=1)
        return total

    return objective


def other_experts() -> Objective:
    """``-sum_units mean_tokens sum_e max(score_e, 0)``: every token leaves the experts that run now.

    Its largest value is 0, where all logits are equal. Raises as `expert_load`.
    """

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        if targets is not None:
            raise ValueError("targets: got some, expected None: an attack on the routes has no target class")
        sums = (jnp.sum(jnp.maximum(score, 0), axis=-1).reshape(len(score), -1) for score in _scores(output.trace))
        return -sum((jnp.mean(each, axis=1) for each in sums), start=jnp.zeros_like(output.logits[:, 0]))

    return objective
