"""SkipNet's feed-forward gates: a small convolutional network per block."""

from __future__ import annotations

import flax.linen as nn
import jax

from dyn_jax import macs
from dyn_jax.nn import BatchNorm, Conv, Dense, global_mean


class FeedForwardGate(nn.Module):
    """Features [batch, height, width, channel] -> score [batch].

    ``kind`` 1: max pooling - conv3x3 - BN - ReLU - conv3x3 stride 2 - BN - ReLU - mean - linear to two classes.
    ``kind`` 2: conv3x3 stride 2 - BN - ReLU - mean - linear to two classes.
    The released gate runs the block where ``softmax[1] > 1/2``; the score is the logit difference ``z_1 - z_0``, so
    that its sigmoid is that probability.
    Source: SkipNet section 3.2, figure 3a.
    """

    kind: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = x.shape[-1]
        if self.kind == 1:
            x = nn.max_pool(x, (2, 2), (2, 2))
            x = nn.relu(BatchNorm(name="bn1")(Conv(channels, 3, 1, 1, name="conv1")(x), train))
            x = nn.relu(BatchNorm(name="bn2")(Conv(channels, 3, 2, 1, name="conv2")(x), train))
        else:
            x = nn.relu(BatchNorm(name="bn1")(Conv(channels, 3, 2, 1, name="conv1")(x), train))
        logits = Dense(2, name="linear_layer")(global_mean(x))
        return logits[:, 1] - logits[:, 0]

    def macs(self, channels: int, height: int, width: int) -> int:
        """Multiply-adds of one score from a `height` x `width` map."""
        positions = 0
        if self.kind == 1:
            height, width = height // 2, width // 2
            positions = height * width
        positions += -(-height // 2) * -(-width // 2)
        return macs.conv2d(3, channels, channels, positions) + macs.dense(channels, 2)
