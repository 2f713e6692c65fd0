"""Variables on disk: the round trip, files that are damaged or foreign, and writes that fail half-way."""

import errno
import os
import pickle
import stat
from types import MappingProxyType

import flax.core
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax.networks import checkpoint
from dyn_jax.networks.checkpoint import load_variables, save_variables


def small():
    return {
        "params": {
            "conv1": {"kernel": np.arange(6, dtype=np.float32).reshape(1, 2, 3)},
            "scale": np.float32(0.5),
        },
        "batch_stats": {"bn1": {"mean": np.array([-1.0, 2.0], np.float32)}},
    }


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == np.asarray(b).tobytes()


def test_round_trip_by_hand(tmp_path):
    size = save_variables(tmp_path / "v.msgpack", small())
    assert (tmp_path / "v.msgpack").stat().st_size == size
    got = load_variables(str(tmp_path / "v.msgpack"))
    assert sorted(got) == ["batch_stats", "params"]
    np.testing.assert_array_equal(got["params"]["conv1"]["kernel"], [[[0, 1, 2], [3, 4, 5]]])
    np.testing.assert_array_equal(got["batch_stats"]["bn1"]["mean"], [-1.0, 2.0])
    assert got["params"]["scale"] == np.float32(0.5) and got["params"]["scale"].shape == ()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32", "uint8", "bool", "complex64"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_round_trip_of_every_dtype_and_shape(tmp_path, dtype, shape):
    variables = {"params": {"w": jnp.ones(shape, dtype)}, "empty": {}}
    save_variables(tmp_path / "v", variables)
    assert_same(load_variables(tmp_path / "v"), jax.tree.map(np.asarray, variables))


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4", ">f2"])
def test_numbers_of_the_other_byte_order_stay_those_numbers(tmp_path, dtype):
    save_variables(tmp_path / "v", {"params": {"w": np.array([1, 2, 3], dtype)}})
    got = load_variables(tmp_path / "v")["params"]["w"]
    assert got.tolist() == [1, 2, 3] and got.dtype.isnative


def test_float64_special_values_and_strides_keep_their_bits(tmp_path):
    kernel = np.array([[np.nan, -np.inf, -0.0], [1e-310, 1e300, np.pi]]).T
    save_variables(tmp_path / "v", {"params": {"w": kernel}}, allow_nonfinite=True)
    got = load_variables(tmp_path / "v", allow_nonfinite=True)["params"]["w"]
    assert got.dtype == np.float64 and got.shape == (3, 2) and got.tobytes() == kernel.tobytes("C")


@pytest.mark.parametrize("wrap", [flax.core.freeze, MappingProxyType])
def test_other_mappings_come_back_as_dicts(tmp_path, wrap):
    save_variables(tmp_path / "v", wrap(small()))
    assert_same(load_variables(tmp_path / "v"), jax.tree.map(np.asarray, small()))


def test_flax_itself_reads_the_file(tmp_path):
    save_variables(tmp_path / "v", small())
    target = jax.tree.map(np.zeros_like, small())
    assert_same(
        flax.serialization.from_bytes(target, (tmp_path / "v").read_bytes()),
        jax.tree.map(np.asarray, small()),
    )


def test_saving_leaves_its_argument_alone(tmp_path):
    variables = {"params": {"w": jnp.ones(3)}}
    leaf = variables["params"]["w"]
    save_variables(tmp_path / "v", variables)
    assert variables["params"]["w"] is leaf


@pytest.mark.parametrize(
    ("variables", "error", "words"),
    [
        ([1], TypeError, "variables: got list, expected a mapping with a 'params' collection"),
        ({}, ValueError, r"got the collections \[\], expected 'params'"),
        ({"batch_stats": {}}, ValueError, r"got the collections \['batch_stats'\], expected 'params'"),
        ({"params": {"w": [1.0]}}, TypeError, r"variables\['params'\]\['w'\]: got list, expected an array"),
        ({"params": {"w": None}}, TypeError, r"\['w'\]: got NoneType"),
        ({"params": {"w": 1.0}}, TypeError, r"\['w'\]: got float"),
        ({"params": {3: np.ones(1)}}, TypeError, r"variables\['params'\]: got the key 3 \(int\)"),
        ({"params": {"w": np.array([None])}}, TypeError, "an array of object, expected numbers"),
        ({"params": {"w": np.array(["a"])}}, TypeError, "an array of <U1, expected numbers"),
        ({"params": {"w": jax.random.key(0)}}, TypeError, r"\['w'\]"),
    ],
)
def test_saving_something_else_is_refused_and_writes_nothing(tmp_path, variables, error, words):
    with pytest.raises(error, match=words):
        save_variables(tmp_path / "v", variables)
    assert list(tmp_path.iterdir()) == []


def test_saving_to_a_folder_or_into_none(tmp_path):
    with pytest.raises(ValueError, match="which is a folder"):
        save_variables(tmp_path, small())
    with pytest.raises(FileNotFoundError, match=r"its folder '.*absent' does not exist"):
        save_variables(tmp_path / "absent" / "v", small())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step):
    path = tmp_path / "v"
    path.write_bytes(b"old")

    def fails(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(checkpoint.os, step, fails)
    with pytest.raises(OSError, match=f"no space left: '{path}'"):
        save_variables(path, small())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_replaces_follows_links_and_keeps_the_usual_permissions(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save_variables(tmp_path / "link", small())
    assert (tmp_path / "link").is_symlink()
    assert_same(load_variables(tmp_path / "real"), jax.tree.map(np.asarray, small()))
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "plain", "real"]


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent: no such file"):
        load_variables(tmp_path / "absent")
    with pytest.raises(ValueError, match="is a folder"):
        load_variables(tmp_path)


def test_every_truncation_is_a_value_error(tmp_path):
    path = tmp_path / "v"
    save_variables(path, small())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"is empty \(0 bytes\)" if length == 0 else "truncated|not a file"):
            load_variables(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="not a file that save_variables wrote, or truncated or damaged"):
        load_variables(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>", "not a file that save_variables wrote"),
        (b"\xc1" * 9, "not a file that save_variables wrote"),
        (flax.serialization.msgpack_serialize([1, 2]), "got list, expected a mapping"),
        (
            flax.serialization.msgpack_serialize({"opt": np.ones(1)}),
            r"collections \['opt'\], expected 'params'",
        ),
        (
            flax.serialization.msgpack_serialize({"params": {"w": "text"}}),
            r"\['w'\]: got str, expected an array",
        ),
    ],
)
def test_foreign_files_are_value_errors_that_name_the_file(tmp_path, content, words):
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        load_variables(path)
    assert str(path) in str(caught.value)


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_refused_and_runs_nothing(tmp_path):
    sentinel = tmp_path / "sentinel"
    payload = pickle.dumps({"params": _Touch(str(sentinel))})
    (tmp_path / "v").write_bytes(payload)
    with pytest.raises(ValueError, match="not a file that save_variables wrote"):
        load_variables(tmp_path / "v")
    assert not sentinel.exists()
    pickle.loads(payload)  # the control: plain pickle runs it
    assert sentinel.exists()
