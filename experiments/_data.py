"""Readers of CIFAR-10 kept as npz files, for the experiments only; the folder is always an argument."""

from __future__ import annotations

import io
import itertools
import os
import zipfile
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from dyn_jax import _validate
from dyn_jax.datasets import ImageData


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
    if (
        offset.ndim != 1
        or len(offset) < 2
        or offset[0] != 0
        or offset[-1] != len(content)
        or (np.diff(offset) <= 0).any()
    ):
        raise ValueError(f"{path}: got offsets that do not cut {len(content):,} bytes of jpeg into files")
    try:
        images = np.stack([_decode(content[a:b]) for a, b in itertools.pairwise(offset)])
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(f"{path}: got a broken or odd-sized JPEG, expected 32 x 32 colour images: {error}") from error
    return _checked(path, images, arrays["label"], "CIFAR-10 (JPEG, lossy)")


def _load(directory: str | os.PathLike, stem: str, split: str, keys: tuple[str, ...]) -> tuple[str, dict]:
    _validate.choice("split", split, ("train", "test"))
    path = os.path.join(os.path.expanduser(directory), f"{stem}_{split}.npz")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{stem}: no file {os.path.basename(path)} in {os.path.abspath(directory)}")
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return path, {key: archive[key] for key in keys}
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not an npz with arrays {', '.join(keys)}, or truncated: {error}") from error


def _decode(jpeg: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        return np.asarray(image)


def _checked(path: str, images: np.ndarray, labels: np.ndarray, name: str) -> ImageData:
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{path}: got images {images.dtype} {images.shape} and labels {labels.shape}, "
            "expected uint8 [n, 32, 32, 3] and one label each"
        )
    if len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{path}: got no labels or labels outside [0, 9]")
    return ImageData(images, labels.astype(np.int32), name)
