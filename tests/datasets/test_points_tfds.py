"""Point clouds through TFDS, without TensorFlow: the same bits in the same order."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

from dyn_jax.cli import main
from dyn_jax.datasets import read_scan, semantickitti, streets
from dyn_jax.datasets.objects import objects
from dyn_jax.datasets.points import IGNORE, Objects, Scene
from dyn_jax.datasets.rooms import rooms
from dyn_jax.datasets.tfds_points import (
    objects_from_tfds,
    prepare_objects_tfds,
    prepare_scans_tfds,
    prepare_scenes_tfds,
    scans_from_tfds,
    scenes_from_tfds,
)


def made_up() -> list[Scene]:
    """Rooms of different lengths; some without colours or labels; extreme numbers."""
    scenes = [room._replace(name=f"röm {i}") for i, room in enumerate(rooms("train", 12, points=300))]
    scenes = [Scene(*(a[: 50 + 20 * i] for a in scene[:3]), scene.name) for i, scene in enumerate(scenes)]
    extreme = np.array([[-0.0, 1e-45, 32767.999], [np.float32(0.1), -1e-30, -32767.999]], np.float32)
    scenes[2] = Scene(extreme, None, np.array([IGNORE, 0], np.int32), "extreme")
    scenes[5] = scenes[5]._replace(labels=None)
    scenes[7] = scenes[7]._replace(labels=None, colours=None)
    scenes[9] = Scene(extreme[:1], None, np.array([3], np.int32), "one point")
    return scenes


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    pytest.importorskip("array_record")
    data_dir = tmp_path_factory.mktemp("tfds")
    scenes = made_up()
    folder = prepare_scenes_tfds({"train": iter(scenes), "test": scenes[:2]}, "made_up", data_dir)
    return data_dir, folder, scenes


def same(a, b) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_same_bits_in_the_same_order(prepared):
    data_dir, folder, scenes = prepared
    assert folder == str(data_dir / "made_up" / "1.0.0")
    for split, expected in (("train", scenes), ("test", scenes[:2])):
        got = scenes_from_tfds("made_up", split, data_dir)
        assert [scene.name for scene in got] == [scene.name for scene in expected]
        for a, b in zip(got, expected):
            assert all(same(x, y) for x, y in zip(a[:3], b[:3]))
    assert "tensorflow" not in sys.modules


def test_order_is_restored(prepared):
    """Control: TFDS does shuffle, and anyone can read what is there."""
    import tensorflow_datasets as tfds

    _, folder, scenes = prepared
    stored = [int(example["row"]) for example in tfds.builder_from_directory(folder).as_data_source("train")]
    assert sorted(stored) == list(range(len(scenes))) != stored


def test_objects(tmp_path):
    pytest.importorskip("array_record")
    splits = {"train": objects("train", 30, points=40), "test": objects("test", 5, points=40)}
    prepare_objects_tfds(splits, "shapes", tmp_path)
    for split, expected in splits.items():
        got = objects_from_tfds("shapes", split, tmp_path)
        assert isinstance(got, Objects) and got.name == expected.name
        assert same(got.xyz, expected.xyz) and same(got.labels, expected.labels)


@pytest.fixture
def kitti(tmp_path):
    """A SemanticKITTI folder of twelve scans of sequence 08."""
    place, rng = tmp_path / "source" / "sequences" / "08", np.random.default_rng(0)
    for part in ("velodyne", "labels"):
        (place / part).mkdir(parents=True)
    for number in range(12):
        rng.normal(size=(5 + number, 4)).astype("<f4").tofile(place / "velodyne" / f"{number:06d}.bin")
        rng.choice([0, 10, 40, 252], 5 + number).astype("<u4").tofile(place / "labels" / f"{number:06d}.label")
    return tmp_path / "source"


def test_scans(kitti, tmp_path, capsys):
    """The command writes a split; it comes back scan by scan, the same bits in the same order."""
    pytest.importorskip("array_record")
    assert main(["prepare-semantickitti", str(kitti), "--data-dir", str(tmp_path / "tfds")]) == 0
    assert capsys.readouterr().out.strip().endswith("semantickitti/1.0.0")
    got = scans_from_tfds("semantickitti", "val", tmp_path / "tfds")
    assert next(got).name == "08_000000"  # an iterator: a split of SemanticKITTI is larger than a memory
    for a, b in zip([None, *got], semantickitti("val", kitti), strict=True):
        assert a is None or (a.name == b.name and all(same(x, y) for x, y in zip(a[:4], b[:4])))
    assert main(["prepare-semantickitti", str(tmp_path), "--splits", "train"]) == 2
    assert "no scans, expected sequences/00" in capsys.readouterr().err


def test_scans_of_other_sensors(tmp_path):
    """Rings without labels (nuScenes), labels and rings (streets); and what is no scan."""
    pytest.importorskip("array_record")
    np.random.default_rng(1).integers(0, 9, (20, 5)).astype("<f4").tofile(tmp_path / "sweep.bin")
    sweep, street = read_scan(tmp_path / "sweep.bin", sensor="nuscenes"), streets("test", 1)[0]
    prepare_scans_tfds({"train": [sweep, street], "test": iter([street])}, "mixed", tmp_path)
    for split, expected in (("train", [sweep, street]), ("test", [street])):
        for a, b in zip(scans_from_tfds("mixed", split, tmp_path), expected, strict=True):
            assert a.name == b.name and all(same(x, y) for x, y in zip(a[:4], b[:4]))
    with pytest.raises(ValueError, match="got features .*ring.*, expected row, name, xyz, colours, labels"):
        scenes_from_tfds("mixed", "train", tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing: no prepared data set"):
        scans_from_tfds("nothing", "train", tmp_path)
    for change, message in (
        ({"labels": np.array([1], np.int32)}, r"train 0 \(sweep\): got labels int32 of shape \(1,\)"),
        ({"ring": np.full(20, -1, np.int32)}, "got ring -1, expected at least 0"),
        ({"intensity": np.full(20, np.nan, np.float32)}, "got 20 NaN or infinite intensity"),
        ({"xyz": sweep.xyz + np.float32(5e6)}, "rounds by up to"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_scans_tfds({"train": [sweep._replace(**change)]}, "bad", tmp_path)


def test_scenes_are_no_scans(tmp_path):
    street, room = streets("test", 1), rooms("test", 1, points=20)
    with pytest.raises(TypeError, match="test 0: got a Scene, expected a Scan"):
        prepare_scans_tfds({"test": room}, "bad", tmp_path)
    with pytest.raises(TypeError, match="test 0: got a Scan, expected a Scene"):
        prepare_scenes_tfds({"test": street}, "bad", tmp_path)


def test_scenes_are_no_objects(prepared):
    with pytest.raises(ValueError, match="made_up: got clouds of different lengths or labels, expected objects"):
        objects_from_tfds("made_up", "train", prepared[0])
    wrong = Objects(np.zeros((2, 5, 3), np.float32), np.zeros(3, np.int32), "wrong")
    with pytest.raises(ValueError, match=r"test: got xyz of shape \(2, 5, 3\) and labels of shape \(3,\)"):
        prepare_objects_tfds({"test": wrong}, "wrong", prepared[0])


def test_prepared_data_are_kept(prepared):
    data_dir, folder, scenes = prepared
    before = {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}
    with pytest.raises(FileExistsError, match="made_up/1.0.0: exists; delete the folder"):
        prepare_scenes_tfds({"train": scenes[:1]}, "made_up", data_dir)
    assert before == {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}


def test_bad_scenes_leave_nothing(tmp_path):
    pytest.importorskip("array_record")
    good = rooms("test", 1, points=20)[0]

    def failing():
        yield good
        raise FileNotFoundError("scene0009_00: no such file")

    for scenes, error, message in (
        ([good, good._replace(colours=good.colours * 300)], ValueError, r"train 1 \(test_0000\): got colours"),
        ([good._replace(labels=good.labels[:3])], ValueError, r"train 0 .*: got labels int32 of shape \(3,\)"),
        ([], ValueError, "train: got nothing, expected at least one"),
        (failing(), FileNotFoundError, "scene0009_00"),
    ):
        with pytest.raises(error, match=message):
            prepare_scenes_tfds({"train": scenes}, "bad", tmp_path)
        with pytest.raises(FileNotFoundError, match="bad: no prepared data set"):
            scenes_from_tfds("bad", "train", tmp_path)
    assert prepare_scenes_tfds({"train": [good]}, "bad", tmp_path)


def test_lost_examples_are_noticed(tmp_path, monkeypatch):
    """A writer that drops examples, as TFDS does for parquet; and a gap met in reading."""
    pytest.importorskip("array_record")
    from dyn_jax.datasets import tfds_points

    honest = tfds_points._example

    def without_four(scene, row, split):
        return honest(scene, row + (row >= 4), split)

    scenes = rooms("test", 6, points=20)
    monkeypatch.setattr(tfds_points, "_example", without_four)
    prepare_scenes_tfds({"test": scenes}, "gap", tmp_path)
    with pytest.raises(ValueError, match="got 6 test examples with gaps"):
        scenes_from_tfds("gap", "test", tmp_path)
    monkeypatch.undo()

    made = tfds_points._builder

    def counting_more(*arguments):
        builder = made(*arguments)
        prepare = builder.download_and_prepare

        def lossy():
            prepare()
            builder.counts["test"] += 1

        monkeypatch.setattr(builder, "download_and_prepare", lossy)
        return builder

    monkeypatch.setattr(tfds_points, "_builder", counting_more)
    with pytest.raises(ValueError, match="got 6 test examples, expected 7; delete the folder"):
        prepare_scenes_tfds({"test": scenes}, "lost", tmp_path)


def test_not_prepared(tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=f"rooms: no prepared data set in {tmp_path}/rooms/1.0.0; write it with"
    ):
        scenes_from_tfds("rooms", "train", tmp_path)
    folder = tmp_path / "rooms" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"name": "rooms", "fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="got file format tfrecord, expected array_record"):
        scenes_from_tfds("rooms", "train", tmp_path)


def test_refusals(prepared, tmp_path):
    data_dir, _, scenes = prepared
    with pytest.raises(ValueError, match="split: got 'val', expected one of test, train"):
        scenes_from_tfds("made_up", "val", data_dir)
    for splits, name in (({"train": scenes}, "My rooms"), ({"a b": scenes}, "ok"), ({"all": scenes}, "ok")):
        with pytest.raises(ValueError, match="expected lower-case letters, digits and underscores"):
            prepare_scenes_tfds(splits, name, tmp_path)
    with pytest.raises(ValueError, match="splits: got none"):
        prepare_scenes_tfds({}, "ok", tmp_path)
    assert os.listdir(tmp_path) == []
