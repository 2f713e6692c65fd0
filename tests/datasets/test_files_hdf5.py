"""HDF5 files of ModelNet40 that hold something else: links, other shapes and types, labels that are none."""

from __future__ import annotations

import numpy as np
import pytest
from spoilt import fails

from dyn_jax.datasets import modelnet40


def read(path):
    return modelnet40(path.parent, "test", points=4, all_objects=False)


def group(file, key):
    file.create_group(key)


def soft(file, key):
    import h5py

    file["other"] = np.zeros((1, 5, 3), np.float32)
    file[key] = h5py.SoftLink("/other")


def external(file, key):
    import h5py

    file[key] = h5py.ExternalLink("/etc/passwd", "/data")


def other_file(file, key):
    shape = (1, 5, 3) if key == "data" else (1,)
    file.create_dataset(key, shape, "f4", external=[("/etc/passwd", 0, 60)])


def virtual(file, key):
    import h5py

    shape = (1, 5, 3) if key == "data" else (1,)
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "data", shape)
    file.create_virtual_dataset(key, layout)


def unwritten(file, key):
    file.create_dataset(key, (10**6, 2000, 3) if key == "data" else (10**10,), "f4", chunks=True)


def wide_chunks(file, key):
    shape, chunks = ((1, 5, 3), (10**6, 5, 3)) if key == "data" else ((1,), (10**8,))
    unlimited = (None,) * len(shape)
    file.create_dataset(key, shape, "f4", chunks=chunks, maxshape=unlimited, compression="gzip")


def texts(file, key):
    file[key] = [b"a"]


def compound(file, key):
    file[key] = np.zeros(1, [("a", "f4")])


def nothing(file, key):
    import h5py

    file[key] = h5py.Empty("f4")


@pytest.mark.parametrize("key", ["data", "label"])
@pytest.mark.parametrize(
    "make", [group, soft, external, other_file, virtual, unwritten, wide_chunks, texts, compound, nothing]
)
def test_hdf5_that_holds_something_else(tmp_path, make, key):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "ply_data_test0.h5"
    rest = {"data": np.zeros((1, 5, 3), np.float32), "label": np.zeros((1, 1), np.uint8)}
    with h5py.File(path, "w") as file:
        file.update({name: value for name, value in rest.items() if name != key})
        make(file, key)
    assert f"for {key}" in (message := fails(read, path)) or f"got {key}" in message
    assert "/etc/passwd" not in message


@pytest.mark.parametrize(
    "labels",
    [np.array([np.nan, 0]), np.array([0.5, 0]), np.array([np.inf, 0]), np.array([40, 0]), np.array([-1, 0]),
     np.array([2**40, 0]), np.array([[0, 0]])],
)  # fmt: skip
def test_hdf5_labels(tmp_path, labels):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "ply_data_test0.h5"
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = np.zeros((2, 5, 3), np.float32), labels
    assert "label" in fails(read, path)
