"""Small checkpoints that would take time or memory out of proportion, damaged ones, and what is no file."""

import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from torch_files import LAYOUTS, save, small_state, torch

from dyn_jax.datasets import array_pickle
from dyn_jax.datasets.array_pickle import check_pickle
from weights_convert.torch_io import read_state_dict

pytestmark = pytest.mark.torch

ONE = b"K\x01"
DOUBLED = b"2\x86"  # DUP, TUPLE2: (x, x)
PICKLES = {
    "key that doubles by copies": b"}" + ONE + DOUBLED * 60 + b"K\x01s",
    "key that doubles through the memo": b"}" + ONE + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"K\x01s",
    "key that is deep": b"}" + ONE + b"\x85" * 5_000 + b"K\x01s",
    "value that doubles, as a key beside": b"}(K\x01" + ONE + DOUBLED * 60 + b"K\x02" + ONE + b"u",
    "lists filled from the top": b"".join(b"]q%c0" % i for i in range(60))
    + b"".join(b"h%c(h%ch%ce0" % (i, i - 1, i - 1) for i in range(59, 0, -1))
    + b"h\x3b(h\x3btR",  # and called: an error would print them
    "lists that hold each other": b"]q\x00]q\x01h\x00ah\x00h\x01a",
    "a long text many times": b"]q\x01(X"
    + struct.pack("<I", 10**6)
    + b"x" * 10**6
    + b"q\x00"
    + b"h\x00" * 50_000
    + b"e",
}


def legacy(body):
    """An older non-zip checkpoint whose fourth pickle is `body`."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    tail = pickle.dumps([], protocol=2)
    return b"".join(pickle.dumps(part, protocol=2) for part in head) + b"\x80\x02" + body + b"." + tail


def in_zip(path, body):
    save(small_state(), path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, b"\x80\x02" + body + b"." if name.endswith("/data.pkl") else content)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", PICKLES)
def test_pickles_that_grow_are_refused_before_they_do(path, case, layout):
    in_zip(path, PICKLES[case]) if layout == "zip" else path.write_bytes(legacy(PICKLES[case]))
    torch.zeros(1)  # torch itself is loaded before the memory is counted
    tracemalloc.start()
    with pytest.raises(ValueError, match="in.pth': refused: it") as caught:
        read_state_dict(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(str(caught.value)) < 1000 and peak < 200 * len(PICKLES[case]) + 2**22


def test_many_instructions(monkeypatch):
    monkeypatch.setattr(array_pickle, "MOST_INSTRUCTIONS", 1000)
    check_pickle(_stream(b"](" + b"N" * 990 + b"e"))
    with pytest.raises(ValueError, match="refused: it has more than 1,000 instructions"):
        check_pickle(_stream(b"](" + b"N" * 1010 + b"e"))


def test_the_bombs_are_armed():
    """Control: hashing and printing do double with every level."""
    value, sizes = 1, []
    for _ in range(12):
        value = (value, value)
        sizes.append(len(repr(value)))
    assert sizes[-1] > 1.9 * sizes[-2] > 3.5 * sizes[-3]
    with pytest.raises(ValueError, match="a value of 16,777,215 elements when written out, 23 levels deep"):
        check_pickle(_stream(PICKLES["key that doubles by copies"]))
    check_pickle(_stream(b"}" + ONE + DOUBLED * 10 + b"K\x01s"))  # a thousand are let through
    check_pickle(_stream(b"}q\x00K\x01h\x00s"))  # a dict that holds itself


def _stream(body):
    return io.BytesIO(b"\x80\x02" + body + b".")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_of_stride_0_are_counted_together(path, layout):
    """600 views of 6,000 numbers, each smaller than the file, together 29 MB of a 73 kB file."""
    row = torch.arange(6000.0)
    save({f"w{i}": row.expand(2, 6000) for i in range(600)}, path, layout)
    with pytest.raises(ValueError, match=r"its tensors claim 28,800,000 bytes together, too many for a file of"):
        read_state_dict(path)
    tied = {f"w{i}": row for i in range(3)}  # control: a few names for one tensor are no bomb
    assert list(read_state_dict(save(tied, path, layout))) == list(tied)


def test_a_zip_whose_entries_overlap(path):
    save({"w": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")
    end = whole.rindex(b"PK\x05\x06")
    central, tail = whole[start:end], whole[end:]
    central = central[: central.index(b"PK\x06\x06")] if b"PK\x06\x06" in central else central
    count = 50 * len(entries)
    tail = tail[:8] + struct.pack("<HHII", count, count, 50 * len(central), start) + tail[20:]
    path.write_bytes(whole[:start] + 50 * central + tail)
    with pytest.raises(ValueError, match=r"in\.pth': (this is a zip whose entries overlap|truncated, damaged)"):
        read_state_dict(path)


def test_a_flipped_bit_of_a_weight_is_noticed(path):
    whole = bytearray(save({"w": torch.arange(1000.0)}, path).read_bytes())
    place = bytes(whole).index(np.arange(1000, dtype="<f4").tobytes()) + 1234
    whole[place] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="damaged: the checksum of .*data/0 differs"):
        read_state_dict(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flipped_bytes_give_a_value_error_or_a_state_dict(path, layout):
    whole = save(small_state(), path, layout).read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 200):
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << rng.integers(8)
        path.write_bytes(spoilt)
        try:
            assert all(isinstance(array, np.ndarray) for array in read_state_dict(path).values())
        except ValueError as error:
            assert str(path) in str(error) and len(str(error)) < 1000


def test_only_regular_files_are_read(path, tmp_path):
    os.mkfifo(path)
    began = time.monotonic()
    with pytest.raises(ValueError, match="in.pth: is a pipe, expected a file"):
        read_state_dict(path)
    assert time.monotonic() - began < 5
    with pytest.raises(ValueError, match="/dev/zero: is a device, expected a file"):
        read_state_dict("/dev/zero")
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="huge: got 1,099,511,627,776 bytes"):
        read_state_dict(tmp_path / "huge")


def test_keys_that_cannot_be_printed(path):
    content = {("a",) * 1000: torch.ones(1), 10**30: 1, "x" * 10**6: 2, "\x1b[2J": 3}
    with pytest.raises(ValueError, match="3 entries of the state dict are no tensors") as caught:
        read_state_dict(save(content, path))
    assert len(str(caught.value)) < 1000 and "\x1b" not in str(caught.value)
