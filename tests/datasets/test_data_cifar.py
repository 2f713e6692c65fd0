"""CIFAR-10 from its files: every form gives the same arrays, and no file can run code or break the reader."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from dyn_jax.datasets import CIFAR10_CLASS_NAMES, ImageData, cifar10
from dyn_jax.datasets.array_pickle import load_array_pickle

FORMS = ("bin", "python2", "protocol2", "protocol3", "protocol4")
PER_FILE = 20


def write_test_batch(directory, blob: bytes, suffix: str = "") -> str:
    (directory / f"test_batch{suffix}").write_bytes(blob)
    return str(directory)


def test_one_record_by_hand(tmp_path):
    red, green, blue = np.full((32, 32), 1, np.uint8), np.full((32, 32), 2, np.uint8), np.full((32, 32), 3, np.uint8)
    red[0, 1], blue[31, 0] = 9, 8
    blob = bytes([7]) + red.tobytes() + green.tobytes() + blue.tobytes()
    data = cifar10(write_test_batch(tmp_path, blob, ".bin"), "test", images_per_file=1)
    assert isinstance(data, ImageData)
    assert data.images.shape == (1, 32, 32, 3) and data.images.dtype == np.uint8
    assert data.labels.tolist() == [7] and data.labels.dtype == np.int32
    assert CIFAR10_CLASS_NAMES[data.labels[0]] == "horse"
    assert data.images[0, 0, 0].tolist() == [1, 2, 3]
    assert data.images[0, 0, 1].tolist() == [9, 2, 3]
    assert data.images[0, 31, 0].tolist() == [1, 2, 8]
    assert data.name == "CIFAR-10"


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("archive", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_arrays(tmp_path, made_up, form, archive, split):
    made_up.write(tmp_path, form, archive=archive)
    before = os.listdir(tmp_path)
    images, labels = made_up.expected(split)
    data = cifar10(tmp_path, split, images_per_file=PER_FILE)
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.images.flags.c_contiguous and data.images.flags.writeable
    assert os.listdir(tmp_path) == before  # nothing is unpacked


@pytest.mark.parametrize("form", ["bin", "python2"])
def test_folder_itself_may_be_named(tmp_path, made_up, form):
    folder = made_up.write(tmp_path, form)
    np.testing.assert_array_equal(cifar10(folder, images_per_file=PER_FILE).images, made_up.expected("train")[0])


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_both_spellings_of_numpy(made_up, module):
    blob = made_up.blob("python2", "test_batch").replace(b"numpy.core.multiarray", module)
    np.testing.assert_array_equal(load_array_pickle(blob)[b"data"], made_up.pixels["test_batch"])


@pytest.mark.parametrize("form", FORMS[1:])
def test_agrees_with_the_ordinary_unpickler_on_honest_files(made_up, form):
    blob = made_up.blob(form, "test_batch")
    ours, ordinary = load_array_pickle(blob), pickle.loads(blob, encoding="bytes")
    assert ours.keys() == ordinary.keys()
    for key, value in ordinary.items():
        np.testing.assert_array_equal(ours[key], value)


def test_fortran_order():
    array = np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    np.testing.assert_array_equal(load_array_pickle(pickle.dumps(array, 4)), array)


# Malicious files. `MARKER` is created by every payload that runs.


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def global_call(module: str, name: str, argument: str) -> bytes:
    return f"c{module}\n{name}\n(S'{argument}'\ntR.".encode()


def malicious(marker: str) -> dict[str, bytes]:
    command = f"touch {marker}"
    code = f"open({marker!r}, 'w').close()"
    return {
        **{f"system{p}": pickle.dumps(Payload(os.system, command), p) for p in range(5)},
        **{f"nested{p}": pickle.dumps({"data": [Payload(os.system, command)], "labels": []}, p) for p in (2, 4)},
        "eval": pickle.dumps(Payload(eval, code), 4),
        "exec": pickle.dumps(Payload(exec, code), 2),
        "as_key": pickle.dumps({Payload(os.system, command): 1}, 2),
        "inst": f"(S'{command}'\nios\nsystem\n.".encode(),
        "obj": f"(cos\nsystem\nS'{command}'\no.".encode(),
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x09dtype.mro\x94\x93.",
        "getattr": global_call("builtins", "getattr", "x"),
        "import": global_call("builtins", "__import__", "antigravity"),
        "runstring": global_call("numpy.testing._private.utils", "runstring", code.replace("'", '"')),
        "persistent": f"P{command}\n.".encode(),
        "extension": b"\x80\x02\x82\x01.",
        "state_of_a_function": b"\x80\x02c_codecs\nencode\n}(U\x01xK\x01ub.",
        "slots_of_a_function": b"\x80\x02c_codecs\nencode\nN}(U\x08functionK\x01u\x86b.",
        "new_object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    }


@pytest.mark.parametrize("name", sorted(malicious("marker")))
def test_malicious_pickle_is_refused_and_runs_nothing(tmp_path, monkeypatch, name):
    marker = tmp_path / "marker"
    before = set(sys.modules)
    directory = write_test_batch(tmp_path, malicious(str(marker))[name])
    with pytest.raises(ValueError, match="test_batch: not a CIFAR-10 python batch"):
        cifar10(directory, "test")
    assert not marker.exists()
    assert "antigravity" not in set(sys.modules) - before
    honest = {"data": np.zeros((1, 3072), np.uint8), "labels": [0]}
    assert len(load_array_pickle(pickle.dumps(honest, 2))["data"]) == 1  # nothing of the reader was altered


@pytest.mark.parametrize("name", ["system0", "system4", "eval", "exec", "inst", "obj"])
def test_control_the_ordinary_unpickler_runs_these(tmp_path, name):
    marker = tmp_path / "marker"
    pickle.loads(malicious(str(marker))[name])
    assert marker.exists()


def test_malicious_pickle_in_the_archive(tmp_path):
    marker = tmp_path / "marker"
    blob = malicious(str(marker))["system2"]
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        member.size = len(blob)
        tar.addfile(member, io.BytesIO(blob))
    with pytest.raises(ValueError, match=r"refused (posix|os)\.system"):
        cifar10(tmp_path, "test")
    assert not marker.exists()


def test_memo_bomb_is_refused_before_allocation():
    bomb = b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b"."  # 34 GB of memo slots in nine bytes
    with pytest.raises(ValueError, match="memo slot"):
        load_array_pickle(bomb)


# Broken files.


@pytest.mark.parametrize("form", ["bin", "python2", "protocol4"])
def test_truncated_file(tmp_path, made_up, form):
    blob = made_up.blob(form, "test_batch")
    suffix = ".bin" if form == "bin" else ""
    assert len(cifar10(write_test_batch(tmp_path, blob, suffix), "test", images_per_file=None).labels) == PER_FILE
    cuts = {0, 1, 2, 3073, 3073 * 19, len(blob) // 2, len(blob) - 2, len(blob) - 1}
    for cut in cuts:
        with pytest.raises(ValueError, match=f"test_batch{suffix}"):
            cifar10(write_test_batch(tmp_path, blob[:cut], suffix), "test", images_per_file=PER_FILE)


@pytest.mark.parametrize("form", ["bin", "python2"])
def test_truncated_or_damaged_archive(tmp_path, made_up, form):
    path = made_up.write(tmp_path, form, archive=True)
    with open(path, "rb") as file:
        content = file.read()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    checksum = bytearray(content)
    checksum[-5] ^= 1
    for broken in (
        content[:0],
        content[:5],
        content[: len(content) // 2],
        content[:-4],
        bytes(damaged),
        bytes(checksum),
    ):
        with open(path, "wb") as file:
            file.write(broken)
        with pytest.raises(ValueError, match=r"tar\.gz"):
            cifar10(tmp_path, "train", images_per_file=PER_FILE)


def test_archive_without_the_files_or_with_links(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(3073))
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        tar.addfile(member)
    with pytest.raises(ValueError, match=r"without cifar-10-batches-bin/test_batch\.bin"):
        cifar10(tmp_path, "test", images_per_file=1)


def test_wrong_number_of_images(tmp_path, made_up):
    made_up.write(tmp_path, "bin")
    with pytest.raises(ValueError, match="got 20 images, expected 10000"):
        cifar10(tmp_path, "test")


@pytest.mark.parametrize("label", [10, -1, 300, 2**70, True, 1.5, "1"])
def test_label_out_of_range(tmp_path, label):
    blob = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [3, label]}, 2)
    with pytest.raises(ValueError, match=r"got labels .*expected (integers in )?\[0, 9\]"):
        cifar10(write_test_batch(tmp_path, blob), "test", images_per_file=2)


def test_label_out_of_range_in_bin(tmp_path):
    with pytest.raises(ValueError, match=r"got labels in \[10, 10\], expected \[0, 9\]"):
        cifar10(write_test_batch(tmp_path, bytes([10]) + bytes(3072), ".bin"), "test", images_per_file=1)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [1, 2]}, "shape"),
        ({"data": np.zeros(3072, np.uint8), "labels": [1]}, "shape"),
        ({"data": np.zeros((2, 3072), np.float64), "labels": [1, 2]}, "dtype"),
        ({"data": np.zeros((2, 3072), object), "labels": [1, 2]}, "dtype"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, r"2 images and labels of shape \(1,\)"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "0 images"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 2]}, "fine_labels"),
        ({"data": bytes(6144), "labels": [1, 2]}, "array 'data'"),
        ([1, 2], "got a list"),
    ],
)
def test_pickle_of_something_else(tmp_path, batch, message):
    with pytest.raises(ValueError, match=message):
        cifar10(write_test_batch(tmp_path, pickle.dumps(batch, 4)), "test", images_per_file=None)


@pytest.mark.parametrize("shape", [(10**9, 3072), (21, 3072), (-20, -3072), (19, 3072)])
def test_shape_that_the_bytes_do_not_fill(made_up, shape):
    blob = made_up.blob("python2", "test_batch")
    honest = b"J" + struct.pack("<i", 20) + b"J" + struct.pack("<i", 3072) + b"\x86"
    assert blob.count(honest) == 1
    lie = b"J" + struct.pack("<i", shape[0]) + b"J" + struct.pack("<i", shape[1]) + b"\x86"
    with pytest.raises(ValueError, match="got an array of shape"):
        load_array_pickle(blob.replace(honest, lie))


def test_flipped_bytes_give_a_value_error_or_a_batch(tmp_path, made_up):
    honest = made_up.blob("python2", "test_batch")
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, 400, 300):  # the first 400 bytes hold nearly all of the structure
        broken = bytearray(honest)
        broken[place] = rng.integers(0, 256)
        try:
            cifar10(write_test_batch(tmp_path, bytes(broken)), "test", images_per_file=None)
        except ValueError:
            refused += 1
    assert 30 < refused < 300


def test_oversized_file_is_not_read(tmp_path):
    with open(tmp_path / "test_batch", "wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(ValueError, match="1,099,511,627,776 bytes"):
        cifar10(tmp_path, "test")


# Missing files.


def test_missing_directory_is_named_at_once(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        cifar10(tmp_path / "nowhere")
    for word in ("nowhere", "data_batch_1", "data_batch_5.bin", "cifar-10-python.tar.gz", "DYN_JAX_DATA"):
        assert word in str(caught.value)


def test_missing_file_is_named(tmp_path, made_up):
    folder = made_up.write(tmp_path, "bin")
    os.remove(os.path.join(folder, "data_batch_3.bin"))
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-bin lacks data_batch_3\.bin;"):
        cifar10(tmp_path, images_per_file=PER_FILE)
    assert len(cifar10(tmp_path, "test", images_per_file=PER_FILE).labels) == PER_FILE


def test_default_directory(tmp_path, monkeypatch, made_up):
    made_up.write(tmp_path / "a", "bin")
    monkeypatch.setenv("DYN_JAX_DATA", str(tmp_path / "a"))
    assert len(cifar10(split="test", images_per_file=PER_FILE).labels) == PER_FILE
    with pytest.raises(FileNotFoundError, match="other"):
        cifar10(tmp_path / "other", "test")  # the argument wins
    monkeypatch.delenv("DYN_JAX_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(FileNotFoundError, match=r"home/\.cache/dyn_jax"):
        cifar10(split="test")
    made_up.write(tmp_path / "home" / ".cache" / "dyn_jax", "python2")
    assert len(cifar10(split="test", images_per_file=PER_FILE).labels) == PER_FILE


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"split: got 'val'"):
        cifar10(tmp_path, "val")
    with pytest.raises(ValueError, match="images_per_file: got 0"):
        cifar10(tmp_path, images_per_file=0)


def test_import_is_light():
    code = (
        "import sys, dyn_jax.datasets; heavy = ('torch', 'tensorflow', 'tensorflow_datasets', 'sklearn', 'PIL'); "
        "print([name for name in (*heavy, 'matplotlib', 'array_record') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
