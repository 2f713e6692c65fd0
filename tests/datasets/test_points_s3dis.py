"""S3DIS rooms: made-up annotation folders and tables, read back, then spoilt."""

from __future__ import annotations

import numpy as np
import pytest

from dyn_jax.datasets.points import IGNORE
from dyn_jax.datasets.s3dis import LABEL_ORDERS, S3DIS_CLASSES, read_s3dis_room, s3dis, s3dis_labels

ROWS = {
    "table_2": ["1.5 2 0.75 255 0 51"],
    "stairs_1": ["1 1 1 10 20 30", "2.0 2.0 2.0 1 2 3"],
    "ceiling_1": ["-1 0.25 3.0 0 102 255\r", "", "0 0 3 7 7 7"],
}


@pytest.fixture
def room(tmp_path):
    folder = tmp_path / "Area_5" / "office_1"
    (folder / "Annotations").mkdir(parents=True)
    for name, lines in ROWS.items():
        (folder / "Annotations" / f"{name}.txt").write_text("\n".join(lines) + "\n", newline="\n")
    (folder / "Annotations" / ".DS_Store").write_bytes(b"\0")
    return folder


def test_labels_by_hand():
    assert S3DIS_CLASSES[:4] == ("clutter", "beam", "board", "bookcase") and len(S3DIS_CLASSES) == 13
    assert s3dis_labels(np.arange(14), "minkowski").tolist() == [*range(10), IGNORE, 10, 11, 12]
    assert s3dis_labels(np.array([0, 1, 2, 12]), "pointnet").tolist() == [4, 8, 11, 0]  # ceiling floor wall clutter
    assert sorted(LABEL_ORDERS["pointnet"]) == sorted(S3DIS_CLASSES)
    for ids, order in (([14], "minkowski"), ([13], "pointnet"), ([-1], "pointnet")):
        with pytest.raises(ValueError, match=f"room: got label id {ids[0]}, expected 0 to"):
            s3dis_labels(np.array(ids), order, "room")
    with pytest.raises(ValueError, match="label_order: got 'mink', expected one of"):
        s3dis_labels(np.array([0]), "mink")


@pytest.mark.parametrize("form", ["room", "annotations"])
def test_annotations_by_hand(room, form):
    """In the order of the names: ceiling (2 points), stairs (2), table (1)."""
    got = read_s3dis_room(room if form == "room" else f"{room}/Annotations")
    assert got.name == "Area_5_office_1"
    np.testing.assert_array_equal(got.xyz, np.float32([[-1, 0.25, 3], [0, 0, 3], [1, 1, 1], [2, 2, 2], [1.5, 2, 0.75]]))
    np.testing.assert_allclose(got.colours[[0, 4]], [[0, 0.4, 1], [1, 0, 0.2]], rtol=1e-6)
    assert got.labels.tolist() == [4, 4, IGNORE, IGNORE, 10] and got.labels.dtype == np.int32


def test_malformed_line(room):
    """As in the released hallway_6: a control character instead of a blank."""
    file = room / "Annotations" / "ceiling_1.txt"
    for bad, shown in (("1 2 3 4 5\x106 7", r"5\\x106"), ("1 2 3 4 5", "4 5'"), ("1 2 3 4 5 nan", "nan")):
        file.write_text("\n".join([*ROWS["ceiling_1"], bad, "0 0 0 0 0 0"]))
        with pytest.raises(ValueError, match=f"ceiling_1.txt, line 4: got b?'.*{shown}.*expected 6 numbers") as caught:
            read_s3dis_room(room)
        assert str(room) in str(caught.value)
    for empty in ("", "\n \n"):
        file.write_text(empty)
        with pytest.raises(ValueError, match="ceiling_1.txt: got .*expected rows of 6 numbers"):
            read_s3dis_room(room)
    file.write_text("1 2 3 300 5 6")
    with pytest.raises(ValueError, match=r"Annotations: got colours in \[0, 300\] / 255"):
        read_s3dis_room(room)


def test_unknown_class(room):
    (room / "Annotations" / "lamp_1.txt").write_text("1 2 3 4 5 6")
    with pytest.raises(ValueError, match="lamp_1.txt: got class 'lamp', expected one of clutter"):
        read_s3dis_room(room)


@pytest.mark.parametrize("form", ["npy", "txt"])
def test_tables(tmp_path, form):
    table = np.array([[1, 2, 3, 0, 51, 255, 0], [4, 5, 6, 1, 2, 3, 12], [7, 8, 9, 1, 2, 3, 10]], np.float32)
    file = tmp_path / f"Area_1_office_2.{form}"

    def write(rows):
        np.save(file, rows) if form == "npy" else np.savetxt(file, rows)

    write(table)
    got = read_s3dis_room(file, label_order="pointnet")
    np.testing.assert_array_equal(got.xyz, table[:, :3])
    np.testing.assert_allclose(got.colours[0], [0, 0.2, 1], rtol=1e-6)
    assert got.labels.tolist() == [4, 0, 3] and got.name == "Area_1_office_2"
    assert read_s3dis_room(file, label_order="minkowski").labels.tolist() == [0, 11, IGNORE]
    with pytest.raises(ValueError, match="label_order: got None, expected one of minkowski, pointnet: .*office_2"):
        read_s3dis_room(file)
    write(table[:, :6])
    assert read_s3dis_room(file).labels is None
    write(table[:, :5])
    with pytest.raises(ValueError, match=r"office_2\.(npy: got float32 of shape|txt, line 1: got)"):
        read_s3dis_room(file)
    write(table + np.float32([0, 0, 0, 0, 0, 0, 0.5]))
    with pytest.raises(ValueError, match="labels that are not integers"):
        read_s3dis_room(file, label_order="minkowski")
    write(table[:, :6] / np.float32([1, 1, 1, 255, 255, 255]))
    with pytest.raises(ValueError, match=r"got colours in \[0, 1\], expected 0 to 255, not 0 to 1"):
        read_s3dis_room(file)


def test_spoilt_npy(tmp_path):
    file = tmp_path / "room.npy"
    np.save(file, np.ones((4, 6)))
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:20], b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="room.npy: not a readable .npy file, or truncated"):
            read_s3dis_room(file)
    np.save(file, np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="room.npy: not a readable"):
        read_s3dis_room(file)


def test_missing(tmp_path, room):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file; expected the folder of a room"):
        read_s3dis_room(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no annotation; expected files <class>_<i>.txt"):
        read_s3dis_room(tmp_path)
    with pytest.raises(FileNotFoundError, match="S3DIS: no room in .*Area_1; expected <room>/Annotations"):
        s3dis(tmp_path, (5, 1))


def test_areas(tmp_path, room):
    assert [scene.name for scene in s3dis(tmp_path)] == ["Area_5_office_1"]
    with pytest.raises(ValueError, match="areas: got 0"):
        s3dis(tmp_path, (0,))
