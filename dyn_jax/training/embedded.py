"""The networks that ship with the package, by name: how each is trained, on what, and how good it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from dyn_jax import _validate, networks
from dyn_jax.datasets import ImageData, cifar10, cifar10_packed, digits, objects, rooms, streets, to_float
from dyn_jax.networks.checkpoint import load_variables
from dyn_jax.networks.manidp import ManiDP
from dyn_jax.networks.skipnet import SkipNet
from dyn_jax.training import cifar, runs
from dyn_jax.training.experts import moe_recipe, vmoe_recipe
from dyn_jax.training.hrl import skipnet_rl_recipe
from dyn_jax.training.loop import Report, fit
from dyn_jax.training.manidp import manidp_recipe
from dyn_jax.training.points import OBJECT_POINTS, ROOM_POINTS, objects_recipe, rooms_recipe, streets_recipe
from dyn_jax.training.ponder import avit_recipe, sact_recipe
from dyn_jax.training.recipe import Recipe
from dyn_jax.training.sdn import digits_recipe
from dyn_jax.training.sparsity import dynconv_recipe, skipnet_recipe
from dyn_jax.types import Variables

RECIPES: dict[str, Callable[..., Recipe]] = {
    "skipnet-32-cifar10": cifar.skipnet_recipe,
    "dynconv-32-cifar10": cifar.dynconv_recipe,
    "sact-32-cifar10": cifar.sact_recipe,
    "manidp-32-cifar10": cifar.manidp_recipe,
    "sdn-resnet56-cifar10": cifar.sdn_resnet56_recipe,
    "skipnet-digits": skipnet_recipe,
    "skipnet-rl-digits": skipnet_rl_recipe,
    "dynconv-digits": dynconv_recipe,
    "sact-digits": sact_recipe,
    "manidp-digits": manidp_recipe,
    "avit-digits": avit_recipe,
    "moe-digits": moe_recipe,
    "vmoe-digits": vmoe_recipe,
    "minkunet-rooms": rooms_recipe,
    "minkfcnn-objects": objects_recipe,
    "cylinder3d-streets": streets_recipe,
    **{
        f"{family}-{variant}-digits": lambda *epochs, stage=stage: digits_recipe(stage, *epochs)
        for family, stage in (("sdn", "full"), ("cnn", "static"))
        for variant in ("vgg16", "resnet56", "mobilenet")
    },
}
"""Network -> its recipe, called with the number of epochs of each stage, or without for the recipe's own."""

TRUNKS: dict[str, str] = {  # network -> the trained static network that it starts from; the others start from scratch
    **{f"{family}-32-cifar10": "resnet-32-cifar10" for family in ("skipnet", "dynconv", "sact", "manidp")},
    "sdn-resnet56-cifar10": "resnet-56-cifar10",
}

CALIBRATION = 256  # images, the first of the training data, whose statistics the embedded network starts with

DATA: dict[str, Callable[[str, str | os.PathLike | None], Any]] = {
    "cifar10": lambda split, folder: _cifar10(folder, split),
    "digits": lambda split, folder: digits(split),
    "rooms": lambda split, folder: rooms(split, {"train": 96, "test": 16}[split], points=ROOM_POINTS),
    "objects": lambda split, folder: objects(split, {"train": 1280, "test": 200}[split], points=OBJECT_POINTS),
    "streets": lambda split, folder: streets(split),
}
"""Last part of a network's name -> ((split, folder of data that do not come with the package) -> data)."""


def _cifar10(folder: str | os.PathLike | None, split: str) -> ImageData:
    """`cifar10_packed`, or where its files are missing the originals, of which nothing is held back."""
    try:
        return cifar10_packed(folder, split)
    except FileNotFoundError as missing:
        try:
            return cifar10(folder, split)
        except FileNotFoundError as originals:
            raise FileNotFoundError(f"{missing}; and {originals}") from missing


def recipe_of(name: str, epochs: int | None = None) -> Recipe:
    """The recipe of a network of `RECIPES`, with other `epochs` in each of its stages where they are given.

    ValueError, TypeError: unknown name; epochs that are no positive integer.
    """
    recipe = RECIPES[_validate.choice("network", name, RECIPES)]
    return recipe() if epochs is None else recipe(_validate.positive_int("epochs", epochs))


def network_of(name: str) -> nn.Module:
    """The module of an embedded network."""
    return networks.untrained(name) if name in networks.PRETRAINED else networks.create(name)


def data_of(name: str, split: str, folder: str | os.PathLike | None = None) -> Any:
    """``train`` or ``test`` data of an embedded network; `folder`: see `dyn_jax.datasets.cifar10_packed`."""
    return DATA[name.rpartition("-")[2]](split, folder)


def start_of(name: str, trunk: str | os.PathLike, data: ImageData, seed: int = 0) -> Variables:
    """The variables that a network of `TRUNKS` starts from: the static one inside it, gates that see their input.

    OSError, ValueError: no file of variables of the static network.
    """
    net, images = network_of(name), to_float(data.images[:CALIBRATION])
    variables = networks.embed(net, load_variables(trunk, TRUNKS[name]), images=images, seed=seed)
    if isinstance(net, SkipNet):
        return cifar.spread_gates(net, variables, images)
    return cifar.spread_saliencies(net, variables, images, seed=seed) if isinstance(net, ManiDP) else variables


def train(
    name: str,
    *,
    seed: int = 0,
    epochs: int | None = None,
    trunk: str | os.PathLike | None = None,
    folder: str | os.PathLike | None = None,
    checkpoint: str | os.PathLike | None = None,
    every: int = 50,
    report: Report | None = None,
) -> Variables:
    """Trains one of the embedded networks, from scratch or its trunk, or from where a checkpoint stopped.

    One to some minutes, on CIFAR-10 longer. Weights differ between machines, whatever the seed: rounding
    differs, and training amplifies it.

    Args:
      name, epochs: see `recipe_of`.
      trunk: variables of the static network that `TRUNKS` names, as ``python -m weights_convert`` writes them.
      folder: of the data, see `data_of`.
      seed, checkpoint, every, report: see `fit`.

    Raises:
      ValueError, TypeError, OSError: a bad argument, or a checkpoint that does not fit, before any data is read.
    """
    recipe = recipe_of(name, epochs)
    net = network_of(name)
    _validate.positive_int("seed", seed, 0)
    _validate.positive_int("every", every)
    if (trunk is None) == (name in TRUNKS):
        wanted = f"the variables of {TRUNKS[name]}" if name in TRUNKS else "none, it is trained from scratch"
        raise ValueError(f"trunk: got {trunk!r}, expected {wanted} for {name}")
    if folder is not None and not name.endswith("-cifar10"):
        raise ValueError(f"folder: got {os.fspath(folder)!r}, expected none: the data of {name} come with the package")
    if trunk is not None:
        load_variables(trunk, TRUNKS[name])
    if checkpoint is not None:
        known = {} if trunk is not None else {"initial": None}
        runs.load(runs.writable("checkpoint", checkpoint), runs.identify(net, recipe, seed, **known))
    data = data_of(name, "train", folder)
    initial = None if trunk is None else start_of(name, trunk, data, seed)
    return fit(net, data, recipe, seed=seed, initial=initial, checkpoint=checkpoint, every=every, report=report)
