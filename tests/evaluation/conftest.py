"""Published ResNets and the images of the stored failure checks."""

import jax.numpy as jnp
import numpy as np
import pytest
from compiled import traced_once

import weights_convert
from dyn_jax import networks


def static(folder, depth):
    """A published ResNet as a forward."""
    pytest.importorskip("torch")
    from weights_convert.torch_io import read_state_dict

    (path,) = (folder / "data" / "checkpoints").glob(f"resnet{depth}-*.th")
    name = f"resnet-{depth}-cifar10"
    return traced_once(networks.create(name), weights_convert.convert(name, read_state_dict(path)))


@pytest.fixture(scope="session")
def cifar(shared_dir, golden):
    """(images [12, 32, 32, 3], labels) of the stored failure checks; ResNet-20 is right on all of them."""
    stored = golden("eval_failure_checks")
    with np.load(shared_dir / "data" / "cifar10_lossless_test.npz") as data:
        return jnp.asarray(data["image"][stored["index"]].astype(np.float32) / 255), stored["label"]


@pytest.fixture(scope="session")
def published(shared_dir, cifar):
    """(ResNet-20, images, labels)."""
    return static(shared_dir, 20), *cifar


@pytest.fixture(scope="session")
def deeper(shared_dir):
    """ResNet-32."""
    return static(shared_dir, 32)
