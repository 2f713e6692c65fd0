"""Mixture-of-experts ResNet (Zhang et al., ICCV 2023, Robust Mixture-of-Expert Training for CNNs): one expert an image.

A small CNN, the router, scores the image once; its choice holds for every expert convolution of the trunk.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import macs
from dyn_jax.gates.experts import check_experts, expert_scores
from dyn_jax.networks.blocks import block_plan, shortcut
from dyn_jax.networks.resnet import ResNet
from dyn_jax.nn import DIGITS_MEAN_STD, BatchNorm, Conv, Dense, add_relu, global_mean, inputs, relu, stem
from dyn_jax.nn.normalization import MeanStd
from dyn_jax.occupancy import hard, stochastic
from dyn_jax.types import Occupancy, Output, Trace, UnitTrace

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
ROUTER = ((1, 1, 1), (16, 32, 64))


class ExpertBranch(nn.Module):
    """A basic block's branch whose convolutions are ``sum_e o_e conv_e(x)``.

    One kernel [3, 3, in, expert x width] holds all experts, expert e being a slice of it; they share the norms.
    """

    width: int
    experts: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, o: jax.Array, train: bool = False) -> jax.Array:
        """x [batch, size, size, in], o [batch, expert] -> [batch, size, size, width]."""
        y = relu(BatchNorm(name="bn1")(self._mixed(x, o, self.stride, "conv1"), train))
        return BatchNorm(name="bn2")(self._mixed(y, o, 1, "conv2"), train)

    def _mixed(self, x: jax.Array, o: jax.Array, stride: int, name: str) -> jax.Array:
        y = Conv(self.experts * self.width, 3, stride, 1, name=name)(x)
        y = y.reshape(*y.shape[:3], self.experts, self.width)
        return jnp.einsum("bhwef,be->bhwf", y, o.astype(y.dtype))

    def macs(self, in_features: int, positions: int) -> int:
        """Multiply-adds of one expert."""
        return sum(macs.conv2d(3, width, self.width, positions) for width in (in_features, self.width))


class MoEResNet(nn.Module):
    """Every 3x3 convolution of the blocks is ``sum_e o_e conv_e(x)``; one unit of `experts` elements in the trace.

    Attributes:
      depths, widths: blocks and channels of the stages; the stem has `stem_width` channels.
      experts: E, how many there are; batch normalisation and shortcuts are shared.
      k: how many of them run; their outputs are added.
      router: (blocks, channels) of the stages of the router, a `ResNet` whose classes are the experts.
      bar: see `dyn_jax.gates.experts.expert_scores`.
      normalization: (mean, std) per channel, or None where the images come as they are (as released).
    """

    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int = 64
    experts: int = 2
    k: int = 1
    router: tuple[tuple[int, ...], tuple[int, ...]] = ROUTER
    bar: str = "moves"
    num_classes: int = 10
    normalization: MeanStd | None = None
    stem = "cifar"
    gate_layers = ("router",)

    @nn.compact
    def __call__(self, images: jax.Array, *, occupancy: Occupancy | None = None, train: bool = False) -> Output:
        """Images as in `ResNet` -> `Output`; the unit's score is [batch, expert].

        Default occupancy is ``hard()``, in training `released_choice`.
        """
        x = inputs(images, self.normalization)
        check_experts(self.experts, self.k)
        router = ResNet(*self.router, num_classes=self.experts, normalization=None, scan_from=None, name="router")
        routed = router(x, train=train)
        score = expert_scores(routed.logits, self.k, self.bar)
        how = occupancy or (released_choice if train else hard())
        o = stochastic.apply(how, score, lambda: self.make_rng("gate"))
        x, work = stem(x, self.stem_width, "cifar", train)
        static, cost = routed.trace.static_macs + work, 0
        for spec in block_plan(self.depths, self.widths, "basic", self.stem_width):
            branch = ExpertBranch(spec.width, self.experts, spec.stride, name=spec.name)
            y = branch(x, o, train)
            identity, shared = shortcut(x, spec, f"{spec.name}_downsample", train)
            x = add_relu(identity, y)
            cost, static = cost + branch.macs(spec.in_features, x.shape[1] * x.shape[2]), static + shared
        answer = Dense(self.num_classes, name="linear")(global_mean(x))
        extras = {"kept": jnp.ones_like(score), "weight": jax.nn.softmax(routed.logits), "logits": routed.logits}
        unit = UnitTrace(score, o, cost, name="experts", extras=extras, constant=True)
        return Output(answer, Trace((unit,), static + macs.dense(x.shape[-1], self.num_classes)))


def released_choice(score: jax.Array) -> jax.Array:
    """Value of the step; the derivative is 1 where it is on and 0 elsewhere.

    With ``bar="fixed"`` the released straight-through: the chosen expert's logit gets the gradient by the size of its
    outputs, all others get none.
    """
    on = score >= 0
    return jnp.where(on, 1 + score - jax.lax.stop_gradient(score), 0)


def cifar(depth: int = 18, ratio: float = 0.5, **fields: Any) -> MoEResNet:
    """MoE-ResNet-18 or -34 (else ValueError) for 32x32 images, two experts; any field can be given.

    `ratio` is that of the channels (an expert is as wide as the whole of a network of that ratio); published: 0.5.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth: got {depth}, expected one of {sorted(DEPTHS)}")
    widths = tuple(int(ratio * 64 * 2**stage) for stage in range(4))
    return MoEResNet(**{"depths": DEPTHS[depth], "widths": widths, **fields})


def digits(**fields: Any) -> MoEResNet:
    """The small network of the embedded data: four experts, three stages of one block."""
    sizes = {"depths": (1, 1, 1), "widths": (8, 16, 24), "stem_width": 8, "experts": 4, "router": ((1, 1), (8, 16))}
    return MoEResNet(**{**sizes, "normalization": DIGITS_MEAN_STD, **fields})
