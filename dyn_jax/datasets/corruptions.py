"""Gaussian noise and brightness at five severities (Hendrycks and Dietterich 2019), in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dyn_jax import _validate
from dyn_jax.datasets.base import ImageData, checked_images, to_float

# By severity 1 to 5. ``imagenet``: ImageNet-C; ``cifar``: CIFAR-10-C, milder, made for 32x32 images.
NOISE_STD = {"imagenet": (0.08, 0.12, 0.18, 0.26, 0.38), "cifar": (0.04, 0.06, 0.08, 0.09, 0.10)}
BRIGHTNESS = {"imagenet": (0.1, 0.2, 0.3, 0.4, 0.5), "cifar": (0.05, 0.1, 0.15, 0.2, 0.3)}
SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(
    images: np.ndarray, severity: int, rng: np.random.Generator, *, table: str = "imagenet"
) -> np.ndarray:
    """``clip(x + N(0, std^2), 0, 1)``, std by `NOISE_STD`.

    Args:
      images: [n, height, width, channel], uint8 or float in [0, 1].
      severity: 1 to 5.
      rng: draws the noise.
      table: ``imagenet`` or ``cifar``.

    Returns:
      float32 in [0, 1].

    Raises:
      TypeError, ValueError: severity is not an integer from 1 to 5; unknown table; images as in `to_float`.
    """
    std = _level(NOISE_STD, table, severity)
    images = to_float(images)
    return np.clip(images + std * rng.standard_normal(images.shape, np.float32), 0, 1).astype(np.float32)


def brightness(images: np.ndarray, severity: int, *, table: str = "imagenet") -> np.ndarray:
    """Adds to the value V = max(R, G, B) of HSV, clips it to 1, and keeps hue and saturation.

    Then every channel is multiplied by V' / V; black pixels become grey. Arguments and result as in `gaussian_noise`,
    the amount by `BRIGHTNESS`.

    Raises:
      TypeError, ValueError: as `gaussian_noise`; images that do not have three channels.
    """
    amount = _level(BRIGHTNESS, table, severity)
    images = to_float(images)
    if images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images: got shape {images.shape}, expected [n, height, width, 3]")
    value = images.max(axis=3, keepdims=True)
    brighter = np.minimum(value + amount, 1)
    scaled = images * (brighter / np.where(value > 0, value, 1))
    return np.where(value > 0, scaled, brighter).astype(np.float32)


def with_corrupted_copies(
    data: ImageData, *, seed: int = 0, severities: Sequence[int] = SEVERITIES, table: str = "imagenet"
) -> ImageData:
    """The images, then a copy of all under each corruption and severity: eleven times as many by default.

    Args:
      data: images and labels; labels are repeated.
      seed: of the noise.
      severities, table: see `gaussian_noise`.

    Returns:
      `ImageData` of float32 images: the clean ones, noise by severity, brightness by severity.

    Raises:
      TypeError, ValueError: as `gaussian_noise` and `brightness`.

    Source: 2308.08709, section 3.1 (the training inputs of a surrogate).
    """
    data = checked_images(data)
    clean = to_float(data.images)
    noisy = [gaussian_noise(clean, s, np.random.default_rng((seed, s)), table=table) for s in severities]
    bright = [brightness(clean, s, table=table) for s in severities]
    copies = 1 + 2 * len(severities)
    images = np.concatenate([clean, *noisy, *bright])
    return ImageData(images, np.tile(data.labels, copies), f"{data.name} and corrupted copies")


def _level(levels: dict[str, tuple[float, ...]], table: str, severity: int) -> np.float32:
    _validate.choice("table", table, levels)
    if _validate.positive_int("severity", severity, minimum=-(2**31)) not in SEVERITIES:
        raise ValueError(f"severity: got {severity}, expected 1, 2, 3, 4 or 5")
    return np.float32(levels[table][severity - 1])
