"""Routers: which k of E experts run. A score is the distance of an expert's logit to the bar it has to pass.

The number of experts that run is the same for every input, so the cost is too: what an input changes is *which* run.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax import _validate


def expert_scores(logits: jax.Array, k: int = 1, bar: str = "moves") -> jax.Array:
    """``z_e - z_(k+1)`` for the k largest, ``z_e - z_(k)`` for the others: at least 0 for exactly k of them.

    z_(j) is the j-th largest; for k = 1 a score is the logit minus the best other. Of equal logits the first count, as
    the larger ones: the others' scores are then just below 0.

    Args:
      logits: [..., expert].
      k: how many run, below the number of experts.
      bar: ``moves``: the derivative is that of the difference; ``fixed``: the bar is a constant of it.

    Raises:
      ValueError, TypeError: one expert only; k no integer in [1, experts - 1]; unknown `bar`.
    """
    check_experts(logits.shape[-1], k)
    _validate.choice("bar", bar, ("moves", "fixed"))
    ranked, index = jax.lax.top_k(logits, k + 1)
    chosen = jnp.any(index[..., :k, None] == jnp.arange(logits.shape[-1]).reshape((1,) * logits.ndim + (-1,)), axis=-2)
    ranked = jax.lax.stop_gradient(ranked) if bar == "fixed" else ranked
    score = logits - jnp.where(chosen, ranked[..., k:], ranked[..., k - 1 : k])
    below = -0.5 * jnp.finfo(logits.dtype).eps
    return jnp.where(chosen | (score < 0), score, below)


def check_experts(experts: int, k: int) -> None:
    """Raises ValueError or TypeError unless there are at least two experts and k of them is a choice."""
    if experts < 2:
        raise ValueError(f"experts: got {experts}, expected at least 2: a router of one expert has no choice")
    if _validate.positive_int("k", k) >= experts:
        raise ValueError(f"k: got {k}, expected at most {experts - 1}: fewer than the {experts} experts")


def capacity(tokens: int, k: int, experts: int, factor: float) -> int:
    """``ceil(tokens k factor / experts)``, raised to a multiple of 4: tokens that an expert takes of a group."""
    each = -int(-tokens * k * factor // experts)
    return each + -each % 4


def room(probability: jax.Array, on: jax.Array, k: int, limit: int, priority: bool = False) -> jax.Array:
    """[group, token, expert], 1 where the expert has room for the token among those that chose it.

    First choices come before second ones; within a choice the order is that of the tokens, or with `priority` that of
    their largest probability. A token that finds no room is not counted elsewhere.

    Args:
      probability: [group, token, expert], the largest first.
      on: like it, 1 for a token's k experts.
      limit: tokens that an expert takes, see `capacity`.

    Source: V-MoE (Riquelme et al. 2021), section 2.2 and 4 (batch prioritised routing); released code.
    """
    score = jnp.where(on > 0, probability, -1)
    index = jax.lax.top_k(score, k)[1]  # [group, token, k]
    order = jnp.arange(probability.shape[1])[None]
    order = jnp.argsort(-jnp.max(probability, axis=2), axis=1) if priority else jnp.broadcast_to(order, index.shape[:2])
    choices = jax.nn.one_hot(index, on.shape[-1], dtype=jnp.int32)  # [group, token, k, expert]
    queue = jnp.take_along_axis(choices, order[:, :, None, None], axis=1)
    queue = jnp.moveaxis(queue, 2, 1)  # [group, k, token, expert]
    flat = queue.reshape(queue.shape[0], -1, queue.shape[-1])
    place = (jnp.cumsum(flat, axis=1) * flat).reshape(queue.shape)
    fits = jnp.any((place > 0) & (place <= limit), axis=1)  # a token chooses an expert once
    back = jnp.argsort(order, axis=1)
    return jnp.take_along_axis(fits, back[:, :, None], axis=1).astype(probability.dtype)


class Balance(NamedTuple):
    """Losses that spread tokens over experts, each [group]."""

    importance: jax.Array
    gshard: jax.Array


def balance_losses(probability: jax.Array) -> Balance:
    """Importance ``(std / mean)^2`` of the experts' summed probabilities, and GShard's ``E^2 mean_e(rate_e p_e)``.

    From probabilities [group, token, expert]; rate_e is the share of tokens whose largest is e, p_e the mean of e.

    Source: Shazeer et al. 2017, eq. 7; Lepikhin et al. 2021, algorithm 1; as in V-MoE's released code.
    """
    total = jnp.sum(probability, axis=1)
    importance = (jnp.std(total, axis=1) / jnp.mean(total, axis=1)) ** 2
    experts = probability.shape[-1]
    first = jax.nn.one_hot(jnp.argmax(probability, axis=-1), experts, dtype=probability.dtype)
    rate, mean = jnp.mean(first, axis=1), jnp.mean(probability, axis=1)
    return Balance(importance, experts**2 * jnp.mean(rate * mean, axis=-1))


def load_loss(logits: jax.Array, noisy: jax.Array, k: int, deviation: jax.typing.ArrayLike) -> jax.Array:
    """[group], squared coefficient of variation of the expected load under the router's noise.

    ``p_e = 1 - Phi((z'_(k) - z_e) / deviation)`` with z'_(k) the k-th largest of the noisy logits.

    Args:
      logits, noisy: [group, token, expert], without and with the noise.
      deviation: of the noise; V-MoE's is its ``noise_std`` divided by the number of experts.

    Source: Shazeer et al. 2017, eq. 8 to 11, as in V-MoE's released code.
    """
    bar = jax.lax.top_k(noisy, k)[0][..., -1:]
    load = jnp.mean(1 - jax.scipy.stats.norm.cdf((bar - logits) / deviation), axis=1)
    return (jnp.std(load, axis=1) / jnp.mean(load, axis=1)) ** 2
