"""ManiDP (Tang et al., CVPR 2021): a residual network whose convolutions keep the channels that the input needs."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import _validate, macs
from dyn_jax.gates.channel import ChannelGate, fan_in_init
from dyn_jax.networks.blocks import BlockSpec, block_plan, cifar_depths, imagenet_fields
from dyn_jax.nn import BatchNorm, Conv, Dense, Projection, add_relu, global_mean, relu, stem
from dyn_jax.nn.normalization import DIGITS_MEAN_STD, IMAGENET_MEAN_STD, MeanStd, inputs
from dyn_jax.occupancy import hard, stochastic
from dyn_jax.types import Occupancy, Output, Trace, UnitTrace

MANIDP_CIFAR_MEAN_STD: MeanStd = (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
_WIDE = 80  # channels from which a gate's inner layer is squeezed by the whole rate


class ManiDPBlock(nn.Module):
    """``a = m1(x) ReLU(BN(conv_a x))``, output ``ReLU(shortcut(x) + m2(a) BN(conv_b a))`` with ``m = o * saliency``.

    Attributes:
      spec: where the block sits, its channels and stride.
      squeeze, gate_init: see `ManiDP`.
      shortcut_norm: batch norm after the 1x1 convolution of a shortcut that changes the shape.
    """

    spec: BlockSpec
    squeeze: int = 2
    shortcut_norm: bool = False
    gate_init: float = 1.0
    winograd: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, occupancy: Occupancy, train: bool
    ) -> tuple[jax.Array, tuple[UnitTrace, UnitTrace], int]:
        """Returns the block's output, the traces of its two gates, and the multiply-adds that always run."""

        def masked(y: jax.Array, gate: ChannelGate, x: jax.Array, cost: Any, dense: int | None = None) -> tuple:
            """`y` times the mask that `gate` makes of `x`, and the trace, `cost` for each channel."""
            saliency, score = gate(x, train)
            o = stochastic.apply(occupancy, score, lambda: self.make_rng("gate"))
            extras = {"value": saliency, "pooled": global_mean(y)}
            unit = UnitTrace(score, o, cost, dense, f"{self.name}_{gate.name}", extras)
            return y * (o * saliency).reshape(saliency.shape[0], 1, 1, -1), unit

        spec, width = self.spec, self.spec.out_features
        conv_a = Conv(width, 3, spec.stride, 1, winograd=self.winograd, name="conv_a")
        conv_b = Conv(width, 3, 1, 1, winograd=self.winograd, name="conv_b")
        hidden = width // (self.squeeze if width >= _WIDE else max(1, self.squeeze // 2))
        gates = [ChannelGate(width, hidden, self.gate_init, name=name) for name in ("mb1", "mb2")]

        a = relu(BatchNorm(name="bn_a")(conv_a(x), train))
        positions = a.shape[1] * a.shape[2]
        a, first = masked(a, gates[0], x, 9 * spec.in_features * positions)
        b = BatchNorm(name="bn_b")(conv_b(a), train)
        inputs_on = jnp.sum(first.occupancy, axis=1, keepdims=True)
        b, second = masked(b, gates[1], a, 9.0 * positions * inputs_on, 9 * positions * width)

        static_macs = gates[0].macs(spec.in_features) + gates[1].macs(width)
        shortcut = x
        if spec.changes_shape:
            static_macs += macs.conv2d(1, spec.in_features, width, positions)
            if self.shortcut_norm:
                shortcut = Projection(width, spec.stride, name="downsample")(x, train)
            else:
                shortcut = Conv(width, 1, spec.stride, name="downsample")(x)
        return add_relu(shortcut, b), (first, second), static_macs


class ManiDP(nn.Module):
    """Both convolutions of every block have each output channel multiplied by ``o * saliency``, o = occupancy(score).

    The score is saliency - threshold (`ChannelGate`). With ``hard()`` the factor is the saliency where it reaches the
    threshold and 0 elsewhere, in training too, as released: gradients pass through kept channels only. Everything is
    evaluated densely, as in the released code. Units: two for each block, one element for each output channel. What
    an element saves: conv_a need not compute a channel that the first gate drops; conv_b need not compute those that
    the second drops nor read those that the first dropped (the authors publish no counter).

    Attributes:
      depths, widths, stem, normalization, winograd: as in `ResNet`; blocks are basic.
      squeeze: the inner layer of a gate has ``channels / squeeze`` units, from 80 channels on, and
        ``channels / max(1, squeeze // 2)`` below.
      shortcut_norm: batch norm in the shortcuts (released ImageNet form) or not (CIFAR form).
      gate_init: scale of the initial weights of the gates' outer layers. The released code has 1 and starts from a
        trained static network; from scratch the digits network then diverges in ten steps, with 0.1 (saliencies near
        1) it does not.

    Source: Tang et al. 2021; the places of the two masks from the released code.
    """

    depths: tuple[int, ...] = (3, 3, 3)
    widths: tuple[int, ...] = (16, 32, 64)
    stem: str = "cifar"
    squeeze: int = 2
    shortcut_norm: bool = False
    gate_init: float = 1.0
    num_classes: int = 10
    normalization: MeanStd | None = MANIDP_CIFAR_MEAN_STD
    winograd: bool = False

    gate_layers = ("mb1", "mb2")  # patterns of the names of the layers that score

    @nn.compact
    def __call__(self, images: jax.Array, *, occupancy: Occupancy | None = None, train: bool = False) -> Output:
        """Images as in `ResNet` -> `Output` whose trace has two units for each block, scores [batch, channel].

        Default occupancy is ``hard()``; `train` sums the saliencies, too.
        """
        x = inputs(images, self.normalization)
        _validate.positive_int("squeeze", self.squeeze)
        occupancy = hard() if occupancy is None else occupancy
        x, static_macs = stem(x, self.widths[0], self.stem, train)
        units = []
        for spec in block_plan(self.depths, self.widths, "basic", self.widths[0]):
            name = f"stage_{spec.stage + 1}_{spec.index}"
            block = ManiDPBlock(spec, self.squeeze, self.shortcut_norm, self.gate_init, self.winograd, name=name)
            x, pair, cost = block(x, occupancy, train)
            units += pair
            static_macs += cost
        logits = Dense(self.num_classes, fan_in_init(), name="classifier")(global_mean(x))
        static_macs += macs.dense(x.shape[-1], self.num_classes)
        return Output(logits, Trace(tuple(units), static_macs))


def cifar(depth: int, **fields: Any) -> ManiDP:
    """ManiDP ResNet-`depth` for 32x32 images, ``depth = 6 n + 2`` (20, 32, 44, 56, 110): 6 n gates."""
    return ManiDP(**{"depths": cifar_depths(depth), **fields})


def imagenet(depth: int, **fields: Any) -> ManiDP:
    """ManiDP ResNet-18 or 34 for 224x224 images; ValueError for another depth (the release has basic blocks only)."""
    given = imagenet_fields(depth)
    if given.pop("block") != "basic":
        raise ValueError(f"depth: got {depth}, expected 18 or 34 (basic blocks)")
    return ManiDP(**{**given, "shortcut_norm": True, "normalization": IMAGENET_MEAN_STD, **fields})


def digits(**fields: Any) -> ManiDP:
    """The small network of the embedded demo: 6 blocks, 12 gates, initialised for training from scratch."""
    defaults = {"depths": (2, 2, 2), "widths": (8, 16, 32), "gate_init": 0.1, "normalization": DIGITS_MEAN_STD}
    return ManiDP(**{**defaults, **fields})
