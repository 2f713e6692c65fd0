"""2D convolution whose input gradient stays fast inside ``scan`` and ``fori_loop`` on CPU."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    """Cross-correlation of `x` with `kernel`, square stride and symmetric zero padding, as in PyTorch.

    The backward pass to `x` is written as an ordinary forward convolution (flipped kernel, channels exchanged, the
    cotangent dilated by the stride). JAX's own rule gives a form that XLA's CPU backend runs about ten times slower
    inside a loop body than outside, where an attack spends all its time (compare jax-ml/jax#12868).

    Args:
      x: [batch, height, width, in].
      kernel: [k, k, in, out].
      stride: step between output positions.
      padding: zeros added on every side; at most ``k - 1``.

    Returns:
      [batch, 1 + (height + 2 padding - k) // stride, ..., out].

    Only reverse-mode differentiation is defined (any order); ``jax.jvp`` raises.
    """
    return _forward(x, kernel, stride, padding)


def _forward(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((padding, padding), (padding, padding)), dimension_numbers=_DIMENSIONS
    )


def _conv2d_fwd(x, kernel, stride, padding):
    return _forward(x, kernel, stride, padding), (x, kernel)


def _conv2d_bwd(stride, padding, residuals, cotangent):
    x, kernel = residuals
    size = kernel.shape[0]
    # Rows of x that no window reaches, at the far edge, get zero gradient.
    unused = [(x.shape[axis] + 2 * padding - size) % stride for axis in (1, 2)]
    low = size - 1 - padding
    x_bar = jax.lax.conv_general_dilated(
        cotangent,
        jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3),
        (1, 1),
        tuple((low, low + rest) for rest in unused),
        lhs_dilation=(stride, stride),
        dimension_numbers=_DIMENSIONS,
    )
    _, kernel_vjp = jax.vjp(lambda k: _forward(x, k, stride, padding), kernel)
    return x_bar, kernel_vjp(cotangent)[0]


conv2d.defvjp(_conv2d_fwd, _conv2d_bwd)
