"""The guarded reader, and every reader of foreign files behind it: errors that name the file, in bounded time."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from spoilt import fails, written

from dyn_jax import _files
from dyn_jax.datasets import (
    array_pickle,
    image_file,
    image_folder,
    modelnet40,
    read_off_object,
    read_points_bin,
    read_s3dis_room,
    read_scan,
)
from dyn_jax.datasets.cifar import cifar10
from dyn_jax.datasets.points_files import map_labels, read_ply_vertices
from dyn_jax.datasets.scannet import read_scannet_scene, scannet

FOLDERS = {"cifar_py": "test_batch", "cifar_bin": "test_batch.bin", "modelnet40": "ply_data_test0.h5"}
READERS = {
    "cifar_py": lambda path: cifar10(path.parent, "test", images_per_file=None),
    "cifar_bin": lambda path: cifar10(path.parent, "test", images_per_file=None),
    "cifar_tar": lambda path: cifar10(path.parent, "test", images_per_file=None),
    "modelnet40": lambda path: modelnet40(path.parent, "test", points=4, all_objects=False),
    "off": read_off_object,
    "ply": lambda path: read_ply_vertices(path, ("x", "y", "z")),
    "scannet": read_scannet_scene,
    "scannet_list": lambda path: scannet(path.parent, path),
    "points_bin": read_points_bin,
    "points_labels": lambda path: read_points_bin(
        written(path.parent / "good.bin", np.zeros(6, "<f4").tobytes()), path
    ),
    "npy": read_s3dis_room,
    "txt": read_s3dis_room,
    "npy_read": _files.read_npy,
    "scan": read_scan,
    "scan_labels": lambda path: read_scan(written(path.parent / "good.bin", bytes(16)), path),
    "images_npz": image_file,
    "json": _files.read_json,
}
NAMES = {
    **FOLDERS,
    **{"cifar_tar": "cifar-10-binary.tar.gz", "scannet": "s_vh_clean_2.ply", "npy": "room.npy", "txt": "room.txt"},
}
OPTIONAL = {"modelnet40": "h5py", "off": "trimesh", "ply": "trimesh", "scannet": "trimesh"}


@pytest.fixture(params=READERS)
def reader(request, tmp_path):
    """(name, reader, path of its file)"""
    if request.param in OPTIONAL:
        pytest.importorskip(OPTIONAL[request.param])
    return request.param, READERS[request.param], tmp_path / NAMES.get(request.param, request.param)


def good(name):
    """Content of a small good file of each form."""
    rows = np.c_[np.eye(3), np.full((3, 3), 9.0)]
    if name == "cifar_py":
        return pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2]}, 2)
    if name in ("cifar_bin", "points_labels"):
        return bytes(3073) if name == "cifar_bin" else bytes(8)
    if name == "cifar_tar":
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
            member.size = 3073
            tar.addfile(member, io.BytesIO(bytes(3073)))
        return buffer.getvalue()
    if name == "modelnet40":
        import h5py

        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file["data"], file["label"] = np.zeros((2, 5, 3), np.float32), np.zeros((2, 1), np.uint8)
        return buffer.getvalue()
    if name == "images_npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, image=np.zeros((2, 4, 4, 3), np.uint8), label=np.arange(2))
        return buffer.getvalue()
    if name in ("npy", "npy_read"):
        buffer = io.BytesIO()
        np.save(buffer, rows)
        return buffer.getvalue()
    properties = "".join(f"property float {axis}\n" for axis in "xyz")
    properties += "".join(f"property uchar {colour}\n" for colour in ("red", "green", "blue"))
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex 2\n{properties}end_header\n"
    return {
        "off": b"OFF\n3 1 0\n0 0 0\n4 0 0\n0 4 0\n3 0 1 2\n",
        "ply": head.encode() + bytes(30),
        "scannet": head.encode() + bytes(30),
        "scannet_list": b"s\n",
        "points_bin": np.zeros(6, "<f4").tobytes(),
        "txt": b"1 2 3 4 5 6\n",
        "json": b'{"a": 1}',
        "scan": bytes(16),
        "scan_labels": bytes(4),
    }[name]


def test_good_files_are_read(reader):
    """Control: what the other tests spoil is read."""
    name, read, path = reader
    assert read(written(path, good(name))) is not None


def test_garbage_and_emptiness(reader):
    _, read, path = reader
    for content in (b"", b"\0" * 1001, b"\xff" * 1001, b"<!DOCTYPE html><html>", os.urandom(1001), b"[" * 100_001):
        fails(read, written(path, content))


def test_spoilt_bytes_are_an_error_that_names_the_file_or_are_read(reader):
    name, read, path = reader
    whole = good(name)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 60):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << rng.integers(8)
        written(path, bytes(spoilt[: len(whole) - rng.integers(2)]))
        try:
            read(path)
        except (ValueError, FileNotFoundError) as error:
            assert path.name in str(error) or "s_vh" in str(error) or name == "scannet_list"


def test_pipes_folders_and_missing_files(reader):
    name, read, path = reader
    fails(read, path) if name not in ("cifar_py", "cifar_bin", "cifar_tar", "modelnet40") else None
    os.mkfifo(path)
    fails(read, path)
    path.unlink()
    path.symlink_to(path)
    fails(read, path)
    path.unlink()
    path.mkdir()
    fails(read, path)


def test_files_that_may_not_be_read(reader, monkeypatch):
    name, read, path = reader
    written(path, good(name))

    def refuse(opened, *_):
        raise PermissionError(13, "Permission denied", opened)

    monkeypatch.setattr(_files.os, "open", refuse)
    if name == "modelnet40":
        monkeypatch.setattr("h5py.File", refuse)
    with pytest.raises((PermissionError, ValueError), match="not allowed to read it|Permission denied") as caught:
        read(path)
    assert path.name in str(caught.value) or "good.bin" in str(caught.value)


def test_huge_files_are_not_read(reader):
    _, read, path = reader
    with open(path, "wb") as file:
        file.truncate(2**40)
    message = fails(read, path)
    assert "1,099,511,627,776 bytes, expected at most" in message


# --- bombs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"}K\x01" + b"2\x86" * 50 + b"K\x01s",
        b"}K\x01" + b"\x85" * 5000 + b"K\x01s",
        b"\x80\x02cnumpy\ndtype\nK\x01" + b"2\x86" * 50 + b"\x85R",
        b"c_codecs\nencode\nX\x01\x00\x00\x00xK\x01" + b"2\x86" * 50 + b"\x86R",
    ],
)
def test_a_cifar_batch_under_300_bytes(tmp_path, body):
    fails(READERS["cifar_py"], written(tmp_path / "test_batch", b"\x80\x02" + body[: 4 * 10**4] + b"."))


def test_a_shape_of_huge_numbers():
    array = pickle.dumps(np.zeros((2, 3), np.uint8), 2)
    huge = b"\x8a\xff" + b"\x7f" * 255
    assert array.count(b"K\x02K\x03\x86") == 1
    with pytest.raises(ValueError, match="array of shape <tuple>, expected a tuple of integers"):
        array_pickle.load_array_pickle(array.replace(b"K\x02K\x03\x86", huge + b"K\x03\x86"))


def test_archives_that_unpack_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("dyn_jax.datasets.cifar.MAX_ARCHIVE_BYTES", 2**22)
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("zeros")
        member.size = 2**23
        tar.addfile(member, io.BytesIO(bytes(2**23)))
    assert "it unpacks to more than 4,194,304 bytes" in fails(READERS["cifar_tar"], path)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**30
    path.write_bytes(gzip.compress(header.tobuf() + bytes(2**23)))
    assert "it unpacks to more than 4,194,304 bytes" in fails(READERS["cifar_tar"], path)


def npy(description, content=b""):
    text = description.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 6)}"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000000000000, 6)}"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-6, -6)}"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 6)}", pickle.dumps([1])),
        npy("{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000, 6)}"),
        npy("(" * 110),
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_npy_bombs(tmp_path, content):
    fails(read_s3dis_room, written(tmp_path / "room.npy", content))


@pytest.mark.parametrize(
    "content",
    [
        b"format binary_little_endian 1.0\nelement vertex 1000000000000\nproperty float x\nend_header\n" + bytes(60),
        b"format ascii 1.0\nelement vertex 1000000000000\nproperty float x\nend_header\n1\n",
        b"format ascii 1.0\nelement vertex -1\nproperty float x\nend_header\n1\n",
        b"format binary_little_endian 1.0\nelement face 9\nproperty list uint uint i\nend_header\n" + b"\xff" * 60,
        b"format binary_little_endian 1.0\nelement face 9\nproperty list int double i\nend_header\n" + b"\xff" * 60,
        b"format ascii 1.0\n" + b"".join(b"element e%d 0\n" % i for i in range(20_000)),
    ],
)
def test_ply_bombs(tmp_path, content):
    pytest.importorskip("trimesh")
    fails(READERS["ply"], written(tmp_path / "a.ply", b"ply\n" + content))


@pytest.mark.parametrize(
    "counts", ["1000000000000 1 0", "3 1000000000000 0", "\u00b2 1 0", "9" * 5000 + " 1 0", "3 -1 0"]
)
def test_off_bombs(tmp_path, counts):
    pytest.importorskip("trimesh")
    fails(
        read_off_object, written(tmp_path / "a.off", f"OFF\n{counts}\n0 0 0\n4 0 0\n0 4 0\n3 0 1 2\n".encode("latin1"))
    )


# --- labels and lists --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [np.zeros((4, 1), int), np.zeros(4), np.array(3), np.array(["a"])])
def test_ids_that_are_no_row_of_integers(ids):
    with pytest.raises(ValueError, match=r"file: got ids .* expected integers \[n\]"):
        map_labels(ids, np.arange(4), "file")
    with pytest.raises(ValueError, match=r"file: got a label map .* expected integers \[n\]"):
        map_labels(np.zeros(4, int), ids, "file")


@pytest.mark.parametrize("names", [["../scene0000_00"], ["/etc"], [3], [None]])
def test_scenes_that_are_no_names(tmp_path, names):
    with pytest.raises(ValueError, match="scenes: got .* expected names such as"):
        scannet(tmp_path, names)


def test_npz_bombs(tmp_path):
    """A member that is a thousand times the file, and one that announces what it does not have."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**19, 32, 32, 1)})
    for size, words in ((2**29 + 128, "it unpacks to"), (200, "it announces uint8")):
        path = tmp_path / "images.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open("image.npy", "w") as member:
                for start in range(0, size, 2**20):
                    member.write((header.getvalue() if not start else b"").ljust(min(2**20, size - start), b"\0"))
        with pytest.raises(_files.BadFile, match=f"images.npz: .*{words}"):
            image_file(path)


def test_two_arrays_that_could_be_meant(tmp_path):
    images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.arange(2)
    for arrays in (
        {"image": images, "images": images + 1, "label": labels},
        {"x": images, "y": labels, "y_test": 1 - labels},
    ):
        np.savez(tmp_path / "images.npz", **arrays)
        with pytest.raises(ValueError, match="images.npz: got the arrays .*, .*, expected one of them"):
            image_file(tmp_path / "images.npz")


def test_a_folder_of_images_with_strangers(tmp_path):
    """Not classes, not 8 bits, not small: nothing shifts a label, is cut at 255 or fills the memory."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name / "1.png")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "._1.png", b"a resource fork")
    written(tmp_path / "a" / "._1.png", b"a resource fork")
    np.testing.assert_array_equal(image_folder(tmp_path).labels, [0, 1])
    for image, words in (
        (np.full((4, 4), 1000, np.uint16), "expected 8 bits"),
        (np.zeros((4097, 4096), bool), "pixels"),
    ):
        Image.fromarray(image).save(tmp_path / "a" / "0.png")
        with pytest.raises(_files.BadFile, match=f"0.png: .*{words}"):
            image_folder(tmp_path)
    (tmp_path / "a" / "0.png").unlink()
    (tmp_path / "b" / "1.png").rename(tmp_path / "b" / "1.webp")
    with pytest.raises(ValueError, match="b: got no images, expected .png"):
        image_folder(tmp_path)
