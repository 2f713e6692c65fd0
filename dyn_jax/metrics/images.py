"""Measures of perturbed images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import _validate


def psnr(images: jax.Array, reference: jax.Array, *, peak: float | None = None) -> jax.Array:
    """Peak signal-to-noise ratio ``10 log10(peak^2 / mean squared difference)`` in dB, [batch].

    Infinite where the images are equal, NaN where they hold one.

    Args:
      images, reference: [batch, height, width, channel], both floating point or both integers.
      peak: the range of the pixels; default 1 for floating point, 255 for uint8.

    Raises:
      ValueError, TypeError: floating point beside integers; a peak that is not positive, none for integers but uint8.
    """
    _validate.same_shape("images, reference", images, reference)
    if jnp.ndim(images) != 4:
        raise ValueError(f"images, reference: got shape {jnp.shape(images)}, expected [batch, height, width, channel]")
    types = [jnp.result_type(x) for x in (images, reference)]
    if len({jnp.issubdtype(dtype, jnp.floating) for dtype in types}) > 1:
        raise TypeError(f"images, reference: got {types[0]} and {types[1]}, expected pixels of one range")
    if peak is None:
        if not jnp.issubdtype(types[0], jnp.floating) and set(types) != {np.dtype(np.uint8)}:
            raise ValueError(f"peak: got None for {types[0]}, expected the range of the pixels")
        peak = 255.0 if types[0] == np.uint8 else 1.0
    squared = _validate.positive("peak", peak) ** 2
    images, reference = (jnp.asarray(x, jnp.result_type(x, jnp.float32)) for x in (images, reference))  # 8 bits wrap
    error = jnp.mean((images - reference) ** 2, axis=tuple(range(1, images.ndim)))
    return jnp.where(error == 0, jnp.inf, 10 * jnp.log10(squared / jnp.where(error == 0, 1, error)))
