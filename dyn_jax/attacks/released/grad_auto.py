"""GradAuto as its released code has it, and eq. 3 of its paper as printed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks import rectify
from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.domains import Domain, pixels_of
from dyn_jax.attacks.energy import Form, combined, gate_attack

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET_MEAN_STD: MeanStd = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The bounds of CIFAR-10 images normalised by CIFAR-10's statistics, used on any normalised image.
LOW, HIGH = (-2.4291, -2.4183, -2.2214), (2.5141, 2.5968, 2.7537)
SLOPE = 0.8
GUARD = 1e-20


def _on_pixels(domain: Domain, x: jax.Array) -> jax.Array:
    return pixels_of(domain, "this change of variable is one of pixels").masked(x)


def printed(**fields: Any) -> Form:
    """``x' = (tanh(x + delta) + 1) / 2``, eq. 3 as printed: at delta = 0 a grey image in [0.5, 0.88].

    `fields`: others of `Form`.
    """
    change = lambda domain, delta: _on_pixels(domain, (jnp.tanh(domain.clean + delta) + 1) / 2)
    return Form(change=change, **fields)


def form(normalization: MeanStd | None = IMAGENET_MEAN_STD, **fields: object) -> Form:
    """``v' = low + (high - low) (tanh(0.8 (v + delta)) + 1) / 2`` on normalised images v, with the released bounds.

    At delta = 0 the image is not the clean one (mid-grey 0.5 becomes 0.52 to 0.65), and pixels can leave [0, 1] (about
    -0.09 to 1.06). The distance is the sum of squares between normalised images; the last iterate is returned.

    Args:
      normalization: (mean, std) that make v from images in [0, 1]; None: the images are given normalised.
      **fields: others of `Form`.

    Source: GradAuto's released code, which uses CIFAR-10's bounds on images normalised for ImageNet.
    """
    mean, std = ((0.0,) * 3, (1.0,) * 3) if normalization is None else normalization
    channels = lambda values, like: jnp.asarray(values, like.dtype).reshape(1, 1, 1, -1)

    def change(domain: Domain, delta: jax.Array) -> jax.Array:
        m, s, low, high = (channels(v, delta) for v in (mean, std, LOW, HIGH))
        squashed = (jnp.tanh(SLOPE * ((domain.clean - m) / s + delta)) + 1) / 2
        return _on_pixels(domain, (low + (high - low) * squashed) * s + m)

    def distance(domain: Domain, x: jax.Array) -> jax.Array:
        return jnp.sum(((x - domain.clean) / channels(std, x)) ** 2, axis=(1, 2, 3))

    lowest = min(v * s + m for v, s, m in zip(LOW, std, mean))
    highest = max(v * s + m for v, s, m in zip(HIGH, std, mean))
    return Form(**{"change": change, "distance": distance, "bounds": (lowest, highest), "keep": "last", **fields})


def direction_first(complexity: jax.Array, finished: jax.Array, lipschitz: jax.typing.ArrayLike) -> rectify.Rectified:
    """The component against g_F off first, then ``K g / (||g|| + 1e-20)``: the length is K whatever was lost."""
    turned = rectify.direction(complexity, finished)
    length = rectify.norm(turned.gradient) + GUARD
    return turned._replace(gradient=jnp.asarray(lipschitz, complexity.dtype) * turned.gradient / length)


def grad_auto(
    lipschitz: jax.typing.ArrayLike = 1.0,
    *,
    steps: int = 300,
    learning_rate: jax.typing.ArrayLike = 0.01,
    tau: jax.typing.ArrayLike = 0.5,
    keep_logits: jax.typing.ArrayLike = 0.0,
    normalization: MeanStd | None = IMAGENET_MEAN_STD,
) -> Attack:
    """`dyn_jax.attacks.grad_auto` as the authors ran it on SkipNet.

    Distortion as a sum of squares of normalised images, projection before normalisation and from step 0, equal
    weights, and the returned image is the one before the last update.

    Args:
      lipschitz, steps, learning_rate, tau: see `dyn_jax.attacks.grad_auto`.
      keep_logits: weight of the squared change of the logits; its option to maintain accuracy uses 1e5.
      normalization: see `form`.

    Source: GradAuto's released code.
    """
    lipschitz = _validate.positive("lipschitz", lipschitz)
    turn = lambda gradients: direction_first(gradients.complexity, gradients.finished, lipschitz)
    released = form(normalization, update_last=False, keep_logits=keep_logits)
    fields = {"form": released, "steps": steps, "learning_rate": learning_rate, "finished_from": 0}
    return gate_attack(combined(turn), None, tau, "equal", **fields)
