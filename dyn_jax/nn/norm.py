"""Batch normalisation with PyTorch's running statistics."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from dyn_jax.nn.parameter import parameter


class BatchNorm(nn.Module):
    """``(x - mean) / sqrt(var + 1e-5) * scale + bias`` over all axes but the last.

    In training the batch statistics normalise and the running ones move by ``momentum`` towards them, the variance
    with Bessel's correction as in PyTorch (flax.linen.BatchNorm leaves it out, so released running statistics could
    not be reproduced). Calling one instance twice moves them twice. With ``where`` (bool, the shape of x without its
    last axis) only those positions count: the rows in use of a sparse tensor.
    """

    momentum: float = 0.1
    stabiliser: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, where: jax.Array | None = None) -> jax.Array:
        features = x.shape[-1]
        scale = parameter(self, "scale", nn.initializers.ones, (features,))
        bias = parameter(self, "bias", nn.initializers.zeros, (features,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        mean, var = running_mean.value, running_var.value
        if train:
            if where is None:
                (mean, var), count = _moments(x), x.size // features
            else:
                axes, counted = tuple(range(x.ndim - 1)), where[..., None]
                mean, var = jnp.mean(x, axes, where=counted), jnp.var(x, axes, where=counted)
                count = jnp.sum(where)
            if not self.is_initializing():
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (var * (count / jnp.maximum(count - 1, 1)) - running_var.value)
        return _normalised(x, scale, bias, mean, var + self.stabiliser)


@partial(jax.jit, inline=True)
def _normalised(x: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, stabilised: jax.Array) -> jax.Array:
    slope = scale * jax.lax.rsqrt(stabilised)
    offset = bias - mean * slope
    shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
    return x * slope.reshape(shape).astype(x.dtype) + offset.reshape(shape).astype(x.dtype)


_LANES = 128


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over all axes but the last; positions side by side: sums of few channels are slow on CPU."""
    features = x.shape[-1]
    beside = _LANES // features if _LANES % features == 0 and x.size % _LANES == 0 else 1
    wide = x.reshape(-1, beside * features)
    mean_of = lambda wide: jnp.mean(jnp.mean(wide, 0).reshape(beside, features), 0)
    mean = mean_of(wide)
    return mean, mean_of(jnp.square(wide - jnp.tile(mean, beside)[None]))
