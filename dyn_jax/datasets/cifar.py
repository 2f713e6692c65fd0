"""CIFAR-10 from files that are already there: python batches, binary batches, or either archive unopened."""

from __future__ import annotations

import gzip
import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from dyn_jax import _files, _validate
from dyn_jax.datasets.array_pickle import load_array_pickle
from dyn_jax.datasets.base import ENVIRONMENT_VARIABLE, ImageData, checked_images, data_directory

CIFAR10_CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
IMAGES_PER_FILE = 10_000
PIXELS = 3 * 32 * 32
MAX_FILE_BYTES = 64 * 2**20  # the real files have 31 MB; more is not read into memory
MAX_ARCHIVE_BYTES = 2**29  # unpacked; the real ones have 186 MB

_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}

Rows = tuple[np.ndarray, np.ndarray]
"""Pixels [n, 3072] uint8 (red, green, blue plane) and labels [n], not yet checked."""


def cifar10(
    directory: str | os.PathLike | None = None,
    split: str = "train",
    *,
    images_per_file: int | None = IMAGES_PER_FILE,
) -> ImageData:
    """CIFAR-10 in its original order and bits, from a folder; nothing is downloaded or written.

    Looks in this order, in `directory` and its subfolder of the standard name:
    ``cifar-10-batches-py/data_batch_1..5, test_batch``; ``cifar-10-batches-bin/data_batch_1..5.bin,
    test_batch.bin``; ``cifar-10-python.tar.gz``; ``cifar-10-binary.tar.gz``. All four give the same arrays.
    The python batches are pickles; `array_pickle` reads them without letting them run anything.

    Args:
      directory: the folder; default ``$DYN_JAX_DATA``, else ``~/.cache/dyn_jax``.
      split: "train" (50,000 images) or "test" (10,000).
      images_per_file: how many images every file must hold; None accepts any number (reduced copies).

    Returns:
      `ImageData`: images [n, 32, 32, 3] uint8, labels [n] int32 in 0..9 (`CIFAR10_CLASS_NAMES`).

    Raises:
      FileNotFoundError: no complete set of files; names the folder and the files wanted.
      ValueError: a file is truncated, of the wrong size, asks for code, or holds labels outside 0..9.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    _validate.choice("split", split, _BATCHES)
    if images_per_file is not None:
        images_per_file = _validate.positive_int("images_per_file", images_per_file)
    layout, files = _find(data_directory(directory), split)
    images, labels = [], []
    for where, blob in files:
        pixels, batch_labels = layout.parse(blob, where)
        if images_per_file is not None and len(pixels) != images_per_file:
            raise ValueError(f"{where}: got {len(pixels)} images, expected {images_per_file} (is the file truncated?)")
        part = ImageData(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), batch_labels, "CIFAR-10")
        part = checked_images(part, where, len(CIFAR10_CLASS_NAMES))
        images.append(part.images)
        labels.append(part.labels)
    return ImageData(np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels), "CIFAR-10")


class _Layout(NamedTuple):
    folder: str
    suffix: str
    archive: str
    parse: Callable[[bytes, str], Rows]


def _find(directory: str, split: str) -> tuple[_Layout, Iterator[tuple[str, bytes]]]:
    """The first complete set of files, as its layout and (name for messages, content) one by one."""
    incomplete = []
    for layout in _LAYOUTS:
        names = [batch + layout.suffix for batch in _BATCHES[split]]
        for folder in (os.path.join(directory, layout.folder), directory):
            paths = [os.path.join(folder, name) for name in names]
            missing = [name for name, path in zip(names, paths) if not os.path.isfile(path)]
            if not missing:
                return layout, ((path, _files.read(path, limit=MAX_FILE_BYTES)) for path in paths)
            if len(missing) < len(names):
                incomplete.append(f"; {folder} lacks {', '.join(missing)}")
    for layout in _LAYOUTS:
        archive = os.path.join(directory, layout.archive)
        if os.path.isfile(archive):
            return layout, _read_archive(archive, layout, split)
    wanted = " or ".join(
        f"{layout.folder}/{{{','.join(b + layout.suffix for b in _BATCHES[split])}}} or {layout.archive}"
        for layout in _LAYOUTS
    )
    raise FileNotFoundError(
        f"CIFAR-10 {split}: nothing complete in {os.path.abspath(directory)}{''.join(incomplete)}; "
        f"expected {wanted}. Put the files there, pass another directory, or set ${ENVIRONMENT_VARIABLE}; "
        "nothing is downloaded"
    )


def _read_archive(archive: str, layout: _Layout, split: str) -> Iterator[tuple[str, bytes]]:
    wanted = [f"{layout.folder}/{batch}{layout.suffix}" for batch in _BATCHES[split]]
    found: dict[str, bytes] = {}
    with _files.opened(archive, limit=MAX_ARCHIVE_BYTES) as file, _files.reading(archive, "a readable .tar.gz"):
        unpacked = _Unpacked(file)
        with tarfile.open(fileobj=unpacked, mode="r|") as tar:
            for member in tar:
                name = posixpath.normpath(member.name)
                if name in wanted and member.isreg():
                    if member.size > MAX_FILE_BYTES:
                        raise ValueError(f"{name} has {member.size:,} bytes, expected at most {MAX_FILE_BYTES:,}")
                    content = tar.extractfile(member)
                    assert content is not None  # a regular file has content
                    found[name] = content.read()
        while unpacked.read(2**20):  # to the end, where the checksum is
            pass
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{archive}: got an archive without {', '.join(missing)}, expected the CIFAR-10 files")
    for name in wanted:
        yield f"{archive}:{name}", found.pop(name)


class _Unpacked(gzip.GzipFile):
    """What is in a gzip file, up to `MAX_ARCHIVE_BYTES`."""

    def __init__(self, file: BinaryIO):
        super().__init__(fileobj=file)
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        content = super().read(size)
        self.count += len(content)
        if self.count > MAX_ARCHIVE_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_ARCHIVE_BYTES:,} bytes")
        return content


def _parse_binary(blob: bytes, where: str) -> Rows:
    """Records of one label byte and 3072 pixel bytes."""
    if len(blob) % (1 + PIXELS):
        raise ValueError(f"{where}: got {len(blob):,} bytes, expected a multiple of {1 + PIXELS} (truncated?)")
    records = np.frombuffer(blob, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0]


def _parse_python(blob: bytes, where: str) -> Rows:
    """A pickled dict with `data`, uint8 [n, 3072], and `labels`, a list of n integers."""
    with _files.reading(where, "a CIFAR-10 python batch"):
        batch = load_array_pickle(blob)
    if not isinstance(batch, dict):
        raise ValueError(f"{where}: got a {type(batch).__name__}, expected a dict with 'data' and 'labels'")
    batch = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    pixels, labels = batch.get("data"), batch.get("labels")
    if not isinstance(pixels, np.ndarray) or not isinstance(labels, list):
        raise ValueError(f"{where}: got keys {_files.listed(batch)}, expected an array 'data' and a list 'labels'")
    if pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise ValueError(f"{where}: got data of shape {pixels.shape}, expected (images, {PIXELS})")
    if not all(type(label) is int and abs(label) < 2**31 for label in labels):
        raise ValueError(f"{where}: got labels that are not integers, expected integers in [0, 9]")
    return pixels, np.array(labels, np.int64)


_LAYOUTS = (
    _Layout("cifar-10-batches-py", "", "cifar-10-python.tar.gz", _parse_python),
    _Layout("cifar-10-batches-bin", ".bin", "cifar-10-binary.tar.gz", _parse_binary),
)
