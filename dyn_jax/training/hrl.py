"""SkipNet's hybrid reinforcement learning: the gates' policy gradient beside the cross-entropy."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax.types import Output


class HRLParts(NamedTuple):
    """Mean cross-entropy, the policy surrogate, and the return [gate, batch] of every action."""

    cross_entropy: jax.Array
    surrogate: jax.Array
    returns: jax.Array


def hrl_loss(
    output: Output, labels: jax.Array, *, alpha: float = 0.1, rl_weight: float = 0.01, gamma: float = 1.0
) -> tuple[jax.Array, HRLParts]:
    """``mean CE - rl_weight * sum_{gate, example} R log(p(action) + 1e-6)``.

    A skipped block earns ``alpha / gates``. The return of gate k is ``R_k = sum_{j >= k} gamma^(j - k) r_j - CE`` of
    that example, without gradient. Actions are the occupancies of a forward pass under
    `dyn_jax.occupancy.bernoulli`; their probabilities are the sigmoid of the scores.

    Args:
      output: of a network with one element per unit, [batch] scores (SkipNet).
      labels: [batch].
      alpha: reward of skipping everything.
      rl_weight: weight of the surrogate; summed, not averaged, over examples, as released.
      gamma: discount.

    Returns:
      (loss, `HRLParts`).

    Source: SkipNet section 3.3, eq. 3 to 5; the CIFAR training of the released code.
    """
    losses = -jnp.take_along_axis(jax.nn.log_softmax(output.logits), labels[:, None], axis=1)[:, 0]
    scores = jnp.stack([unit.score for unit in output.trace.units])
    actions = jax.lax.stop_gradient(jnp.stack([unit.occupancy for unit in output.trace.units]))
    rewards = alpha / scores.shape[0] * (1 - actions)

    def accumulate(following: jax.Array, reward: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = reward + gamma * following
        return value, value

    _, skipped = jax.lax.scan(accumulate, jnp.zeros_like(losses), rewards, reverse=True)
    returns = jax.lax.stop_gradient(skipped - losses[None, :])
    probability = jax.nn.sigmoid(jnp.where(actions > 0.5, scores, -scores))
    surrogate = -rl_weight * jnp.sum(returns * jnp.log(probability + 1e-6))
    cross_entropy = jnp.mean(losses)
    return cross_entropy + surrogate, HRLParts(cross_entropy, surrogate, returns)
