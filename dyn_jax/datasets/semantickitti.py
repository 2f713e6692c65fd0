"""SemanticKITTI: scans of a spinning LiDAR with a label for every point, read from the files of its release.

Also sweeps of nuScenes, which have a fifth column and come without labels.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import jax
import numpy as np

from dyn_jax import _files, _validate, metrics
from dyn_jax.datasets.base import default_folder
from dyn_jax.datasets.streets import Scan

SEMANTICKITTI_CLASSES = (
    "unlabelled", "car", "bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist",
    "road", "parking", "sidewalk", "other-ground", "building", "fence", "vegetation", "trunk", "terrain", "pole",
    "traffic-sign",
)  # fmt: skip
"""Label 0 marks points that do not count."""
RAW_CLASSES: dict[int, int] = {
    0: 0, 1: 0, 10: 1, 11: 2, 13: 5, 15: 3, 16: 5, 18: 4, 20: 5, 30: 6, 31: 7, 32: 8, 40: 9, 44: 10, 48: 11, 49: 12,
    50: 13, 51: 14, 52: 0, 60: 9, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 99: 0, 252: 1, 253: 7, 254: 6, 255: 8,
    256: 5, 257: 5, 258: 4, 259: 5,
}  # fmt: skip
"""The id of each class in a ``.label`` file -> its label; what moves has the label of what stands."""
SEQUENCES = {
    "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
    "val": ("08",),
    "test": tuple(f"{number:02d}" for number in range(11, 22)),
}
COLUMNS = {"kitti": 4, "nuscenes": 5}
_LARGEST = 64 * 2**20
"""Bytes of a file of one scan; the largest of these sensors is below 4 MB."""


def classes_of(raw: np.ndarray) -> np.ndarray:
    """[n] int32 labels in 0..19 of raw ids, whose upper 16 bits, the instance, are ignored.

    Args:
      raw: [n] integers, as in a ``.label`` file.

    Raises:
      TypeError, ValueError: not [n] integers; ids that the data set does not have; instances of nothing but class 0,
        which is what float32 labels, or those of the other byte order, look like.
    """
    raw = np.asarray(raw)
    if raw.ndim != 1 or raw.dtype.kind not in "iu":
        raise TypeError(f"raw: got {raw.dtype}{list(raw.shape)}, expected integers [points]")
    ids = raw.astype(np.int64) & 0xFFFF
    if raw.any() and not ids.any():
        raise ValueError(
            f"raw: got id 0 for every point and instances up to {raw.max() >> 16}, expected little-endian uint32"
        )
    table = np.full(2**16, -1, np.int32)
    table[list(RAW_CLASSES)] = list(RAW_CLASSES.values())
    labels = table[ids]
    if (labels < 0).any():
        unknown = np.unique(ids[labels < 0]).tolist()
        raise ValueError(f"raw: got unknown ids {unknown[:8]}, expected those of SemanticKITTI's configuration")
    return labels


def read_scan(path: str | os.PathLike, labels: str | os.PathLike | None = None, *, sensor: str = "kitti") -> Scan:
    """One scan, and its labels where their file is named.

    Args:
      path: a ``.bin`` file of float32 rows: x, y, z, intensity (``kitti``, 0..1), and the ring (``nuscenes``, where
        intensities are 0..255).
      labels: a ``.label`` file of uint32, one for each point.
      sensor: ``kitti`` or ``nuscenes``.

    Returns:
      A `Scan`; with nuScenes its rings, for KITTI None.

    Raises:
      OSError: no such file.
      ValueError: a file that is empty, too large, no whole number of rows (or of the other sensor's); points that are
        not finite, or so far away that float32 has rounded them by more than 1 mm (map coordinates); as many labels as
        points are not there, or ids are unknown.
    """
    columns = COLUMNS[_validate.choice("sensor", sensor, COLUMNS)]
    values = _values(path, np.dtype("<f4"))
    path = pathlib.Path(path)
    if len(values) % columns or (sensor == "kitti" and _has_rings(values)):
        others = [name for name, width in COLUMNS.items() if width != columns and len(values) % width == 0]
        hint = f"; it fits sensor={others[0]!r}" if others else ""
        raise ValueError(f"{path}: got {len(values)} numbers, expected rows of {columns} ({sensor}){hint}")
    rows = values.reshape(-1, columns)
    bad = int((~np.isfinite(rows)).any(axis=1).sum())
    if bad:
        raise ValueError(f"{path}: got {bad} of {len(rows)} points with NaN or infinite values, expected finite ones")
    _validate.coordinates(f"{path}: xyz", rows[:, :3])
    ring = None
    if sensor == "nuscenes":
        if not _are_rings(rows[:, 4]):
            raise ValueError(f"{path}: got {rows[:, 4].min()} in the fifth column, expected the numbers of rings")
        ring = rows[:, 4].astype(np.int32)
    found = None
    if labels is not None:
        raw = _values(labels, np.dtype("<u4"))
        if len(raw) != len(rows):
            raise ValueError(f"{labels}: got {len(raw)} labels, expected {len(rows)}, one for each point of {path}")
        try:
            found = classes_of(raw)
        except ValueError as error:
            raise ValueError(f"{labels}: {error}") from None
    return Scan(rows[:, :3].copy(), rows[:, 3].copy(), found, ring, path.stem)


def write_scan(path: str | os.PathLike, xyz: jax.typing.ArrayLike, intensity: jax.typing.ArrayLike) -> None:
    """A ``.bin`` file as `read_scan` reads it, to the last bit: every point stays in its cell.

    Args:
      path: to write; an existing file is replaced.
      xyz: [n, 3] float32, e.g. an attack's ``adversarial``.
      intensity: [n] or [n, 1] float32.

    Raises:
      TypeError, ValueError: other dtypes, which writing would round; shapes that do not fit, no points, NaN; map
        coordinates: the origin that `sparse3d.point_cloud` subtracted stays with whoever has it, in float64.
    """
    points, shine = np.asarray(xyz), np.asarray(intensity)
    if points.dtype != np.float32 or shine.dtype != np.float32:
        raise TypeError(f"xyz, intensity: got dtypes {points.dtype} and {shine.dtype}, expected float32, as files hold")
    count = len(points) if points.ndim == 2 else 0
    if points.shape != (count, 3) or not count or shine.shape not in ((count,), (count, 1)):
        raise ValueError(f"xyz, intensity: got shapes {points.shape} and {shine.shape}, expected [n, 3] and [n]")
    rows = np.concatenate([points, shine.reshape(-1, 1)], axis=1)
    if not np.isfinite(rows).all():
        raise ValueError("xyz, intensity: got NaN or infinite values, expected finite ones")
    _validate.coordinates(f"{path}: xyz", points)
    _files.write(path, rows.astype("<f4").tobytes())


def _are_rings(column: np.ndarray) -> bool:
    return bool(((column >= 0) & (column < 2**16) & (column == np.floor(column))).all())


def _has_rings(values: np.ndarray) -> bool:
    """Whether numbers whose count fits rows of four are rows of five: lasers in every fifth, no share in every fourth.

    One sweep of nuScenes in four has such a count, and would be read as a cloud of scrambled columns.
    """
    if len(values) % 20 or not _are_rings(values[4::5]) or _are_rings(values):
        return False
    shine = values[3::4]
    return not ((shine >= 0) & (shine <= 1)).all()


def _values(path: str | os.PathLike, dtype: np.dtype) -> np.ndarray:
    content = _files.read(path, f"a file of {dtype.name} numbers", _LARGEST)
    if not content or len(content) % dtype.itemsize:
        raise _files.BadFile(f"{path}: got {len(content)} bytes, expected whole numbers of 4 bytes (truncated?)")
    return np.frombuffer(content, dtype)


def semantickitti(split: str = "val", folder: str | os.PathLike | None = None) -> Iterator[Scan]:
    """The scans of a split in order, read one by one, named ``<sequence>_<scan>``.

    Args:
      split: ``train`` (sequences 00-07, 09, 10), ``val`` (08) or ``test`` (11-21, without labels).
      folder: with ``sequences/00/velodyne/000000.bin`` and ``sequences/00/labels/000000.label`` below it, or below
        its ``dataset``; default: `data_directory`'s ``semantickitti``.

    Raises:
      ValueError: unknown split, or what `read_scan` says of a file.
      FileNotFoundError: no such folder, no sequence of the split in it, or a file of labels, or its scan, is missing.
    """
    _validate.choice("split", split, SEQUENCES)
    root = pathlib.Path(default_folder("semantickitti", folder))
    root = next((place for place in (root, root / "dataset") if (place / "sequences").is_dir()), root)
    found = [root / "sequences" / number for number in SEQUENCES[split]]
    scans = [path for place in found for path in sorted((place / "velodyne").glob("[!.]*.bin"))]
    if not scans:
        raise FileNotFoundError(
            f"{root}: no scans, expected sequences/{SEQUENCES[split][0]}/velodyne/000000.bin and the like in it"
        )
    there = {(path.parent.parent.name, path.stem) for path in scans}
    labels = [path for place in found for path in sorted((place / "labels").glob("[!.]*.label"))]
    lost = [path for path in labels if (path.parent.parent.name, path.stem) not in there]
    if lost:
        raise FileNotFoundError(f"{lost[0]}: one of {len(lost)} files of labels without their scan in velodyne")
    return (_labelled(path, split) for path in scans)


def _labelled(path: pathlib.Path, split: str) -> Scan:
    labels = None if split == "test" else path.parent.parent / "labels" / f"{path.stem}.label"
    return read_scan(path, labels)._replace(name=f"{path.parent.parent.name}_{path.stem}")


def scan_iou(matrix: jax.typing.ArrayLike) -> jax.Array:
    """Mean IoU as the benchmark counts it: class 0 leaves the matrix by its row and its column, so that a labelled
    point that is predicted as 0 is nobody's error; a class that neither occurs nor is predicted is left out.

    Args:
      matrix: [class, class], see `metrics.confusion`, summed over scans.

    Source: SemanticKITTI's evaluation as Cylinder3D and LGM's release run it.
    """
    return metrics.mean_iou(np.asarray(matrix)[1:][..., 1:], absent="skip")
