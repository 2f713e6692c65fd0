"""The trained networks that ship with the package."""

from __future__ import annotations

from importlib import resources

import flax.linen as nn

from dyn_jax import _validate
from dyn_jax.networks.checkpoint import load_variables
from dyn_jax.networks.registry import create
from dyn_jax.types import Variables

PRETRAINED = (
    "dynconv-digits",
    "manidp-digits",
    "minkfcnn-objects",
    "minkunet-rooms",
    "sact-digits",
    "skipnet-digits",
    "skipnet-rl-digits",
)


def pretrained(name: str) -> tuple[nn.Module, Variables]:
    """A network with its weights, made by ``dyn-jax train NAME --seed 0``.

    Args:
      name: ``skipnet-digits``, ``skipnet-rl-digits``, ``dynconv-digits``, ``sact-digits`` or ``manidp-digits``, trained
        on the train split of `dyn_jax.datasets.digits`;
        ``minkunet-rooms`` on that of `dyn_jax.datasets.rooms`, ``minkfcnn-objects`` on that of
        `dyn_jax.datasets.objects`.

    Returns:
      (module, variables of numpy arrays).

    Raises:
      ValueError: unknown name; the package's file is damaged. Other networks: convert a checkpoint with
        `weights_convert`, or train.
    """
    _validate.choice("pretrained network", name, PRETRAINED)
    with resources.as_file(resources.files("dyn_jax") / "weights" / f"{name}.msgpack") as path:
        return (network := create(name)), load_variables(path, network)
