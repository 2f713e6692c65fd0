"""AdaViT (Meng et al., CVPR 2022): a vision transformer that chooses tokens, heads and sub-layers in every block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from dyn_jax import _validate, macs
from dyn_jax.networks.avit import CIFAR, SIZES
from dyn_jax.nn import Dense, LayerNorm, Mlp, among, attention_weights, deit_init, heads_first, mix, sinusoid
from dyn_jax.nn.transformer import VisionTransformer
from dyn_jax.occupancy import hard, stochastic
from dyn_jax.types import Occupancy, Output, UnitTrace

KINDS = ("layer", "head", "token")


class AdaViT(VisionTransformer):
    """Block: ``x += l_0 g attn(norm1(x); w)``, ``x += l_1 g mlp(w norm2(x))``.

    l (one for each sub-layer) and w (one a head) are occupancies of linear scores of the class token, g (one a token,
    the class token always 1) of a linear score of ``norm1(x)``; a token that is off in one block may be back in the
    next. A head that is off has no q, k, v, no input to proj, and its columns leave the MLP too. Tokens that are on
    attend to each other, one that is off to itself alone; that mask passes no gradient. Off is an increment of 0.

    Scores are the gate's logit minus that of the kind's threshold. Units of a block, in execution order:
    ``blocks_i_attention`` and ``blocks_i_mlp`` (one element each), ``blocks_i_heads``, ``blocks_i_tokens``; the first
    three only from block `keep_layers` on. What several of them decide together is counted once: qkv with the heads,
    proj and fc2 with the sub-layers, the attention's products and fc1 with the tokens.

    Attributes:
      depth: blocks.
      keep_layers: the first blocks, which have token gates only.
      token_threshold, head_threshold, layer_threshold: probability from which on a gate is open; the released class has
        0.6 for tokens.
    """

    depth: int = 12
    keep_layers: int = 1
    token_threshold: float = 0.6
    head_threshold: float = 0.5
    layer_threshold: float = 0.5

    gate_layers = ("*_select",)  # patterns of the names of the layers that score

    @nn.compact
    def __call__(
        self, images: jax.Array, *, occupancy: Occupancy | Mapping[str, Occupancy] | None = None, train: bool = False
    ) -> Output:
        """Images -> `Output`; scores are [batch, element] or [batch].

        The occupancy is one for all units or one for each of the kinds ``layer``, ``head`` and ``token``; default
        ``hard()``, in training `released` with its noise (needs ``rngs={'gate': key}``).
        """
        _validate.positive_int("depth", self.depth)
        thresholds = _thresholds(self)
        if occupancy is None:
            occupancy = released(self, noise=True) if train else hard()
        each: Mapping[str, Any] = occupancy if isinstance(occupancy, Mapping) else {kind: occupancy for kind in KINDS}
        if sorted(each) != sorted(KINDS):
            raise ValueError(f"occupancy: got the kinds {sorted(each)}, expected {', '.join(KINDS)}")
        x, static = self._embedded(images, sinusoid)
        units: list[UnitTrace] = []

        def choose(features: jax.Array, count: int, name: str, kind: str) -> tuple[jax.Array, jax.Array]:
            """(score, occupancy), [..., count]."""
            score = Dense(count, deit_init, name=name)(features) - thresholds[kind]
            return score, stochastic.apply(each[kind], score, lambda: self.make_rng("gate"))

        for number in range(self.depth):
            name = f"blocks_{number}"
            block = Block(self.heads, self.mlp_ratio * self.width, name=name)
            layer = head = None
            if number >= self.keep_layers:
                layer = choose(x[:, 0], 2, f"{name}_layer_select", "layer")
                head = choose(x[:, 0], self.heads, f"{name}_head_select", "head")
                static += (2 + self.heads) * self.width
            y = block.first(x)
            score, o = choose(y[:, 1:], 1, f"{name}_token_select", "token")
            static += self.width * (x.shape[1] - 1)
            token = (score[..., 0], o[..., 0])
            new, always = _units(name, layer, head, token, self.width, self.mlp_ratio * self.width)
            units += new
            static += always
            x = block(x, y, layer and layer[1], head and head[1], token[1])
        return self._answer(x, units, static)


class Block(nn.Module):
    """Attention and MLP of the chosen tokens, heads and sub-layers, see `AdaViT`."""

    heads: int
    hidden: int

    def setup(self) -> None:
        self.norm1, self.attn = LayerNorm(), Attention(self.heads)
        self.norm2, self.mlp = LayerNorm(), Mlp(self.hidden)

    def first(self, x: jax.Array) -> jax.Array:
        """``norm1(x)``, which the token gates read too."""
        return self.norm1(x)

    def __call__(
        self, x: jax.Array, y: jax.Array, layer: jax.Array | None, head: jax.Array | None, token: jax.Array
    ) -> jax.Array:
        """x and y = norm1(x) [batch, token, D]; layer [batch, 2], head [batch, head], token [batch, token - 1]."""
        width = x.shape[-1]
        on = jnp.concatenate([jnp.ones_like(token[:, :1]), token], axis=1)[..., None]
        columns = jnp.ones_like(x[:, :1])
        if head is not None:
            columns = jnp.repeat(head, width // self.heads, axis=1)[:, None]
        first, second = (1.0, 1.0) if layer is None else (layer[:, :1, None], layer[:, 1:, None])
        x = x + first * on * self.attn(y, columns, on[..., 0])
        return x + second * on * self.mlp(self.norm2(x) * columns)


class Attention(nn.Module):
    """Self-attention among the tokens that are on; one that is off sees itself alone."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, columns: jax.Array, on: jax.Array) -> jax.Array:
        """Tokens [batch, token, D], which columns [batch, 1, D] and tokens [batch, token] are on."""
        width = x.shape[-1]
        query, key, value = (
            heads_first(Dense(width, deit_init, name=name)(x) * columns, self.heads)
            for name in ("query", "key", "value")
        )
        on = jax.lax.stop_gradient(on)
        itself = jnp.eye(on.shape[1], dtype=on.dtype)[None]
        seen = itself + (1 - itself) * on[:, :, None] * on[:, None]
        weights = among(attention_weights(query, key), seen[:, None])
        return Dense(width, deit_init, name="proj")(mix(weights, value) * columns)


Choice = tuple[jax.Array, jax.Array]


def _units(
    name: str, layer: Choice | None, head: Choice | None, token: Choice, width: int, hidden: int
) -> tuple[list[UnitTrace], int]:
    """The units of a block, and the multiply-adds of its class token where nothing but tokens can be off.

    With n tokens, a share h of the heads, sub-layers l: ``l_0 h (4 D^2 n + 2 D n^2) + l_1 (h D M n + D M n)``.
    """
    (_, o), square, wide = token, width * width, macs.dense(width, hidden)
    patches, on = o.shape[1], jnp.sum(o, axis=1, keepdims=True)

    def unit(kind: str, choice: Choice, cost: jax.Array, dense: int) -> UnitTrace:
        score, value = choice
        return UnitTrace(score, value, cost, dense, f"{name}_{kind}", {"probability": jax.nn.sigmoid(score)})

    if layer is None or head is None:
        linear = 4 * square + 2 * wide
        cost = linear + 2 * width * (on + 2)  # n^2 = 1 + (n - 1) (n + 1)
        dense = linear + 2 * width * (patches + 2)
        return [unit("tokens", token, cost, dense)], linear + 2 * width
    attention, mlp = (layer[1][:, i : i + 1] for i in range(2))
    heads = head[1].shape[1]
    share, n, most = jnp.mean(head[1], axis=1, keepdims=True), 1 + on, 1 + patches
    (first, first_on), (last, last_on) = ((layer[0][:, i], layer[1][:, i]) for i in range(2))
    proj = share * square * n + 2 * width * share * n  # and the class token's row of the products
    second = wide * n + wide * share  # and its fc1
    return [
        unit("attention", (first, first_on), proj[:, 0], square * most + 2 * width * most),
        unit("mlp", (last, last_on), second[:, 0], wide * most + wide),
        unit("heads", head, attention * (3 * square // heads) * n, (3 * square // heads) * most),
        unit("tokens", token, share * (attention * 2 * width * n + mlp * wide), 2 * width * most + wide),
    ], 0


def _thresholds(net: AdaViT) -> dict[str, float]:
    """Of each kind, as a logit."""
    shares = {kind: float(_validate.share(f"{kind}_threshold", getattr(net, f"{kind}_threshold"))) for kind in KINDS}
    return {kind: math.log(p / (1 - p)) for kind, p in shares.items()}


@flax.struct.dataclass
class Shifted:
    """An occupancy of the gate's logit, given the score: ``of(score + shift)``, but on where the score is >= 0."""

    shift: float = flax.struct.field(pytree_node=False)

    def __call__(self, score: jax.Array) -> jax.Array:
        soft = jax.nn.sigmoid(score + self.shift)
        return (soft - jax.lax.stop_gradient(soft)) + hard()(score)


@flax.struct.dataclass
class ShiftedGumbel(stochastic.Stochastic):
    """On where ``sigmoid((logit + g1 - g2) / temperature)`` exceeds the threshold, with its derivative."""

    shift: float = flax.struct.field(pytree_node=False)
    temperature: jax.typing.ArrayLike

    def __call__(self, score: jax.Array, *, key: jax.Array) -> jax.Array:
        return self.decide(stochastic.with_noise(score + self.shift, key))

    def decide(self, noisy: jax.Array) -> jax.Array:
        """The value of ``logit + g1 - g2``."""
        return Shifted(self.shift)(noisy / jnp.asarray(self.temperature, noisy.dtype) - self.shift)


def released(net: AdaViT, *, noise: bool = False, temperature: jax.typing.ArrayLike = 5.0) -> dict[str, Occupancy]:
    """The occupancies of the released code: straight-through in evaluation too, by the sigmoid of the logit itself.

    Args:
      net: whose thresholds count.
      noise: as in training: ``sigmoid((logit + g1 - g2) / temperature)`` against the threshold.
      temperature: of the noisy ones.

    Returns:
      For ``occupancy=``: kind of unit -> occupancy.
    """
    shifts = _thresholds(net)
    if noise:
        temperature = _validate.positive("temperature", temperature)
        return {kind: ShiftedGumbel(shift, temperature) for kind, shift in shifts.items()}
    return {kind: Shifted(shift) for kind, shift in shifts.items()}


def imagenet(size: str, **fields: Any) -> AdaViT:
    """AdaViT on DeiT tiny or small for 224x224 images (the paper's trunk is T2T-ViT-19)."""
    width, heads = SIZES[size]
    return AdaViT(**{"width": width, "heads": heads, **fields})


def cifar(size: str, **fields: Any) -> AdaViT:
    """The same for 32x32 images in patches of 4; no weights of this size are published."""
    return imagenet(size, **{**CIFAR, **fields})
