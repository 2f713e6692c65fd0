"""MobileNet for small images (Howard et al. 2017, stride 1 at the start) as the trunk of an `SDN`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

from dyn_jax import macs
from dyn_jax.networks.sdn import SDN, Layer, Trunk, build
from dyn_jax.nn import BatchNorm, Conv, DepthwiseConv, stem

WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
SIZES: dict[str, dict[str, Any]] = {"digits": {"stem_width": 8, "widths": tuple(width // 8 for width in WIDTHS)}}


class SeparableBlock(nn.Module):
    """Depthwise conv3x3(stride) - BN - ReLU - conv1x1 - BN - ReLU."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(BatchNorm(name="bn1")(DepthwiseConv(self.stride, name="depthwise")(x), train))
        return nn.relu(BatchNorm(name="bn2")(Conv(self.width, 1, name="pointwise")(x), train))


@dataclasses.dataclass(frozen=True)
class MobileNetTrunk(Trunk):
    """A convolution and depthwise-separable blocks.

    Attributes:
      stem_width: channels of the first convolution.
      widths, strides: of the blocks.

    Departure from the released code: convolutions start from N(0, sqrt(2 / (k k out))), as in the other trunks, instead
    of PyTorch's default.
    """

    stem_width: int = 32
    widths: tuple[int, ...] = WIDTHS
    strides: tuple[int, ...] = STRIDES

    def layers(self, x: jax.Array, train: bool) -> Iterator[Layer]:
        if len(self.widths) != len(self.strides):
            raise ValueError(f"widths, strides: got {len(self.widths)} and {len(self.strides)}, expected as many")
        x, work = stem(x, self.stem_width, "cifar", train)
        for i, (width, stride) in enumerate(zip(self.widths, self.strides)):
            position = 9 * x.shape[-1] + macs.conv2d(1, x.shape[-1], width)
            x = SeparableBlock(width, stride, name=f"layers_{i}")(x, train)
            yield Layer(x, x, work + position * x.shape[1] * x.shape[2])
            work = 0


def mobilenet(dataset: str = "cifar10", **fields: Any) -> SDN:
    """MobileNet with five exits, after blocks 2, 4, 6, 8, 11; data sets and fields as of `sdn_vgg.vgg16`."""
    defaults = {"exit_after": (2, 4, 6, 8, 11), **SIZES.get(dataset, {})}
    return build(dataset, MobileNetTrunk(), **{**defaults, **fields})
