"""Training of AdaViT: cross-entropy, and how much its gates use of heads, sub-layers and tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dyn_jax.training.recipe import mean_cross_entropy
from dyn_jax.types import Output, Trace, UnitTrace


class Part(NamedTuple):
    """A kind of choice: ``on`` [batch, block, element], its gates' ``logit`` (tokens: without the class token)."""

    on: jax.Array
    logit: jax.Array


class Parts(NamedTuple):
    """Heads and sub-layers of the blocks that have such gates, tokens (the class token is always on) of all."""

    head: Part
    layer: Part
    token: Part


@dataclasses.dataclass(frozen=True)
class Usage:
    """What the gates are drawn to, and the signs and weights of the terms; the released classes' defaults."""

    target: float = 0.5  # share that is to be on, of heads, sub-layers and tokens
    minimal: float = 0.1  # share of the tokens below which a block is punished
    diverse: float = 0.1  # weight of every gate's own distance to the target
    entropy: float = -0.1  # weight of its entropy
    weight: float = 2.0  # of all three parts in the loss


USE = Usage(0.0, 0.0, 0.1, 0.1, -2.0)
"""What SlowFormer minimises without the cross-entropy: as much use as there can be."""


def usage_parts(trace: Trace, token_threshold: float = 0.6) -> Parts:
    """The choices of an `AdaViT`; `token_threshold` is the network's. ValueError: a trace of another network."""
    kinds: dict[str, list[UnitTrace]] = {}
    for unit in trace.units:
        kinds.setdefault(unit.name.rpartition("_")[2], []).append(unit)
    if sorted(kinds) != ["attention", "heads", "mlp", "tokens"]:
        raise ValueError(f"trace: got units {', '.join(sorted(kinds)) or 'none'}, expected those of an AdaViT")

    def part(units: list[UnitTrace]) -> Part:
        return Part(jnp.stack([u.occupancy for u in units], axis=1), jnp.stack([u.score for u in units], axis=1))

    attention, mlp, head, token = (part(kinds[kind]) for kind in ("attention", "mlp", "heads", "tokens"))
    layer = Part(*(jnp.stack(both, axis=-1) for both in zip(attention, mlp)))
    first = jnp.ones_like(token.on[..., :1])
    shift = math.log(token_threshold / (1 - token_threshold))
    return Parts(head, layer, Part(jnp.concatenate([first, token.on], axis=-1), token.logit + shift))


class Terms(NamedTuple):
    """The three parts of the loss, a scalar each."""

    head: jax.Array
    layer: jax.Array
    token: jax.Array


def usage_terms(trace: Trace, usage: Usage = Usage(), token_threshold: float = 0.6) -> Terms:
    """``head``, ``layer`` and ``token`` of `usage_loss`, which also says what the arguments are."""
    head, layer, token = usage_parts(trace, token_threshold)
    t = usage.target
    runs = jax.lax.stop_gradient((jnp.sum(layer.on, axis=-1, keepdims=True) > 0.5).astype(head.on.dtype))
    runs = jnp.broadcast_to(runs, head.on.shape)
    mean = lambda axis: jnp.sum(head.on * runs, axis) / (jnp.sum(runs, axis) + 1e-6)
    own = _distance(mean(None), t) + usage.diverse * jnp.mean(_distance(mean(0), t))
    heads = own + usage.entropy * jnp.mean(_entropy(head.logit))
    own = _distance(jnp.mean(layer.on), t) + usage.diverse * jnp.mean(_distance(jnp.mean(layer.on, (0, 2)), t))
    layers = own + usage.entropy * jnp.mean(_entropy(layer.logit))
    few = jax.nn.relu(usage.minimal - jnp.mean(token.on, axis=-1))
    return Terms(heads, layers, (jnp.mean(token.on) - t) ** 2 + jnp.sum(few))


def usage_loss(output: Output, labels: jax.Array, usage: Usage = Usage(), token_threshold: float = 0.6) -> jax.Array:
    """``cross-entropy + weight (head + layer + token)``.

    With m the mean of the gates, t the target: ``head = |m - t| + diverse mean_{block, head} |m_bh - t| + entropy
    mean H(sigmoid(logit))``, blocks whose sub-layers are both off left out of m; ``layer`` alike, all blocks, m_b over
    both sub-layers; ``token = (m - t)^2 + sum_{image, block} max(0, minimal - share of its tokens)``. Means are over
    the batch; the entropy looks at gates without noise. `output` is of an `AdaViT`, so is the `token_threshold`.

    Source: AdaViT section 3.3; the diverse, entropy and minimal terms are the released code's.
    """
    terms = usage_terms(output.trace, usage, token_threshold)
    return mean_cross_entropy(output, labels) + usage.weight * (terms.head + terms.layer + terms.token)


def _distance(mean: jax.Array, target: float) -> jax.Array:
    """``|mean - target|`` with derivative 0 at 0, where means of zeros and ones often are."""
    return (mean - target) * jnp.sign(mean - target)


def _entropy(logit: jax.Array) -> jax.Array:
    p = jnp.clip(jax.nn.sigmoid(logit), 1e-7, 1 - 1e-7)
    return -(p * jnp.log(p) + (1 - p) * jnp.log(1 - p))
