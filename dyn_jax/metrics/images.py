"""Measures of perturbed images."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate


def psnr(images: jax.Array, reference: jax.Array, *, peak: float = 1.0) -> jax.Array:
    """Peak signal-to-noise ratio ``10 log10(peak^2 / mean squared difference)`` in dB, [batch].

    Infinite where the images are equal, NaN where they hold one.

    Raises:
      ValueError: images of different shapes.
    """
    _validate.same_shape("images, reference", images, reference)
    images, reference = (jnp.asarray(x, jnp.result_type(x, jnp.float32)) for x in (images, reference))  # 8 bits wrap
    error = jnp.mean((images - reference) ** 2, axis=tuple(range(1, images.ndim)))
    return jnp.where(error == 0, jnp.inf, 10 * jnp.log10(peak**2 / jnp.where(error == 0, 1, error)))
