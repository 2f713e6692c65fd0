"""Adversarial training (Madry et al. 2018) of any network that a recipe trains: accuracy, energy, or both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dyn_jax import _validate
from dyn_jax.attacks import Attack
from dyn_jax.objectives import Objective, cross_entropy
from dyn_jax.training.recipe import Recipe
from dyn_jax.types import Occupancy, Output


@dataclasses.dataclass(frozen=True)
class Perturb:
    """What `Recipe.perturb` calls: the first images of a batch under attack; its fields are `adversarial`'s."""

    attack: Attack
    occupancy: Occupancy | None = None
    share: float = 1.0

    def __call__(self, apply: Callable[..., Any], images: Any, labels: jax.Array, key: jax.Array) -> jax.Array:
        images = jnp.asarray(images)
        count = round(self.share * len(images))
        forward = lambda x: apply(x, occupancy=self.occupancy)
        result = self.attack(forward, images[:count], labels[:count], key=key)
        return jnp.concatenate([result.adversarial, images[count:]])


def adversarial(recipe: Recipe, attack: Attack, *, occupancy: Occupancy | None = None, share: float = 1.0) -> Recipe:
    """`recipe` on attacked images: in every step the network as it is now is attacked in evaluation mode.

    The loss stays the recipe's, on what the attack made: with one that has a budget, an attack on the energy trains
    the network to keep it. Accuracy: ``attacks.pgd(...)``; energy: the same with ``objective=objectives.energy()``;
    both: with `both`.

    Args:
      recipe: of a network of images; only its last stage is attacked.
      attack: give it ``attack_all=True``, or images that are misclassified stay clean.
      occupancy: of the attacked network: None for FGM, ``occupancy.sigmoid(10.0)`` or ``straight_through`` for LGM.
      share: of each batch that is attacked, in (0, 1].

    Raises:
      TypeError, ValueError: no `Attack`; a share out of range.
    """
    if not isinstance(attack, Attack):
        raise TypeError(f"attack: got {type(attack).__name__}, expected one of dyn_jax.attacks")
    share = float(_validate.positive("share", share))
    if share > 1:
        raise ValueError(f"share: got {share}, expected at most 1")
    return dataclasses.replace(recipe, perturb=Perturb(attack, occupancy, share))


def both(energy: Objective, weight: float = 1.0) -> Objective:
    """``cross-entropy + weight * energy``: an objective on the answer and on what it costs.

    Args:
      energy: e.g. ``objectives.energy()``.
      weight: at least 0.
    """
    _validate.number("weight", weight, minimum=0)

    def objective(output: Output, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
        return cross_entropy(output, labels, targets) + weight * energy(output, labels, targets)

    return objective
