"""Somebody's own labelled images: an npz file, or a folder of one folder for each class."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from dyn_jax import _files
from dyn_jax.datasets.base import ImageData, checked_images

IMAGES, LABELS = ("image", "images", "x", "x_test"), ("label", "labels", "y", "y_test")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
MOST_PIXELS = 2**24
"""Of one image: a PNG of 17 kB unpacks to 432 MB."""


def image_file(path: str | os.PathLike) -> ImageData:
    """Images and labels of an npz file.

    Args:
      path: an npz with `image` [n, height, width, channel] (uint8, or floating point in [0, 1]) and `label` [n]; also
        `images`/`labels`, `x`/`y` or `x_test`/`y_test`; not two of them.

    Raises:
      OSError, ValueError: no such file, not an npz, no such arrays, or arrays that do not fit together; NCHW images.
    """
    name = os.fspath(path)
    arrays = _files.read_npz(path, IMAGES + LABELS)
    found = [[key for key in keys if key in arrays] for keys in (IMAGES, LABELS)]
    for there in found:
        if len(there) > 1:
            raise ValueError(f"{name}: got the arrays {_files.listed(there)}, expected one of them: which is meant?")
    if not all(found):
        there = _files.listed(arrays)
        raise ValueError(
            f"{name}: got the arrays {there}, expected 'image' [n, height, width, channel] and 'label' [n]"
        )
    images, labels = (arrays[there[0]] for there in found)
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        raise ValueError(f"{name}: got images of shape {images.shape}, channels first; transpose them to NHWC")
    return checked_images(ImageData(images, labels, os.path.basename(name)), name)


def image_folder(path: str | os.PathLike) -> ImageData:
    """Images of one size from a folder with a folder for each class; classes are numbered by the order of their names.

    Args:
      path: of the folder: ``FOLDER/CLASS/*.png`` (or jpg, jpeg, bmp), 8 bits a channel. What file managers and
        notebooks put beside the classes (``.ipynb_checkpoints``, ``__MACOSX``) is no class.

    Returns:
      `ImageData`: images uint8 [n, height, width, 3], in the order of class and file name.

    Raises:
      OSError, ValueError: no such folder, no images, images of different sizes, of more than 8 bits, too large ones or
        damaged ones, or a class without any: names the file or folder.
    """
    from PIL import Image

    place = pathlib.Path(path).expanduser()
    if not place.is_dir():
        raise FileNotFoundError(f"{place}: no such folder; expected one with a folder of images for each class")
    classes = sorted(entry for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))
    images: list[np.ndarray] = []
    labels: list[int] = []
    for number, folder in enumerate(classes):
        files = [entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES and entry.name[0] != "."]
        if not files:  # or accuracy is of the other classes alone
            raise ValueError(
                f"{folder}: got no images, expected {', '.join(SUFFIXES)} files in the folder of every class"
            )
        for file in sorted(files):
            with _files.opened(file, "an image") as content, _files.reading(os.fspath(file), "an image"):
                image = Image.open(content)
                shape = (image.height, image.width, 3)  # looked at before anything is unpacked
                if images and shape != images[0].shape:
                    raise _files.BadFile(f"{file}: got an image of {shape}, expected {images[0].shape} as the first")
                if image.height * image.width > MOST_PIXELS:
                    raise _files.BadFile(f"{file}: got an image of {shape}, expected at most {MOST_PIXELS:,} pixels")
                if image.mode not in EIGHT_BITS:  # conversion would cut at 255
                    raise _files.BadFile(f"{file}: got pixels of the kind {image.mode}, expected 8 bits a channel")
                images.append(np.asarray(image.convert("RGB")))
            labels.append(number)
    if not images:
        raise ValueError(f"{place}: got no images, expected folders of {', '.join(SUFFIXES)} files, one for each class")
    return checked_images(ImageData(np.stack(images), np.array(labels, np.int32), place.name), os.fspath(place))
