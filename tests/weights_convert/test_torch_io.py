"""Reading PyTorch checkpoints: what is read, what is refused, and that a hostile file runs nothing."""

import argparse
import functools
import io
import os
import pickle
import shlex
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from weights_convert import torch_io
from weights_convert.torch_io import read_state_dict

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

LAYOUTS = ("zip", "legacy")


def save(content, path, layout="zip", **options):
    torch.save(content, path, _use_new_zipfile_serialization=layout == "zip", **options)
    return path


def small_state(prefix=""):
    return OrderedDict(
        [
            (f"{prefix}conv1.weight", torch.arange(6, dtype=torch.float32).reshape(2, 1, 3, 1)),
            (f"{prefix}bn1.num_batches_tracked", torch.tensor(7)),
            (f"{prefix}fc.bias", torch.tensor([0.5, -2.0])),
        ]
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "in.pth"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_keys_and_dtypes_by_hand(path, layout):
    arrays = read_state_dict(save(small_state(), path, layout))
    assert list(arrays) == ["conv1.weight", "bn1.num_batches_tracked", "fc.bias"]
    np.testing.assert_array_equal(arrays["conv1.weight"], [[[[0], [1], [2]]], [[[3], [4], [5]]]])
    np.testing.assert_array_equal(arrays["fc.bias"], [0.5, -2.0])
    assert arrays["bn1.num_batches_tracked"] == 7
    assert [a.dtype for a in arrays.values()] == [np.float32, np.int64, np.float32]
    assert [a.shape for a in arrays.values()] == [(2, 1, 3, 1), (), (2,)]
    assert all(a.flags.owndata and a.flags.writeable and a.flags.c_contiguous for a in arrays.values())


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float8_e4m3fn", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("int64", "int64"),
        ("uint8", "uint8"),
        ("bool", "bool"),
    ],
)
def test_dtypes(path, dtype, expected):
    tensor = torch.tensor([0.0, 1.0, 1.5]).to(getattr(torch, dtype))
    array = read_state_dict(save({"w": tensor}, path))["w"]
    assert array.dtype == expected
    np.testing.assert_array_equal(array, tensor.to(torch.float64).numpy())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_shared_and_parameter_tensors_equal_the_unrestricted_reader(path, layout):
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = {
        "slice": base[:, 1],
        "transposed": base.permute(2, 0, 1),
        "again": base,
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.rand(3)),
        "scalar": torch.tensor(3.0),
        "none_inside": torch.zeros(0, 3),
    }
    save(state, path, layout)
    twin = torch.load(path, weights_only=False)
    arrays = read_state_dict(path)
    assert list(arrays) == list(twin)
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, twin[key].detach().numpy())
        assert array.flags.c_contiguous
    arrays["again"][:] = -1  # shared storage in the file, separate memory here
    assert arrays["slice"][0, 0] == 4


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "arch": "resnet", "best_prec1": 91.7},
        lambda s: {"model": s, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "lr": [0.1]}},
        lambda s: {"net": s, "acc": torch.tensor(0.9), "epoch": 1},
        lambda s: {"model_state_dict": s, "loss": 0.1, "model": "resnet32", "net": None},
        lambda s: {"model": {"state_dict": s, "epoch": 1}, "net": {"depth": 32}},
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_wrappers_and_prefixes(path, wrap, prefix):
    arrays = read_state_dict(save(wrap(small_state(prefix)), path))
    assert list(arrays) == list(small_state())


def test_prefix_stays_when_one_key_lacks_it(path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert list(read_state_dict(save(state, path))) == ["module.a", "b"]


@pytest.mark.parametrize("spelling", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_numpy_numbers_and_namespace_beside_the_tensors(path, spelling):
    content = {
        "state_dict": {**small_state(), "array": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3))},
        "best_prec1": np.float64(91.25),
        "flag": np.bool_(True),
        "history": [np.float32(0.5), np.arange(3)],
        "args": argparse.Namespace(lr=0.1, arch="resnet", seed=np.int64(3)),
    }
    save(content, path, "legacy")
    written = path.read_bytes()
    assert b"numpy._core.multiarray" in written
    path.write_bytes(written.replace(b"numpy._core.multiarray", spelling))
    arrays = read_state_dict(path)
    assert list(arrays) == [*small_state(), "array"]
    np.testing.assert_array_equal(arrays["array"], [[0, 1, 2], [3, 4, 5]])
    assert arrays["array"].dtype == np.int16 and arrays["array"].dtype.isnative


def test_numpy_stand_ins_rebuild_what_numpy_does(path):
    values = [
        np.float16(1.5),
        np.float64(-0.1),
        np.int8(-3),
        np.uint32(7),
        np.bool_(True),
        np.complex64(1 + 2j),
    ]
    arrays = [np.arange(6.0).reshape(2, 3), np.arange(6, dtype=">u2")[::2], np.array(2.5)]
    state = {str(i): value for i, value in enumerate(values + arrays)}
    read = read_state_dict(save(state, path))
    for key, value in state.items():
        np.testing.assert_array_equal(read[key], value)
        assert read[key].shape == value.shape


# --- hostile files ---------------------------------------------------------------------------------------


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


# --- files that are no state dict ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"empty \(0 bytes\)"),
        (
            b"<!DOCTYPE html><html><head><title>Google Drive</title>",
            "this is an HTML page, the download failed",
        ),
        (b"\xef\xbb\xbf\n <HTML lang='en'>", "this is an HTML page, the download failed"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"not weights at all", r"not a PyTorch checkpoint \(it begins with b'not weights"),
        (b"cos\nsystem\n(S'true'\ntR.", "not a PyTorch checkpoint"),
        (b"\0" * 4096, "not a PyTorch checkpoint"),
        (b"PK\x03\x04" + b"\0" * 100, "truncated, damaged or not a PyTorch checkpoint"),
        (b"\x80\x02" + b"\xff" * 100, "refused|truncated"),
        (pickle.dumps({"a": 1}, protocol=2), "truncated, damaged or not a PyTorch checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints(path, content, words):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)


def test_missing_file_folder_and_no_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*absent\.pth'"):
        read_state_dict(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="is a folder"):
        read_state_dict(tmp_path)
    for wrong in (3, None, {"a": np.ones(1)}):
        with pytest.raises(TypeError, match="path: got"):
            read_state_dict(wrong)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.ones(3), "holds a bare tensor, expected a state dict"),
        ([torch.ones(3)], "holds a list"),
        (argparse.Namespace(a=1), "holds a Namespace"),
        ({}, "no tensors inside; it holds nothing"),
        ({"epoch": 3, "lr": 0.1}, r"no tensors inside; it holds epoch \(int\), lr \(float\)"),
        (
            {"weights": {"a": torch.ones(1)}},
            r"it holds weights \(dict\); state dicts are looked for under state_dict",
        ),
        (
            {"fc.bias": torch.ones(1), "epoch": 3},
            r"1 entries of the state dict are no tensors: epoch \(int\)",
        ),
        ({0: torch.ones(1)}, "keys that are no strings: 0"),
        (
            {"model": {"a": torch.ones(1)}, "net": {"a": torch.ones(1)}},
            "2 state dicts, 'model', 'net', expected one",
        ),
        ({"w": torch.eye(2).to_sparse()}, "w: not readable as a dense array"),
        ({"w": torch.ones(2, device="meta")}, "w: not readable as a dense array"),
        ({"w": torch.zeros(1).expand(10**12)}, "w: .*claims 1000000000000 elements"),
        ({"w": np.array(["a", "b"])}, "a numpy object of dtype 'U1', only numbers are read"),
    ],
)
def test_content_that_is_no_state_dict(path, content, words):
    with pytest.raises(ValueError, match=words):
        read_state_dict(save(content, path))


def test_a_dict_that_holds_itself_ends(path):
    content = {"epoch": 1}
    content["model"] = content
    with pytest.raises(ValueError, match="wrapped more than 4 times"):
        read_state_dict(save(content, path))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_module_is_refused_with_the_way_out(path, layout):
    save(torch.nn.Linear(2, 2), path, layout)
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear.*torch\.save\(model\.state_dict"):
        read_state_dict(path)


def test_torchscript_is_refused(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(path))
    with pytest.raises(ValueError, match="TorchScript"):
        read_state_dict(path)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_layout_is_refused(path, form):
    with tarfile.open(path, "w", format=form) as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(0)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(ValueError, match="old tar layout is not read"):
        read_state_dict(path)


def test_compressed_zip_is_refused(path):
    save({"w": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert torch.load(path, weights_only=True)["w"].shape == (100_000,)
    with pytest.raises(ValueError, match="compressed entries"):
        read_state_dict(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_truncation_is_an_error_in_plain_words(path, layout):
    whole = save({"w": torch.arange(5.0), "n": torch.tensor(1)}, path, layout).read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="checkpoint"):
            read_state_dict(path)
    path.write_bytes(whole)
    assert list(read_state_dict(path)) == ["w", "n"]


# --- torch itself ----------------------------------------------------------------------------------------


def test_without_torch_the_message_says_what_to_install(path, monkeypatch):
    save(small_state(), path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'dyn_jax\[convert\]'"):
        read_state_dict(path)


@pytest.mark.parametrize("version", ["2.4.0", "2.5.1+cpu", "2.9.1"])
def test_torch_with_a_known_hole_is_not_used(path, monkeypatch, version):
    save(small_state(), path)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    with pytest.raises(ImportError, match=r"expected at least 2\.10"):
        read_state_dict(path)


def test_importing_the_reader_imports_no_torch():
    code = "import sys, weights_convert.torch_io; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("name", "keys", "numbers"),
    [("resnet20", 97, 271_098), ("resnet32", 157, 466_426), ("resnet56", 277, 857_082)],
)
def test_published_checkpoints(shared_dir, name, keys, numbers):
    (path,) = (shared_dir / "data" / "checkpoints").glob(f"{name}-*.th")
    arrays = read_state_dict(path)
    twin = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
    assert len(arrays) == keys == len(twin)
    assert sum(array.size for array in arrays.values()) == numbers
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, twin[f"module.{key}"].numpy())
