"""The tanh change of variable of the energy attacks (GradAuto eq. 3), in the three forms that are in use.

A change turns a free perturbation delta into an image. Only the first form starts, at delta = 0, at the clean image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks.threat import Bounds, safe_norm

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET_MEAN_STD: MeanStd = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The released bounds, of CIFAR-10 images normalised by CIFAR-10's statistics, used on any normalised image.
RELEASE_LOW, RELEASE_HIGH = (-2.4291, -2.4183, -2.2214), (2.5141, 2.5968, 2.7537)
RELEASE_SLOPE = 0.8
_INSIDE = 0.99  # tanh's derivative at the darkest and brightest pixels is then 0.02 of the largest, not 0


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of variable.

    Attributes:
      name: of `CHANGES`.
      to_image: (images, delta) -> images' of the same shape.
      distance: (images', images) -> [batch], the distortion that the attack of this form keeps small.
      bounds: lowest and highest pixel value that `to_image` gives, for images inside them.
    """

    name: str
    to_image: Callable[[jax.Array, jax.Array], jax.Array]
    distance: Callable[[jax.Array, jax.Array], jax.Array]
    bounds: Bounds


def exact() -> Change:
    """``x' = x + (tanh(w + delta) - tanh(w)) / 2`` with ``w = artanh(0.99 (2 x - 1))``, clipped to [0, 1].

    Eq. 3 with its start moved so that delta = 0 is the clean image to the last bit. Without the factor 0.99 a pixel at
    0 or 1 would have an infinite w and no gradient; the clipping it makes necessary is at most 0.005 and passes the
    gradient. The distance is eq. 7's L2 norm.
    """

    def to_image(images: jax.Array, delta: jax.Array) -> jax.Array:
        inner = _INSIDE * (2 * images - 1)
        raw = images + (jnp.tanh(jnp.arctanh(inner) + delta) - jnp.tanh(jnp.arctanh(inner))) / 2
        return raw + jax.lax.stop_gradient(jnp.clip(raw, 0.0, 1.0) - raw)

    return Change("exact", to_image, _l2, (0.0, 1.0))


def as_printed() -> Change:
    """``x' = (tanh(x + delta) + 1) / 2``, eq. 3 as printed: at delta = 0 a grey image in [0.5, 0.88]."""
    return Change("printed", lambda images, delta: (jnp.tanh(images + delta) + 1) / 2, _l2, (0.0, 1.0))


def as_released(normalization: MeanStd | None = IMAGENET_MEAN_STD) -> Change:
    """``v' = low + (high - low) (tanh(0.8 (v + delta)) + 1) / 2`` on normalised images v, with the released bounds.

    At delta = 0 the image is not the clean one (mid-grey 0.5 becomes 0.52 to 0.65), and pixels can leave [0, 1] (about
    -0.09 to 1.06). The distance is the sum of squares between normalised images.

    Args:
      normalization: (mean, std) that make v from images in [0, 1]; None: the images are given normalised.

    Source: GradAuto's released code, which uses CIFAR-10's bounds on images normalised for ImageNet.
    """
    mean, std = ((0.0,) * 3, (1.0,) * 3) if normalization is None else normalization

    def channels(values: tuple[float, ...], like: jax.Array) -> jax.Array:
        return jnp.asarray(values, like.dtype).reshape(1, 1, 1, -1)

    def to_image(images: jax.Array, delta: jax.Array) -> jax.Array:
        m, s, low, high = (channels(v, images) for v in (mean, std, RELEASE_LOW, RELEASE_HIGH))
        squashed = (jnp.tanh(RELEASE_SLOPE * ((images - m) / s + delta)) + 1) / 2
        return (low + (high - low) * squashed) * s + m

    def distance(x: jax.Array, images: jax.Array) -> jax.Array:
        return jnp.sum(((x - images) / channels(std, x)) ** 2, axis=(1, 2, 3))

    lowest = min(v * s + m for v, s, m in zip(RELEASE_LOW, std, mean))
    highest = max(v * s + m for v, s, m in zip(RELEASE_HIGH, std, mean))
    return Change("release", to_image, distance, (lowest, highest))


CHANGES = ("exact", "printed", "release")


def change_of(name: str, normalization: MeanStd | None) -> Change:
    """The change of that name.

    Raises:
      ValueError: unknown name.
    """
    _validate.choice("change", name, CHANGES)
    if name == "release":
        return as_released(normalization)
    return exact() if name == "exact" else as_printed()


def _l2(x: jax.Array, images: jax.Array) -> jax.Array:
    return safe_norm(x - images)[:, 0, 0, 0]


def squares(x: jax.Array, images: jax.Array) -> jax.Array:
    """``sum (x - images)^2``, [batch]."""
    return jnp.sum((x - images) ** 2, axis=(1, 2, 3))
