"""ModelNet40: made-up HDF5 files and meshes, read back, then spoilt."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from dyn_jax.datasets.modelnet40 import FOLDER, MODELNET40_CLASSES, OBJECTS_PER_SPLIT, modelnet40, read_off_object

TRIANGLE = "0 0 0\n4 0 0\n0 4 0\n3 0 1 2\n"
POINTS = 16


@pytest.fixture(scope="module")
def clouds() -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (12, POINTS, 3)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, clouds):
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / FOLDER
    folder.mkdir()
    for i in range(12):  # more than nine files: 10 comes after 9, not after 1
        with h5py.File(folder / f"ply_data_train{i}.h5", "w") as file:
            file["data"], file["label"] = clouds[i : i + 1], np.array([[3 * i]], np.uint8)
            file["normal"] = clouds[i : i + 1]
    return folder


def test_objects_by_hand(folder, clouds):
    for directory in (folder, folder.parent):
        data = modelnet40(directory, points=POINTS, all_objects=False)
        np.testing.assert_array_equal(data.xyz, clouds)
        assert data.labels.tolist() == list(range(0, 36, 3))
        assert (data.xyz.dtype, data.labels.dtype, data.name) == (np.float32, np.int32, "ModelNet40")
    np.testing.assert_array_equal(modelnet40(folder, points=5, all_objects=False).xyz, clouds[:, :5])
    assert len(MODELNET40_CLASSES) == 40 and MODELNET40_CLASSES[0] == "airplane" and MODELNET40_CLASSES[39] == "xbox"
    assert list(MODELNET40_CLASSES) == sorted(MODELNET40_CLASSES) and sum(OBJECTS_PER_SPLIT.values()) == 12_311


def test_counts(folder, monkeypatch):
    with pytest.raises(ValueError, match="got 12 train objects in 12 files, expected 9843"):
        modelnet40(folder, points=POINTS)
    monkeypatch.setitem(OBJECTS_PER_SPLIT, "train", 12)
    assert len(modelnet40(folder, points=POINTS).labels) == 12
    with pytest.raises(ValueError, match="points: got 17, expected at most the 16"):
        modelnet40(folder, points=17)


def test_missing(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"ModelNet40 test: no {FOLDER}/ply_data_test\*.h5 in {folder}"):
        modelnet40(folder, "test")
    with pytest.raises(ValueError, match="split: got 'tset'.*did you mean 'test'"):
        modelnet40(folder, "tset")


def test_spoilt_files(folder, clouds):
    import h5py

    file = folder / "ply_data_train3.h5"
    whole = file.read_bytes()
    for size in (0, 100, len(whole) // 2):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="ply_data_train3.h5: not a readable HDF5 file, or truncated"):
            modelnet40(folder, points=4, all_objects=False)
    one, label = clouds[:1], np.array([[2]])
    for content, message in (
        ({"data": one}, "got keys data, expected data and label"),
        ({"data": one[0], "label": label}, r"got data \(16, 3\) and label \(1, 1\)"),
        ({"data": one, "label": np.array([1, 2])}, r"got data \(1, 16, 3\) and label \(2,\)"),
        ({"data": one, "label": np.array([[40]])}, r"got labels in \[40, 40\], expected \[0, 39\]"),
        ({"data": one * np.nan, "label": label}, "got NaN or infinite coordinates"),
    ):
        with h5py.File(file, "w") as spoilt:
            for key, value in content.items():
                spoilt[key] = value
        with pytest.raises(ValueError, match=f"ply_data_train3.h5: {message}"):
            modelnet40(folder, points=4, all_objects=False)


def test_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="needs h5py: pip install h5py"):
        modelnet40(folder)


@pytest.mark.parametrize("header", ["OFF\n3 1 0\n", "OFF3 1 0\n", "OFF 3 1 0\n", "OFF\n# made up\n3 1 0\n\n"])
def test_off_header(tmp_path, header):
    """All points of one triangle: in its plane, moved by their mean, the farthest at distance 1."""
    pytest.importorskip("trimesh")
    file = tmp_path / "a.off"
    file.write_text(header + TRIANGLE)
    xyz = read_off_object(file, 2000, seed=3)
    assert xyz.shape == (2000, 3) and xyz.dtype == np.float32
    np.testing.assert_allclose(xyz.mean(0), 0, atol=1e-6)
    assert np.linalg.norm(xyz, axis=1).max() == pytest.approx(1, abs=1e-6) and np.all(xyz[:, 2] == 0)
    # the centroid of the triangle is (4, 4) / 3, the far corners at distance sqrt(80) / 3
    np.testing.assert_allclose(xyz[:, :2].min(0), -4 / 80**0.5, atol=0.05)
    np.testing.assert_allclose(xyz[:, :2].max(0), 8 / 80**0.5, atol=0.06)


def test_off_is_uniform_by_area_and_seeded(tmp_path):
    """Two triangles of areas 0.5 and 4.5 in planes z = 0 and z = 1, with as many vertices."""
    pytest.importorskip("trimesh")
    file = tmp_path / "a.off"
    file.write_text("OFF\n6 2 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1\n0 3 1\n3 0 1 2\n3 3 4 5\n")
    xyz = read_off_object(file, 4000, seed=0)
    low = xyz[:, 2] < 0
    assert low.mean() == pytest.approx(0.1, abs=0.02)
    np.testing.assert_array_equal(read_off_object(file, 4000, seed=0), xyz)
    assert np.abs(read_off_object(file, 4000, seed=1) - xyz).max() > 0.1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n", "not a readable OFF file, or truncated"),
        ("OFF\n3 2 0\n" + TRIANGLE, "got 4 lines, expected 3 vertices and 2 faces"),
        ("OFF\n3 1 0\n" + TRIANGLE[:-4], "area 0"),
        ("OFF\n3 1 0\n" + TRIANGLE.replace("1 2\n", "1 7\n"), "not a readable OFF"),
        ("OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "area 0"),
        ("OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n", "area 0"),
        ("OFF\n3 1 0\n" + TRIANGLE.replace("4 0 0", "nan 0 0"), "area nan"),
        ("OFF\nthree\n" + TRIANGLE, "got counts 'three' after OFF"),
        ("OFF", "got counts '' after OFF"),
        ("ply\n", "got 'ply', expected an OFF file"),
        ("", "got '', expected an OFF file"),
    ],
)
def test_spoilt_meshes(tmp_path, content, message):
    pytest.importorskip("trimesh")
    file = tmp_path / "a.off"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"a.off: .*({message})"):
        read_off_object(file)
    with pytest.raises(FileNotFoundError, match="b.off: no such file"):
        read_off_object(tmp_path / "b.off")
