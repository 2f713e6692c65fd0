"""The networks that stored attack arrays were made with, and the arrays' layout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import traced_once

import weights_convert
from dyn_jax import networks


def resnet20(shared_dir, dtype=jnp.float32, **fields):
    """x -> `Output` of the published ResNet-20 with weights of that type; needs PyTorch to read its file."""
    pytest.importorskip("torch")
    from weights_convert.torch_io import read_state_dict

    path = shared_dir / "data" / "checkpoints" / "resnet20-12fca82f.th"
    net = networks.create("resnet-20-cifar10", **fields)
    variables = weights_convert.convert("resnet-20-cifar10", read_state_dict(path))
    return traced_once(net, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables))


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


def nudged(forward, images, copies, size=1e-7, seed=0):
    """`forward` for `copies` batches one behind the other, each of which it sees moved by its own noise.

    The noise, at most `size`, is like the rounding of images in [0, 1] (1e-7), or of what the layers of a deep network
    make of them (1e-6): where a ReLU's input is within rounding of 0 the released code's path is the one that its
    machine's rounding chose, and some of the copies take it on any other. The first copy of seed 0 is not moved.
    """
    shape = (copies, *images.shape)
    noise = size * jax.random.uniform(jax.random.key(seed), shape, images.dtype, -1, 1)
    noise = noise.at[0].multiply(seed > 0).reshape(-1, *images.shape[1:])
    return lambda x: forward(x + noise)


def copied(copies, *arrays):
    """Each array, `copies` times one behind the other."""
    return [jnp.concatenate([jnp.asarray(array)] * copies) for array in arrays]
