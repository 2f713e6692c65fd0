"""Attacks on adaptive neural networks, functional and jitted, in JAX/Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dyn_jax import attacks as attacks
    from dyn_jax import datasets as datasets
    from dyn_jax import evaluation as evaluation
    from dyn_jax import gates as gates
    from dyn_jax import macs as macs
    from dyn_jax import metrics as metrics
    from dyn_jax import networks as networks
    from dyn_jax import nn as nn
    from dyn_jax import objectives as objectives
    from dyn_jax import occupancy as occupancy
    from dyn_jax import plotting as plotting
    from dyn_jax import sparse3d as sparse3d
    from dyn_jax import testing as testing
    from dyn_jax import training as training
    from dyn_jax import types as types
    from dyn_jax.deployed import deploy as deploy

__version__ = "0.2.0"
_ROOMS = (
    *("attacks", "datasets", "evaluation", "gates", "macs", "metrics", "networks", "nn", "objectives", "occupancy"),
    *("plotting", "sparse3d", "testing", "training", "types"),
)


def __getattr__(name: str) -> Any:
    """The rooms, imported when they are first asked for: JAX reads some of its variables at its own import only."""
    if name == "deploy":
        return importlib.import_module("dyn_jax.deployed").deploy
    if name in _ROOMS:
        return importlib.import_module(f"dyn_jax.{name}")
    raise AttributeError(f"module 'dyn_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, "deploy"})
