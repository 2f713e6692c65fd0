"""A-ViT (Yin et al., CVPR 2022): a vision transformer whose tokens halt, each at its own layer."""

from __future__ import annotations

import functools
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.gates.halting import halting_score, halting_weights, with_ponder
from dyn_jax.nn import CIFAR10_MEAN_STD, DIGITS_MEAN_STD, Attention, LayerNorm, Mlp, linear_macs
from dyn_jax.nn.transformer import VisionTransformer
from dyn_jax.occupancy import hard, stochastic
from dyn_jax.types import Occupancy, Output, UnitTrace

CIFAR = {"image_size": 32, "patch": 4, "num_classes": 10, "normalization": CIFAR10_MEAN_STD}
SIZES = {"tiny": (192, 3), "small": (384, 6)}
"""Name -> (width, heads) of DeiT."""


class AViT(VisionTransformer):
    """Layer l: ``x = block(o x)``, ``h_l = sigmoid(gate_scale x[..., 0] - gate_center)``; answer of ``sum_l w_l x_l``.

    ``o = occupancy(score)`` of every token with the score ``1 - epsilon - (h_0 + .. + h_{l-1})``, the weights w of
    `gates.halting`: the rule is SACT's, the first feature of a token is its own gate. A token that is off is 0, cannot
    be attended to and adds nothing to the answer. Units: every layer but the first, which always runs; one element a
    token, element 0 the class token, which halts like any other. The last unit's extras have the `Ponder` cost of
    every token and ``halting``, the h [batch, layer, token] of all layers.

    A token that is off exactly passes its gradient on in the place where it is made 0 (the released code writes
    through ``.data``). Answer and ponder cost do not see it; a loss on the h of halted tokens (`halting_prior`) does.

    Attributes:
      depth: blocks, at least two.
      gate_scale, gate_center: of the halting score; 10, 30 (tiny) and 10, 75 (small) in the released models.
    """

    depth: int = 12
    gate_scale: float = 10.0
    gate_center: float = 30.0

    @nn.compact
    def __call__(self, images: jax.Array, *, occupancy: Occupancy | None = None, train: bool = False) -> Output:
        """Images -> `Output` whose trace has every layer that a token can halt before, scores [batch, token]."""
        del train
        _validate.positive_int("depth", self.depth, 2)
        occupancy = hard() if occupancy is None else occupancy
        x, static_macs = self._embedded(images)
        tokens, products = x.shape[1], 2 * self.width
        per_token = linear_macs(self.width, self.mlp_ratio * self.width)
        o = jnp.ones(x.shape[:2], x.dtype)
        halting: list[jax.Array] = []
        states, units = [], []
        for layer in range(self.depth):
            if layer:
                score = halting_score(functools.reduce(operator.add, halting))
                o = stochastic.apply(occupancy, score, lambda: self.make_rng("gate"))
                cost = per_token + products * jnp.sum(o, axis=1, keepdims=True)
                units.append(UnitTrace(score, o, cost, per_token + products * tokens, f"blocks_{layer}"))
                x = _kept(x, o)
            x = Block(self.heads, self.mlp_ratio * self.width, name=f"blocks_{layer}")(x, o)
            states.append(x)
            halting.append(jax.nn.sigmoid(self.gate_scale * x[..., 0] - self.gate_center))
        units[-1] = with_ponder(units)
        units[-1] = units[-1].replace(extras={**units[-1].extras, "halting": jnp.stack(halting, axis=1)})
        weights = halting_weights(halting[:-1], [unit.occupancy for unit in units])
        x = functools.reduce(operator.add, [w[..., None] * state for w, state in zip(weights, states)])
        return self._answer(x, units, static_macs + tokens * (per_token + products * tokens))


def _kept(x: jax.Array, o: jax.Array) -> jax.Array:
    """``o x``; where o is exactly 0 the value 0 with x's derivative 1."""
    off = (o == 0)[..., None]
    return o[..., None] * x + jnp.where(off, x - jax.lax.stop_gradient(x), 0)


class Block(nn.Module):
    """Pre-norm attention and MLP; what is off is read as 0, and attended to by no one."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, o: jax.Array) -> jax.Array:
        """Tokens [batch, token, D], occupancies [batch, token]; a halted one gets numbers that no one reads."""
        read = lambda name, x: LayerNorm(name=name)(x) * o[..., None]
        x = x + Attention(self.heads, name="attn")(read("norm1", x), o)[0]
        return x + Mlp(self.hidden, name="mlp")(read("norm2", x))


def imagenet(size: str, **fields: Any) -> AViT:
    """A-ViT tiny or small for 224x224 images, with the released gates."""
    width, heads = SIZES[size]
    return AViT(**{"width": width, "heads": heads, "gate_center": 30.0 if size == "tiny" else 75.0, **fields})


def cifar(size: str, **fields: Any) -> AViT:
    """The same for 32x32 images in patches of 4; no weights of this size are published."""
    return imagenet(size, **{**CIFAR, **fields})


def digits(**fields: Any) -> AViT:
    """The small network of the embedded digits; its gates start at h = 0.02, open to a gradient."""
    sizes = {"image_size": 32, "patch": 8, "width": 48, "depth": 6, "heads": 3, "mlp_ratio": 2, "num_classes": 10}
    gates = {"gate_scale": 5.0, "gate_center": 4.0, "normalization": DIGITS_MEAN_STD}
    return AViT(**{**sizes, **gates, **fields})
