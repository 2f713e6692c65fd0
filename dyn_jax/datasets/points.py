"""What every point-cloud data set returns: NumPy on the host, no JAX arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dyn_jax import _validate

IGNORE = 255
"""The label of points that neither loss nor metric counts (ScanNet's and MinkowskiEngine's convention)."""


Columns = dict[str, tuple[tuple[int, ...], type]]
"""What the points of a cloud have, by field: the shape of one point's entry, and the dtype."""
SCENE_COLUMNS: Columns = {"xyz": ((3,), np.float32), "colours": ((3,), np.float32), "labels": ((), np.int32)}


class Scene(NamedTuple):
    """One labelled cloud.

    Attributes:
      xyz: [n, 3] float32, metres.
      colours: [n, 3] float32 RGB in [0, 1], or None where the data set has none.
      labels: [n] int32, classes or `IGNORE`; None where unlabelled.
      name: e.g. ``scene0000_00``.
    """

    xyz: np.ndarray
    colours: np.ndarray | None
    labels: np.ndarray | None
    name: str


class Objects(NamedTuple):
    """Labelled objects of equally many points.

    Attributes:
      xyz: [object, n, 3] float32, inside the unit sphere.
      labels: [object] int32.
      name: what they are, as a report should call them.
    """

    xyz: np.ndarray
    labels: np.ndarray
    name: str


def streams(split: str, count: int | None, seed: int, sizes: Mapping[str, int], kind: int) -> list[np.random.Generator]:
    """Random numbers for each of the `count` members of a split that is made up; `kind` is the data set's own."""
    _validate.choice("split", split, sizes)
    count = sizes[split] if count is None else _validate.positive_int("count", count)
    seed = _validate.positive_int("seed", seed, minimum=0)
    return [stream(kind, seed, 1 + list(sizes).index(split), i + 1) for i in range(count)]


def stream(*key: int) -> np.random.Generator:
    """Random numbers of a key, the same in every version of NumPy."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def into_unit_sphere(xyz: np.ndarray) -> np.ndarray:
    """``(x - m) / max |x - m|`` with m the mean of the points: the farthest comes at distance 1.

    Args:
      xyz: [n, 3], at least one point; a cloud of one place stays at the origin.
    """
    centred = xyz - xyz.mean(axis=0)
    radius = np.sqrt(np.max(np.sum(centred**2, axis=1)))
    return centred / radius if radius > 0 else centred


def made_scene(
    rows: np.ndarray, rgb: np.ndarray, labels: np.ndarray | None, name: str, where: str, classes: int | None = None
) -> Scene:
    """The checked `Scene` of a file's columns: coordinates [n, 3] and colours [n, 3] in 0..255, of any dtype."""
    if len(rgb) and rgb.max() <= 1 and (rgb != np.rint(rgb)).any():  # divided once more, they would all be black
        raise ValueError(f"{where}: got colours in [{rgb.min():.6g}, {rgb.max():.6g}], expected 0 to 255, not 0 to 1")
    with np.errstate(over="ignore"):  # infinite is refused
        xyz, colours = rows.astype(np.float32), (rgb / 255).astype(np.float32)
    return check_scene(Scene(xyz, colours, labels, name), where, classes)


def check_columns(cloud: Any, columns: Columns, where: str) -> None:
    """ValueError for a field of a cloud of another shape or dtype, or that are not finite; it may be None."""
    for field, (shape, dtype) in columns.items():
        got, wanted = getattr(cloud, field), (len(cloud.xyz), *shape)
        if got is None:
            continue
        if got.shape != wanted or got.dtype != dtype:
            raise ValueError(
                f"{where}: got {field} {got.dtype} of shape {got.shape}, expected {np.dtype(dtype)} {wanted}"
            )
        if not np.isfinite(got).all():
            raise ValueError(f"{where}: got {int((~np.isfinite(got)).sum())} NaN or infinite {field}, expected none")


def check_scene(scene: Scene, where: str, classes: int | None = None) -> Scene:
    """Returns the scene if it keeps what `Scene` promises.

    Args:
      where: what messages begin with, e.g. the file it was read from.
      classes: labels must lie in [0, classes) or be `IGNORE`; None: in [0, `IGNORE`].

    Raises:
      ValueError: no points; other shapes or dtypes; numbers that are not finite; coordinates so large that float32
        rounds them by more than 1 mm, as in map coordinates; colours outside [0, 1]; labels outside their range.
    """
    check_columns(scene, SCENE_COLUMNS, where)
    if len(scene.xyz) == 0:
        raise ValueError(f"{where}: got no points, expected at least one")
    _validate.coordinates(f"{where}: xyz", scene.xyz)
    if scene.colours is not None and (scene.colours.min() < 0 or scene.colours.max() > 1):
        raise ValueError(
            f"{where}: got colours in [{255 * scene.colours.min():.6g}, {255 * scene.colours.max():.6g}] / 255, "
            "expected [0, 255] / 255"
        )
    if scene.labels is not None:
        last = IGNORE if classes is None else classes - 1
        bad = scene.labels[(scene.labels < 0) | (scene.labels > last) & (scene.labels != IGNORE)]
        if len(bad):
            raise ValueError(f"{where}: got label {bad[0]}, expected 0 to {last} or {IGNORE}")
    return scene


def check_objects(objects: Objects, where: str, classes: int | None = None) -> Objects:
    """Returns the objects if they keep what `Objects` promises; labels in [0, classes), or [0, `IGNORE`].

    Raises:
      ValueError: as `check_scene`; labels that are not one for each object (a column [n, 1] is not).
    """
    xyz, labels = objects.xyz, objects.labels
    if xyz.ndim != 3 or xyz.shape[2] != 3 or labels.shape != xyz.shape[:1]:
        raise ValueError(
            f"{where}: got xyz of shape {xyz.shape} and labels of shape {labels.shape}, "
            "expected (objects, points, 3) and one label each"
        )
    check_scene(Scene(xyz.reshape(-1, 3), None, None, where), where)
    check_scene(Scene(xyz[:, 0], None, labels, where), where, classes)
    return objects
