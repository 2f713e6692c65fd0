"""The file forms that several point-cloud data sets share: PLY vertices and raw float32 rows."""

from __future__ import annotations

import os
from types import ModuleType

import numpy as np

from dyn_jax.datasets.points import Scene, check_scene


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
      ValueError: a size that is no multiple of a row (truncated), numbers that are not finite, colours outside
        0..255, another number of labels than points, or an id that the map lacks.
    """
    rows = np.frombuffer(_read_rows(path, 24, "24-byte rows x y z r g b"), "<f4").reshape(-1, 6)
    labels = None
    if labels_path is not None:
        labels = np.frombuffer(_read_rows(labels_path, 8, "int64 labels"), "<i8")
        if len(labels) != len(rows):
            raise ValueError(f"{labels_path}: got {len(labels)} labels, expected {len(rows)}, one for each point")
        labels = labels.astype(np.int32) if label_map is None else map_labels(labels, label_map, str(labels_path))
    name = os.path.splitext(os.path.basename(path))[0]
    return check_scene(
        Scene(rows[:, :3].astype(np.float32), (rows[:, 3:] / 255).astype(np.float32), labels, name), str(path)
    )


def map_labels(ids: np.ndarray, label_map: np.ndarray, where: str) -> np.ndarray:
    """``label_map[ids]``; ValueError, beginning with `where`, for an id that the map [id] lacks."""
    bad = ids[(ids < 0) | (ids >= len(label_map))]
    if len(bad):
        raise ValueError(f"{where}: got label id {bad[0]}, expected 0 to {len(label_map) - 1}")
    return np.asarray(label_map, np.int32)[ids]


def read_ply_vertices(path: str | os.PathLike, properties: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Vertex properties of a PLY file, ASCII or binary, each [vertex] in the file's dtype.

    Args:
      path: the file. (An ASCII file may not announce faces and hold none: trimesh does not read that.)
      properties: those wanted; more may be there.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a readable PLY file, truncated, or without one of the properties.
      ImportError: trimesh is not installed.
    """
    path = require_file(path)
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


def load_mesh(path: str, form: str, **options: str) -> object:
    """What trimesh reads from a "ply" or "off" file, vertices in the file's order; ValueError where it cannot."""
    trimesh = import_extra("trimesh")
    try:
        with open(path, "rb") as file:
            return trimesh.load(file, file_type=form, process=False, **options)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable {form.upper()} file, or truncated: {error}") from error


def import_extra(name: str) -> ModuleType:
    """The module trimesh or h5py; ImportError says how to install it."""
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(f"this file form needs {name}: pip install {name} (or the extra dyn_jax[points])") from error


def require_file(path: str | os.PathLike, wanted: str = "") -> str:
    """Returns the path as text; FileNotFoundError with its absolute form if it is no file."""
    path = os.path.expanduser(os.fspath(path))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.path.abspath(path)}: no such file{wanted and '; expected ' + wanted}")
    return path


def _read_rows(path: str | os.PathLike, size: int, form: str) -> bytes:
    path = require_file(path)
    with open(path, "rb") as file:
        content = file.read()
    if not content or len(content) % size:
        raise ValueError(f"{path}: got {len(content):,} bytes, expected a multiple of {size}: {form} (truncated?)")
    return content
