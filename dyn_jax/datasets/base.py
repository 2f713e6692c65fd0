"""What every data set returns, and how it is cut into batches: NumPy on the host, no JAX arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dyn_jax import _validate

ENVIRONMENT_VARIABLE = "DYN_JAX_DATA"


class ImageData(NamedTuple):
    """Labelled images.

    Attributes:
      images: [n, height, width, channel], uint8 in [0, 255] or float32 in [0, 1].
      labels: [n] int32.
      name: what the images are, as a report should call them.
    """

    images: np.ndarray
    labels: np.ndarray
    name: str


class Batch(NamedTuple):
    """One batch of an `ImageData`.

    Attributes:
      images: [batch, height, width, channel], as in the data set.
      labels: [batch] int32.
      valid: [batch] bool, False for rows that only fill the last batch up.
    """

    images: np.ndarray
    labels: np.ndarray
    valid: np.ndarray


def checked_images(data: ImageData, where: str = "data", classes: int | None = None) -> ImageData:
    """Returns the data, labels as int32, if they keep what `ImageData` promises.

    Args:
      data: any.
      where: what messages begin with, e.g. the file they were read from.
      classes: labels must lie in [0, classes); None: at least 0.

    Raises:
      TypeError, ValueError: no image; images of another rank, dtype or range; labels that are no integers, not one for
        each image (a column [n, 1] is not), or out of range.
    """
    images, labels = np.asarray(data.images), np.asarray(data.labels)
    count = len(images) if images.ndim else 0
    if count == 0 or labels.shape != (count,):
        raise ValueError(
            f"{where}: got {count} images and labels of shape {labels.shape}, "
            f"expected at least one image and one label per image, ({count},)"
        )
    if images.ndim != 4:
        raise ValueError(f"{where}: got images of shape {images.shape}, expected [n, height, width, channel]")
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating):
            raise TypeError(f"{where}: got images of dtype {images.dtype}, expected uint8 or floating point")
        _validate.within(f"{where}: images", images, (0.0, 1.0))
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{where}: got labels of dtype {labels.dtype}, expected integers")
    last = np.iinfo(np.int32).max if classes is None else classes - 1
    if labels.min() < 0 or labels.max() > last:
        raise ValueError(f"{where}: got labels in [{labels.min()}, {labels.max()}], expected [0, {last}]")
    return data._replace(images=images, labels=labels.astype(np.int32))


def data_directory(directory: str | os.PathLike | None = None) -> str:
    """Where data sets are looked for: the argument, else ``$DYN_JAX_DATA``, else ``~/.cache/dyn_jax``."""
    if directory is None:
        directory = os.environ.get(ENVIRONMENT_VARIABLE) or os.path.join("~", ".cache", "dyn_jax")
    return os.path.expanduser(os.fspath(directory))


def default_folder(name: str, directory: str | os.PathLike | None) -> str:
    """`data_directory` of a data set that has the folder `name` of its own where none is given."""
    return data_directory(os.path.join(data_directory(), name) if directory is None else directory)


def to_float(images: np.ndarray) -> np.ndarray:
    """Images as float32 in [0, 1].

    Args:
      images: uint8 in [0, 255], divided by 255; or floating point in [0, 1], cast.

    Raises:
      TypeError: another dtype.
      ValueError: floating-point values that are not finite or outside [0, 1] by more than 1e-6.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise TypeError(f"images: got dtype {images.dtype}, expected uint8 or floating point")
    _validate.within("images", images, (0.0, 1.0))
    return np.clip(images.astype(np.float32), 0, 1)


def batches(
    data: ImageData, batch_size: int, *, seed: int | Sequence[int] | None = None, pad_last: bool = False
) -> Iterator[Batch]:
    """Cuts `data` into batches, in order or shuffled; every example comes exactly once as a valid row.

    Args:
      data: the data set, at least one example.
      batch_size: rows of a batch; the last batch has fewer where the size does not divide the data.
      seed: of ``numpy.random.default_rng``, which shuffles; several integers, e.g. ``(seed, epoch)``, give
        every epoch its own order. None keeps the order of the data.
      pad_last: fills the last batch up to `batch_size` with repetitions of its own rows, `valid` False, so
        that all batches have one shape. (Repeated images, not zeros: batch norm then sees real images.)

    Raises:
      TypeError, ValueError: batch_size is not a positive integer; data as in `checked_images`.
    """
    batch_size = _validate.positive_int("batch_size", batch_size)
    data = checked_images(data)
    count = len(data.images)
    order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)

    def cut() -> Iterator[Batch]:
        for start in range(0, count, batch_size):
            rows = order[start : start + batch_size]
            valid = np.arange(batch_size if pad_last else len(rows)) < len(rows)
            rows = np.resize(rows, len(valid))
            yield Batch(data.images[rows], data.labels[rows], valid)

    return cut()


def augment_crop_flip(images: np.ndarray, rng: np.random.Generator, pad: int = 4, flip: bool = True) -> np.ndarray:
    """Zero-pads every side by `pad`, crops back at a random place, and flips left-right half of the images.

    Args:
      images: [n, height, width, channel], any dtype, which is kept.
      rng: draws for every image its own row and column offset in [0, 2 pad], then its flip.
      pad: pixels; 0 leaves the crop out.
      flip: whether to flip.

    Raises:
      TypeError, ValueError: images are not of rank 4; pad is not an integer of at least 0.

    Source: the CIFAR augmentation of ResNet (He et al. 2016, section 4.2), which SkipNet and DynConv use too.
    """
    if np.ndim(images) != 4:
        raise ValueError(f"images: got shape {np.shape(images)}, expected rank 4: [batch, height, width, channel]")
    pad = _validate.positive_int("pad", pad, minimum=0)
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    offset = rng.integers(0, 2 * pad + 1, (2, count, 1))
    rows = offset[0] + np.arange(height)  # [n, height]
    columns = offset[1] + np.arange(width)  # [n, width]
    if flip:
        columns = np.where(rng.random((count, 1)) < 0.5, columns[:, ::-1], columns)
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
