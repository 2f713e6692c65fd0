"""VGG-16 with batch norm (Simonyan and Zisserman 2015) as the trunk of an `SDN`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

from dyn_jax import macs
from dyn_jax.networks.sdn import SDN, Layer, Trunk, build
from dyn_jax.nn import BatchNorm, Conv, Dense, flatten, max_pool

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
POOL_AFTER = (1, 3, 6, 9, 12)
SIZES: dict[str, dict[str, Any]] = {
    "tinyimagenet": {"dense_widths": (2048, 1024)},
    "digits": {"widths": tuple(w // 8 for w in WIDTHS), "dense_widths": (64, 64), "linear_init": "torch"},
}


class ConvBlock(nn.Module):
    """conv3x3 with bias - BN - ReLU - 2x2 max pooling where `pool`."""

    width: int
    pool: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Conv(self.width, 3, 1, 1, use_bias=True, name="conv")(x)
        x = nn.relu(BatchNorm(name="bn")(x, train))
        return max_pool(x, 2) if self.pool else x


@dataclasses.dataclass(frozen=True)
class VggTrunk(Trunk):
    """13 convolutional layers, then three linear ones (no ReLU between the last two); images of 32 n x 32 n.

    Attributes:
      widths: channels of the 13 convolutions.
      dense_widths: outputs of the two hidden linear layers.
      dropout: rate before the last two linear layers in training (needs ``rngs={'dropout': key}``).
    """

    widths: tuple[int, ...] = WIDTHS
    dense_widths: tuple[int, int] = (512, 512)
    dropout: float = 0.5

    def layers(self, x: jax.Array, train: bool) -> Iterator[Layer]:
        if len(self.widths) != 13 or x.shape[1] % 32:
            raise ValueError(f"widths: got {len(self.widths)}, expected 13; image_size: {x.shape[1]} of 32 n")
        for i, width in enumerate(self.widths):
            work = macs.conv2d(3, x.shape[-1], width, x.shape[1] * x.shape[2])
            x = ConvBlock(width, i in POOL_AFTER, name=f"layers_{i}")(x, train)
            yield Layer(x, x, work)

    def head(self, x: jax.Array, num_classes: int, init: Any, train: bool) -> tuple[jax.Array, int]:
        x = flatten(x)
        features = (x.shape[-1], *self.dense_widths, num_classes)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = drop(nn.relu(Dense(features[1], init, name="layers_13")(x)))
        x = drop(Dense(features[2], init, name="end_layers_0")(x))
        logits = Dense(num_classes, init, name="end_layers_2")(x)
        return logits, sum(macs.dense(a, b) for a, b in zip(features, features[1:]))


def vgg16(dataset: str = "cifar10", **fields: Any) -> SDN:
    """VGG-16 with exits after layers 1, 3, 5, 6, 8, 9: about 15, 30, ..., 90 % of the work.

    Args:
      dataset: ``cifar10``, ``cifar100``, ``tinyimagenet`` (64x64, wider linear layers) or ``digits`` (an eighth of the
        channels).
      **fields: any field of `SDN` or `VggTrunk`; ``exit_after=()`` is the static network.
    """
    defaults = {"exit_after": (1, 3, 5, 6, 8, 9), "linear_init": "small", **SIZES.get(dataset, {})}
    return build(dataset, VggTrunk(), **{**defaults, **fields})
