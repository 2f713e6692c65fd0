"""The networks that ship with the package, by name: how each is trained, on what, and how good it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from dyn_jax import _validate, networks
from dyn_jax.datasets import digits, objects, rooms
from dyn_jax.training import runs
from dyn_jax.training.hrl import skipnet_rl_recipe
from dyn_jax.training.loop import Report, fit
from dyn_jax.training.manidp import manidp_recipe
from dyn_jax.training.points import OBJECT_POINTS, ROOM_POINTS, objects_recipe, rooms_recipe
from dyn_jax.training.ponder import sact_recipe
from dyn_jax.training.recipe import Recipe
from dyn_jax.training.sdn import digits_recipe
from dyn_jax.training.sparsity import dynconv_recipe, skipnet_recipe
from dyn_jax.types import Variables

RECIPES: dict[str, Callable[..., Recipe]] = {
    "skipnet-digits": skipnet_recipe,
    "skipnet-rl-digits": skipnet_rl_recipe,
    "dynconv-digits": dynconv_recipe,
    "sact-digits": sact_recipe,
    "manidp-digits": manidp_recipe,
    "minkunet-rooms": rooms_recipe,
    "minkfcnn-objects": objects_recipe,
    **{
        f"{family}-{variant}-digits": lambda *epochs, stage=stage: digits_recipe(stage, *epochs)
        for family, stage in (("sdn", "full"), ("cnn", "static"))
        for variant in ("vgg16", "resnet56", "mobilenet")
    },
}
"""Network -> its recipe, called with the number of epochs of each stage, or without for the recipe's own."""

DATA: dict[str, Callable[[str], Any]] = {
    "digits": digits,
    "rooms": lambda split: rooms(split, {"train": 96, "test": 16}[split], points=ROOM_POINTS),
    "objects": lambda split: objects(split, {"train": 1280, "test": 200}[split], points=OBJECT_POINTS),
}
"""Last part of a network's name -> (split -> data)."""


def recipe_of(name: str, epochs: int | None = None) -> Recipe:
    """The recipe of an embedded network.

    Args:
      name: a key of `RECIPES`.
      epochs: instead of the recipe's own number, in each of its stages.

    Raises:
      ValueError, TypeError: unknown name; epochs that are no positive integer.
    """
    recipe = RECIPES[_validate.choice("network", name, RECIPES)]
    return recipe() if epochs is None else recipe(_validate.positive_int("epochs", epochs))


def data_of(name: str, split: str) -> Any:
    """``train`` or ``test`` data of an embedded network."""
    return DATA[name.rpartition("-")[2]](split)


def train(
    name: str,
    *,
    seed: int = 0,
    epochs: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    every: int = 50,
    report: Report | None = None,
) -> Variables:
    """Trains one of the embedded networks from scratch, or from where a checkpoint stopped; one to some minutes.

    Weights differ between machines, whatever the seed: rounding differs, and training amplifies it.

    Args:
      name, epochs: see `recipe_of`.
      seed, checkpoint, every, report: see `fit`.

    Raises:
      ValueError, TypeError, OSError: a bad argument, or a checkpoint that does not fit, before any data is read.
    """
    net, recipe = networks.create(_validate.choice("network", name, RECIPES)), recipe_of(name, epochs)
    _validate.positive_int("seed", seed, 0)
    _validate.positive_int("every", every)
    if checkpoint is not None:
        runs.load(runs.writable("checkpoint", checkpoint), runs.identify(net, recipe, seed, initial=None))
    data = data_of(name, "train")
    return fit(net, data, recipe, seed=seed, checkpoint=checkpoint, every=every, report=report)
