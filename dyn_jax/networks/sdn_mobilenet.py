"""MobileNet for small images (Howard et al. 2017, stride 1 at the start) with internal classifiers."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from dyn_jax import macs
from dyn_jax.networks.sdn import DATASETS, InternalClassifier, Linear, check_exits, check_size, early_exit_output
from dyn_jax.nn import IMAGENET_MEAN_STD, BatchNorm, Conv, global_mean, normalize
from dyn_jax.nn.layers import conv_init
from dyn_jax.nn.normalization import MeanStd
from dyn_jax.types import Occupancy, Output

WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
EXIT_AFTER = (2, 4, 6, 8, 11)


def _taps(x: jax.Array, stride: int) -> list[jax.Array]:
    """The nine inputs of a padded 3x3 window at every output position, each [batch, rows, columns, channel]."""
    height, width = x.shape[1:3]
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    ends = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    return [padded[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(3) for j in range(3)]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv3x3(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Each channel with its own 3x3 kernel, zero padding 1, as nine shifted products.

    XLA's grouped convolution is up to twelve times slower on CPU inside a loop. The kernel's gradient is a product with
    a vector of ones for the same reason.

    Args:
      x: [batch, height, width, channel].
      kernel: [3, 3, 1, channel].
      stride: step between output positions.
    """
    return depthwise_products(x, kernel, stride)


@partial(jax.jit, static_argnums=2)
def depthwise_products(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The forward pass; under a name of its own, by which `dyn_jax.macs.of_function` knows it."""
    weights = kernel.reshape(9, 1, 1, 1, -1)
    return sum(weights[n] * tap for n, tap in enumerate(_taps(x, stride)))


def _depthwise_fwd(x, kernel, stride):
    return depthwise_products(x, kernel, stride), (x, kernel)


def _depthwise_bwd(stride, residuals, cotangent):
    x, kernel = residuals
    _, x_vjp = jax.vjp(lambda x: depthwise_products(x, kernel, stride), x)
    channels = x.shape[-1]
    ones = jnp.ones(cotangent.size // channels, x.dtype)
    rows = [ones @ (tap * cotangent).reshape(-1, channels) for tap in _taps(x, stride)]
    return x_vjp(cotangent)[0], jnp.stack(rows).reshape(kernel.shape)


depthwise_conv3x3.defvjp(_depthwise_fwd, _depthwise_bwd)
macs.RULES["depthwise_products"] = lambda equation: 9 * equation.outvars[0].aval.size


class DepthwiseConv(nn.Module):
    """`depthwise_conv3x3` with its kernel [3, 3, 1, channel]."""

    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", conv_init, (3, 3, 1, x.shape[-1]))
        return depthwise_conv3x3(*promote_dtype(x, kernel), self.stride)


class SeparableBlock(nn.Module):
    """Depthwise conv3x3(stride) - BN - ReLU - conv1x1 - BN - ReLU."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(BatchNorm(name="bn1")(DepthwiseConv(self.stride, name="depthwise")(x), train))
        return nn.relu(BatchNorm(name="bn2")(Conv(self.width, 1, name="pointwise")(x), train))

    def macs(self, in_features: int, positions: int) -> int:
        """Multiply-adds over `positions` output positions."""
        return (9 * in_features + macs.conv2d(1, in_features, self.width)) * positions


class SDNMobileNet(nn.Module):
    """Thirteen depthwise-separable blocks with exits after `exit_after`.

    Attributes:
      stem_width: channels of the first convolution.
      widths, strides: of the blocks.
      exit_after: blocks (from 0) that an internal classifier follows; () is the static network.
      threshold, rule, answer: when and with what the network leaves, see `dyn_jax.gates.early_exit`.
      image_size: height and width of the images.
      normalization: (mean, std) per channel, or None where the images come normalised.

    Departure from the released code: convolutions start from N(0, sqrt(2 / (k k out))), as in the other trunks, instead
    of PyTorch's default.
    """

    stem_width: int = 32
    widths: tuple[int, ...] = WIDTHS
    strides: tuple[int, ...] = STRIDES
    exit_after: tuple[int, ...] = EXIT_AFTER
    threshold: float = 0.8
    rule: str = "confidence"
    answer: str = "most_confident"
    num_classes: int = 10
    image_size: int = 32
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
          train: batch statistics instead of running ones (make ``batch_stats`` mutable).
          threshold: instead of the field; may be traced.

        Raises:
          ValueError, TypeError: wrong rank, size, channels or dtype of the images; threshold outside (0, 1]; unknown
            rule or answer; an exit after a block that does not exist; widths and strides of different lengths.
        """
        images = check_size(images, self.image_size)
        if len(self.widths) != len(self.strides):
            raise ValueError(f"widths, strides: got {len(self.widths)} and {len(self.strides)}, expected as many")
        check_exits(self.exit_after, len(self.widths))
        x = Conv(self.stem_width, 3, 1, 1, name="conv1")(normalize(images, self.normalization))
        cost = macs.conv2d(3, 3, self.stem_width, x.shape[1] * x.shape[2])
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        exits, stage_macs = [], []
        for i, (width, stride) in enumerate(zip(self.widths, self.strides)):
            block = SeparableBlock(width, stride, name=f"layers_{i}")
            in_features = x.shape[-1]
            x = block(x, train)
            cost += block.macs(in_features, x.shape[1] * x.shape[2])
            if i in self.exit_after:
                head = InternalClassifier(self.num_classes, name=f"layers_{i}_output")
                exits.append(head(x))
                stage_macs.append(cost + head.macs(x.shape[1], x.shape[-1]))
                cost = 0
        pooled = global_mean(x)
        exits.append(Linear(self.num_classes, name="fc")(pooled))
        stage_macs.append(cost + macs.dense(pooled.shape[-1], self.num_classes))
        return early_exit_output(
            exits,
            stage_macs,
            occupancy=occupancy,
            threshold=self.threshold if threshold is None else threshold,
            rule=self.rule,
            how=self.answer,
            make_key=lambda: self.make_rng("gate"),
        )


def mobilenet(dataset: str = "cifar10", **fields: Any) -> SDNMobileNet:
    """MobileNet with five internal classifiers, after blocks 2, 4, 6, 8, 11.

    Args:
      dataset: ``cifar10``, ``cifar100``, ``tinyimagenet`` (64x64) or ``digits`` (an eighth of the channels).
      **fields: any field of `SDNMobileNet`; ``exit_after=()`` is the static network.
    """
    defaults = dict(DATASETS[dataset])
    if dataset == "digits":
        defaults |= {"stem_width": 8, "widths": tuple(width // 8 for width in WIDTHS)}
    return SDNMobileNet(**{**defaults, **fields})
