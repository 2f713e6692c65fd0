"""CIFAR-10 kept as npz files: some of the original images, or all of them as JPEG; and what to train on of these."""

from __future__ import annotations

import io
import itertools
import os

import numpy as np

from dyn_jax import _files, _validate
from dyn_jax.datasets.base import ImageData, checked_images, data_directory


def cifar10_lossless(directory: str | os.PathLike, split: str) -> ImageData:
    """Original CIFAR-10 images, a part of them, from ``cifar10_lossless_{train,test}.npz``.

    Args:
      directory: folder of the file, which holds `image` uint8 [n, 32, 32, 3] and `label` [n].
      split: "train" (4,660 images there) or "test" (500).

    Returns:
      `ImageData`: images [n, 32, 32, 3] uint8, labels [n] int32; the name says how many images there are.

    Raises:
      FileNotFoundError: the file is not there; names folder and file.
      ValueError: the file is not such an npz, or its arrays do not fit together.
    """
    path, arrays = _load(directory, "cifar10_lossless", split, ("image", "label"))
    return _checked(path, arrays["image"], arrays["label"], f"CIFAR-10 ({len(arrays['label']):,} lossless images)")


def cifar10_jpeg(directory: str | os.PathLike, split: str) -> ImageData:
    """All of CIFAR-10 after JPEG compression, from ``cifar10_jpeg_{train,test}.npz``.

    Lossy: networks trained on the originals lose about ten points of accuracy on them, so a number measured
    here is not comparable with a published one.

    Args:
      directory: folder of the file, which holds `jpeg` (all files, one after another, uint8), `offset`
        [n + 1] and `label` [n]; image i is ``jpeg[offset[i]:offset[i + 1]]``.
      split: "train" (50,000 images there) or "test" (10,000).

    Returns, raises: as `cifar10_lossless`.
    """
    path, arrays = _load(directory, "cifar10_jpeg", split, ("jpeg", "offset", "label"))
    content, offset = arrays["jpeg"].tobytes(), arrays["offset"]
    whole = offset.ndim == 1 and len(offset) > 1 and offset[0] == 0 and offset[-1] == len(content)
    if not whole or (np.diff(offset) <= 0).any():
        raise ValueError(f"{path}: got offsets that do not cut {len(content):,} bytes of jpeg into files")
    try:
        images = np.stack([_decode(content[a:b]) for a, b in itertools.pairwise(offset)])
    except (OSError, ValueError) as error:  # PIL's own error is an OSError
        raise ValueError(f"{path}: got a broken or odd-sized JPEG, expected 32 x 32 colour images: {error}") from error
    return _checked(path, images, arrays["label"], "CIFAR-10 (JPEG, lossy)")


def cifar10_packed(directory: str | os.PathLike | None = None, split: str = "train") -> ImageData:
    """What networks are trained on, chosen by and tested on, from the four files of `cifar10_lossless`, `cifar10_jpeg`.

    Args:
      directory: folder of the files; default ``$DYN_JAX_DATA``, else ``~/.cache/dyn_jax``.
      split: "train": the JPEG images and the lossless ones, without what is held back, in either form; "held_back": the
        first 1,000 lossless training images, for choosing anything; "test": the JPEG test images.

    Raises:
      FileNotFoundError, ValueError: as `cifar10_jpeg`; an unknown split.
    """
    _validate.choice("split", split, ("train", "held_back", "test"))
    directory = data_directory(directory)
    if split == "test":
        return cifar10_jpeg(directory, "test")
    lossless = cifar10_lossless(directory, "train")
    held, rest = (ImageData(lossless.images[rows], lossless.labels[rows], lossless.name) for rows in _CUT)
    if split == "held_back":
        return held._replace(name="CIFAR-10 (lossless, held back from training)")
    jpeg = cifar10_jpeg(directory, "train")
    other = np.ones(len(jpeg.labels), bool)
    other[twins(held.images, jpeg.images)] = False
    images, labels = (np.concatenate([a[other], b]) for a, b in zip(jpeg[:2], rest[:2]))
    return ImageData(images, labels, "CIFAR-10 (JPEG, lossy, and lossless)")


_CUT = (slice(None, 1000), slice(1000, None))


def twins(images: np.ndarray, among: np.ndarray) -> np.ndarray:
    """For each image the number of the one that is nearest to it in the means of 4 x 4 pixels: the same before JPEG.

    Args:
      images, among: [n, 32, 32, 3] and [m, 32, 32, 3], uint8.

    Returns:
      [n].
    """
    means = lambda x: x.reshape(len(x), 8, 4, 8, 4, 3).mean((2, 4), np.float32).reshape(len(x), -1)
    wanted, given = means(images), means(among)
    square = np.sum(given**2, 1) - 2 * wanted @ given.T  # and what is equal along each row
    return np.argmin(square, 1)


def _load(directory: str | os.PathLike, stem: str, split: str, keys: tuple[str, ...]) -> tuple[str, dict]:
    _validate.choice("split", split, ("train", "test"))
    path = os.path.join(os.path.expanduser(directory), f"{stem}_{split}.npz")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{stem}: no file {os.path.basename(path)} in {os.path.abspath(directory)}")
    wanted = f"an npz with arrays {', '.join(keys)}"
    arrays = _files.read_npz(path, keys, wanted)
    if missing := [key for key in keys if key not in arrays]:
        raise _files.BadFile(f"{path}: got no array {missing[0]!r}, expected {wanted}")
    return path, arrays


def _decode(jpeg: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        return np.asarray(image)


def _checked(path: str, images: np.ndarray, labels: np.ndarray, name: str) -> ImageData:
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{path}: got images {images.dtype} {images.shape} and labels {labels.shape}, "
            "expected uint8 [n, 32, 32, 3] and one label each"
        )
    return checked_images(ImageData(images, labels, name), path, 10)
