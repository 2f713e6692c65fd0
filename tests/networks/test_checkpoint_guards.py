"""Weights that are damaged, do not fit, would blow up, or must not be written where they are asked to."""

import os
import socket
import struct
import time
import tracemalloc

import flax.serialization
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from dyn_jax import _files
from dyn_jax.networks.checkpoint import check_variables, load_variables, save_variables, target_shapes
from dyn_jax.networks.resnet import ResNet

NET = ResNet(depths=(1, 1, 1), widths=(2, 3, 4), num_classes=5)


def small():
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {"params": {"a": {"kernel": kernel}, "b": {}}, "batch_stats": {"mean": np.array([1, 2], np.float16)}}


def zeros():
    flat = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in target_shapes(NET).items()}
    return flax.traverse_util.unflatten_dict(flat)


# --- damage ------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "v"
    save_variables(path, small())
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match=str(path)):
            load_variables(path)
    path.write_bytes(whole)
    assert load_variables(path)["params"]["b"] == {}


def test_a_file_without_checksum_is_read(tmp_path):
    """Control: as flax writes it, and then a flipped bit of a number cannot be noticed."""
    (tmp_path / "v").write_bytes(flax.serialization.msgpack_serialize(small()))
    np.testing.assert_array_equal(load_variables(tmp_path / "v")["params"]["a"]["kernel"], [[0, 1, 2], [3, 4, 5]])


def test_a_collection_called_checksum_is_refused(tmp_path):
    with pytest.raises(ValueError, match="collection 'checksum', expected another name"):
        save_variables(tmp_path / "v", {**small(), "checksum": {"a": np.ones(1)}})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "complex64"])
def test_values_that_are_not_finite_are_named(tmp_path, value, dtype):
    variables = {"params": {"layer": {"kernel": np.array([1.0, value], jnp.dtype(dtype))}}}
    with pytest.raises(ValueError, match=r"variables\['params'\]\['layer'\]\['kernel'\]: got 1 NaN or infinite"):
        save_variables(tmp_path / "v", variables)
    assert list(tmp_path.iterdir()) == []
    save_variables(tmp_path / "v", variables, allow_nonfinite=True)
    with pytest.raises(ValueError, match=r"v: .*\['layer'\]\['kernel'\]: got 1 NaN or infinite"):
        load_variables(tmp_path / "v")
    assert not np.isfinite(load_variables(tmp_path / "v", allow_nonfinite=True)["params"]["layer"]["kernel"][1])


# --- fit ---------------------------------------------------------------------------------------------------


def test_variables_of_the_network_are_read(tmp_path):
    save_variables(tmp_path / "v", zeros())
    assert jax.tree.structure(load_variables(tmp_path / "v", NET)) == jax.tree.structure(zeros())


def test_missing_extra_and_misshapen_leaves_are_named(tmp_path):
    variables = zeros()
    del variables["params"]["fc"]["bias"]
    variables["params"]["fc"]["extra"] = np.zeros(3, np.float32)
    variables["more"] = {"x": np.zeros(1, np.float32)}
    variables["params"]["conv1"]["kernel"] = np.zeros((3, 3, 2, 3), np.float32)
    variables["batch_stats"]["bn1"]["mean"] = np.zeros(2, np.int32)
    save_variables(tmp_path / "v", variables)
    with pytest.raises(ValueError, match="v: .*5 leaves do not fit the ResNet") as caught:
        load_variables(tmp_path / "v", NET)
    for words in (
        "missing params/fc/bias (5,)",
        "unexpected params/fc/extra (3,)",
        "unexpected more/x (1,)",
        "wrong shape params/conv1/kernel: got (3, 3, 2, 3), expected (3, 3, 3, 2)",
        "wrong dtype batch_stats/bn1/mean: got int32, expected float32",
    ):
        assert words in str(caught.value)
    load_variables(tmp_path / "v")  # control: not compared with a network, it is read


def test_a_name_serves_and_the_listing_is_short():
    with pytest.raises(ValueError, match="and [0-9]+ more") as caught:
        check_variables("resnet-20-cifar10", {"params": {}})
    assert len(str(caught.value)) < 4000


# --- bombs -------------------------------------------------------------------------------------------------


def array(shape: bytes, dtype: bytes = b"\xa7float32", content: bytes = b"\xc4\x00") -> bytes:
    """Flax's extension 1: an array of three parts."""
    inner = b"\x93" + shape + dtype + content
    return b"\xc9" + struct.pack(">I", len(inner)) + b"\x01" + inner


HUGE = b"\xcf" + struct.pack(">Q", 2**62)
BOMBS = {
    "deep lists": b"\x81\xa6params" + b"\x91" * 500_000 + b"\xc0",
    "deep mappings": b"\x81\xa6params" + b"\x81\xa1a" * 300 + b"\x80",
    "many mappings": b"\x81\xa6params\xdd" + struct.pack(">I", 3 * 10**6) + b"\x80" * (3 * 10**6),
    "a list of many": b"\x81\xa6params\xdd" + struct.pack(">I", 10**6) + b"\xc0" * 10**6,
    "a length beyond the file": b"\x81\xa6params\xdd\xff\xff\xff\xff",
    "a mapping beyond the file": b"\x81\xa6params\xdf\xff\xff\xff\xff",
    "a shape that the bytes do not fill": b"\x81\xa6params\x81\xa1w" + array(b"\x92" + HUGE + HUGE),
    "a shape of many": b"\x81\xa6params\x81\xa1w" + array(b"\xdd" + struct.pack(">I", 10**6) + b"\x00" * 10**6),
    "an array in an array": b"\x81\xa6params\x81\xa1w" + array(b"\x91" * 100_000 + b"\x01"),
    "a dtype of objects": b"\x81\xa6params\x81\xa1w" + array(b"\x91\x01", b"\xa6object", b"\xc4\x08" + bytes(8)),
    "keys that are lists": b"\x81\x91\x01\xc0",
    "keys that are numbers": b"\x82\xa6params\x80\x07\x80",
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused_in_proportion(tmp_path, case):
    path = tmp_path / "v"
    path.write_bytes(BOMBS[case])
    tracemalloc.start()
    with pytest.raises(ValueError, match=str(path)) as caught:
        load_variables(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30 * len(BOMBS[case]) + 2**20 and len(str(caught.value)) < 1000


def test_a_huge_file_is_not_read(tmp_path):
    with open(tmp_path / "v", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="v: got 1,099,511,627,776 bytes, expected at most"):
        load_variables(tmp_path / "v")


# --- where is written and read -----------------------------------------------------------------------------


def special(tmp_path, kind):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "device":
        path = "/dev/null"
    else:
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
@pytest.mark.parametrize("linked", [False, True])
def test_only_regular_files_are_replaced_or_read(tmp_path, kind, linked):
    path = target = special(tmp_path, kind)
    if linked:
        path = tmp_path / "link"
        path.symlink_to(target)
    before = os.stat(target)
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"{path}'?, which is a {kind}"):
        save_variables(path, small())
    with pytest.raises(ValueError, match=f"{path}: is a {kind}, expected a file"):
        load_variables(path)
    assert time.monotonic() - began < 5  # no pipe is waited for
    after = os.stat(target)
    assert (after.st_mode, after.st_ino, after.st_rdev) == (before.st_mode, before.st_ino, before.st_rdev)


def test_links_that_end_nowhere_or_in_themselves(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for call in (lambda: save_variables(tmp_path / "loop", small()), lambda: load_variables(tmp_path / "loop")):
        with pytest.raises(ValueError, match="loop"):
            call()
    (tmp_path / "dangling").symlink_to(tmp_path / "real")
    with pytest.raises(FileNotFoundError, match="dangling: no such file"):
        load_variables(tmp_path / "dangling")
    save_variables(tmp_path / "dangling", small())
    assert (tmp_path / "dangling").is_symlink() and (tmp_path / "real").is_file()


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_names_that_no_file_has(tmp_path, name):
    for call in (lambda p: save_variables(p, small()), load_variables):
        with pytest.raises((ValueError, OSError)) as caught:
            call(os.path.join(tmp_path, name))
        assert "a" in str(caught.value) and len(str(caught.value)) < 1000


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    save_variables(tmp_path / "v", small())

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_files.os, "open", refuse)
    with pytest.raises(PermissionError, match="v: not allowed to read it"):
        load_variables(tmp_path / "v")
    monkeypatch.setattr(_files.os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="v', but its folder .* may not be written to"):
        save_variables(tmp_path / "v", small())


def test_the_bomb_arrays_are_well_formed():
    """Control: the same bytes with an honest shape are read by flax."""
    honest = b"\x81\xa6params\x81\xa1w" + array(b"\x91\x02", content=b"\xc4\x08" + bytes(8))
    assert flax.serialization.msgpack_restore(honest)["params"]["w"].shape == (2,)
    assert msgpack.unpackb(b"\x91" * 3 + b"\xc0") == [[[None]]]
