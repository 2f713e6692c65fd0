"""SACT's TensorFlow variables: names written out by hand for a small network, strict both ways."""

import numpy as np
import pytest
from flax import traverse_util

import weights_convert
from dyn_jax.networks import sact
from weights_convert.engine import ConversionError, target_shapes

NET = sact.SACT(depths=(2, 1), widths=(2, 3), num_classes=4)
UNITS = {1: 2, 2: 1}  # units of each block; the last has no halting layers


def names():
    """Released name -> path here."""
    norm = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
    table = {"resnet_residual/Conv/weights": "conv1/kernel", "resnet_residual/Conv/biases": "conv1/bias"}
    table |= {f"resnet_residual/BatchNorm/{tf}": f"bn/{leaf}" for tf, leaf in norm.items()}
    table |= {"resnet_residual/logits/weights": "fc/kernel", "resnet_residual/logits/biases": "fc/bias"}
    for block, units in UNITS.items():
        for unit in range(1, units + 1):
            theirs, ours = f"resnet_residual/block_{block}/unit_{unit}", f"block{block}_unit{unit}"
            table |= {f"{theirs}/residual/preact/{tf}": f"{ours}/bn1/{leaf}" for tf, leaf in norm.items()}
            table |= {f"{theirs}/residual/conv1/BatchNorm/{tf}": f"{ours}/bn2/{leaf}" for tf, leaf in norm.items()}
            table[f"{theirs}/residual/conv1/weights"] = f"{ours}/conv1/kernel"
            table[f"{theirs}/residual/conv2/weights"] = f"{ours}/conv2/kernel"
            table[f"{theirs}/residual/conv2/biases"] = f"{ours}/conv2/bias"
            if unit < units:
                halting = f"{theirs}/halting_proba"
                for part in ("local", "global"):
                    table[f"{halting}/{part}_conv/weights"] = f"{ours}_halting/{part}_conv/kernel"
                    table |= {
                        f"{halting}/{part}_bn/{tf}": f"{ours}_halting/{part}_bn/{leaf}" for tf, leaf in norm.items()
                    }
                table[f"{halting}/local_conv/biases"] = f"{ours}_halting/local_conv/bias"
    return table


def state():
    """Released arrays [.., in, out] with a value of their own each."""
    shapes = {"/".join(path[1:]): leaf.shape for path, leaf in target_shapes(NET).items()}
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shapes[path]).astype(np.float32) for name, path in names().items()}
    arrays["resnet_residual/logits/weights"] = arrays["resnet_residual/logits/weights"][None, None]
    return arrays


def test_every_variable_and_every_leaf():
    arrays = state()
    extra = {"global_step": np.ones(()), "resnet_residual/Conv/weights/Momentum": np.ones((3, 3, 3, 2))}
    converted = traverse_util.flatten_dict(weights_convert.convert(NET, arrays | extra))
    assert len(converted) == len(arrays)
    for name, path in names().items():
        (value,) = [v for key, v in converted.items() if "/".join(key[1:]) == path]
        np.testing.assert_array_equal(value, arrays[name].reshape(value.shape))


def test_strict_both_ways():
    arrays = state()
    arrays["resnet_residual/block_9/unit_1/residual/conv1/weights"] = np.ones((3, 3, 2, 2))
    del arrays["resnet_residual/Conv/biases"]
    arrays["resnet_residual/Conv/weights"] = np.ones((2, 3, 3, 3))
    with pytest.raises(ConversionError) as error:
        weights_convert.convert(NET, arrays)
    for line in (
        "unexpected key resnet_residual/block_9",
        "missing params/conv1/bias",
        r"wrong shape resnet_residual/Conv",
    ):
        assert line in str(error.value)
