"""The published ResNet-20 and the images of the stored failure checks."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import weights_convert
from dyn_jax import networks


@pytest.fixture(scope="session")
def published(shared_dir, golden):
    """(forward, images [12, 32, 32, 3], labels) that all of which it gets right."""
    pytest.importorskip("torch")
    from weights_convert.torch_io import read_state_dict

    stored = golden("eval_failure_checks")
    (path,) = (shared_dir / "data" / "checkpoints").glob("resnet20-*.th")
    variables = weights_convert.convert("resnet-20-cifar10", read_state_dict(path))
    with np.load(shared_dir / "data" / "cifar10_lossless_test.npz") as data:
        images = jnp.asarray(data["image"][stored["index"]].astype(np.float32) / 255)
    forward = functools.partial(networks.create("resnet-20-cifar10").apply, variables)
    return forward, images, stored["label"]
