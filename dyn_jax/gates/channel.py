"""ManiDP's gate: a saliency for every channel of a convolution, and the threshold that it must reach."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax import macs
from dyn_jax.nn import Dense, global_mean, relu

LARGEST = 1000.0
UNSET = -10000.0


def fan_in_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """N(0, scale sqrt(2 / in)): Kaiming's normal initialisation, scaled."""
    return nn.initializers.variance_scaling(2.0 * scale**2, "fan_in", "normal")


class ChannelScores(NamedTuple):
    """Saliency (>= 0) and score, each [batch, channel]."""

    saliency: jax.Array
    score: jax.Array


class ChannelGate(nn.Module):
    """``s = min(ReLU(W2 ReLU(W1 mean(x)) + b2), 1000)``, score ``s - threshold``: channel on where s >= threshold.

    The derivative of s is 0 where the outer ReLU's input is not positive. The threshold is no parameter: training
    sets it between epochs, from the means of s that ``mask_sum`` gathers.

    Attributes:
      features: channels to be gated.
      hidden: width of the inner layer.
      init_scale: of the outer layer's initial weights; its bias starts at 1, so that a small one starts with s near 1.

    Variables: ``fc1`` (no bias), ``fc2``; in ``batch_stats`` ``thre`` [1], -10000 until training sets it, and
    ``mask_sum`` [features], the sum of s over the images seen in training since it was last set to 0.

    Source: Tang et al. 2021 (saliency and threshold); the form of the layers from the released code.
    """

    features: int
    hidden: int
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> ChannelScores:
        """Features [batch, height, width, in] -> `ChannelScores`; `train` sums s (make ``batch_stats`` mutable)."""
        first = Dense(self.hidden, fan_in_init(), use_bias=False, name="fc1")
        second = Dense(self.features, fan_in_init(self.init_scale), bias_init=nn.initializers.ones, name="fc2")
        saliency = jnp.minimum(relu(second(relu(first(global_mean(x))))), LARGEST)
        thre = self.variable("batch_stats", "thre", lambda: UNSET * jnp.ones((1,)))
        mask_sum = self.variable("batch_stats", "mask_sum", jnp.zeros, (self.features,))
        if train and not self.is_initializing():
            mask_sum.value += jnp.sum(jax.lax.stop_gradient(saliency), axis=0)
        # A threshold <= 0 drops nothing by comparison. Raised to the smallest number it drops s = 0, whose product is
        # 0 anyway: the output stays, and "on" means what the authors count, a mask > 0.
        threshold = jnp.maximum(thre.value.astype(saliency.dtype), jnp.finfo(saliency.dtype).tiny)
        return ChannelScores(saliency, saliency - threshold.reshape(1, 1))

    def macs(self, in_features: int) -> int:
        """Multiply-adds of one image's scores."""
        return macs.dense(in_features, self.hidden) + macs.dense(self.hidden, self.features)
