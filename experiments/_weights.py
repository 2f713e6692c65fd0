"""Trained networks: of the package, of a file, of others' checkpoints, or trained where the file is missing."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable

import flax.linen as nn

import weights_convert
from dyn_jax import networks
from dyn_jax.networks.checkpoint import load_variables, save_variables
from dyn_jax.types import Variables
from weights_convert.torch_io import read_state_dict

PUBLISHED = {  # network that does not ship -> the name of its authors' file
    "resnet-20-cifar10": "resnet20-12fca82f.th",
    "sparse-resnet-20-cifar10": "resnet20-12fca82f.th",
    "sparse-resnet-56-cifar10": "resnet56-4bfd9763.th",
    "rdi-resnet38-cifar10": "rdi_resnet38_checkpoint_60000.pth.tar",
}


def load(name: str, file: str | None = None) -> tuple[nn.Module, Variables]:
    """A network with the weights of the package, or of a file that `save_variables` wrote."""
    if file is None:
        return networks.pretrained(name)
    network = networks.create(name)
    return network, load_variables(file, network)


def published(name: str, path: str | os.PathLike) -> tuple[nn.Module, Variables]:
    """A network with the weights of its authors' checkpoint, a file, or that of `PUBLISHED` in a folder."""
    path = pathlib.Path(path)
    net = networks.create(name)
    return net, weights_convert.convert(net, read_state_dict(path / PUBLISHED[name] if path.is_dir() else path))


def of_seed(name: str, seed: int, folder: str | os.PathLike | None = None) -> tuple[nn.Module, Variables]:
    """A network as it ships, or from ``NAME-seedN.msgpack`` in `folder` where there is one; it ships seed 0."""
    path = None if folder is None else pathlib.Path(folder) / f"{name}-seed{seed}.msgpack"
    if path is not None and path.exists():
        network = networks.untrained(name)
        return network, load_variables(path, network)
    if seed:
        raise ValueError(f"--weights: no {name}-seed{seed}.msgpack in {folder}; the package ships seed 0 only")
    return networks.pretrained(name)


def kept(path: str | os.PathLike, train: Callable[[], Variables]) -> Variables:
    """Variables from `path`; where there is no such file they are trained first and kept there."""
    path = pathlib.Path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        save_variables(path, train())
        print(f"trained {path.stem} in {time.perf_counter() - began:.0f} s", flush=True)
    return load_variables(path)
