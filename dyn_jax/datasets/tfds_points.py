"""Point clouds as TensorFlow Datasets data sets, prepared and read without TensorFlow.

One builder serves all: an example is a cloud with what its points have, of its own length, and its row. TFDS stores
examples in hashed order; the row puts them back. For instance, ScanNet, ModelNet40 and SemanticKITTI::

    prepare_scenes_tfds({"validation": scannet(directory, "scannetv2_val.txt")}, "scannet")
    prepare_objects_tfds({split: modelnet40(directory, split) for split in ("train", "test")}, "modelnet40")
    prepare_scans_tfds({"val": semantickitti("val", directory)}, "semantickitti")
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from dyn_jax import _files
from dyn_jax.datasets.base import default_folder
from dyn_jax.datasets.points import SCENE_COLUMNS, Columns, Objects, Scene, check_objects, check_scene
from dyn_jax.datasets.streets import SCAN_COLUMNS, Scan, check_scan
from dyn_jax.datasets.tfds_builder import (
    FORMAT,
    TFDS_FOLDER,
    as_text,
    builder_class,
    file_format,
    import_tfds,
    stored_examples,
)

_VERSION = "1.0.0"


def prepare_scenes_tfds(
    scenes_by_split: Mapping[str, Iterable[Scene]], name: str, data_dir: str | os.PathLike | None = None
) -> str:
    """Writes scenes as an array_record data set of TFDS.

    Args:
      scenes_by_split: for each split its scenes; an iterator, such as `scannet` returns, is read once, scene by scene.
      name: of the data set: lower-case letters, digits and underscores, a letter first.
      data_dir: the TFDS folder; ``<data_dir>/<name>/1.0.0`` is written. Default: ``tensorflow_datasets`` in the
        default data directory.

    Returns:
      The folder of the prepared data set.

    Raises:
      FileExistsError: one of that name is there; names the folder.
      TypeError, ValueError: a name that TFDS does not take; no split; a split without scenes; what is no scene, or does
        not keep to its description; or examples were lost on the way.
      ImportError: tensorflow-datasets or array_record is missing (array_record exists for Linux only).
    """
    return _prepare(dict(scenes_by_split), name, data_dir)


def scenes_from_tfds(name: str, split: str, data_dir: str | os.PathLike | None = None) -> list[Scene]:
    """The scenes of a split that `prepare_scenes_tfds` wrote: the same bits in the same order.

    Args:
      name, data_dir: as for `prepare_scenes_tfds`.
      split: one of those prepared.

    Returns:
      A list of `Scene`.

    Raises:
      FileNotFoundError: nothing is prepared there; names the folder and the function to call.
      ValueError: another file format; no such split; examples are missing.
      ImportError: as for `prepare_scenes_tfds`.
    """
    return [
        check_scene(Scene(**_fields(example, SCENE_COLUMNS)), f"{name}: {split} {row}")
        for row, example in enumerate(_examples(name, split, data_dir))
    ]


def prepare_objects_tfds(
    objects_by_split: Mapping[str, Objects], name: str, data_dir: str | os.PathLike | None = None
) -> str:
    """Writes objects as an array_record data set of TFDS: each a cloud without colours and with one label.

    Args:
      objects_by_split: for each split its objects.
      name, data_dir: as for `prepare_scenes_tfds`.

    Returns, raises: as `prepare_scenes_tfds`.
    """
    splits = {}
    for split, objects in objects_by_split.items():
        xyz, labels, title = check_objects(objects, split)
        splits[split] = [Scene(cloud, None, label, title) for cloud, label in zip(xyz, labels[:, None])]
    return _prepare(splits, name, data_dir)


def objects_from_tfds(name: str, split: str, data_dir: str | os.PathLike | None = None) -> Objects:
    """The objects of a split that `prepare_objects_tfds` wrote: the same bits in the same order.

    Args:
      name, split, data_dir, raises: as for `scenes_from_tfds`.

    Returns:
      `Objects`.
    """
    examples = _examples(name, split, data_dir)
    if any(len(example["labels"]) != 1 or example["xyz"].shape != examples[0]["xyz"].shape for example in examples):
        raise ValueError(f"{name}: got clouds of different lengths or labels, expected objects; see scenes_from_tfds")
    objects = Objects(
        np.stack([np.asarray(example["xyz"], np.float32) for example in examples]),
        np.array([example["labels"][0] for example in examples], np.int32),
        as_text(examples[0]["name"]),
    )
    return check_objects(objects, f"{name}: {split}")


def prepare_scans_tfds(
    scans_by_split: Mapping[str, Iterable[Scan]], name: str, data_dir: str | os.PathLike | None = None
) -> str:
    """Writes LiDAR scans as an array_record data set of TFDS.

    Args:
      scans_by_split: for each split its scans; an iterator, such as `semantickitti` returns, is read once, scan by
        scan; sweeps of nuScenes as ``(read_scan(path, sensor="nuscenes") for path in paths)``.
      name, data_dir: as for `prepare_scenes_tfds`.

    Returns, raises: as `prepare_scenes_tfds`.
    """
    return _prepare(dict(scans_by_split), name, data_dir, SCAN_COLUMNS)


def scans_from_tfds(name: str, split: str, data_dir: str | os.PathLike | None = None) -> Iterator[Scan]:
    """The scans of a split that `prepare_scans_tfds` wrote, read one by one: the same bits in the same order.

    Args:
      name, split, data_dir, raises: as for `scenes_from_tfds`, all before the first scan.
    """
    folder = _folder(name, data_dir)
    examples = stored_examples(folder, split, ("row", "name", *SCAN_COLUMNS))

    def scans() -> Iterator[Scan]:
        for row, example in enumerate(examples):
            if int(example["row"]) != row:
                raise ValueError(f"{folder}: got {split} example {example['row']}, expected {row}; prepare it again")
            yield check_scan(Scan(**_fields(example, SCAN_COLUMNS)), f"{name}: {split} {row}")

    return scans()


def _prepare(
    splits: dict[str, Iterable], name: str, data_dir: str | os.PathLike | None, columns: Columns = SCENE_COLUMNS
) -> str:
    for text in (name, *splits):
        if not isinstance(text, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", text) or text == "all":
            raise ValueError(f"name: got {text!r}, expected lower-case letters, digits and underscores, a letter first")
    if not splits:
        raise ValueError("splits: got none, expected at least one")
    data_dir = default_folder(TFDS_FOLDER, data_dir)
    folder = os.path.join(data_dir, name, _VERSION)
    if os.path.exists(folder):
        raise FileExistsError(f"{os.path.abspath(folder)}: exists; delete the folder, or take another name")
    builder = _builder(splits, name, data_dir, columns)
    builder.download_and_prepare()
    for split, count in builder.counts.items():
        stored = len(builder.as_data_source(split))
        if stored != count:
            raise ValueError(f"{folder}: got {stored} {split} examples, expected {count}; delete the folder")
    return folder


def _builder(splits: dict[str, Iterable], name: str, data_dir: str, columns: Columns) -> Any:
    """A builder of the given name, whose `counts` say how many examples each split gave."""
    features = import_tfds().features
    scans = columns is SCAN_COLUMNS
    wanted, counts = Scan if scans else Scene, dict.fromkeys(splits, 0)

    def examples(split: str) -> Iterator[dict]:
        for row, cloud in enumerate(splits[split]):
            if not isinstance(cloud, wanted):
                raise TypeError(f"{split} {row}: got a {type(cloud).__name__}, expected a {wanted.__name__}")
            counts[split] += 1
            yield _example(cloud, row, split)
        if not counts[split]:
            raise ValueError(f"{split}: got nothing, expected at least one point cloud")

    tensors = {key: features.Tensor(shape=(None, *shape), dtype=dtype) for key, (shape, dtype) in columns.items()}
    info = {
        "description": f"Point clouds: {', '.join(columns)} of every point; empty where there is none.",
        "features": features.FeaturesDict({"row": features.Scalar(np.int64), "name": features.Text(), **tensors}),
        "disable_shuffling": scans,  # a scan is large: they are read one by one
    }
    builder = builder_class(name, _VERSION)({split: examples(split) for split in splits}, info, data_dir=data_dir)
    builder.counts = counts
    return builder


def _example(cloud: Scene | Scan, row: int, split: str) -> dict[str, Any]:
    where, columns = f"{split} {row} ({cloud.name})", SCENE_COLUMNS
    if isinstance(cloud, Scan):
        check_scan(cloud, where)
        columns = SCAN_COLUMNS
    elif cloud.labels is not None and cloud.labels.shape == (1,):  # an object
        check_scene(cloud._replace(labels=None), where)
        check_scene(Scene(cloud.xyz[:1], None, cloud.labels, cloud.name), where)
    else:
        check_scene(cloud, where)
    given = {key: getattr(cloud, key) for key in columns}
    none = {key: np.zeros((0, *shape), dtype) for key, (shape, dtype) in columns.items()}
    return {"row": row, "name": cloud.name} | {key: none[key] if a is None else a for key, a in given.items()}


def _fields(example: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """The fields of the cloud that `_example` made an example of; what may be missing is empty in it."""
    arrays = {key: np.asarray(example[key], dtype) for key, (_, dtype) in columns.items()}
    there = {key: a if len(a) or key in ("xyz", "intensity") else None for key, a in arrays.items()}
    return {**there, "name": as_text(example["name"])}


def _folder(name: str, data_dir: str | os.PathLike | None) -> str:
    """Where a data set is prepared."""
    folder = os.path.join(default_folder(TFDS_FOLDER, data_dir), name, _VERSION)
    record = os.path.join(folder, "dataset_info.json")
    if not os.path.isfile(record):
        raise FileNotFoundError(
            f"{name}: no prepared data set in {os.path.abspath(folder)}; write it with "
            "dyn_jax.datasets.prepare_scenes_tfds, prepare_objects_tfds or prepare_scans_tfds"
        )
    if (form := file_format(folder)) != FORMAT:
        raise ValueError(f"{folder}: got file format {_files.short(form)}, expected {FORMAT}")
    return folder


def _examples(name: str, split: str, data_dir: str | os.PathLike | None) -> list[dict[str, Any]]:
    """The examples of a split in their original order."""
    folder = _folder(name, data_dir)
    stored = stored_examples(folder, split, ("row", "name", *SCENE_COLUMNS))
    examples = sorted(stored, key=lambda example: int(example["row"]))
    if not examples or [int(example["row"]) for example in examples] != list(range(len(examples))):
        raise ValueError(f"{folder}: got {len(examples)} {split} examples with gaps, expected all; prepare it again")
    return examples
