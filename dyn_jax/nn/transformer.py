"""What vision transformers share: tokens, layer normalisation, attention among the tokens that are there.

Layers carry DeiT's names. Token 0 is the class token; a token's presence is a number in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import _validate, macs
from dyn_jax.nn.layers import Dense
from dyn_jax.nn.normalization import IMAGENET_MEAN_STD, MeanStd, inputs
from dyn_jax.nn.parameter import parameter
from dyn_jax.types import Output, Trace, UnitTrace

EPSILON = 1e-6
deit_init = nn.initializers.truncated_normal(0.02)


class LayerNorm(nn.Module):
    """``(x - mean) / sqrt(var + 1e-6) * scale + bias`` over the last axis."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = parameter(self, "scale", nn.initializers.ones, shape)
        bias = parameter(self, "bias", nn.initializers.zeros, shape)
        return _normalised(x, scale.astype(x.dtype), bias.astype(x.dtype))


@partial(jax.jit, inline=True)
def _normalised(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    lead = (1,) * (x.ndim - 1)
    return centred * jax.lax.rsqrt(variance + EPSILON) * scale.reshape(*lead, -1) + bias.reshape(*lead, -1)


class Tokens(nn.Module):
    """Images -> the class token and one token a patch, each with its position: [batch, 1 + patches, width].

    Attributes:
      width: D.
      patch: side of a patch, pixels; patches do not overlap.
      image_size: height and width of the images: the positions fit one size only.
      positions: how the positions start.
    """

    width: int
    patch: int
    image_size: int
    positions: nn.initializers.Initializer = deit_init

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        _validate.positive_int("image_size", self.image_size)
        if self.image_size % _validate.positive_int("patch", self.patch):
            raise ValueError(f"patch: got {self.patch}, expected a divisor of image_size {self.image_size}")
        if images.shape[1:3] != (self.image_size, self.image_size):
            size = self.image_size
            raise ValueError(f"images: got {images.shape[1]}x{images.shape[2]}, expected {size}x{size}")
        batch, side, p = len(images), self.image_size // self.patch, self.patch
        kernel = parameter(self, "kernel", deit_init, (p, p, images.shape[3], self.width))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.width,))
        first = parameter(self, "cls_token", deit_init, (1, 1, self.width))
        positions = parameter(self, "pos_embed", self.positions, (1, 1 + side * side, self.width))
        # a product, not a strided convolution, whose input gradient is slow on CPU
        patches = images.reshape(batch, side, p, side, p, -1).transpose(0, 1, 3, 2, 4, 5)
        kernel, bias, first, positions = (leaf.astype(images.dtype) for leaf in (kernel, bias, first, positions))
        x = patches.reshape(batch, side * side, -1) @ kernel.reshape(-1, self.width) + bias.reshape(1, 1, -1)
        return jnp.concatenate([jnp.broadcast_to(first, (batch, 1, self.width)), x], axis=1) + positions

    def macs(self, channels: int = 3) -> int:
        """Multiply-adds of an image's patches."""
        return macs.conv2d(self.patch, channels, self.width, (self.image_size // self.patch) ** 2)


def sinusoid(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Fixed positions [1, token, D]: sine (c even) or cosine of ``n / 10000^(2 (c // 2) / D)``, token n, column c."""
    del key
    _, tokens, width = shape
    column = jnp.arange(width)
    angle = jnp.arange(tokens)[:, None] / 10000.0 ** (2 * (column // 2) / width)[None]
    return jnp.where((column % 2 == 0)[None], jnp.sin(angle), jnp.cos(angle))[None].astype(dtype)


def heads_first(x: jax.Array, heads: int) -> jax.Array:
    """[batch, token, D] -> [batch, head, token, D / heads]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


@partial(jax.jit, inline=True)
def among(weights: jax.Array, present: jax.Array) -> jax.Array:
    """``p_ij m_ij / sum_k p_ik m_ik``: softmax weights over all keys made those over the keys that are there.

    p is [batch, head, query, key], m broadcastable to it, in [0, 1]. Where no key is there at all, p itself.
    """
    kept = weights * present
    total = jnp.sum(kept, axis=-1, keepdims=True)
    return jnp.where(total > 0, kept / jnp.where(total > 0, total, 1), weights)


@partial(jax.jit, inline=True)
def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """``softmax(q k^T / sqrt(d))`` of [batch, head, token, d] each: [batch, head, query, key]."""
    return jax.nn.softmax(query @ key.transpose(0, 1, 3, 2) * query.shape[-1] ** -0.5)


@partial(jax.jit, inline=True)
def mix(weights: jax.Array, value: jax.Array) -> jax.Array:
    """``weights @ value``, heads side by side again: [batch, token, D]."""
    y = (weights @ value).transpose(0, 2, 1, 3)
    return y.reshape(*y.shape[:2], -1)


class Attention(nn.Module):
    """Self-attention: [batch, token, D] -> (its projection [batch, token, D], weights [batch, head, query, key])."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`present` [batch, token]: which tokens can be attended to."""
        width = x.shape[-1]
        check_heads(width, self.heads)
        qkv = Dense(3 * width, deit_init, name="qkv")(x)
        query, key, value = (heads_first(part, self.heads) for part in jnp.split(qkv, 3, axis=-1))
        weights = among(attention_weights(query, key), present[:, None, None])
        return Dense(width, deit_init, name="proj")(mix(weights, value)), weights


class Mlp(nn.Module):
    """``fc2(gelu(fc1(x)))`` with the error function's GELU; `hidden` features between."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.nn.gelu(Dense(self.hidden, deit_init, name="fc1")(x), approximate=False)
        return Dense(x.shape[-1], deit_init, name="fc2")(y)


def linear_macs(width: int, hidden: int) -> int:
    """Multiply-adds of one token in a block's linear layers: qkv, proj, fc1, fc2."""
    return 4 * macs.dense(width, width) + 2 * macs.dense(width, hidden)


class VisionTransformer(nn.Module):
    """What the adaptive ones share: sizes, of which the defaults are DeiT-tiny's, the tokens, and what answers.

    Called with images [batch, size, size, 3] in [0, 1], float NHWC, and ``occupancy=``, scores -> values, ``hard()``
    where it is None; ``train=`` changes nothing but that default: there is no batch normalisation and no dropout.
    ValueError, TypeError: wrong rank, size, channels or dtype of the images; an occupancy that changes shape; heads
    that do not divide the width, a patch that does not divide the image, other fields out of range.

    Attributes:
      image_size, patch: pixels; the patch divides the image.
      width, heads, mlp_ratio: of the transformer.
      normalization: (mean, std) per channel, or None where the images come normalised.
    """

    image_size: int = 224
    patch: int = 16
    width: int = 192
    heads: int = 3
    mlp_ratio: int = 4
    num_classes: int = 1000
    normalization: MeanStd | None = IMAGENET_MEAN_STD

    def _embedded(self, images: jax.Array, positions: nn.initializers.Initializer = deit_init) -> tuple[jax.Array, int]:
        """Tokens, and their multiply-adds of one image."""
        check_heads(self.width, self.heads)
        tokens = Tokens(self.width, self.patch, self.image_size, positions, name="tokens")
        return tokens(inputs(images, self.normalization)), tokens.macs()

    def _answer(self, x: jax.Array, units: Sequence[UnitTrace], static_macs: int) -> Output:
        """What the class token says; `static_macs` are those before."""
        logits = Dense(self.num_classes, deit_init, name="head")(LayerNorm(name="norm")(x)[:, 0])
        return Output(logits, Trace(tuple(units), static_macs + macs.dense(self.width, self.num_classes)))


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError unless the heads share the width evenly."""
    _validate.positive_int("width", width)
    if width % _validate.positive_int("heads", heads):
        raise ValueError(f"heads: got {heads}, expected a divisor of width {width}")
