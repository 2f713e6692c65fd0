"""DynConv (Verelst and Tuytelaars, CVPR 2020): residual blocks run at the positions that a mask unit selects."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import macs
from dyn_jax.gates import SpatialGate, dilation
from dyn_jax.networks.blocks import BlockSpec, block_plan, cifar_depths, imagenet_fields, shortcut
from dyn_jax.nn import Dense, add_relu, execute, global_mean, stem
from dyn_jax.nn.normalization import CIFAR10_MEAN_STD, DIGITS_MEAN_STD, IMAGENET_MEAN_STD, MeanStd, inputs
from dyn_jax.occupancy import gumbel_sigmoid, hard, stochastic
from dyn_jax.types import Occupancy, Output, Trace, UnitTrace


class DynConv(nn.Module):
    """Block: ``ReLU(identity + o * branch(x))`` with ``o = occupancy(score)`` at every output position (eq. 17, 19).

    The mask unit reads the block's input. Every block is gated, the first and the strided ones too. The branch is
    evaluated densely, as in the released code; the dilated mask (where its first convolution must run) counts
    multiply-adds and never changes the logits. Units: every block, one element for each output position.

    Attributes:
      depths, widths, block, stem, normalization, winograd: as in `ResNet` (projection shortcuts).
      temperature: of the Gumbel-sigmoid that training uses when no `occupancy` is given.
      execution: ``dense``, or ``conditional``: what hard gates have off is not evaluated, see `dyn_jax.nn.execute`.
    """

    depths: tuple[int, ...] = (5, 5, 5)
    widths: tuple[int, ...] = (16, 32, 64)
    block: str = "basic"
    stem: str = "cifar"
    num_classes: int = 10
    temperature: float = 1.0
    normalization: MeanStd | None = CIFAR10_MEAN_STD
    winograd: bool = False
    execution: str = "dense"

    gate_layers = ("*_masker",)  # patterns of the names of the layers that score

    @nn.compact
    def __call__(self, images: jax.Array, *, occupancy: Occupancy | None = None, train: bool = False) -> Output:
        """Images as in `ResNet` -> `Output` whose trace has one unit for each block, scores [batch, height, width].

        Default occupancy is ``hard()``, in training ``gumbel_sigmoid(temperature)`` (needs ``rngs={'gate': key}``).
        """
        x = inputs(images, self.normalization)
        if occupancy is None:
            occupancy = gumbel_sigmoid(self.temperature) if train else hard()
        x, static_macs = stem(x, self.widths[0], self.stem, train)
        units = []
        for spec in block_plan(self.depths, self.widths, self.block, self.widths[0]):
            x, unit, cost = self._block(x, spec, occupancy, train)
            units.append(unit)
            static_macs += cost
        logits = Dense(self.num_classes, name="fc")(global_mean(x))
        static_macs += macs.dense(x.shape[-1], self.num_classes)
        return Output(logits, Trace(tuple(units), static_macs))

    def _block(
        self, x: jax.Array, spec: BlockSpec, occupancy: Occupancy, train: bool
    ) -> tuple[jax.Array, UnitTrace, int]:
        """Returns the block's output, its trace, and the multiply-adds of mask unit and projection."""
        gate = SpatialGate(spec.stride, name=f"{spec.name}_masker")
        score = gate(x)
        identity, static_macs = shortcut(x, spec, f"{spec.name}_downsample", train)
        static_macs += gate.macs(spec.in_features, score.shape[1] * score.shape[2])
        o = stochastic.apply(occupancy, score, lambda: self.make_rng("gate"))
        first, rest, stride = spec.branch(parent=None).macs(spec.in_features)
        dilated, cost = dilation(o, occupancy, first, rest, stride)
        run = lambda x: spec.branch(self.winograd, name=spec.name)(x, train)
        skip = execute.skips(self, occupancy, train)
        out = execute.unit(skip, self, o > 0, run, jnp.zeros_like(identity), x)
        x = add_relu(identity, o[..., None] * out)
        extras = {"probability": jax.nn.sigmoid(score), "dilated": dilated}
        return x, UnitTrace(score, o, cost, rest + first * stride**2, spec.name, extras), static_macs


def cifar(depth: int, **fields: Any) -> DynConv:
    """DynConv ResNet-`depth` for 32x32 images, ``depth = 6 n + 2`` (8, 14, 20, 26, 32, ...)."""
    return DynConv(**{"depths": cifar_depths(depth), **fields})


def imagenet(depth: int, width_mult: float = 1.0, **fields: Any) -> DynConv:
    """DynConv ResNet-18, 34, 50, 101 or 152; `width_mult` scales the widths 64, 128, 256, 512."""
    given = {**imagenet_fields(depth), "normalization": IMAGENET_MEAN_STD}
    given["widths"] = tuple(int(width * width_mult) for width in given["widths"])
    return DynConv(**{**given, **fields})


def digits(**fields: Any) -> DynConv:
    """The small network of the embedded demo: 6 blocks."""
    return DynConv(**{"depths": (2, 2, 2), "widths": (8, 16, 32), "normalization": DIGITS_MEAN_STD, **fields})
