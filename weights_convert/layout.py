"""How one PyTorch tensor becomes one Flax leaf: names of leaves and order of axes."""

from __future__ import annotations

import numpy as np

BATCH_STATS = {"running_mean": "mean", "running_var": "var"}
BUFFERS = ("mask_sum", "thre")  # of layers that are no norms (ManiDP's gates); same names here
DROPPED = ("num_batches_tracked",)  # counts steps; no leaf here (files older than PyTorch 0.4 lack it)

# TensorFlow variables: last part of the name -> (collection, leaf); and what a checkpoint holds beside the weights.
TENSORFLOW = {
    "weights": ("params", "kernel"),
    "biases": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}
DROPPED_TENSORFLOW = ("global_step", "/Momentum", "/ExponentialMovingAverage")

_TORCH_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}
_MINKOWSKI = {"bn": ("weight", "bias", *BATCH_STATS), "linear": ("weight", "bias")}


def transpose_to(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """`array` in Flax's order of axes if that gives `shape`, else None.

    Convolution OIHW -> HWIO; linear [out, in] -> [in, out]; a 1x1 convolution that acts on pooled features
    [out, in, 1, 1] -> [in, out]; vectors unchanged.
    """
    if array.ndim == 4 and len(shape) == 2 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array) if array.shape == shape else None


def fitted(form: str, key: str, array: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray | None, tuple]:
    """The tensor called `key` as a leaf of `shape`, None where it does not fit, and the shape that it should have.

    Args:
      form: of `weights_convert.tables.format_of`. ``torch``: see `transpose_to`. ``minkowski``: linear layers' weights
        [out, in] -> [in, out], the bias of a convolution [1, out] -> [out], all others as they are. ``tensorflow``: as
        they are, but a pointwise kernel [1, 1, in, out] that stands for a dense layer becomes [in, out]. ``flax``: as
        they are.
    """
    if form == "torch":
        return transpose_to(array, shape), tuple(shape[axis] for axis in _TORCH_AXES.get(len(shape), range(len(shape))))
    linear = form == "minkowski" and key.endswith(".linear.weight")
    of_convolution = form == "minkowski" and key.endswith(".bias") and not key.endswith((".bn.bias", ".linear.bias"))
    wanted = shape[::-1] if linear else (1, *shape) if of_convolution else shape
    if form == "tensorflow" and len(shape) == 2 and array.ndim == 4 and array.shape[:2] == (1, 1):
        array = array[0, 0]
    if array.shape != wanted:
        return None, wanted
    return np.ascontiguousarray(array.T if linear else array.reshape(shape)), wanted


def is_minkowski(key: str) -> bool:
    """Whether MinkowskiEngine gives some tensor a name like `key`: ``*.bn.*``, ``*.linear.*``, else kernel or bias."""
    layer, leaf = ["", *key.split(".")][-2:]
    return leaf in _MINKOWSKI.get(layer, ("kernel", "bias"))
