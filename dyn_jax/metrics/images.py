"""Measures of perturbed images."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate


def psnr(images: jax.Array, reference: jax.Array, *, peak: float = 1.0) -> jax.Array:
    """Peak signal-to-noise ratio ``10 log10(peak^2 / mean squared difference)`` in dB, [batch]; inf where equal.

    Raises:
      ValueError: images of different shapes.
    """
    _validate.same_shape("images, reference", images, reference)
    axes = tuple(range(1, images.ndim))
    error = jnp.mean((images - reference) ** 2, axis=axes)
    safe = jnp.where(error > 0, error, 1.0)
    return jnp.where(error > 0, 10 * jnp.log10(peak**2 / safe), jnp.inf)
