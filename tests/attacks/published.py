"""The published networks that stored attack arrays were made with."""

from __future__ import annotations

import functools

import pytest

import weights_convert
from dyn_jax import networks


def resnet20(shared_dir, **fields):
    """x -> `Output` of the published ResNet-20; needs PyTorch to read its file."""
    pytest.importorskip("torch")
    from weights_convert.torch_io import read_state_dict

    path = shared_dir / "data" / "checkpoints" / "resnet20-12fca82f.th"
    net = networks.create("resnet-20-cifar10", **fields)
    return functools.partial(net.apply, weights_convert.convert("resnet-20-cifar10", read_state_dict(path)))
