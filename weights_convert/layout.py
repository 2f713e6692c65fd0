"""How one PyTorch tensor becomes one Flax leaf: names of leaves and order of axes."""

from __future__ import annotations

import numpy as np

BATCH_STATS = {"running_mean": "mean", "running_var": "var"}
DROPPED = ("num_batches_tracked",)  # counts steps; no leaf here (files older than PyTorch 0.4 lack it)


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
