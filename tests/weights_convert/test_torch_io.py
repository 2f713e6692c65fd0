"""Reading PyTorch checkpoints: what is read, and what is refused in plain words."""

import argparse
import io
import pickle
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch_files import LAYOUTS, save, small_state, torch

from weights_convert.torch_io import read_state_dict

pytestmark = pytest.mark.torch


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
        (b'@\0\0\0\0\0\0\0{"conv.weight": {"dtype": "F32"', "this is a safetensors file"),
        (b'{\n  "metadata": {"total_size": 1}, "weight_map": {}}', "this is a JSON file, perhaps the index"),
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
    with pytest.raises(FileNotFoundError, match=r"absent\.pth: no such file"):
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
