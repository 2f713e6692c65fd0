"""The networks that stored attack arrays were made with, and the arrays' layout."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from compiled import traced_once

import weights_convert
from dyn_jax import networks


def resnet20(shared_dir, **fields):
    """x -> `Output` of the published ResNet-20; needs PyTorch to read its file."""
    pytest.importorskip("torch")
    from weights_convert.torch_io import read_state_dict

    path = shared_dir / "data" / "checkpoints" / "resnet20-12fca82f.th"
    net = networks.create("resnet-20-cifar10", **fields)
    return traced_once(net, weights_convert.convert("resnet-20-cifar10", read_state_dict(path)))


def nhwc(array):
    """PyTorch's layout to ours."""
    return jnp.asarray(np.moveaxis(array, -3, -1))


def early_exits(name, golden, shared_dir):
    """``(images, **how)`` -> `Output` of the stored SDN, or of the published RDI-ResNet-38."""
    if name == "sdn":
        arrays, net = golden("resnet56_sdn_cifar10"), networks.create("sdn-resnet56-cifar10", normalize=False)
        state = {key[3:]: value for key, value in arrays.items() if key.startswith("sd/")}
    else:
        pytest.importorskip("torch")
        from weights_convert.torch_io import read_state_dict

        net = networks.create("rdi-resnet38-cifar10")
        state = read_state_dict(shared_dir / "data" / "checkpoints" / "rdi_resnet38_checkpoint_60000.pth.tar")
    return traced_once(net, weights_convert.convert(net, state))
