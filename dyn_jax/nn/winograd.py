"""3x3 convolution by Winograd's F(4, 3) along the height: half the multiplications."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np

# Lavin and Gray 2016, section 4.3: F(4, 3), points 0, 1, -1, 2, -2, infinity.
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def fits_winograd(x: jax.Array, kernel: jax.Array, stride: int, padding: int, narrow: int) -> bool:
    """Whether `winograd_conv3x3` computes this convolution, and is the faster form."""
    size, _, fan_in, fan_out = kernel.shape
    same_3x3 = (size, stride, padding) == (3, 1, 1) and x.shape[1] % 4 == 0
    return same_3x3 and min(fan_in, fan_out) >= narrow and max(fan_in, fan_out) > narrow


@jax.jit
def winograd_conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Stride 1, padding 1: [batch, 4 t, width, in] x [3, 3, in, out] -> [batch, 4 t, width, out].

    Four output rows come from six products instead of twelve; the taps along the width stay a convolution.
    """
    batch, height, width, channels = x.shape
    tiles = height // 4
    rows = x.reshape(batch, tiles, 4, width, channels)
    phase = [rows[:, :, j] for j in range(4)]
    none, zero = (0, 0, 0), np.zeros((), x.dtype)
    above = jax.lax.pad(phase[3][:, : tiles - 1], zero, (none, (1, 0, 0), none, none))
    below = jax.lax.pad(phase[0][:, 1:], zero, (none, (0, 1, 0), none, none))
    window = [above, *phase, below]
    transformed = jnp.einsum("pk,khio->phio", jnp.asarray(_KERNEL, kernel.dtype), kernel, precision="highest")
    conv = partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    products = [conv(_combine(_INPUT[i], window), transformed[i][None], (1, 1), ((0, 0), (1, 1))) for i in range(6)]
    rows = [_combine(weights, products) for weights in _OUTPUT]
    return jnp.stack(rows, 2).reshape(batch, height, width, -1)


def _combine(weights: Sequence[int], terms: Sequence[jax.Array]) -> jax.Array:
    """Sum of weight x term over the non-zero weights."""
    return reduce(jnp.add, [term if weight == 1 else weight * term for weight, term in zip(weights, terms) if weight])
