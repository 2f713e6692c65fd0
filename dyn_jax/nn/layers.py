"""Convolution, dense layer and pooling with PyTorch's conventions; parameters are ``kernel`` and ``bias``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from dyn_jax import macs
from dyn_jax.nn.conv import conv2d
from dyn_jax.nn.parameter import parameter

# N(0, sqrt(2 / (k * k * out))), the initialisation of every paper's released code.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# N(0, sqrt(2 / (in * out))), SkipNet's linear layers.
dense_init = lambda key, shape, dtype=jnp.float32: (
    jax.random.normal(key, shape, dtype) * jnp.asarray((2.0 / (shape[0] * shape[1])) ** 0.5, dtype)
)


class Conv(nn.Module):
    """`dyn_jax.nn.conv2d` with its parameters: kernel [k, k, in, features], bias [features]."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = False
    winograd: bool = False
    kernel_init: Any = conv_init
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        x, kernel = promote_dtype(x, parameter(self, "kernel", self.kernel_init, shape))
        y: jax.Array = conv2d(x, kernel, self.stride, self.padding, self.winograd)
        if self.use_bias:
            bias = parameter(self, "bias", self.bias_init, (self.features,))
            y = y + bias.astype(y.dtype).reshape(1, 1, 1, -1)
        return y

    def macs(self, in_features: int, positions: int = 1) -> int:
        """Multiply-adds over `positions` output positions."""
        return macs.conv2d(self.kernel_size, in_features, self.features, positions)


class Dense(nn.Module):
    """``x @ kernel + bias`` over the last axis: kernel [in, features], bias [features]."""

    features: int
    kernel_init: Any = dense_init
    use_bias: bool = True
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = parameter(self, "bias", self.bias_init, (self.features,)) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias)
        return _affine(x, kernel, bias)


@partial(jax.jit, inline=True)
def _affine(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    y = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


@partial(jax.jit, inline=True)
def global_mean(x: jax.Array) -> jax.Array:
    """Mean over height and width: [batch, height, width, channel] -> [batch, channel]."""
    return jnp.mean(x, axis=(1, 2))


def window_mean(x: jax.Array, size: int) -> jax.Array:
    """Average pooling of one fixed window, as ``AvgPool2d(size)`` on maps that hold just one: [batch, channel].

    Rows and columns beyond `size` are ignored, as in the released ImageNet SkipNet.

    Raises:
      ValueError: the map is smaller than the window, or holds more than one.
    """
    height, width = x.shape[1:3]
    if not (size <= height < 2 * size and size <= width < 2 * size):
        raise ValueError(
            f"window_mean: got a {height}x{width} map for a {size}x{size} window, expected one whole window; "
            "give the network images of the size it was built for (image_size)"
        )
    return global_mean(x[:, :size, :size])


def max_pool_3x3_stride_2(x: jax.Array) -> jax.Array:
    """``MaxPool2d(3, stride=2, padding=1)``."""
    padding: Any = ((1, 1), (1, 1))  # flax has no annotation; its default, a string, would stand for one
    return nn.max_pool(x, (3, 3), (2, 2), padding)


def _keeps_output(arguments: int) -> Callable[[Callable], Callable[..., jax.Array]]:
    """Where a rectifier's output is above 0 its cotangent goes to all of its arguments."""

    def keeping(rectifier: Callable) -> Callable[..., jax.Array]:
        kept = jax.custom_vjp(rectifier)
        backward = lambda out, cotangent: (jnp.where(out > 0, cotangent, 0),) * arguments
        kept.defvjp(lambda *x: (kept(*x),) * 2, backward)
        return jax.jit(kept, inline=True)

    return keeping


@_keeps_output(1)
def relu(x: jax.Array) -> jax.Array:
    """``max(x, 0)`` with derivative 0 at 0; the backward pass keeps the output, which the next layer needs anyway."""
    return jnp.maximum(x, 0)


@_keeps_output(2)
def add_relu(identity: jax.Array, branch: jax.Array) -> jax.Array:
    """``ReLU(identity + branch)``, the end of a residual block; the derivative is 0 where the sum is 0.

    Written as ``max(branch, -identity) + identity`` (equal to the last bit), which ends in a sum: XLA's CPU backend
    repeats a closing ReLU in every fusion that reads the result, along the whole residual stream. The backward pass
    keeps the output only.
    """
    return jnp.maximum(branch, -identity) + identity
