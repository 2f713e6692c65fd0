"""RDI-Nets (Hu et al., ICLR 2020): a residual network with exits, trained against attacks on all of them.

One exit after a quarter and one after three quarters of every group; it fires where its entropy is below its own
threshold. Images come as they are, in [0, 1], without normalisation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate, macs
from dyn_jax.gates.early_exit import Rule
from dyn_jax.networks.blocks import cifar_depths
from dyn_jax.networks.sdn import SDN, Layer, build
from dyn_jax.networks.sdn_resnet import ResNetTrunk
from dyn_jax.nn import BasicBranch, BatchNorm, Conv, Dense, add_relu, global_mean, max_pool, relu
from dyn_jax.nn.residual import branch_macs

GUARD = 1e-5
THRESHOLDS = (0.26419, 0.36976, 0.36145, 0.76639, 1.03506, 1.30606)
"""Of the released code for ResNet-38, in nats."""
OFFSETS = (0.15, 0.2, 0.25, 0.05, 0.05, 0.0)
"""What the authors take off the quantiles of `quantile_thresholds`, tuned by hand for this network."""
RELEASED_COSTS = (16.796875, 30.296875, 36.546875, 50.046875, 61.421875, 74.921875, 79.421875)
"""Released cost of leaving at each exit, convolutions in 2^20 multiply-adds: heads tried before it are free.

``jnp.asarray(RELEASED_COSTS)[metrics.exits.exit_index(trace)]`` is an image's; `metrics.executed_macs` counts them all.
"""


def entropy(logits: jax.Array) -> jax.Array:
    """``-sum p log(p + 1e-5)`` of the softmax over the last axis, in nats."""
    p = jax.nn.softmax(logits)
    return -jnp.sum(p * jnp.log(p + GUARD), axis=-1)


NATS = Rule(lambda exits, thresholds: entropy(exits) - thresholds.astype(exits.dtype)[None], lambda t: t > 0, "above 0")
"""An exit fires where its `entropy` is below its threshold (strictly)."""


def weighted_sum(exits: jax.Array, thresholds: jax.Array) -> jax.Array:
    """An ensemble as the answer: at exit k ``sum_{j <= k} T_j softmax_j``, at the last one the plain sum of all.

    Source: released code, which has it but never calls it; the published numbers use each exit's own logits (``last``).
    """
    p = jax.nn.softmax(exits)
    sums = jnp.cumsum(p[:, :-1] * thresholds.astype(p.dtype)[None, :, None], axis=1)
    return jnp.concatenate([sums, jnp.sum(p, axis=1, keepdims=True)], axis=1)


def quantile_thresholds(exits: jax.Array, offsets: Sequence[float] = OFFSETS) -> np.ndarray:
    """[exit - 1] thresholds by which each exit takes an equal share of the images, less `offsets`.

    With n = N // exits: the image of rank n among those still there sets an exit's threshold, and the n surest leave.

    Args:
      exits: logits [N, exit, class] of clean images (the authors took the test set; take held-back ones).
      offsets: subtracted, one for each exit but the last.

    Raises:
      ValueError: another number of offsets, or fewer images than exits.

    Source: released code.
    """
    count = exits.shape[1]
    if len(offsets) != count - 1:
        raise ValueError(f"offsets: got {len(offsets)}, expected {count - 1}, one for every exit but the last")
    if len(exits) < count:
        raise ValueError(f"exits: got {len(exits)} images, expected at least {count}")
    values, share = np.asarray(entropy(jnp.asarray(exits))), len(exits) // count
    left, limits = np.arange(len(exits)), []
    for k in range(count - 1):
        order = left[np.argsort(values[left, k], kind="stable")]
        limits.append(values[order[share], k])
        left = order[share:]
    return np.asarray(limits) - np.asarray(offsets)


class Head(nn.Module):
    """The exit behind a block of group 0 (two convolutions), 1 (a residual block) or 2 (nothing), and a linear layer.

    Pooling to the mean of the map in all of them; the last batch normalisation of group 0's has no ReLU.
    """

    group: int
    num_classes: int
    init: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, int]:
        """[batch, size, size, channel] -> logits [batch, class], and the multiply-adds of one image."""
        width, work = x.shape[-1], 0
        if self.group < 2:
            x = max_pool(x, 2)
            positions = x.shape[1] * x.shape[2]
        if self.group == 0:
            x = relu(BatchNorm(name="bn1")(Conv(4 * width, 5, 1, 2, name="conv1")(x), train))
            x = BatchNorm(name="bn2")(Conv(2 * width, 3, 1, 1, name="conv2")(max_pool(x, 2)), train)
            work = macs.conv2d(5, width, 4 * width, positions) + macs.conv2d(3, 4 * width, 2 * width, positions // 4)
        elif self.group == 1:
            branch = BasicBranch(width, name="block")
            x = add_relu(x, branch(x, train))
            work = branch_macs(branch, width, positions)
        logits = Dense(self.num_classes, self.init, name="linear")(global_mean(x))
        return logits, work + macs.dense(x.shape[-1], self.num_classes)


@dataclasses.dataclass(frozen=True)
class RDITrunk(ResNetTrunk):
    """`ResNetTrunk` whose exits read the rectified output of their block, through a `Head` of the block's group."""

    depths: tuple[int, ...] = (6, 6, 6)

    block_name = "group{stage}_layer{index}"

    def layers(self, x: jax.Array, train: bool) -> Iterator[Layer]:
        for layer in super().layers(x, train):
            yield layer._replace(seen=layer.features)

    def exit(self, x: jax.Array, layer: int, num_classes: int, init: Any, train: bool) -> tuple[jax.Array, int]:
        group, index = divmod(layer, self.depths[0])
        number = 2 * group + (1 if index < self.depths[0] // 2 else 2)
        return Head(group, num_classes, init, name=f"branch_layer{number}")(x, train)


def cifar(depth: int = 38, **fields: Any) -> SDN:
    """RDI-ResNet-`depth` for 32x32 images, ``depth = 6 n + 2`` (38, 74, 110, 152): six exits and the last.

    The default thresholds are the released ones of 38; any field of `SDN` or `RDITrunk` can be given.
    """
    depths = cifar_depths(_validate.positive_int("depth", depth))
    after = tuple(group * n + int(n * share) for group, n in enumerate(depths) for share in (0.25, 0.75))
    defaults = {"depths": depths, "exit_after": after, "threshold": THRESHOLDS, "rule": NATS, "answer": "last"}
    return build("cifar10", RDITrunk(), **{**defaults, "normalization": None, **fields})
