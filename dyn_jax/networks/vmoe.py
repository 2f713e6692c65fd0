"""V-MoE (Riquelme et al., NeurIPS 2021): a vision transformer whose MLPs are experts, some of which run for each token.

Layers carry the released names. Pixels come in [0, 1]; the network scales them to [-1, 1], as released.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import _validate, macs
from dyn_jax.gates import experts as router
from dyn_jax.nn.layers import Dense
from dyn_jax.nn.normalization import DIGITS_MEAN_STD, MeanStd, inputs
from dyn_jax.nn.parameter import parameter
from dyn_jax.nn.transformer import LayerNorm
from dyn_jax.occupancy import hard, stochastic
from dyn_jax.types import Occupancy, Output, Trace, UnitTrace

HALF_MEAN_STD: MeanStd = ((0.5,) * 3, (0.5,) * 3)
FORMS: dict[str, dict[str, Any]] = {
    "s32": {"patch": 32, "width": 512, "depth": 8, "heads": 8, "mlp_width": 2048, "moe_layers": (5, 7)},
    "b32": {"patch": 32, "width": 768, "depth": 12, "heads": 12, "mlp_width": 3072, "moe_layers": (9, 11)},
    "b16": {"patch": 16, "width": 768, "depth": 12, "heads": 12, "mlp_width": 3072, "moe_layers": (9, 11)},
}
"""Sizes of V-MoE's table; experts stand in the last two odd blocks ("last two")."""


_init = nn.initializers.lecun_normal()
_dense = partial(Dense, kernel_init=_init)


class _General(nn.Module):
    """`Dense` over the last `axes` axes: kernel [*in, *features], bias [*features]."""

    features: tuple[int, ...]
    axes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        into = x.shape[-self.axes :]
        init = lambda key, shape: _init(key, (math.prod(into), math.prod(self.features))).reshape(shape)
        kernel = parameter(self, "kernel", init, (*into, *self.features))
        bias = parameter(self, "bias", nn.initializers.zeros, self.features)
        y = jnp.tensordot(x, kernel, self.axes)
        return y + jnp.broadcast_to(bias, y.shape)


class Attention(nn.Module):
    """Softmax attention of all tokens to all; kernels [width, head, width / heads]."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        shape = (self.heads, width // self.heads)
        query, key, value = (_General(shape, name=name)(x) for name in ("query", "key", "value"))
        weight = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", query, key) * shape[1] ** -0.5)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weight, value)
        return _General((width,), 2, name="out")(mixed)


class _Experts(nn.Module):
    """One linear layer for each expert: kernel [expert, in, features], bias [expert, features]."""

    features: int
    experts: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, token, 1 or expert, in] -> [batch, token, expert, features]."""
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=(0,))
        kernel = parameter(self, "kernel", init, (self.experts, x.shape[-1], self.features))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.experts, self.features))
        every = jnp.broadcast_to(x, (*x.shape[:2], self.experts, x.shape[-1]))
        return jnp.einsum("ntei,eif->ntef", every, kernel) + bias[None, None]


class Mlp(nn.Module):
    """Two linear layers with a GELU (tanh form) between them, `linear` making them."""

    hidden: int
    linear: Callable[..., nn.Module] = _dense

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, second = self.linear(self.hidden, name="Dense_0"), self.linear(x.shape[-1], name="Dense_1")
        return second(nn.gelu(first(x)))


class _Router(nn.Module):
    experts: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _dense(self.experts, use_bias=False, name="dense")(x)


class Moe(nn.Module):
    """``sum_e p_e o_e kept_e MLP_e(x)`` of every token; p is the softmax over all experts.

    Attributes as of `VMoE`.
    """

    hidden: int
    experts: int
    k: int
    routing: str
    capacity_factor: float | None
    group_size: int | None
    bar: str

    @nn.compact
    def __call__(self, x: jax.Array, occupancy: Any, name: str) -> tuple[jax.Array, UnitTrace]:
        """[batch, token, width] -> the same, and the unit whose score is [batch, token, expert]."""
        logits = _Router(self.experts, name="Router")(x)
        probability = jax.nn.softmax(logits)
        cost = 2 * macs.dense(x.shape[-1], self.hidden)
        tokens = x.shape[0] * x.shape[1]
        group = self._group(tokens)
        grouped = lambda v: v.reshape(tokens // group, -1, self.experts)
        if self.routing == "expert_choice":
            score = self._expert_choice(grouped(probability)).reshape(logits.shape)
        else:
            score = router.expert_scores(logits, self.k, self.bar)
        o = stochastic.apply(occupancy, score, lambda: self.make_rng("gate"))
        kept = jnp.ones_like(score)
        if self.capacity_factor is not None and self.routing != "expert_choice":
            limit = router.capacity(group, self.k, self.experts, self.capacity_factor)
            on = (jax.lax.stop_gradient(score) >= 0).astype(score.dtype)
            kept = router.room(grouped(probability), grouped(on), self.k, limit, self.routing == "priority")
            kept = jax.lax.stop_gradient(kept.reshape(score.shape))
        weight = probability * o * kept
        mlps = Mlp(self.hidden, partial(_Experts, experts=self.experts), name="Mlp")
        y = jnp.einsum("nte,ntef->ntf", weight, mlps(x[:, :, None]))
        extras = {"kept": kept, "weight": probability, "logits": logits}
        fixed = self.capacity_factor is None or self.routing == "expert_choice"
        unit = UnitTrace(score, o, cost if fixed else cost * kept, cost, name, extras, constant=fixed)
        return y, unit

    def _group(self, tokens: int) -> int:
        size = tokens if self.group_size is None or self.is_initializing() else self.group_size
        if tokens % size:
            raise ValueError(f"group_size: got {size}, expected a divisor of the batch's {tokens} tokens")
        return size

    def _expert_choice(self, probability: jax.Array) -> jax.Array:
        """Scores [group, token, expert] by which every expert takes its tokens of largest probability."""
        tokens = probability.shape[1]
        limit = router.capacity(tokens, 1, self.experts, self.capacity_factor or 1.0)
        if limit >= tokens:  # all of them, and no other to compare with
            return probability
        by_expert = jnp.moveaxis(probability, 2, 1)
        return jnp.moveaxis(router.expert_scores(by_expert, limit, self.bar), 1, 2)


class _Block(nn.Module):
    heads: int
    mlp_width: int
    moe: dict[str, Any] | None

    @nn.compact
    def __call__(self, x: jax.Array, occupancy: Any, name: str) -> tuple[jax.Array, UnitTrace | None]:
        x = x + Attention(self.heads, name="SelfAttention")(LayerNorm(name="LayerNorm_0")(x))
        y, unit = LayerNorm(name="LayerNorm_1")(x), None
        if self.moe is None:
            return x + Mlp(self.mlp_width, name="Mlp")(y), None
        y, unit = Moe(self.mlp_width, **self.moe, name="Moe")(y, occupancy, name)
        return x + y, unit


class _PositionEmbedding(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + parameter(self, "pos_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))


class _Encoder(nn.Module):
    depth: int
    heads: int
    mlp_width: int
    moe_layers: tuple[int, ...]
    moe: dict[str, Any]

    @nn.compact
    def __call__(self, x: jax.Array, occupancy: Any) -> tuple[jax.Array, list[UnitTrace]]:
        x, units = _PositionEmbedding(name="posembed_input")(x), []
        for i in range(self.depth):
            name = f"encoderblock_{i}"
            moe = self.moe if i in self.moe_layers else None
            x, unit = _Block(self.heads, self.mlp_width, moe, name=name)(x, occupancy, name)
            units += [] if unit is None else [unit]
        return LayerNorm(name="encoder_norm")(x), units


class VMoE(nn.Module):
    """A ViT with a class token; in some blocks the MLP is one of `experts`, `k` of them for every token.

    With a capacity the tokens of a group compete, so that an image's answer depends on the others of its batch; the
    default is none. Expert choice always competes.

    Attributes:
      patch, width, depth, heads, mlp_width: of the transformer.
      moe_layers: blocks, from 0, whose MLP is a mixture.
      experts, k: how many there are, and how many run for a token.
      routing: ``token``: a token's k largest logits; ``priority``: the same, tokens of largest probability served first
        (batch prioritised routing); ``expert_choice``: every expert takes ``tokens capacity_factor / experts`` tokens.
      capacity_factor: an expert takes at most ``tokens k capacity_factor / experts`` tokens of a group (raised to a
        multiple of 4); None: as many as come (expert choice: 1).
      group_size: tokens of a group, in the order (image, token); None: the batch.
      bar: what the gradient makes of the bar in a score, see `dyn_jax.gates.experts.expert_scores`.
      image_size: height and width of the images: the position embedding fits one size only.
      normalization: (mean, std) per channel, or None where the images come normalised.
    """

    patch: int = 4
    width: int = 48
    depth: int = 4
    heads: int = 3
    mlp_width: int = 96
    moe_layers: tuple[int, ...] = (1, 3)
    experts: int = 4
    k: int = 2
    routing: str = "token"
    capacity_factor: float | None = None
    group_size: int | None = None
    bar: str = "moves"
    num_classes: int = 10
    image_size: int = 32
    normalization: MeanStd | None = HALF_MEAN_STD

    gate_layers = ("Router",)

    @nn.compact
    def __call__(self, images: jax.Array, *, occupancy: Occupancy | None = None, train: bool = False) -> Output:
        """Images as in `VisionTransformer` -> `Output`: a unit for each mixture, scores [batch, token, expert].

        Default occupancy is ``hard()``: the router learns through the weights p, as released.

        Raises:
          ValueError, TypeError: see `VisionTransformer`; a router of one expert, k not below the experts; an unknown
            routing; a mixture in a block that does not exist; groups that do not divide the tokens.
        """
        x = inputs(images, self.normalization, self.image_size)
        self._check()
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, strides=size, padding="VALID", name="embedding")(x)
        x = x.reshape(len(x), -1, self.width)
        start = parameter(self, "cls", nn.initializers.zeros, (1, 1, self.width))
        start = jnp.broadcast_to(start, (len(x), 1, self.width))
        x = jnp.concatenate([start, x], axis=1)
        options = ("experts", "k", "routing", "capacity_factor", "group_size", "bar")
        moe = {name: getattr(self, name) for name in options}
        encoder = _Encoder(self.depth, self.heads, self.mlp_width, self.moe_layers, moe, name="Encoder")
        x, units = encoder(x, occupancy or hard())
        logits = _dense(self.num_classes, name="head")(x[:, 0])
        return Output(logits, Trace(tuple(units), self._static(x.shape[1])))

    def _check(self) -> None:
        if self.image_size % self.patch:
            raise ValueError(f"image_size: got {self.image_size}, expected a multiple of the patch, {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"heads: got {self.heads}, expected a divisor of the width, {self.width}")
        router.check_experts(self.experts, self.k)
        _validate.choice("routing", self.routing, ("token", "priority", "expert_choice"))
        if not self.moe_layers or not set(self.moe_layers) <= set(range(self.depth)):
            raise ValueError(f"moe_layers: got {self.moe_layers}, expected blocks in [0, {self.depth - 1}]")
        if self.capacity_factor is not None:
            _validate.positive("capacity_factor", self.capacity_factor)
        if self.group_size is not None:
            _validate.positive_int("group_size", self.group_size)

    def _static(self, tokens: int) -> int:
        """Multiply-adds of one image without the experts."""
        width = self.width
        attention = 4 * tokens * macs.dense(width, width) + 2 * tokens * tokens * width
        mixtures = len(set(self.moe_layers))
        mlps = (self.depth - mixtures) * tokens * 2 * macs.dense(width, self.mlp_width)
        routers = mixtures * tokens * macs.dense(width, self.experts)
        embedding = macs.conv2d(self.patch, 3, width, tokens - 1)
        return embedding + self.depth * attention + mlps + routers + macs.dense(width, self.num_classes)


def imagenet(form: str, **fields: Any) -> VMoE:
    """V-MoE-``s32``, ``b32`` or ``b16`` (else ValueError) for 224x224 images: two of 32 experts for a token."""
    sizes = FORMS[_validate.choice("form", form, FORMS)]
    return VMoE(**{**sizes, "experts": 32, "num_classes": 1000, "image_size": 224, **fields})


def digits(**fields: Any) -> VMoE:
    """The small network of the embedded data: patches of 8 pixels, four experts in two of four blocks, one a token."""
    sizes = {"patch": 8, "width": 40, "heads": 4, "mlp_width": 64, "k": 1}
    return VMoE(**{**sizes, "normalization": DIGITS_MEAN_STD, **fields})
