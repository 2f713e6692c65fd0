"""Pixel masks: which positions an attack may change."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def random_pixels(key: jax.Array, height: int, width: int, rate: float) -> jax.Array:
    """Mask [height, width] with ``int(rate * height * width)`` random pixels set to 1: LGM's "valid pixel rate".

    Args:
      key: typed PRNG key. (LGM's own draw, 51 of 1024 pixels at 5 %, comes from PyTorch's generator with seed 1.)
      height, width: of the images.
      rate: share of the pixels, in [0, 1].

    Raises:
      ValueError: rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: got {rate}, expected a share in [0, 1]")
    order = jax.random.permutation(key, height * width)
    return (order < int(rate * height * width)).astype(jnp.float32).reshape(height, width)
