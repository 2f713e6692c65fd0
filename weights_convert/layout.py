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


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `transpose_to` expects for a leaf of `shape`."""
    if len(shape) == 4:
        return shape[3], shape[2], shape[0], shape[1]
    return shape if len(shape) == 3 else shape[::-1]


def fitted(form: str, key: str, array: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray | None, tuple]:
    """The tensor called `key` as a leaf of `shape`, None where it does not fit, and the shape that it should have.

    `form` is one of `weights_convert.tables.format_of`.
    """
    if form == "minkowski":
        return from_minkowski(key, array, shape), minkowski_shape(key, shape)
    if form == "torch":
        return transpose_to(array, shape), torch_shape(shape)
    if form == "tensorflow":
        return from_tensorflow(array, shape), shape
    return (array if array.shape == shape else None), shape


def is_minkowski(key: str) -> bool:
    """Whether MinkowskiEngine gives some tensor a name like `key`: ``*.bn.*``, ``*.linear.*``, else kernel or bias."""
    layer, leaf = ["", *key.split(".")][-2:]
    return leaf in _MINKOWSKI.get(layer, ("kernel", "bias"))


def from_minkowski(key: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """`array`, MinkowskiEngine's tensor called `key`, in Flax's order of axes if that gives `shape`, else None.

    Kernels [slices, in, out] and pointwise ones [in, out] stay as they are; linear layers' weights [out, in] ->
    [in, out]; the bias of a convolution [1, out] -> [out]; vectors unchanged.
    """
    if array.shape != minkowski_shape(key, shape):
        return None
    return np.ascontiguousarray(array.T if key.endswith(".linear.weight") else array.reshape(shape))


def minkowski_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `from_minkowski` expects of the tensor called `key` for a leaf of `shape`."""
    if key.endswith(".linear.weight"):
        return shape[::-1]
    of_convolution = key.endswith(".bias") and not key.endswith((".bn.bias", ".linear.bias"))
    return (1, *shape) if of_convolution else shape


def from_tensorflow(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """`array`, a TensorFlow variable, as it is if its shape is `shape`, else None.

    A pointwise kernel [1, 1, in, out] that stands for a dense layer becomes [in, out].
    """
    if len(shape) == 2 and array.ndim == 4 and array.shape[:2] == (1, 1):
        array = array[0, 0]
    return np.ascontiguousarray(array) if array.shape == shape else None
