"""SemanticKITTI and nuScenes files: a real labelled scan, splits on disk, the metric by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from dyn_jax import metrics
from dyn_jax.datasets import SEMANTICKITTI_CLASSES, classes_of, read_scan, scan_iou, semantickitti, streets, write_scan
from dyn_jax.datasets.semantickitti import RAW_CLASSES, SEQUENCES
from dyn_jax.sparse3d import Cylinder
from dyn_jax.sparse3d.cylinder import cells_of


def test_a_real_labelled_scan(shared_dir):
    scan = read_scan(
        shared_dir / "data" / "semantickitti_000000.bin", shared_dir / "data" / "semantickitti_000000.label"
    )
    assert scan.xyz.shape == (123389, 3) and scan.xyz.dtype == np.float32 and scan.ring is None
    assert scan.labels is not None and scan.labels.dtype == np.int32
    assert scan.intensity.min() >= 0 and scan.intensity.max() <= 1
    counts = np.bincount(scan.labels, minlength=20)
    raw = np.fromfile(shared_dir / "data" / "semantickitti_000000.label", np.uint32) & 0xFFFF
    assert counts[SEMANTICKITTI_CLASSES.index("road")] == np.isin(raw, (40, 60)).sum() > 1000
    assert counts[SEMANTICKITTI_CLASSES.index("car")] == np.isin(raw, (10, 252)).sum() > 0
    assert scan.labels[raw == 70].min() == scan.labels[raw == 70].max() == 15


def test_a_sweep_of_nuscenes(shared_dir):
    path = shared_dir / "data" / "nuscenes_lidar_sweep.bin"
    sweep = read_scan(path, sensor="nuscenes")
    assert len(sweep.xyz) == 34688 and sweep.labels is None and sweep.intensity.max() > 1
    assert sweep.ring is not None and set(np.unique(sweep.ring)) <= set(range(32))


def test_raw_ids_by_hand():
    raw = np.array([10, 252 | (7 << 16), 40, 60, 0, 99, 259, 81], np.uint32)
    np.testing.assert_array_equal(classes_of(raw), [1, 1, 9, 9, 0, 0, 5, 19])
    assert set(RAW_CLASSES.values()) == set(range(20)) and len(SEMANTICKITTI_CLASSES) == 20
    with pytest.raises(ValueError, match=r"unknown ids \[2, 300\]"):
        classes_of(np.array([10, 2, 300]))
    with pytest.raises(TypeError, match="expected integers"):
        classes_of(np.array([1.0]))
    assert classes_of(np.zeros(3, np.uint32)).tolist() == [0, 0, 0]
    for other in (np.array([10, 40, 0], "<f4"), np.array([10, 40, 0], ">u4")):
        with pytest.raises(ValueError, match="expected little-endian uint32"):
            classes_of(np.frombuffer(other.tobytes(), "<u4"))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for sequence, scans in (("00", 2), ("09", 1), ("08", 1), ("11", 1)):
        place = tmp_path / "dataset" / "sequences" / sequence
        for part in ("velodyne", "labels"):
            (place / part).mkdir(parents=True)
        for number in range(scans):
            rng.normal(size=(5 + number, 4)).astype("<f4").tofile(place / "velodyne" / f"{number:06d}.bin")
            if sequence != "11":
                np.full(5 + number, 40, "<u4").tofile(place / "labels" / f"{number:06d}.label")
    return tmp_path


def test_labels_without_their_scan(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(list(semantickitti("val", f"~/{folder.name}"))) == 1
    (folder / "dataset" / "sequences" / "09" / "velodyne" / "000000.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"09/labels/000000.label: one of 1 files of labels without their scan"):
        semantickitti("train", folder)


def test_splits(folder):
    assert [scan.name for scan in semantickitti("train", folder)] == ["00_000000", "00_000001", "09_000000"]
    val = list(semantickitti("val", folder / "dataset"))
    assert len(val) == 1 and val[0].labels is not None and (val[0].labels == 9).all()
    assert [scan.labels for scan in semantickitti("test", folder)] == [None]
    every = [number for numbers in SEQUENCES.values() for number in numbers]
    assert sorted(every) == [f"{number:02d}" for number in range(22)]


def test_what_is_refused(folder, tmp_path):
    scan = folder / "dataset" / "sequences" / "08" / "velodyne" / "000000.bin"
    labels = folder / "dataset" / "sequences" / "08" / "labels" / "000000.label"
    np.full(4, 40, "<u4").tofile(labels)
    with pytest.raises(ValueError, match="got 4 labels, expected 5"):
        next(semantickitti("val", folder))
    np.full(5, 77, "<u4").tofile(labels)
    with pytest.raises(ValueError, match=r"000000.label: raw: got unknown ids \[77\]"):
        read_scan(scan, labels)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="000000.label"):
        next(semantickitti("val", folder))
    np.zeros((3, 5), "<f4").tofile(tmp_path / "sweep.bin")
    with pytest.raises(ValueError, match="it fits sensor='nuscenes'"):
        read_scan(tmp_path / "sweep.bin")
    sweep = np.random.default_rng(0).normal(0, 9, (8, 5)).astype("<f4")
    sweep[:, 4] = np.arange(8)
    sweep.tofile(tmp_path / "sweep.bin")  # 40 numbers are also 10 rows of four
    with pytest.raises(ValueError, match="it fits sensor='nuscenes'"):
        read_scan(tmp_path / "sweep.bin")
    np.full((2, 5), 0.5, "<f4").tofile(tmp_path / "shifted.bin")
    with pytest.raises(ValueError, match="expected the numbers of rings"):
        read_scan(tmp_path / "shifted.bin", sensor="nuscenes")
    np.array([[1, 2, np.nan, 0]], "<f4").tofile(tmp_path / "nan.bin")
    with pytest.raises(ValueError, match="got 1 of 1 points with NaN"):
        read_scan(tmp_path / "nan.bin")
    (tmp_path / "empty.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="got 0 bytes"):
        read_scan(tmp_path / "empty.bin")
    with pytest.raises(FileNotFoundError, match="no scans, expected sequences/08"):
        semantickitti("val", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="split"):
        semantickitti("validation", folder)
    with pytest.raises(ValueError, match="sensor"):
        read_scan(scan, sensor="waymo")


def test_the_benchmarks_mean():
    """A labelled point predicted as 0 is no error; a class that is in neither is left out."""
    labels, predictions = np.array([1, 1, 1, 2, 0, 0]), np.array([1, 1, 0, 1, 3, 1])
    matrix = metrics.confusion(predictions, labels, 5, ignore=0)
    assert float(scan_iou(matrix)) == pytest.approx((2 / 3 + 0) / 2)


def test_a_written_scan_comes_back_to_the_last_bit(tmp_path):
    """No point leaves its cell, so that nothing has to be sampled or voxelised anew."""
    scan = streets("test", 1)[0]
    moved = scan.xyz + np.random.default_rng(0).uniform(-0.05, 0.05, scan.xyz.shape).astype(np.float32)
    write_scan(tmp_path / "moved.bin", moved, scan.intensity[:, None])
    back = read_scan(tmp_path / "moved.bin")
    np.testing.assert_array_equal(back.xyz, moved)
    np.testing.assert_array_equal(back.intensity, scan.intensity)
    np.testing.assert_array_equal(cells_of(back.xyz, Cylinder())[0], cells_of(moved, Cylinder())[0])
    with pytest.raises(TypeError, match="expected float32"):
        write_scan(tmp_path / "double.bin", moved.astype(float), scan.intensity)
    with pytest.raises(ValueError, match="got shapes"):
        write_scan(tmp_path / "short.bin", moved, scan.intensity[:-1])
