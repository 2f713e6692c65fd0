"""The trained networks that ship with the package."""

from __future__ import annotations

from importlib import resources
from typing import Any

import flax.linen as nn

from dyn_jax import _validate
from dyn_jax.networks.checkpoint import load_variables, whole
from dyn_jax.networks.registry import create
from dyn_jax.nn import IMAGENET_MEAN_STD
from dyn_jax.types import Variables

PRETRAINED: dict[str, dict[str, Any]] = {
    "avit-digits": {},
    "cylinder3d-streets": {},
    "dynconv-32-cifar10": {"normalization": IMAGENET_MEAN_STD},
    "dynconv-digits": {},
    "manidp-32-cifar10": {"normalization": IMAGENET_MEAN_STD},
    "manidp-digits": {},
    "minkfcnn-objects": {},
    "minkunet-rooms": {},
    "moe-digits": {},
    "sact-32-cifar10": {"stem": "resnet", "normalization": IMAGENET_MEAN_STD},
    "sact-digits": {},
    "sdn-resnet56-cifar10": {},
    "skipnet-32-cifar10": {},
    "skipnet-digits": {},
    "skipnet-rl-digits": {},
    "vmoe-digits": {},
}
"""Name -> what differs from `create`: on CIFAR-10, what the static network inside them was trained with."""


def pretrained(name: str) -> tuple[nn.Module, Variables]:
    """A network with its weights, made by ``dyn-jax train NAME --seed 0`` (docs: training).

    Args:
      name: ``skipnet-32-cifar10``, ``dynconv-32-cifar10``, ``manidp-32-cifar10``, ``sact-32-cifar10`` or
        ``sdn-resnet56-cifar10``, from published static networks, trained on CIFAR-10 most of which was JPEG, so lossy;
        ``skipnet-digits``, ``skipnet-rl-digits``, ``dynconv-digits``, ``sact-digits``, ``manidp-digits``,
        ``avit-digits``, ``moe-digits`` or ``vmoe-digits``, trained on the train split of `dyn_jax.datasets.digits`;
        ``minkunet-rooms`` on that of `dyn_jax.datasets.rooms`, ``minkfcnn-objects`` on that of
        `dyn_jax.datasets.objects`, ``cylinder3d-streets`` on that of `dyn_jax.datasets.streets`.

    Returns:
      (module, variables of numpy arrays, float32).

    Raises:
      ValueError: unknown name; the package's file is damaged. Other networks: convert a checkpoint with
        `weights_convert`, or train.
    """
    network = untrained(name)
    with resources.as_file(resources.files("dyn_jax") / "weights" / f"{name}.msgpack") as path:
        return network, whole(load_variables(path, network))


def untrained(name: str) -> nn.Module:
    """The module that `pretrained` gives.

    Raises:
      ValueError: unknown name.
    """
    return create(_validate.choice("pretrained network", name, PRETRAINED), **PRETRAINED[name])
