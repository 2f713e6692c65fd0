"""Static ResNets whose activations are the units: ``relu(x) = hard(x) x``, and a zero is not multiplied.

The weights are those of `dyn_jax.networks.resnet`; so are the logits. What depends on the input is the work on an
accelerator that skips zeros: the number of multiply-adds that read a non-zero activation.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from dyn_jax import _validate, macs
from dyn_jax.networks.blocks import BlockSpec, block_plan, cifar_depths, shortcut
from dyn_jax.nn import IMAGENET_MEAN_STD, BasicBranch, BatchNorm, Conv, Dense, global_mean, inputs
from dyn_jax.nn.normalization import MeanStd
from dyn_jax.occupancy import hard, stochastic
from dyn_jax.types import Occupancy, Output, Trace, UnitTrace


class SparseResNet(nn.Module):
    """`ResNet` for 32x32 images; every ReLU but the last is ``occupancy(x) x``, a unit of [height, width, channel].

    An element costs the multiply-adds of the convolutions that read it (those on the padding are shared out evenly);
    the first convolution, which reads pixels, and the last layer, which reads means, are static. With everything on
    the cost is that of `ResNet`. At hard occupancy the gradient is that of the ReLU.

    Attributes:
      depths, widths, shortcut, num_classes, normalization: see `ResNet`.
    """

    depths: tuple[int, ...] = (5, 5, 5)
    widths: tuple[int, ...] = (16, 32, 64)
    shortcut: str = "A"
    num_classes: int = 10
    normalization: MeanStd | None = IMAGENET_MEAN_STD
    stem = "cifar"

    @nn.compact
    def __call__(self, images: jax.Array, *, occupancy: Occupancy | None = None, train: bool = False) -> Output:
        """Images as in `ResNet` -> `Output`; scores are the inputs of the ReLUs, [batch, height, width, channel].

        Default occupancy is ``hard()``; ``sigmoid(lam)`` makes every ReLU ``x sigmoid(lam x)``.
        """
        x = inputs(images, self.normalization)
        _validate.choice("shortcut", self.shortcut, ("A", "B"))
        strides = 2 ** (len(self.depths) - 1)
        if x.shape[1] % strides or x.shape[2] % strides:
            raise ValueError(f"images: got {x.shape[1:3]}, expected multiples of {strides}")
        units: list[UnitTrace] = []

        def activate(x: jax.Array, cost: int, name: str) -> jax.Array:
            o = stochastic.apply(occupancy or hard(), x, lambda: self.make_rng("gate"))
            units.append(UnitTrace(x, o, cost, name=name))
            return o * x

        conv = Conv(self.widths[0], 3, 1, 1, name="conv1")
        x = BatchNorm(name="bn1")(conv(x), train)
        static = conv.macs(3, x.shape[1] * x.shape[2])
        plan = list(block_plan(self.depths, self.widths, "basic", self.widths[0]))
        x = activate(x, self._reads(plan[0]), "stem")
        for spec, following in zip(plan, [*plan[1:], None]):
            identity, _ = shortcut(x, spec, f"{spec.name}_downsample", train, self.shortcut)
            middle = partial(activate, cost=macs.conv2d(3, 1, spec.width), name=f"{spec.name}_middle")
            x = identity + BasicBranch(spec.width, spec.stride, name=spec.name)(x, train, middle)
            x = jax.nn.relu(x) if following is None else activate(x, self._reads(following), spec.name)
        logits = Dense(self.num_classes, name="fc")(global_mean(x))
        return Output(logits, Trace(tuple(units), static + macs.dense(x.shape[-1], self.num_classes)))

    def _reads(self, spec: BlockSpec) -> int:
        """Multiply-adds that a block spends on one number of its input, on average over positions."""
        reads = macs.conv2d(3, 1, spec.width)
        reads += macs.conv2d(1, 1, spec.out_features) if spec.changes_shape and self.shortcut == "B" else 0
        if reads % spec.stride**2:
            raise ValueError(f"widths: got {spec.width} in a stage of stride {spec.stride}, expected multiples of 4")
        return reads // spec.stride**2


def cifar(depth: int, **fields: Any) -> SparseResNet:
    """ResNet-`depth` for 32x32 images, ``depth = 6 n + 2``, by its activations; any field can be given."""
    return SparseResNet(depths=cifar_depths(depth), **fields)
