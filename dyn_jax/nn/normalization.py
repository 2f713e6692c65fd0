"""Input normalisation, inside the network: images stay in [0, 1] outside, and so does every eps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax import _validate

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]

CIFAR10_MEAN_STD: MeanStd = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET_MEAN_STD: MeanStd = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DIGITS_MEAN_STD: MeanStd = ((0.3, 0.3, 0.3), (0.35, 0.35, 0.35))


def normalize(images: jax.Array, mean_std: MeanStd | None) -> jax.Array:
    """``(images - mean) / std`` per channel; `images` unchanged where `mean_std` is None."""
    if mean_std is None:
        return images
    mean, std = (jnp.asarray(v, images.dtype).reshape(1, 1, 1, -1) for v in mean_std)
    return (images - mean) / std


def inputs(images: jax.Array, mean_std: MeanStd | None, size: int | None = None) -> jax.Array:
    """Images [batch, height, width, 3] in [0, 1], checked and normalised.

    Raises:
      ValueError, TypeError: wrong rank, channels or dtype; height and width other than `size` where that is given.
    """
    images = _validate.images("images", images, 3)
    if size is not None and images.shape[1:3] != (size, size):
        raise ValueError(f"images: got {images.shape[1]}x{images.shape[2]}, expected {size}x{size}")
    return normalize(images, mean_std)
