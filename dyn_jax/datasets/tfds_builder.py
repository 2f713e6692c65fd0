"""CIFAR-10 as a TensorFlow Datasets data set, prepared and read without TensorFlow.

TFDS can prepare its stock ``cifar10`` only where TensorFlow is installed. The builder here reads the same files
through `dyn_jax.datasets.cifar10` and writes what the stock builder would: the same name, version, features
and example keys. So the stock ``cifar10`` reads it too, and `cifar10_from_tfds` reads either.
"""

from __future__ import annotations

import functools
import glob
import io
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from dyn_jax import _validate
from dyn_jax.datasets.base import ImageData, data_directory
from dyn_jax.datasets.cifar import CIFAR10_CLASS_NAMES, IMAGES_PER_FILE, cifar10

_NAME, _VERSION, _FORMAT = "cifar10", "3.0.2", "array_record"
_FILES_PER_SPLIT = {"train": 5, "test": 1}


def prepare_tfds(
    source_directory: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    *,
    images_per_file: int | None = IMAGES_PER_FILE,
) -> str:
    """Writes CIFAR-10 from its original files as an array_record data set of TFDS; one already there is kept.

    Args:
      source_directory: where `dyn_jax.datasets.cifar10` finds the files; default as there.
      data_dir: the TFDS folder; ``<data_dir>/cifar10/3.0.2`` is written. Default: ``tensorflow_datasets`` in
        the default data directory.
      images_per_file: as for `dyn_jax.datasets.cifar10`.

    Returns:
      The folder of the prepared data set.

    Raises:
      FileNotFoundError, ValueError: as `dyn_jax.datasets.cifar10`; or what is prepared there is in another
        file format or lacks examples.
      ImportError: tensorflow-datasets or array_record is missing (array_record exists for Linux only).
    """
    data_dir = _tfds_directory(data_dir)
    tfds = _tfds()
    expected = {split: _expected(split, images_per_file) for split in _FILES_PER_SPLIT}
    if not _prepared_folders(data_dir):
        splits = {
            split: cifar10(source_directory, split, images_per_file=images_per_file) for split in _FILES_PER_SPLIT
        }
        _builder_class()(splits, data_dir=data_dir, file_format=_FORMAT).download_and_prepare()
        expected = {split: len(data.labels) for split, data in splits.items()}
    folder = _readable_folder(data_dir)
    builder = tfds.builder_from_directory(folder)
    for split, count in expected.items():
        _check_count(folder, split, len(builder.as_data_source(split)), count)
    return folder


def cifar10_from_tfds(
    data_dir: str | os.PathLike | None = None,
    split: str = "train",
    *,
    images_per_file: int | None = IMAGES_PER_FILE,
) -> ImageData:
    """CIFAR-10 from a prepared TFDS folder, ours or the stock one, in the original order.

    TFDS stores examples in hashed order; the ``id`` feature ("train_00042") puts them back.

    Args:
      data_dir: the TFDS folder, holding ``cifar10/<version>/``; default as for `prepare_tfds`.
      split: "train" or "test".
      images_per_file: as for `dyn_jax.datasets.cifar10`; 50,000 or 10,000 images are expected by default.

    Returns:
      The same `ImageData` as `dyn_jax.datasets.cifar10`.

    Raises:
      FileNotFoundError: nothing is prepared there; names the folder and the function to call.
      ValueError: prepared in another file format, or examples are missing.
      ImportError: as for `prepare_tfds`.
    """
    _validate.choice("split", split, _FILES_PER_SPLIT)
    folder = _readable_folder(_tfds_directory(data_dir))
    tfds = _tfds()
    source = tfds.builder_from_directory(folder).as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    count = len(source)
    _check_count(folder, split, count, _expected(split, images_per_file))
    images = np.empty((count, 32, 32, 3), np.uint8)
    labels = np.full(count, -1, np.int32)
    for example in source:
        row = _row(example["id"], split, count, folder)
        if labels[row] >= 0:
            raise ValueError(f"{folder}: got id {example['id']!r} twice, expected every id once")
        images[row] = _decode(example["image"])
        labels[row] = example["label"]
    return ImageData(images, labels, "CIFAR-10")


@functools.cache
def _builder_class() -> type:
    """The builder, made when it is first wanted, so that importing dyn_jax does not import TFDS."""
    tfds = _tfds()
    with tfds.core.registered.skip_registration():  # the stock builder keeps the name

        class Cifar10(tfds.core.GeneratorBasedBuilder):
            """CIFAR-10 from images in memory, stored as the stock builder stores them."""

            name = _NAME
            VERSION = tfds.core.Version(_VERSION)

            def __init__(self, splits: dict[str, ImageData], **options: Any):
                self._splits = splits
                super().__init__(**options)

            def _info(self) -> Any:
                return tfds.core.DatasetInfo(
                    builder=self,
                    description="CIFAR-10: 32x32 colour images in 10 classes, lossless PNG.",
                    features=tfds.features.FeaturesDict(
                        {
                            "id": tfds.features.Text(),
                            "image": tfds.features.Image(shape=(32, 32, 3)),
                            "label": tfds.features.ClassLabel(names=CIFAR10_CLASS_NAMES),
                        }
                    ),
                    supervised_keys=("image", "label"),
                    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
                )

            def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
                return {split: self._generate_examples(split) for split in self._splits}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
                data = self._splits[split]
                for row, (image, label) in enumerate(zip(data.images, data.labels)):
                    yield row, {"id": f"{split}_{row:05d}", "image": _encode(image), "label": int(label)}

    return Cifar10


def _tfds() -> Any:
    try:
        import array_record  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{error}; TFDS without TensorFlow needs: pip install tensorflow-datasets importlib_resources "
            "array_record (array_record exists for Linux only; elsewhere use dyn_jax.datasets.cifar10)"
        ) from error
    return tfds


def _tfds_directory(data_dir: str | os.PathLike | None) -> str:
    return data_directory(os.path.join(data_directory(), "tensorflow_datasets") if data_dir is None else data_dir)


def _prepared_folders(data_dir: str) -> list[str]:
    """The versions below `data_dir` that were written to the end, in any file format."""
    records = glob.glob(os.path.join(glob.escape(data_dir), _NAME, "*", "dataset_info.json"))
    return [os.path.dirname(record) for record in records if "incomplete" not in record]


def _readable_folder(data_dir: str) -> str:
    """The newest prepared version in array_record below `data_dir`."""
    folders = _prepared_folders(data_dir)
    if not folders:
        raise FileNotFoundError(
            f"CIFAR-10: no prepared data set in {os.path.abspath(os.path.join(data_dir, _NAME))}; write it "
            "with dyn_jax.datasets.prepare_tfds(source_directory, data_dir) from the original files"
        )
    formats = {}
    for folder in folders:
        with open(os.path.join(folder, "dataset_info.json"), encoding="utf-8") as file:
            formats[folder] = json.load(file).get("fileFormat", "tfrecord")
    readable = [folder for folder in folders if formats[folder] == _FORMAT]
    if not readable:
        raise ValueError(
            f"{os.path.join(data_dir, _NAME)}: got file format {', '.join(sorted(set(formats.values())))}, "
            f"expected {_FORMAT}; write one in another folder with "
            "dyn_jax.datasets.prepare_tfds(source_directory, data_dir)"
        )
    return max(readable, key=lambda folder: [part.zfill(9) for part in os.path.basename(folder).split(".")])


def _row(identifier: bytes | str, split: str, count: int, folder: str) -> int:
    text = identifier.decode() if isinstance(identifier, bytes) else identifier
    prefix, _, number = text.partition("_")
    if prefix != split or not number.isdigit() or int(number) >= count:
        raise ValueError(f"{folder}: got id {text!r}, expected {split}_00000 to {split}_{count - 1:05d}")
    return int(number)


def _expected(split: str, images_per_file: int | None) -> int | None:
    return None if images_per_file is None else _FILES_PER_SPLIT[split] * images_per_file


def _check_count(folder: str, split: str, got: int, expected: int | None) -> None:
    if expected is not None and got != expected:
        raise ValueError(
            f"{folder}: got {got} {split} examples, expected {expected}; delete the folder, prepare it again"
        )


def _encode(image: np.ndarray) -> io.BytesIO:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    file.seek(0)
    return file


def _decode(png: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)
