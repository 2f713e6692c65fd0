"""Pooling over windows side by side, and flattening in PyTorch's order."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


def windows(x: jax.Array, size: int) -> jax.Array:
    """[batch, h, w, c] -> [batch, h // size, size, w // size, size, c]; rows and columns left over are dropped."""
    batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size]
    return x.reshape(batch, rows, size, columns, size, channels)


def max_pool(x: jax.Array, size: int) -> jax.Array:
    """``MaxPool2d(size)``: windows side by side.

    Of equal values the first in row-major order takes the gradient, as in PyTorch. Equal positive values are common:
    deep ReLU maps are zero over whole regions, and what is computed from them is constant there.
    """
    cells = windows(x, size)
    columns = functools.reduce(_first_largest, [cells[:, :, :, :, j] for j in range(size)])
    return functools.reduce(_first_largest, [columns[:, :, i] for i in range(size)])


def _first_largest(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(a >= b, a, b)


def mixed_pool(x: jax.Array, alpha: jax.Array, size: int) -> jax.Array:
    """``alpha * MaxPool(size) + (1 - alpha) * AvgPool(size)``, windows side by side.

    Source: Lee, Gallagher and Tu 2016, eq. 3; one alpha for the whole map, neither clipped nor squashed.
    """
    mix = alpha.astype(x.dtype).reshape(1, 1, 1, 1)
    return mix * max_pool(x, size) + (1 - mix) * jnp.mean(windows(x, size), axis=(2, 4))


def flatten(x: jax.Array) -> jax.Array:
    """[batch, h, w, c] -> [batch, c * h * w] in PyTorch's order (channel, row, column)."""
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
