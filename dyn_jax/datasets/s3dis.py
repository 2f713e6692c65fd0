"""S3DIS (Stanford large-scale 3D indoor spaces) from files that are already there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from dyn_jax import _files, _validate
from dyn_jax.datasets.base import default_folder
from dyn_jax.datasets.points import IGNORE, Scene, made_scene
from dyn_jax.datasets.points_files import map_labels

S3DIS_CLASSES = (
    "clutter", "beam", "board", "bookcase", "ceiling", "chair", "column", "door", "floor", "sofa", "table", "wall",
    "window",
)  # fmt: skip

LABEL_ORDERS = {
    "minkowski": (*S3DIS_CLASSES[:10], "stairs", *S3DIS_CLASSES[10:]),
    "pointnet": (
        "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board",
        "clutter",
    ),
}  # fmt: skip
"""What the ids of label columns mean: the order of the MinkowskiEngine examples' files, that of PointNet's."""


def s3dis_labels(ids: np.ndarray, label_order: str, where: str = "ids") -> np.ndarray:
    """Classes [n] int32 of the ids [n] of a label column: 0..12 (`S3DIS_CLASSES`); `IGNORE` for stairs.

    `label_order` is a name of `LABEL_ORDERS`. ValueError, beginning with `where`, for an id that it lacks.
    """
    names = LABEL_ORDERS[_validate.choice("label_order", label_order, LABEL_ORDERS)]
    return map_labels(ids, np.array([_class(name) for name in names], np.int32), where)


def read_s3dis_room(path: str | os.PathLike, *, label_order: str | None = None) -> Scene:
    """One room, in its original form or as a table.

    Args:
      path: the folder of a room, ``Area_<n>/<room>``, with ``Annotations/<class>_<i>.txt`` of rows x y z r g b,
        read in the order of their names; or a ``.npy`` or ``.txt`` table of rows x y z r g b [label].
      label_order: for tables with labels: which class each id means, as for `s3dis_labels`. There is no default,
        for both orders are in use and none can be told from a file.

    Returns:
      The `Scene`, named ``Area_<n>_<room>``, or like the file.

    Raises:
      FileNotFoundError: no such folder or file, or no annotation in it.
      ValueError: a line that is not six (or seven) numbers, with file and line (the released
        ``Area_5/hallway_6/Annotations/ceiling_1.txt`` has one: repair it by hand); colours outside 0..255; an
        unknown class or id; or `label_order` is wanted.

    Source: I. Armeni et al., 3D semantic parsing of large-scale indoor spaces, CVPR 2016.
    """
    path = os.path.expanduser(os.fspath(path))
    if os.path.isdir(path):
        return _read_annotations(path)
    if path.endswith(".npy"):
        table = _files.read_npy(path, _WANTED)
        if table.ndim != 2 or table.shape[1] not in (6, 7) or table.dtype.kind not in "fiu":
            raise ValueError(f"{path}: got {table.dtype} of shape {table.shape}, expected numbers [n, 6] or [n, 7]")
    else:
        table = _read_text(path, (6, 7), _WANTED)
    labels = None
    if table.shape[1] == 7:
        if label_order is None:
            raise ValueError(
                f"label_order: got None, expected one of {', '.join(LABEL_ORDERS)}: {path} has labels, and their ids "
                "mean different classes in different copies of the data set"
            )
        if not np.all(table[:, 6] == np.rint(table[:, 6])):
            raise ValueError(f"{path}: got labels that are not integers, expected integers")
        labels = s3dis_labels(np.clip(table[:, 6], -1, 99).astype(np.int64), label_order, path)
    return made_scene(table[:, :3], table[:, 3:6], labels, os.path.splitext(os.path.basename(path))[0], path)


_WANTED = "the folder of a room, or a .npy or .txt table"


def s3dis(directory: str | os.PathLike | None = None, areas: Sequence[int] = (5,)) -> Iterator[Scene]:
    """The rooms of some areas in their original form, one by one, each read when it is asked for.

    Args:
      directory: the folder with ``Area_<n>/<room>/Annotations``; default ``$DYN_JAX_DATA/s3dis``, or below
        ``~/.cache/dyn_jax``.
      areas: 1 to 6; area 5 is the usual test set, the others the training set.

    Returns:
      An iterator of `Scene`, by area as given, then by the room's name.

    Raises:
      FileNotFoundError: an area has no room.
      ValueError: as `read_s3dis_room`.
    """
    folder = default_folder("s3dis", directory)
    rooms = []
    for area in areas:
        area = os.path.join(folder, f"Area_{_validate.positive_int('areas', area)}")
        names = sorted(os.listdir(area)) if os.path.isdir(area) else []
        found = [os.path.join(area, n) for n in names if os.path.isdir(os.path.join(area, n, "Annotations"))]
        if not found:
            raise FileNotFoundError(f"S3DIS: no room in {os.path.abspath(area)}; expected <room>/Annotations/*.txt")
        rooms += found
    return (read_s3dis_room(room) for room in rooms)


def _read_annotations(folder: str) -> Scene:
    room = os.path.abspath(folder)
    if os.path.basename(room) == "Annotations":
        room = os.path.dirname(room)
    annotations = os.path.join(room, "Annotations")
    names = sorted(os.listdir(annotations)) if os.path.isdir(annotations) else []
    names = [name for name in names if name.endswith(".txt")]
    if not names:
        raise FileNotFoundError(f"{annotations}: no annotation; expected files <class>_<i>.txt")
    rows, labels = [], []
    for name in names:
        file, kind = os.path.join(annotations, name), name.rsplit("_", 1)[0]
        if kind not in (*S3DIS_CLASSES, "stairs"):
            raise ValueError(f"{file}: got class {kind!r}, expected one of {', '.join(S3DIS_CLASSES)}, stairs")
        rows.append(_read_text(file, (6,), "an annotation"))
        labels.append(np.full(len(rows[-1]), _class(kind), np.int32))
    area = os.path.basename(os.path.dirname(room))
    name = f"{area}_{os.path.basename(room)}" if area.startswith("Area_") else os.path.basename(room)
    table = np.concatenate(rows)
    return made_scene(table[:, :3], table[:, 3:], np.concatenate(labels), name, annotations)


def _class(name: str) -> int:
    return IGNORE if name == "stairs" else S3DIS_CLASSES.index(name)


def _read_text(path: str, widths: tuple[int, ...], wanted: str) -> np.ndarray:
    """Rows of as many numbers as one of `widths`, [n, width] float64; ValueError names the first line that is none."""
    lines = _files.read(path, wanted).decode("latin1").split("\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an empty file
            table = np.loadtxt(lines, np.float64, comments=None, ndmin=2)
        reason = f"a table of shape {table.shape}"
        if len(table) and table.shape[1] in widths and np.isfinite(table).all():
            return table
    except ValueError as error:
        reason = _files.short(str(error))
    numbers = " or ".join(map(str, widths))
    width = 0
    for number, line in enumerate(lines, 1):
        fields = line.split()
        width = width or len(fields)
        if fields and not (len(fields) == width and width in widths and all(map(_is_finite, fields))):
            raise ValueError(f"{path}, line {number}: got {line.rstrip()[:80]!r}, expected {numbers} numbers")
    raise ValueError(f"{path}: got {reason}, expected rows of {numbers} numbers")


def _is_finite(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
