"""The file forms that several point-cloud data sets share: PLY vertices and raw float32 rows."""

from __future__ import annotations

import io
import os
import re
from types import ModuleType
from typing import Any

import numpy as np

from dyn_jax import _files
from dyn_jax.datasets.points import IGNORE, Scene, made_scene


def read_points_bin(
    path: str | os.PathLike, labels_path: str | os.PathLike | None = None, *, label_map: np.ndarray | None = None
) -> Scene:
    """A cloud from raw little-endian float32 rows x y z r g b, colours in 0..255 (mmdetection3d's indoor form).

    Args:
      path: the ``.bin`` file; its stem becomes the scene's name.
      labels_path: raw int64 labels, one for each row; None leaves the scene unlabelled.
      label_map: [id] int32 class or `IGNORE` of each id of the labels file; None keeps the ids.

    Returns:
      The `Scene`.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a size that is no multiple of a row (truncated), numbers that are not finite or rounded by more than
        1 mm, colours outside 0..255, another number of labels than points, or an id that the map lacks.
    """
    rows = np.frombuffer(_read_rows(path, 24, "24-byte rows x y z r g b"), "<f4").reshape(-1, 6)
    labels = None
    if labels_path is not None:
        labels = np.frombuffer(_read_rows(labels_path, 8, "int64 labels"), "<i8")
        if len(labels) != len(rows):
            raise ValueError(f"{labels_path}: got {len(labels)} labels, expected {len(rows)}, one for each point")
        if label_map is None:
            label_map = np.arange(IGNORE + 1)
        labels = map_labels(labels, label_map, str(labels_path))
    name = os.path.splitext(os.path.basename(path))[0]
    return made_scene(rows[:, :3], rows[:, 3:], labels, name, str(path))


def map_labels(ids: np.ndarray, label_map: np.ndarray, where: str) -> np.ndarray:
    """``label_map[ids]`` [n]; ValueError, beginning with `where`, for an id that the map [id] lacks."""
    ids, label_map = np.asarray(ids), np.asarray(label_map)
    for name, got in (("ids", ids), ("a label map", label_map)):
        if got.ndim != 1 or got.dtype.kind not in "iu":
            raise ValueError(f"{where}: got {name} {got.dtype} of shape {got.shape}, expected integers [n]")
    bad = ids[(ids < 0) | (ids >= len(label_map))]
    if len(bad):
        raise ValueError(f"{where}: got label id {bad[0]}, expected 0 to {len(label_map) - 1}")
    return label_map.astype(np.int32)[ids]


def read_ply_vertices(path: str | os.PathLike, properties: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The `properties` of the vertices of a PLY file, ASCII or binary, each [vertex] in the file's dtype.

    An ASCII file may not announce faces and hold none: trimesh does not read that.

    Raises:
      FileNotFoundError, ValueError: no such file; no readable PLY file, truncated, or without one of the properties.
      ImportError: trimesh is not installed.
    """
    loaded = load_mesh(path, "ply")
    elements = loaded.metadata.get("_ply_raw", {})
    vertex = elements.get("vertex", {"properties": {}})
    missing = [name for name in properties if name not in vertex["properties"]]
    if missing:
        raise ValueError(
            f"{path}: got vertex properties {', '.join(vertex['properties']) or 'none'}, "
            f"expected {', '.join(properties)}"
        )
    for name, element in elements.items():
        data = element.get("data", ())
        columns = [data] if isinstance(data, np.ndarray) else list(data.values()) if data else [()]
        if min(map(len, columns)) != element["length"]:
            raise ValueError(f"{path}: got fewer than the {element['length']} {name} announced (truncated?)")
    return {name: np.asarray(vertex["data"][name]).reshape(-1) for name in properties}


def load_mesh(path: str | os.PathLike, form: str, **options: str) -> Any:
    """What trimesh reads from a "ply" or "off" file, vertices in the file's order; ValueError where it cannot."""
    content = _files.read(path)
    trimesh = import_extra("trimesh")
    with _files.reading(os.fspath(path), f"a readable {form.upper()} file"):
        for words in re.findall(rb"(?m)^\s*element\s+\S+\s+(\S+)", content.partition(b"end_header")[0]):
            if not words.isdigit() or int(words) > len(content):
                raise ValueError(f"it announces {_files.short(words)} elements in {len(content):,} bytes")
        return trimesh.load(io.BytesIO(content), file_type=form, process=False, **options)


def import_extra(name: str) -> ModuleType:
    """The module trimesh or h5py; ImportError says how to install it."""
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"this file form needs {name}: pip install {name} (or the extra dyn_jax[points])") from error


def _read_rows(path: str | os.PathLike, size: int, form: str) -> bytes:
    content = _files.read(path)
    if not content or len(content) % size:
        raise ValueError(f"{path}: got {len(content):,} bytes, expected a multiple of {size}: {form} (truncated?)")
    return content
