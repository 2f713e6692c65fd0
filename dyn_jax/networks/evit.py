"""EViT (Liang et al., ICLR 2022): a vision transformer that keeps, in some blocks, the tokens most attended to."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import macs
from dyn_jax.gates.top_k import top_k_score
from dyn_jax.networks.avit import CIFAR, SIZES
from dyn_jax.nn import Attention, LayerNorm, Mlp
from dyn_jax.nn.transformer import VisionTransformer
from dyn_jax.occupancy import hard, stochastic
from dyn_jax.types import Occupancy, Output, UnitTrace


class EViT(VisionTransformer):
    """Block that drops: ``x += attn(x)``; ``s`` = mean over heads of the class token's attention; ``x += mlp(x)``.

    Of n tokens beside the class token the ``ceil(keep n)`` of largest s stay, for the MLP and all blocks behind. Unit:
    the tokens of a block that drops, one element for each but the class token, score ``s - s_(k)``
    (`gates.top_k_score`); presence is the product of a token's occupancies so far. What is gone cannot be attended to
    and comes back in no later block. The number of elements that are on is fixed, so is the cost: `UnitTrace.constant`.

    Attributes:
      keep: share of the tokens that each block keeps, or how many (an integer above 1); 1: all, no unit.
      fuse: a block that drops appends one token, the sum of the dropped ones with weights s; it competes as others do.
    """

    keep: tuple[float | int, ...] = (1, 1, 1, 0.7, 1, 1, 0.7, 1, 1, 0.7, 1, 1)
    fuse: bool = False

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.keep)

    @nn.compact
    def __call__(self, images: jax.Array, *, occupancy: Occupancy | None = None, train: bool = False) -> Output:
        """Images -> `Output` whose trace has every block that drops, scores [batch, token]."""
        del train
        if not self.keep or not all(0 < share <= 1 or (isinstance(share, int) and share > 1) for share in self.keep):
            raise ValueError(f"keep: got {self.keep}, expected a share in (0, 1] or a number of tokens for each block")
        occupancy = hard() if occupancy is None else occupancy
        x, embedding = self._embedded(images)
        present = jnp.ones(x.shape[:2], x.dtype)
        hidden = self.mlp_ratio * self.width
        static_macs, fixed = costs(self.keep, x.shape[1], self.fuse, self.width, hidden)
        units: list[UnitTrace] = []
        for number, share in enumerate(self.keep):
            block = Block(self.heads, hidden, name=f"blocks_{number}")
            x, weights = block.attend(x, present)
            if share != 1:
                k, cost, dense = fixed[len(units)]
                s = jnp.mean(weights[:, :, 0, 1:], axis=1)
                score = top_k_score(s, k)
                o = stochastic.apply(occupancy, score, lambda: self.make_rng("gate"))
                units.append(UnitTrace(score, o, cost, dense, f"blocks_{number}", constant=True))
                x, present = self._dropped(x, present, o, s)
            x = block.feed(x)
        return self._answer(x, units, embedding + static_macs)

    def _dropped(self, x: jax.Array, present: jax.Array, o: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens, a fused one behind where there shall be one, and the presence of each."""
        first, before = present[:, :1], present[:, 1:]
        after = before * o
        if not self.fuse:
            return x, jnp.concatenate([first, after], axis=1)
        fused = jnp.sum(((before - after) * s)[..., None] * x[:, 1:], axis=1, keepdims=True)
        return jnp.concatenate([x, fused], axis=1), jnp.concatenate([first, after, jnp.ones_like(first)], axis=1)


class Block(nn.Module):
    """Pre-norm attention and MLP, as two steps: tokens are dropped between them."""

    heads: int
    hidden: int

    def setup(self) -> None:
        self.norm1, self.attn = LayerNorm(), Attention(self.heads)
        self.norm2, self.mlp = LayerNorm(), Mlp(self.hidden)

    def attend(self, x: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``x + attn(norm1(x))`` among the tokens that are there, and the weights of the attention."""
        y, weights = self.attn(self.norm1(x), present)
        return x + y, weights

    def feed(self, x: jax.Array) -> jax.Array:
        """``x + mlp(norm2(x))``."""
        return x + self.mlp(self.norm2(x))


def costs(
    keep: tuple[float | int, ...], tokens: int, fuse: bool, width: int, hidden: int
) -> tuple[int, list[tuple[int, int, int]]]:
    """Multiply-adds of the blocks: what always runs, and (k, an element that is on, one of the dense network) a unit.

    What a token costs between its selection and the next one belongs to the unit that selected it: a product of m
    tokens with each other of which c belong to none, ``m^2 = c^2 + k (k + 2 c)``.
    """
    k = elements = static = 0
    others, units = tokens, []

    def book(linear: int, products: int) -> int:
        if units:
            units[-1][1] += linear + products * (k + 2 * others)
            units[-1][2] += linear + products * (elements + 2 * others)
        return others * linear + products * others**2

    for share in keep:
        static += book(4 * macs.dense(width, width), 2 * width)
        if share != 1:
            there = k + others - 1
            k = int(share) if share > 1 else math.ceil(share * there)
            if k > there:
                raise ValueError(f"keep: got {k} tokens in {keep}, expected at most {there}, that are there")
            elements, others = elements + others - 1, 1 + fuse
            units.append([k, 0, 0])
        static += book(2 * macs.dense(width, hidden), 0)
    return static, [(unit[0], unit[1], unit[2]) for unit in units]


def imagenet(size: str, fuse: bool = False, **fields: Any) -> EViT:
    """EViT tiny or small for 224x224 images: blocks 3, 6 and 9 keep 0.7 of the tokens."""
    width, heads = SIZES[size]
    return EViT(**{"width": width, "heads": heads, "fuse": fuse, **fields})


def cifar(size: str, **fields: Any) -> EViT:
    """The same for 32x32 images in patches of 4; no weights of this size are published."""
    return imagenet(size, **{**CIFAR, **fields})
