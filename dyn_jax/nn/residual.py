"""The parts of a residual network: stem, branch of a block, shortcut. Blocks are put together by the networks."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import _validate, macs
from dyn_jax.nn.layers import Conv, max_pool_3x3_stride_2, relu
from dyn_jax.nn.norm import BatchNorm


class BasicBranch(nn.Module):
    """conv3x3(stride) - BN - ReLU - conv3x3 - BN; the last convolution's output positions are the block's."""

    width: int
    stride: int = 1
    winograd: bool = False
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, activate: Callable = relu) -> jax.Array:
        y = Conv(self.width, 3, self.stride, 1, winograd=self.winograd, name="conv1")(x)
        y = activate(BatchNorm(name="bn1")(y, train))
        y = Conv(self.width, 3, 1, 1, winograd=self.winograd, name="conv2")(y)
        return BatchNorm(name="bn2")(y, train)

    def macs(self, in_features: int) -> tuple[int, int, int]:
        """Multiply-adds of conv1 and of the rest, at one position each, and the stride from conv1's to the output's."""
        return macs.conv2d(3, in_features, self.width), macs.conv2d(3, self.width, self.width), 1


class BottleneckBranch(nn.Module):
    """conv1x1 - BN - ReLU - conv3x3(stride) - BN - ReLU - conv1x1 to 4 width - BN."""

    width: int
    stride: int = 1
    winograd: bool = False
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = Conv(self.width, 1, name="conv1")(x)
        y = relu(BatchNorm(name="bn1")(y, train))
        y = Conv(self.width, 3, self.stride, 1, winograd=self.winograd, name="conv2")(y)
        y = relu(BatchNorm(name="bn2")(y, train))
        y = Conv(self.width * self.expansion, 1, name="conv3")(y)
        return BatchNorm(name="bn3")(y, train)

    def macs(self, in_features: int) -> tuple[int, int, int]:
        """As in `BasicBranch`; conv1 runs at the input's resolution."""
        rest = macs.conv2d(3, self.width, self.width) + macs.conv2d(1, self.width, self.width * self.expansion)
        return macs.conv2d(1, in_features, self.width), rest, self.stride


BRANCHES = {"basic": BasicBranch, "bottleneck": BottleneckBranch}


def branch_macs(branch: BasicBranch | BottleneckBranch, in_features: int, positions: int) -> int:
    """Multiply-adds of a whole branch whose output has `positions` positions."""
    first, rest, stride = branch.macs(in_features)
    return (first * stride**2 + rest) * positions


class Projection(nn.Module):
    """Option B shortcut: conv1x1(stride) - BN, no ReLU (He et al. 2016, section 4.1)."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return BatchNorm(name="bn")(Conv(self.features, 1, self.stride, name="conv")(x), train)


def pad_shortcut(x: jax.Array, features: int, stride: int) -> jax.Array:
    """Option A shortcut: every `stride`-th position, new channels zero, half of them on each side."""
    x = x[:, ::stride, ::stride]
    extra = features - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (extra // 2, extra - extra // 2)))


def stem(x: jax.Array, width: int, kind: str, train: bool, stride: int = 1) -> tuple[jax.Array, int]:
    """``cifar``: conv3x3(stride) - BN - ReLU. ``imagenet``: conv7x7 stride 2 - BN - ReLU - 3x3 max pooling stride 2.

    The features and the multiply-adds of one example. Called inside a network's compact method: its layers are the
    network's own ``conv1`` and ``bn1``.
    """
    _validate.choice("stem", kind, ("cifar", "imagenet"))
    conv = Conv(width, *((3, stride, 1) if kind == "cifar" else (7, 2, 3)), name="conv1")
    y = conv(x)
    cost = conv.macs(x.shape[-1], y.shape[1] * y.shape[2])
    y = relu(BatchNorm(name="bn1")(y, train))
    return (y if kind == "cifar" else max_pool_3x3_stride_2(y)), cost
