"""CIFAR-10 as a TensorFlow Datasets data set, prepared and read without TensorFlow.

TFDS can prepare its stock ``cifar10`` only where TensorFlow is installed. The builder here reads the same files
through `dyn_jax.datasets.cifar10` and writes what the stock builder would: the same name, version, features
and example keys. So the stock ``cifar10`` reads it too, and `cifar10_from_tfds` reads either.
"""

from __future__ import annotations

import functools
import glob
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from dyn_jax import _files, _validate
from dyn_jax.datasets.base import ImageData, checked_images, default_folder
from dyn_jax.datasets.cifar import CIFAR10_CLASS_NAMES, IMAGES_PER_FILE, cifar10

_NAME, _VERSION, FORMAT = "cifar10", "3.0.2", "array_record"
TFDS_FOLDER = "tensorflow_datasets"
"""In the default data directory."""
_FORM = "a readable TFDS data set"
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
    data_dir = default_folder(TFDS_FOLDER, data_dir)
    tfds = import_tfds()
    expected = {split: _expected(split, images_per_file) for split in _FILES_PER_SPLIT}
    if not _prepared_folders(data_dir):
        splits = {
            split: cifar10(source_directory, split, images_per_file=images_per_file) for split in _FILES_PER_SPLIT
        }
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=CIFAR10_CLASS_NAMES),
        }
        info = {
            "description": "CIFAR-10: 32x32 colour images in 10 classes, lossless PNG.",
            "features": tfds.features.FeaturesDict(features),
            "supervised_keys": ("image", "label"),
            "homepage": "https://www.cs.toronto.edu/~kriz/cifar.html",
        }
        examples = {split: _examples(data, split) for split, data in splits.items()}
        _builder_class()(examples, info, data_dir=data_dir).download_and_prepare()
        expected = {split: len(data.labels) for split, data in splits.items()}
    folder = _readable_folder(data_dir)
    with _files.reading(folder, _FORM):
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
    folder = _readable_folder(default_folder(TFDS_FOLDER, data_dir))
    decoders = {"image": import_tfds().decode.SkipDecoding()}
    examples = list(stored_examples(folder, split, ("id", "image", "label"), decoders))
    count = len(examples)
    _check_count(folder, split, count, _expected(split, images_per_file))
    images = np.empty((count, 32, 32, 3), np.uint8)
    labels = np.full(count, -1, np.int32)
    for example in examples:
        row = _row(example["id"], split, count, folder)
        if labels[row] >= 0:
            raise ValueError(f"{folder}: got id {example['id']!r} twice, expected every id once")
        with _files.reading(f"{folder}: image {row} of {split}", "a PNG of 32 x 32 colour pixels"):
            images[row] = _decode(example["image"])
        labels[row] = example["label"]
    return checked_images(ImageData(images, labels, "CIFAR-10"), folder, len(CIFAR10_CLASS_NAMES))


def stored_examples(
    folder: str, split: str, features: tuple[str, ...], decoders: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """The examples of one split of a prepared folder, in stored order; what can be seen without reading them raises
    before the first.

    The folder is of one version, in array_record; every example must have the `features`; decoders as TFDS takes them.

    Raises:
      ValueError: no such split or features; a file of the folder is damaged, no regular file, or names a class that is
        not TFDS's own; examples are missing.
    """
    tfds = import_tfds()
    _check_classes(folder)
    with _files.reading(folder, _FORM):
        for name in os.listdir(folder):
            _files.regular(os.path.join(folder, name))
        builder = tfds.builder_from_directory(folder)
        splits, found = sorted(builder.info.splits), sorted(builder.info.features)
        if split not in splits:
            raise _files.BadFile(f"split: got {split!r}, expected one of {_files.listed(splits)} ({folder})")
        if not set(features) <= set(found):
            raise _files.BadFile(f"{folder}: got features {_files.listed(found)}, expected {', '.join(features)}")
        source = builder.as_data_source(split, decoders=decoders)
        got, count = len(source), builder.info.splits[split].num_examples
    if got != count:
        raise ValueError(f"{folder}: got {got} {split} examples, expected {count}; prepare it again")

    def examples() -> Iterator[dict[str, Any]]:
        for row in range(count):
            with _files.reading(folder, _FORM):
                example = source[row]
            if any(example.get(name) is None for name in features):
                raise ValueError(f"{folder}: got {split} examples without content (truncated?); prepare it again")
            yield example

    return examples()


def _check_classes(folder: str) -> None:
    """TFDS imports the modules that a folder's features.json names: only its own are let through."""
    path = os.path.join(folder, "features.json")
    waiting = [_files.read_json(path)]
    while waiting:
        for key, value in waiting.pop().items():
            if isinstance(value, dict):
                waiting.append(value)
            elif key in ("pythonClassName", "type") and not str(value).startswith("tensorflow_datasets.core.features."):
                raise ValueError(f"{path}: got the class {_files.short(value)}, expected one of TFDS's own")


@functools.cache
def builder_class(data_set: str, version: str) -> type:
    """A builder of TFDS, made when it is first wanted, so that importing dyn_jax does not import TFDS.

    It takes, for each split, its examples in order, and the arguments of ``DatasetInfo``.
    """
    tfds = import_tfds()
    with tfds.core.registered.skip_registration():  # the stock builder keeps the name

        class Given(tfds.core.GeneratorBasedBuilder):
            """A data set of examples that are given."""

            name = data_set
            VERSION = tfds.core.Version(version)

            def __init__(self, splits: Mapping[str, Iterable[dict]], info: dict[str, Any], **options: Any):
                self._splits, self._given = splits, info
                super().__init__(file_format=FORMAT, **options)

            def _info(self) -> Any:
                return tfds.core.DatasetInfo(builder=self, **self._given)

            def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
                return {split: self._generate_examples(split) for split in self._splits}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
                return enumerate(self._splits[split])

    return Given


_builder_class = functools.partial(builder_class, _NAME, _VERSION)


def _examples(data: ImageData, split: str) -> Iterator[dict]:
    """What the stock builder stores of every image."""
    for row, (image, label) in enumerate(zip(data.images, data.labels)):
        yield {"id": f"{split}_{row:05d}", "image": _encode(image), "label": int(label)}


def import_tfds() -> Any:
    """TFDS; ImportError says what to install."""
    try:
        import array_record  # noqa: F401
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{error}; TFDS without TensorFlow needs: pip install tensorflow-datasets importlib_resources "
            "array_record (array_record exists for Linux only; elsewhere use dyn_jax.datasets.cifar10)"
        ) from error
    return tfds


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
    formats = {folder: file_format(folder) for folder in folders}
    readable = [folder for folder in folders if formats[folder] == FORMAT]
    if not readable:
        raise ValueError(
            f"{os.path.join(data_dir, _NAME)}: got file format {_files.listed(sorted(set(formats.values())))}, "
            f"expected {FORMAT}; write one in another folder with "
            "dyn_jax.datasets.prepare_tfds(source_directory, data_dir)"
        )
    return max(readable, key=lambda folder: [part.zfill(9) for part in os.path.basename(folder).split(".")])


def file_format(folder: str) -> str:
    """The file format that the record of a prepared folder names."""
    return str(_files.read_json(os.path.join(folder, "dataset_info.json")).get("fileFormat", "tfrecord"))


def as_text(value: bytes | str) -> str:
    """A text feature, which TFDS gives as bytes; undecodable bytes are escaped."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def _row(identifier: bytes | str, split: str, count: int, folder: str) -> int:
    text = as_text(identifier)
    prefix, _, number = text.partition("_")
    if prefix != split or not re.fullmatch("[0-9]{1,18}", number) or int(number) >= count:
        raise ValueError(f"{folder}: got id {_files.short(text)!r}, expected {split}_00000 to {split}_{count - 1:05d}")
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

    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        if image.size != (32, 32) or image.mode != "RGB":  # before anything is unpacked
            raise ValueError(f"got {image.mode} of {image.size}")
        return np.asarray(image)
