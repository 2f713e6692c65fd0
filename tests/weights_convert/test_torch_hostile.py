"""A hostile file is refused and runs nothing, in every layout; the control shows that each was armed."""

import argparse
import functools
import os
import pickle
import shlex
import subprocess
import warnings
import zipfile

import numpy as np
import pytest
from torch_files import save, small_state, torch

from weights_convert import torch_io
from weights_convert.torch_io import read_state_dict

pytestmark = pytest.mark.torch


class Call:
    """Unpickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def touch(sentinel):
    return f"touch {shlex.quote(str(sentinel))}"


def opens(sentinel):
    return f"open({str(sentinel)!r}, 'w').close()"


def global_call(module_and_name, argument):
    """A pickle written by hand: GLOBAL, one string, REDUCE."""
    text = argument.encode()
    call = b"c" + module_and_name + b"\nX" + len(text).to_bytes(4, "little") + text + b"\x85R"
    return b"\x80\x02" + call + b"."


def zip_holding(path, data):
    """A checkpoint in the zip layout whose pickle is `data`."""
    save(small_state(), path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, data if name.endswith("/data.pkl") else content)
    return path


def object_array(value):
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


HOSTILE = {
    "system in a wrapper, zip": (
        "posix.system|nt.system",
        lambda path, s: save({"state_dict": small_state(), "epoch": Call(os.system, touch(s))}, path),
    ),
    "system in a wrapper, legacy": (
        "posix.system|nt.system",
        lambda path, s: save({"epoch": Call(os.system, touch(s)), "state_dict": small_state()}, path, "legacy"),
    ),
    "eval as a value of the state dict, zip": (
        "builtins.eval",
        lambda path, s: save({"state_dict": {**small_state(), "fc.weight": Call(eval, opens(s))}}, path),
    ),
    "exec deep in the optimizer, legacy": (
        "builtins.exec",
        lambda path, s: save(
            {"net": small_state(), "optimizer": {"state": [{0: (Call(exec, opens(s)),)}]}}, path, "legacy"
        ),
    ),
    "eval as a key": (
        "builtins.eval",
        lambda path, s: save({"net": small_state(), Call(eval, opens(s)): 1}, path),
    ),
    "GLOBAL os.system by hand, first pickle of a legacy file": (
        "os.system",
        lambda path, s: path.write_bytes(global_call(b"os\nsystem", touch(s))),
    ),
    "GLOBAL os.system by hand, in a zip": (
        "os.system",
        lambda path, s: zip_holding(path, global_call(b"os\nsystem", touch(s))),
    ),
    "GLOBAL __builtin__.eval (Python 2 name), in a zip": (
        "builtins.eval",
        lambda path, s: zip_holding(path, global_call(b"__builtin__\neval", opens(s))),
    ),
    "numpy's own function that executes a string": (
        "numpy.testing._private.utils.runstring",
        lambda path, s: save({"net": small_state(), "acc": Call(np.testing.runstring, opens(s), {})}, path),
    ),
    "numpy array of objects": (
        "numpy object of dtype 'O8'",
        lambda path, s: save({"net": small_state(), "acc": object_array(Call(os.system, touch(s)))}, path),
    ),
    "attribute of a Namespace": (
        "builtins.exec",
        lambda path, s: save({"net": small_state(), "args": argparse.Namespace(x=Call(exec, opens(s)))}, path),
    ),
    "subprocess": (
        "Popen",  # protocol 2 writes its Python 2 module
        lambda path, s: save({"net": small_state(), "x": Call(subprocess.Popen, ["touch", str(s)])}, path),
    ),
    "a pickle in the pickle": (
        "pickle.loads",
        lambda path, s: save({"net": small_state(), "x": Call(pickle.loads, pickle.dumps(Call(eval, opens(s))))}, path),
    ),
    "partial of a call": (
        "functools.partial",
        lambda path, s: save({"net": small_state(), "x": Call(functools.partial(eval, opens(s)))}, path),
    ),
    "protocol 4, whose names are not GLOBAL": (
        "Unsupported operand",
        lambda path, s: save({"net": small_state(), "x": Call(eval, opens(s))}, path, pickle_protocol=4),
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused_and_runs_nothing(path, tmp_path, case):
    names, build = HOSTILE[case]
    sentinel = tmp_path / "sentinel"
    build(path, sentinel)
    with pytest.raises(ValueError, match=f"refused.*({names})"):
        read_state_dict(path)
    assert not sentinel.exists()

    # the control: the unrestricted reader runs the same bytes, so the file was armed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = torch.load(path, weights_only=False)
        except Exception:  # a call's result need not be a checkpoint
            loaded = None
    if isinstance(loaded, dict) and isinstance(loaded.get("x"), subprocess.Popen):
        loaded["x"].wait()
    assert sentinel.exists()


@pytest.mark.parametrize("module_and_name", [b"os\nsystem", b"posix\nsystem", b"builtins\neval"])
def test_hostile_pickle_by_hand_is_armed_under_plain_pickle_and_refused_here(path, tmp_path, module_and_name):
    sentinel = tmp_path / "sentinel"
    argument = opens(sentinel) if module_and_name.endswith(b"eval") else touch(sentinel)
    payload = global_call(module_and_name, argument)
    path.write_bytes(payload)
    with pytest.raises(ValueError, match=module_and_name.decode().replace("\n", ".")):
        read_state_dict(path)
    assert not sentinel.exists()
    pickle.loads(payload)
    assert sentinel.exists()


def test_what_the_process_allows_elsewhere_is_not_allowed_here_and_is_put_back(path, tmp_path):
    sentinel = tmp_path / "sentinel"
    save({"net": small_state(), "x": Call(eval, opens(sentinel))}, path)
    with torch.serialization.safe_globals([eval]):
        before = set(torch.serialization.get_safe_globals())
        with pytest.raises(ValueError, match=r"builtins\.eval"):
            read_state_dict(path)
        assert not sentinel.exists()
        assert set(torch.serialization.get_safe_globals()) == before
        torch.load(path, weights_only=True)
        assert sentinel.exists()


def test_numpy_itself_never_unpickles(path, monkeypatch):
    save({"net": small_state(), "acc": np.float64(0.5), "array": np.arange(3)}, path)
    assert {stand_in.__module__ for stand_in in torch_io.STAND_INS.values()} == {torch_io.__name__}
    monkeypatch.setattr(torch_io, "STAND_INS", {})
    with pytest.raises(ValueError, match=r"numpy\._core\.multiarray"):
        read_state_dict(path)
