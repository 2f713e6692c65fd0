"""Early Attack as its released code has it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dyn_jax.attacks.base import Attack
from dyn_jax.attacks.domains import Domain
from dyn_jax.attacks.early_attack import EarlyForm
from dyn_jax.attacks.early_attack import early_attack as as_published

FIRST_RETURN = 200  # the loop looks at success from this iteration on
CLASSES = 10  # and sums T1 over this many classes, CIFAR-100's too
IMAGENET_STD = (0.229, 0.224, 0.225)


def early_attack(
    *,
    alpha: jax.typing.ArrayLike = 1.0,
    constant: jax.typing.ArrayLike = 50.0,
    steps: int = 1000,
    learning_rate: jax.typing.ArrayLike = 0.01,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Attack:
    """`dyn_jax.attacks.early_attack` with the squared L2 distance between normalised images.

    No example returns before iteration 201, and T1 is summed over the first ten classes only, whatever their number.

    Args:
      alpha, constant, steps, learning_rate: see `dyn_jax.attacks.early_attack`.
      std: of the normalisation; one number per channel.

    Source: released code of 2308.08709.
    """

    def distance(domain: Domain, x: jax.Array) -> jax.Array:
        scaled = (x - domain.clean) / jnp.asarray(std, x.dtype).reshape(1, 1, 1, -1)
        return jnp.sum(scaled * scaled, axis=(1, 2, 3))

    form = EarlyForm(distance, FIRST_RETURN, CLASSES)
    return as_published(alpha=alpha, constant=constant, steps=steps, learning_rate=learning_rate, form=form)
