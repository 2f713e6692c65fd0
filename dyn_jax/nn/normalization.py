"""Input normalisation, inside the network: images stay in [0, 1] outside, and so does every eps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

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
