"""ScanNet scenes and raw rows: made-up files of a few points, read back, then spoilt in every way."""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import pytest

from dyn_jax.datasets.points import IGNORE, Scene, check_scene
from dyn_jax.datasets.points_files import map_labels, read_ply_vertices, read_points_bin
from dyn_jax.datasets.s3dis import s3dis_labels
from dyn_jax.datasets.scannet import (
    SCANNET_CLASSES,
    SCANNET_NYU40_IDS,
    read_scannet_scene,
    scannet,
    scannet_labels,
)

VERTICES = np.array(
    [
        (0.5, 0.25, 0.0, 255, 0, 51, 255),
        (-1.5, 2.0, 1.0, 0, 102, 255, 255),
        (0.5, 0.25, 0.0, 1, 2, 3, 255),  # as the first: duplicates must not be merged
        (3.0, -4.0, 2.5, 9, 9, 9, 255),
        (7.0, 8.0, 9.0, 200, 100, 50, 255),
    ]
)
PROPERTIES = (("x", "float"), ("y", "float"), ("z", "float"))
PROPERTIES += (("red", "uchar"), ("green", "uchar"), ("blue", "uchar"), ("alpha", "uchar"))
LABEL = ("label", "ushort")
NYU40 = (1, 39, 50, 13, 149)
CODES = {"float": "<f4", "double": "<f8", "uchar": "u1", "ushort": "<u2"}


def ply(rows, properties, *, ascii: bool = False, faces: int = 2) -> bytes:
    head = [f"ply\nformat {'ascii' if ascii else 'binary_little_endian'} 1.0", f"element vertex {len(rows)}"]
    head += [f"property {kind} {name}" for name, kind in properties]
    head += [f"element face {faces}", "property list uchar int vertex_indices", "end_header\n"]
    table = np.zeros(len(rows), [(name, CODES[kind]) for name, kind in properties])
    for (name, _), column in zip(properties, np.transpose(rows)):
        table[name] = column
    if ascii:
        body = "".join(" ".join(f"{value:g}" for value in row) + "\n" for row in rows) + "3 0 1 2\n" * faces
        return "\n".join(head).encode() + body.encode()
    face = b"\x03" + np.array([0, 1, 2], "<i4").tobytes()
    return "\n".join(head).encode() + table.tobytes() + face * faces


def labelled(ids=NYU40) -> bytes:
    return ply(np.concatenate([VERTICES[: len(ids)], np.array(ids)[:, None]], 1), (*PROPERTIES, LABEL))


@pytest.fixture
def scene(tmp_path):
    pytest.importorskip("trimesh")
    folder = tmp_path / "scene0001_00"
    folder.mkdir()
    (folder / "scene0001_00_vh_clean_2.ply").write_bytes(ply(VERTICES, PROPERTIES))
    (folder / "scene0001_00_vh_clean_2.labels.ply").write_bytes(labelled())
    return folder


def test_label_map_by_hand():
    """wall 1 -> 0, door 8 -> 7, desk 14 -> 12, otherfurniture 39 -> 19; blinds 13, 0, 40, 50, 149 -> ignored."""
    ids = np.array([1, 8, 14, 39, 13, 0, 40, 50, 149])
    assert scannet_labels(ids).tolist() == [0, 7, 12, 19, 255, 255, 255, 255, 255]
    assert len(SCANNET_CLASSES) == len(SCANNET_NYU40_IDS) == 20 and SCANNET_CLASSES[12] == "desk"
    assert sorted(set(scannet_labels(np.arange(41)))) == [*range(20), IGNORE]
    for wrong in (41, 51, -1):
        with pytest.raises(ValueError, match=f"file: got label id {wrong}, expected 0 to 40"):
            scannet_labels(np.array([1, wrong]), "file")


@pytest.mark.parametrize("form", ["folder", "file", "ascii"])
def test_scene_by_hand(scene, form):
    mesh = scene / "scene0001_00_vh_clean_2.ply"
    if form == "ascii":
        mesh.write_bytes(ply(VERTICES, PROPERTIES, ascii=True))
    got = read_scannet_scene(scene if form == "folder" else str(mesh), require_labels=True)
    assert got.name == "scene0001_00"
    np.testing.assert_array_equal(got.xyz, VERTICES[:, :3].astype(np.float32))
    np.testing.assert_allclose(got.colours[:2], [[1, 0, 0.2], [0, 0.4, 1]], rtol=1e-6)
    assert got.labels.tolist() == [0, 19, IGNORE, IGNORE, IGNORE]
    assert (got.xyz.dtype, got.colours.dtype, got.labels.dtype) == (np.float32, np.float32, np.int32)


def test_point_cloud_without_faces(scene):
    (scene / "scene0001_00_vh_clean_2.ply").write_bytes(ply(VERTICES, PROPERTIES, faces=0))
    np.testing.assert_array_equal(read_scannet_scene(scene).xyz, VERTICES[:, :3].astype(np.float32))


def test_unlabelled(scene):
    (scene / "scene0001_00_vh_clean_2.labels.ply").unlink()
    assert read_scannet_scene(scene).labels is None
    with pytest.raises(FileNotFoundError, match="scene0001_00_vh_clean_2.labels.ply: no such file"):
        read_scannet_scene(scene, require_labels=True)


def test_spoilt_labels(scene):
    file = scene / "scene0001_00_vh_clean_2.labels.ply"
    file.write_bytes(labelled(NYU40[:4]))
    with pytest.raises(ValueError, match="labels.ply: got 4 labels, expected 5, one for each vertex"):
        read_scannet_scene(scene)
    file.write_bytes(labelled((1, 2, 3, 4, 77)))
    with pytest.raises(ValueError, match="labels.ply: got label id 77, expected 0 to 40"):
        read_scannet_scene(scene)
    file.write_bytes(ply(VERTICES, PROPERTIES))
    with pytest.raises(ValueError, match="labels.ply: got vertex properties x, y, z, .*alpha, expected label"):
        read_scannet_scene(scene)


@pytest.mark.parametrize("ascii", [False, True])
def test_truncated(scene, ascii):
    """Wherever a file is cut before the end of its vertices, it is an error that names it; never a shorter scene."""
    file = scene / "scene0001_00_vh_clean_2.ply"
    whole = ply(VERTICES, PROPERTIES, ascii=ascii)
    vertices_end = len(whole) - 2 * (8 if ascii else 13)  # two faces follow
    for size in range(0, len(whole), 1 if ascii else 3):
        file.write_bytes(whole[:size])
        if size < vertices_end - ascii:  # but for the last line's end
            with pytest.raises(ValueError, match="scene0001_00_vh_clean_2.ply: "):
                read_scannet_scene(scene)
        else:
            with contextlib.suppress(ValueError):
                np.testing.assert_array_equal(read_scannet_scene(scene).xyz, VERTICES[:, :3].astype(np.float32))


def test_wrong_properties(scene):
    file = scene / "scene0001_00_vh_clean_2.ply"
    renamed = tuple(("r" if name == "red" else name, kind) for name, kind in PROPERTIES)
    file.write_bytes(ply(VERTICES, renamed))
    with pytest.raises(ValueError, match="2.ply: got vertex properties x, y, z, r, green.*expected x, y, z, red"):
        read_scannet_scene(scene)
    file.write_bytes(ply(VERTICES, tuple((name, "float") for name, _ in PROPERTIES)))
    with pytest.raises(ValueError, match="got colours of type float32, expected uchar"):
        read_scannet_scene(scene)
    spoilt = VERTICES.copy()
    spoilt[4, 2] = np.nan
    file.write_bytes(ply(spoilt, PROPERTIES, faces=0))
    with pytest.raises(ValueError, match="2.ply: got 1 NaN or infinite xyz"):
        read_scannet_scene(scene)


def test_missing(scene, tmp_path):
    (tmp_path / "scene0002_00").mkdir()
    with pytest.raises(FileNotFoundError, match="scene0002_00_vh_clean_2.ply: no such file; expected the mesh"):
        read_scannet_scene(tmp_path / "scene0002_00")
    for path in ("nowhere", scene / "scene0001_00_vh_clean_2.labels.ply"):
        with pytest.raises(FileNotFoundError, match="not a name of the form <scene>_vh_clean_2.ply"):
            read_scannet_scene(path)


def test_many_scenes(scene, tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("scene0001_00\nscene0009_00\n")
    assert [s.name for s in scannet(tmp_path)] == ["scene0001_00"]
    assert [s.name for s in scannet(tmp_path, ["scene0001_00"] * 2)] == ["scene0001_00"] * 2
    listed = scannet(tmp_path, tmp_path / "list.txt")
    assert next(listed).name == "scene0001_00"
    with pytest.raises(FileNotFoundError, match="scene0009_00"):
        next(listed)
    with pytest.raises(ValueError, match="scenes: got none"):
        scannet(tmp_path, [])
    monkeypatch.setenv("DYN_JAX_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path / 'scannet'}; expected <scene>/<scene>_vh"):
        scannet()


def test_missing_package_is_named(scene, monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(ImportError, match="needs trimesh: pip install trimesh"):
        read_scannet_scene(scene)


def test_ply_properties(scene):
    columns = read_ply_vertices(scene / "scene0001_00_vh_clean_2.labels.ply", ("label", "blue"))
    assert columns["label"].tolist() == list(NYU40) and columns["label"].dtype == np.uint16
    assert columns["blue"].tolist() == [51, 255, 3, 9, 50] and set(columns) == {"label", "blue"}


def test_points_bin_by_hand(tmp_path):
    rows = VERTICES[:, :6].astype("<f4")
    (tmp_path / "a.b.bin").write_bytes(rows.tobytes())
    (tmp_path / "mask.bin").write_bytes(np.array([0, 2, 2, 1, 0], "<i8").tobytes())
    got = read_points_bin(tmp_path / "a.b.bin", tmp_path / "mask.bin", label_map=np.array([5, IGNORE, 7]))
    np.testing.assert_array_equal(got.xyz, rows[:, :3])
    np.testing.assert_array_equal(got.colours, rows[:, 3:] / np.float32(255))
    assert got.labels.tolist() == [5, 7, 7, IGNORE, 5] and got.labels.dtype == np.int32 and got.name == "a.b"
    assert read_points_bin(tmp_path / "a.b.bin").labels is None
    assert read_points_bin(tmp_path / "a.b.bin", tmp_path / "mask.bin").labels.tolist() == [0, 2, 2, 1, 0]


def test_spoilt_points_bin(tmp_path):
    points, mask = tmp_path / "p.bin", tmp_path / "m.bin"
    with pytest.raises(FileNotFoundError, match="p.bin: no such file"):
        read_points_bin(points)
    rows = VERTICES[:, :6].astype("<f4")
    for content in (rows.tobytes()[:-4], b""):
        points.write_bytes(content)
        with pytest.raises(ValueError, match=f"p.bin: got {len(content)} bytes, expected a multiple of 24"):
            read_points_bin(points)
    points.write_bytes((rows + np.float32(100)).tobytes())
    with pytest.raises(ValueError, match=r"p.bin: got colours in \[100, 355\] / 255"):
        read_points_bin(points)
    points.write_bytes(rows.tobytes())
    for labels, message in (
        (np.zeros(4, "<i8"), "m.bin: got 4 labels, expected 5"),
        (np.full(5, 3), "m.bin: got label id 3, expected 0 to 1"),
        (np.zeros(5, "<i4"), "m.bin: got 20 bytes, expected a multiple of 8"),
    ):
        mask.write_bytes(labels.tobytes())
        with pytest.raises(ValueError, match=message):
            read_points_bin(points, mask, label_map=np.arange(2))


def test_map_by_hand():
    assert map_labels(np.array([2, 0]), np.array([7, 8, 9]), "x").tolist() == [9, 7]


def test_check_scene():
    good = Scene(np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32), np.array([4, IGNORE], np.int32), "s")
    assert check_scene(good, "s", 5) is good and check_scene(good._replace(colours=None, labels=None), "s")
    for bad, message in (
        (good._replace(xyz=np.zeros((0, 3), np.float32), colours=None, labels=None), "got no points"),
        (good._replace(xyz=np.zeros((2, 3))), r"got xyz float64 of shape \(2, 3\), expected float32"),
        (good._replace(colours=good.colours[:1]), r"got colours float32 of shape \(1, 3\)"),
        (good._replace(colours=good.colours * 2), r"got colours in \[510, 510\] / 255"),
        (good._replace(labels=np.array([0, 5], np.int32)), "got label 5, expected 0 to 4 or 255"),
        (good._replace(labels=np.array([-1, 0], np.int32)), "got label -1"),
    ):
        with pytest.raises(ValueError, match=f"s: {message}"):
            check_scene(bad, "s", 5)


def test_real_samples(shared_dir):
    """The 100-point samples of mmdetection3d, and one whole scene without labels."""
    folder = shared_dir / "data" / "tiny"
    points = folder / "scannet_points_scene0000_00.bin"
    raw = read_points_bin(points, folder / "scannet_semantic_mask_scene0000_00.bin")
    assert raw.xyz.shape == (100, 3) and raw.labels.max() == 40
    labels = scannet_labels(raw.labels)
    assert (labels == 0).sum() == 14 and (labels == IGNORE).sum() == (~np.isin(raw.labels, SCANNET_NYU40_IDS)).sum() > 0
    room = read_points_bin(
        folder / "s3dis_points_Area_1_office_2.bin", folder / "s3dis_semantic_mask_Area_1_office_2.bin"
    )
    ordered = s3dis_labels(room.labels, "pointnet")
    highest, lowest = (np.median(room.xyz[ordered == label, 2]) for label in (4, 8))  # ceiling, floor
    assert highest > 2.5 > 0.5 > lowest
    scene = read_points_bin(shared_dir / "data" / "scannet_scene0000_00.bin")
    assert scene.xyz.shape == (40_684, 3) and scene.colours.max() == 1
