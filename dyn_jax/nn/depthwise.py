"""Depthwise convolution, written so that XLA is quick with it on CPU."""

from __future__ import annotations

from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from dyn_jax import macs
from dyn_jax.nn.layers import conv_init
from dyn_jax.nn.parameter import parameter


def _taps(x: jax.Array, stride: int) -> list[jax.Array]:
    """The nine inputs of a padded 3x3 window at every output position, each [batch, rows, columns, channel]."""
    height, width = x.shape[1:3]
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    ends = (rows - 1) * stride + 1, (columns - 1) * stride + 1
    return [padded[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(3) for j in range(3)]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv3x3(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Each channel of x [batch, height, width, channel] with its own kernel, [3, 3, 1, channel], zero padding 1.

    Nine shifted products: XLA's grouped convolution is up to twelve times slower on CPU inside a loop. The kernel's
    gradient is a product with a vector of ones for the same reason.
    """
    return depthwise_products(x, kernel, stride)


@partial(jax.jit, static_argnums=2)
def depthwise_products(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The forward pass; under a name of its own, by which `dyn_jax.macs.of_function` knows it."""
    weights = kernel.reshape(9, 1, 1, 1, -1)
    return reduce(jnp.add, [weights[n] * tap for n, tap in enumerate(_taps(x, stride))])


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
        kernel = parameter(self, "kernel", conv_init, (3, 3, 1, x.shape[-1]))
        return depthwise_conv3x3(*promote_dtype(x, kernel), self.stride)
