"""scikit-learn's handwritten digits as small colour images: real data that needs no download."""

from __future__ import annotations

from typing import Any

import numpy as np

from dyn_jax import _validate
from dyn_jax.datasets.base import ImageData

TEST_EXAMPLES = 500
SPLIT_SEED = 0


def digits(split: str = "train", *, size: int = 32) -> ImageData:
    """Optical recognition of handwritten digits: 1797 grey images of 8 x 8, 10 classes.

    The 17 grey levels 0..16 are divided by 16, enlarged bilinearly, and repeated over three channels.

    The split is stratified and fixed: 500 test examples, every class in proportion to its size (48 to 51
    each), chosen by the raw PCG64 stream of seed 0, which NumPy keeps the same across versions; the other
    1297 are for training. Both halves keep the order of the source.

    Args:
      split: "train" (1297 examples) or "test" (500).
      size: height and width in pixels, at least 8.

    Returns:
      `ImageData`: images [n, size, size, 3] float32 in [0, 1], labels [n] int32 in 0..9.

    Raises:
      ImportError: scikit-learn is not installed.
      TypeError, ValueError: split or size is none of the above.

    Source: E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998 (its test set), CC BY 4.0;
    ``sklearn.datasets.load_digits``.
    """
    _validate.choice("split", split, ("train", "test"))
    size = _validate.positive_int("size", size, minimum=8)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("dyn_jax.datasets.digits needs scikit-learn: pip install scikit-learn") from error
    bunch: Any = load_digits()
    rows = split_rows(bunch.target)[split]
    grey = enlarge(bunch.images[rows] / 16.0, size)
    images = np.repeat(grey.astype(np.float32)[..., None], 3, axis=3)
    return ImageData(images, bunch.target[rows].astype(np.int32), "handwritten digits")


def enlarge(grey: np.ndarray, size: int) -> np.ndarray:
    """Bilinear enlargement [n, s, s] -> [n, size, size], pixel centres at half-integers, edges repeated.

    Output pixel i lies at ``(i + 1/2) s / size - 1/2`` of the input, clamped to ``[0, s - 1]``; its value is
    the mean of the two neighbours weighted by nearness, along each axis in turn.
    """
    old = grey.shape[1]
    position = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    weight = np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(old)))  # [size, s], rows sum to 1
    return weight @ grey @ weight.T


def split_rows(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of the two halves of the fixed split, ascending: {"train": [n - 500], "test": [500]}.

    A class of n_c of n examples gives ``floor(500 n_c / n)`` test examples; those still wanting come from the
    classes with the largest remainders, the lowest class first among equals.
    """
    classes, counts = np.unique(labels, return_counts=True)
    share, remainder = np.divmod(TEST_EXAMPLES * counts, len(labels))
    share[np.argsort(-remainder, kind="stable")[: TEST_EXAMPLES - share.sum()]] += 1
    draw = np.random.PCG64(SPLIT_SEED).random_raw(len(labels))
    test = np.zeros(len(labels), bool)
    for label, quota in zip(classes, share):
        members = np.flatnonzero(labels == label)
        test[members[np.argsort(draw[members], kind="stable")[:quota]]] = True
    return {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
