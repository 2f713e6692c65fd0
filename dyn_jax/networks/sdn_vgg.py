"""VGG-16 with batch norm (Simonyan and Zisserman 2015) and internal classifiers."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from dyn_jax import _validate, macs
from dyn_jax.networks.sdn import (
    DATASETS,
    InternalClassifier,
    Linear,
    check_exits,
    check_size,
    early_exit_output,
    flatten,
    max_pool,
    small_init,
    torch_init,
)
from dyn_jax.nn import IMAGENET_MEAN_STD, BatchNorm, Conv, normalize
from dyn_jax.nn.normalization import MeanStd
from dyn_jax.types import Occupancy, Output

POOL_AFTER = (1, 3, 6, 9, 12)
EXIT_AFTER = (1, 3, 5, 6, 8, 9)
INITS = ("small", "torch")


class ConvBlock(nn.Module):
    """conv3x3 with bias - BN - ReLU - 2x2 max pooling where `pool`."""

    width: int
    pool: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Conv(self.width, 3, 1, 1, use_bias=True, name="conv")(x)
        x = nn.relu(BatchNorm(name="bn")(x, train))
        return max_pool(x, 2) if self.pool else x


class SDNVgg(nn.Module):
    """13 convolutional layers, three linear ones (no ReLU between the last two), exits after `exit_after`.

    Attributes:
      widths: channels of the 13 convolutions.
      dense_widths: outputs of the two hidden linear layers.
      exit_after: layers (from 0) that an internal classifier follows; () is the static network.
      threshold, rule, answer: when and with what the network leaves, see `dyn_jax.gates.early_exit`.
      linear_init: ``small`` draws the linear layers from N(0, 0.01), as released; ``torch`` is PyTorch's default, which
        narrow networks need to start learning.
      image_size: height and width of the images, 32 times a whole number.
      dropout: rate before the last two linear layers in training (needs ``rngs={'dropout': key}``).
      normalization: (mean, std) per channel, or None where the images come normalised.
    """

    widths: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    dense_widths: tuple[int, int] = (512, 512)
    exit_after: tuple[int, ...] = EXIT_AFTER
    threshold: float = 0.8
    rule: str = "confidence"
    answer: str = "most_confident"
    linear_init: str = "small"
    num_classes: int = 10
    image_size: int = 32
    dropout: float = 0.5
    normalization: MeanStd | None = IMAGENET_MEAN_STD

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        occupancy: Occupancy | None = None,
        train: bool = False,
        threshold: jax.typing.ArrayLike | None = None,
    ) -> Output:
        """Images [batch, size, size, 3] in [0, 1] -> `Output`: units are the stages after the first.

        Args:
          images: float NHWC.
          occupancy: score [batch] -> value; default ``hard()``.
          train: batch statistics instead of running ones (make ``batch_stats`` mutable), and dropout.
          threshold: instead of the field; may be traced.

        Raises:
          ValueError, TypeError: wrong rank, size, channels or dtype of the images; threshold outside (0, 1]; unknown
            rule or answer; an exit at a layer that does not exist.
        """
        images = check_size(images, self.image_size)
        if len(self.widths) != 13 or self.image_size % 32:
            raise ValueError(f"widths: got {len(self.widths)}, expected 13; image_size: {self.image_size} of 32 n")
        check_exits(self.exit_after, 13)
        init = {"small": small_init, "torch": torch_init}[_validate.choice("linear_init", self.linear_init, INITS)]
        x = normalize(images, self.normalization)
        exits, stage_macs, cost = [], [], 0
        for i, width in enumerate(self.widths):
            cost += macs.conv2d(3, x.shape[-1], width, x.shape[1] * x.shape[2])
            x = ConvBlock(width, i in POOL_AFTER, name=f"layers_{i}")(x, train)
            if i in self.exit_after:
                head = InternalClassifier(self.num_classes, init, name=f"layers_{i}_output")
                exits.append(head(x))
                stage_macs.append(cost + head.macs(x.shape[1], x.shape[-1]))
                cost = 0
        x = flatten(x)
        features = (x.shape[-1], *self.dense_widths, self.num_classes)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = drop(nn.relu(Linear(self.dense_widths[0], init, name="layers_13")(x)))
        x = drop(Linear(self.dense_widths[1], init, name="end_layers_0")(x))
        exits.append(Linear(self.num_classes, init, name="end_layers_2")(x))
        stage_macs.append(cost + sum(macs.dense(a, b) for a, b in zip(features, features[1:])))
        return early_exit_output(
            exits,
            stage_macs,
            occupancy=occupancy,
            threshold=self.threshold if threshold is None else threshold,
            rule=self.rule,
            how=self.answer,
            make_key=lambda: self.make_rng("gate"),
        )


def vgg16(dataset: str = "cifar10", **fields: Any) -> SDNVgg:
    """VGG-16 with exits after layers 1, 3, 5, 6, 8, 9: about 15, 30, ..., 90 % of the work.

    Args:
      dataset: ``cifar10``, ``cifar100``, ``tinyimagenet`` (64x64, wider linear layers) or ``digits`` (an eighth of the
        channels).
      **fields: any field of `SDNVgg`; ``exit_after=()`` is the static network.
    """
    defaults = dict(DATASETS[dataset])
    if dataset == "tinyimagenet":
        defaults["dense_widths"] = (2048, 1024)
    if dataset == "digits":
        defaults |= {"widths": (8, 8, 16, 16, 32, 32, 32, 64, 64, 64, 64, 64, 64), "dense_widths": (64, 64)}
        defaults["linear_init"] = "torch"
    return SDNVgg(**{**defaults, **fields})
