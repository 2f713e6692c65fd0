"""ModelNet40 from files that are already there: point samples in HDF5, or the original meshes."""

from __future__ import annotations

import glob
import math
import os
import re
from typing import Any

import numpy as np

from dyn_jax import _files, _validate
from dyn_jax.datasets.base import data_directory
from dyn_jax.datasets.points import Objects, check_objects, into_unit_sphere
from dyn_jax.datasets.points_files import import_extra, load_mesh

MODELNET40_CLASSES = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain",
    "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel", "monitor",
    "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool", "table",
    "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox",
)  # fmt: skip
OBJECTS_PER_SPLIT = {"train": 9843, "test": 2468}
POINTS_PER_OBJECT = 2048
FOLDER = "modelnet40_ply_hdf5_2048"
MOST_UNPACKED = 20
"""Times the size of an HDF5 file that its numbers may take; coordinates hardly compress."""


def modelnet40(
    directory: str | os.PathLike | None = None,
    split: str = "train",
    *,
    points: int = POINTS_PER_OBJECT,
    all_objects: bool = True,
) -> Objects:
    """ModelNet40 as the point samples that PointNet's authors drew, in the order of the files.

    Args:
      directory: the folder with ``ply_data_train0.h5`` to 4 and ``ply_data_test0.h5`` to 1, or the one above it;
        default ``$DYN_JAX_DATA``, else ``~/.cache/dyn_jax``.
      split: "train" (9843 objects) or "test" (2468).
      points: how many points of each object, the first ones of its 2048.
      all_objects: whether those counts are checked; False accepts any number (reduced copies).

    Returns:
      `Objects`: xyz [object, points, 3] in the unit sphere, y up, as in the files; labels [object] in 0..39
      (`MODELNET40_CLASSES`).

    Raises:
      FileNotFoundError: no file of the split.
      ValueError: a file is truncated, lacks a key, or holds other shapes or labels; another number of objects.
      ImportError: h5py is not installed.

    Source: Z. Wu et al., 3D ShapeNets, CVPR 2015; sampled for C. Qi et al., PointNet, CVPR 2017.
    """
    _validate.choice("split", split, OBJECTS_PER_SPLIT)
    points = _validate.positive_int("points", points)
    directory = data_directory(directory)
    for folder in (os.path.join(directory, FOLDER), directory):
        files = glob.glob(os.path.join(glob.escape(folder), f"ply_data_{split}*.h5"))
        if files:
            break
    else:
        raise FileNotFoundError(
            f"ModelNet40 {split}: no {FOLDER}/ply_data_{split}*.h5 in {os.path.abspath(directory)}; "
            "nothing is downloaded"
        )
    files.sort(key=lambda file: [part.zfill(9) for part in re.findall(r"\d+", os.path.basename(file))])
    parts = [check_objects(_read(file, points), file, len(MODELNET40_CLASSES)) for file in files]
    xyz, labels = (np.concatenate(arrays) for arrays in zip(*(part[:2] for part in parts)))
    if all_objects and len(labels) != OBJECTS_PER_SPLIT[split]:
        raise ValueError(
            f"{folder}: got {len(labels)} {split} objects in {len(files)} files, expected {OBJECTS_PER_SPLIT[split]} "
            "(all_objects=False accepts any number)"
        )
    return Objects(xyz, labels, "ModelNet40")


def read_off_object(path: str | os.PathLike, points: int = POINTS_PER_OBJECT, *, seed: int = 0) -> np.ndarray:
    """Points on the surface of an OFF mesh, uniform by area, brought into the unit sphere.

    Args:
      path: the ``.off`` file; its header may be glued to the counts ("OFF3 1 0"), as in many of ModelNet40's.
      points: how many.
      seed: of the draw; the same seed gives the same points.

    Returns:
      [points, 3] float32 in the mesh's axes, mean at the origin, farthest point at distance 1.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a readable OFF file, truncated, or without area.
      ImportError: trimesh is not installed.
    """
    points = _validate.positive_int("points", points, minimum=2)
    seed = _validate.positive_int("seed", seed, minimum=0)
    path = _files.regular(path)
    vertices, faces, lines = _off_counts(path)
    mesh = load_mesh(path, "off", force="mesh")
    if len(mesh.vertices) != vertices or lines < vertices + faces:
        raise ValueError(f"{path}: got {lines} lines, expected {vertices} vertices and {faces} faces (truncated?)")
    area = float(mesh.area) if len(mesh.faces) else 0.0
    if not (np.isfinite(mesh.vertices).all() and np.isfinite(area) and area > 0):
        raise ValueError(f"{path}: got a mesh of area {area}, expected a finite one above 0")
    xyz, _ = import_extra("trimesh").sample.sample_surface(mesh, points, seed=seed)
    return into_unit_sphere(np.asarray(xyz)).astype(np.float32)


def _off_counts(path: str) -> tuple[int, int, int]:
    """Vertices and faces that the header of an OFF file announces, and how many lines with content follow it."""
    text = _files.read(path).decode("latin1")
    lines = [words for words in (line.split("#")[0].split() for line in text.splitlines()) if words]
    header = lines[0] if lines else [""]
    if not header[0].startswith("OFF"):
        raise ValueError(f"{path}: got {' '.join(header)[:20]!r}, expected an OFF file, which begins with OFF")
    header = [header[0][3:], *header[1:]] if header[0] != "OFF" else header[1:]
    rest = lines[1:]
    if not header and rest:  # the counts on a line of their own
        header, rest = rest[0], rest[1:]
    if len(header) < 2 or not all(re.fullmatch(r"[0-9]{1,18}", word) for word in header):
        raise ValueError(f"{path}: got counts {' '.join(header)[:80]!r} after OFF, expected vertices, faces and edges")
    return int(header[0]), int(header[1]), len(rest)


def _read(path: str, points: int) -> Objects:
    size = os.path.getsize(_files.regular(path))
    h5py = import_extra("h5py")
    with _files.reading(path, "a readable HDF5 file"), h5py.File(path, "r") as file:
        missing = {"data", "label"} - set(file)
        if missing:
            raise _files.BadFile(f"{path}: got keys {_files.listed(sorted(file))}, expected data and label")
        data, labels = (_data_set(file, key, size, path) for key in ("data", "label"))
        if data.ndim != 3 or data.shape[2] != 3 or labels.shape not in (data.shape[:1], (data.shape[0], 1)):
            raise _files.BadFile(
                f"{path}: got data {data.shape} and label {labels.shape}, "
                f"expected (objects, {POINTS_PER_OBJECT}, 3) and one label each"
            )
        if points > data.shape[1]:
            raise _files.BadFile(f"points: got {points}, expected at most the {data.shape[1]} of {path}")
        xyz, labels = data[:, :points].astype(np.float32), labels[...].reshape(-1)
    if not np.isfinite(xyz).all():
        raise ValueError(f"{path}: got NaN or infinite coordinates, expected none")
    if not (np.all(labels == np.rint(labels)) and np.all((labels >= 0) & (labels < len(MODELNET40_CLASSES)))):
        raise ValueError(f"{path}: got labels in [{labels.min()}, {labels.max()}], expected [0, 39]")
    return Objects(xyz, labels.astype(np.int32), "ModelNet40")


def _data_set(file: Any, key: str, size: int, path: str) -> Any:
    """The data set of numbers called `key` in an HDF5 file of `size` bytes; nothing of it is read yet.

    BadFile for a group, a link, numbers that lie in other files, or more of them than the file could hold.
    """
    h5py = import_extra("h5py")
    link = file.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise _files.BadFile(f"{path}: got {type(link).__name__} for {key}, expected a data set in the file itself")
    found = file[key]
    if not isinstance(found, h5py.Dataset) or found.shape is None or found.dtype.kind not in "fiu":
        kind = getattr(found, "dtype", type(found).__name__)
        raise _files.BadFile(f"{path}: got {_files.short(str(kind))} for {key}, expected a data set of numbers")
    if found.is_virtual or found.external:
        raise _files.BadFile(f"{path}: got numbers in other files for {key}, expected a data set in the file itself")
    unpacked = found.dtype.itemsize * max(found.size, math.prod(found.chunks or ()))
    if unpacked > max(MOST_UNPACKED * size, 2**20):
        raise _files.BadFile(
            f"{path}: got {key} {found.shape} in chunks {found.chunks}, which unpack to {unpacked:,} bytes, "
            f"expected at most {MOST_UNPACKED} times the file's {size:,}"
        )
    return found
