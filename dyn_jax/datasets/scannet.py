"""ScanNet v2 from files that are already there; its terms forbid passing them on, so none is embedded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

import numpy as np

from dyn_jax import _files
from dyn_jax.datasets.base import default_folder
from dyn_jax.datasets.points import IGNORE, Scene, made_scene
from dyn_jax.datasets.points_files import map_labels, read_ply_vertices

SCANNET_CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "desk", "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub", "otherfurniture",
)  # fmt: skip
SCANNET_NYU40_IDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)
"""The NYU40 id of each class; every other id in 0..40 is `IGNORE`."""

MISLABELED_IDS = (50, 149)
"""Ids that are no NYU40 ids but stand in three released scenes (0270_00, 0270_02, 0384_00): read as 0, unannotated."""

MESH_SUFFIX, LABEL_SUFFIX = "_vh_clean_2.ply", "_vh_clean_2.labels.ply"


def scannet_labels(nyu40_ids: np.ndarray, where: str = "nyu40_ids") -> np.ndarray:
    """The 20 classes of the benchmark [n] int32, 0..19 (`SCANNET_CLASSES`) or `IGNORE`, from NYU40 ids [n].

    ValueError, beginning with `where`, for an id that is neither in 0..40 nor one of `MISLABELED_IDS`.
    """
    classes = np.full(41, IGNORE, np.int32)
    classes[list(SCANNET_NYU40_IDS)] = np.arange(len(SCANNET_CLASSES))
    return map_labels(np.where(np.isin(nyu40_ids, MISLABELED_IDS), 0, nyu40_ids), classes, where)


def read_scannet_scene(path: str | os.PathLike, *, require_labels: bool = False) -> Scene:
    """One scene from ``<scene>_vh_clean_2.ply`` and, where it is there, ``<scene>_vh_clean_2.labels.ply``.

    Args:
      path: the folder ``<scene>`` that holds both, or the first file itself.
      require_labels: makes a missing labels file an error; otherwise such a scene is unlabelled (the test scenes).

    Returns:
      `Scene`: the mesh's vertices in the file's order; labels as `scannet_labels`.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is truncated, lacks properties, holds other ids, or labels another number of vertices.
      ImportError: trimesh is not installed.

    Source: A. Dai et al., ScanNet, CVPR 2017; label ids as in its benchmark scripts.
    """
    mesh = os.path.expanduser(os.fspath(path))
    if os.path.isdir(mesh):
        mesh = os.path.join(mesh, os.path.basename(os.path.abspath(mesh)) + MESH_SUFFIX)
    if mesh.endswith(LABEL_SUFFIX) or not mesh.endswith(".ply"):
        raise FileNotFoundError(f"{mesh}: no such folder, and not a name of the form <scene>{MESH_SUFFIX}")
    _files.regular(mesh, f"the mesh <scene>{MESH_SUFFIX} of a ScanNet scene")
    vertex = read_ply_vertices(mesh, ("x", "y", "z", "red", "green", "blue"))
    rgb = np.stack([vertex[name] for name in ("red", "green", "blue")], 1)
    if rgb.dtype != np.uint8:
        raise ValueError(f"{mesh}: got colours of type {rgb.dtype}, expected uchar in 0..255")
    xyz = np.stack([vertex[name] for name in ("x", "y", "z")], 1)
    name = os.path.basename(mesh).removesuffix(".ply").removesuffix("_vh_clean_2")
    labels_file = mesh.removesuffix(".ply") + ".labels.ply"
    labels = None
    if require_labels or os.path.lexists(labels_file):
        _files.regular(labels_file, "the labels of a ScanNet scene")
        ids = read_ply_vertices(labels_file, ("label",))["label"]
        if len(ids) != len(xyz):
            raise ValueError(
                f"{labels_file}: got {len(ids)} labels, expected {len(xyz)}, one for each vertex of the mesh"
            )
        labels = scannet_labels(ids, labels_file)
    return made_scene(xyz, rgb, labels, name, mesh)


def scannet(
    directory: str | os.PathLike | None = None,
    scenes: str | os.PathLike | Sequence[str] | None = None,
    *,
    require_labels: bool = False,
) -> Iterator[Scene]:
    """The scenes of a folder, one by one, each read when it is asked for.

    Args:
      directory: the folder of the scenes' folders (``scans``); default ``$DYN_JAX_DATA/scannet``, or below
        ``~/.cache/dyn_jax``.
      scenes: names such as ("scene0000_00",), in order; or a text file that lists them line by line, such as the
        benchmark's ``scannetv2_val.txt``; None: every ``scene*`` folder, sorted.
      require_labels: as for `read_scannet_scene`.

    Returns:
      An iterator of `Scene`.

    Raises:
      FileNotFoundError: the folder, the list, or (when it is asked for) a scene's file is missing.
      ValueError: no scenes, or names that are none; or as `read_scannet_scene`.
    """
    folder = default_folder("scannet", directory)
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"ScanNet: no folder {os.path.abspath(folder)}; expected <scene>/<scene>{MESH_SUFFIX} in it"
        )
    where = os.path.abspath(folder)
    if scenes is None:
        names = sorted(
            n for n in os.listdir(folder) if n.startswith("scene") and os.path.isdir(os.path.join(folder, n))
        )
    elif isinstance(scenes, (str, os.PathLike)):
        where = os.fspath(scenes)
        content = _files.read(scenes, "a list of scene names", 2**24)
        with _files.reading(os.fspath(scenes), "a list of scene names"):
            names = content.decode().split()
    else:
        names = list(scenes)
    if strange := [name for name in names if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name)]:
        raise ValueError(f"scenes: got {_files.listed(strange)} in {where}, expected names such as scene0000_00")
    if not names:
        raise ValueError(f"scenes: got none in {where}, expected at least one name scene0000_00")
    return (read_scannet_scene(os.path.join(folder, name), require_labels=require_labels) for name in names)
