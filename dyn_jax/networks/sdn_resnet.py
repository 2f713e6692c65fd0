"""ResNet-56 (He et al. 2016, section 4.2, projection shortcuts) as the trunk of an `SDN`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax

from dyn_jax.networks.blocks import block_plan, static_block
from dyn_jax.networks.sdn import SDN, Layer, Trunk, build
from dyn_jax.nn import add_relu, stem

SIZES: dict[str, dict[str, Any]] = {
    "tinyimagenet": {"stem_stride": 2},
    "digits": {"depths": (3, 3, 3), "widths": (8, 16, 32), "exit_after": (1, 2, 3, 5, 6, 7)},
}


@dataclasses.dataclass(frozen=True)
class ResNetTrunk(Trunk):
    """Basic residual blocks; an exit reads the residual sum of its block before the closing ReLU.

    (The authors' code feeds the ReLU to the next block only. A network converted in memory from a static one shares an
    in-place ReLU and shows its exits the rectified map; the trained and evaluated networks are rebuilt and do not.)

    Attributes:
      depths, widths: blocks and channels of each group; the first block of every group but the first has stride 2.
      stem_stride: of the first convolution (2 for 64x64 images).
      winograd: see `dyn_jax.nn.conv2d`.
    """

    depths: tuple[int, ...] = (9, 9, 9)
    widths: tuple[int, ...] = (16, 32, 64)
    stem_stride: int = 1
    winograd: bool = False

    block_name: ClassVar[str] = "layers_{number}"

    def layers(self, x: jax.Array, train: bool) -> Iterator[Layer]:
        x, before = stem(x, self.widths[0], "cifar", train, self.stem_stride)
        for i, spec in enumerate(block_plan(self.depths, self.widths, "basic", self.widths[0])):
            name = self.block_name.format(stage=spec.stage, index=spec.index, number=i)
            identity, out, work = static_block(x, spec, name, train, winograd=self.winograd)
            x = add_relu(identity, out)
            yield Layer(x, identity + out, before + work)
            before = 0


def resnet56(dataset: str = "cifar10", **fields: Any) -> SDN:
    """ResNet-56 with exits after blocks 3, 7, 11, 15, 19, 23: about 15, 30, ..., 90 % of the work.

    As `sdn_vgg.vgg16`; ``tinyimagenet`` has stride 2 in the first convolution, ``digits`` is a ResNet-20 of half the
    channels with exits after blocks 1, 2, 3, 5, 6, 7.
    """
    defaults = {"exit_after": (3, 7, 11, 15, 19, 23), **SIZES.get(dataset, {})}
    if not fields.get("exit_after", True):
        defaults["linear_init"] = "small"  # as the authors' static network
    return build(dataset, ResNetTrunk(), **{**defaults, **fields})
