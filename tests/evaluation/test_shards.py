"""Runs that survive: killed at any chunk, the same command ends with the same bytes; what is not its own is refused."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dyn_jax import _files
from dyn_jax.evaluation import evaluate, shards
from dyn_jax.evaluation.subject import subject_of
from tests.evaluation import toy

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from beginning to end."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    toy.run(folder)
    return folder


def start(*arguments, **environment) -> subprocess.Popen:
    """A run in a process of its own."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "tests.evaluation.toy", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(process: subprocess.Popen) -> None:
    said = process.communicate()[0].decode()
    assert process.returncode == 0, said


def same(folder, whole) -> None:
    """The same files with the same bytes."""
    got, wanted = toy.files(folder), toy.files(whole)
    assert sorted(got) == sorted(wanted)
    assert not [name for name in wanted if got[name] != wanted[name]]


def test_a_killed_run_goes_on_to_the_same_bytes(whole, tmp_path):
    folder = tmp_path / "run"
    process = start(folder)
    shard = folder / "shards" / "1-of-1" / "01-fgsm-00000.npz"
    while not shard.exists():
        assert process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (folder / "result.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in shard.parent.glob("*.npz")}
    toy.run(folder)
    same(folder, whole)
    assert all((shard.parent / name).stat().st_mtime_ns == when for name, when in kept.items()), "a shard was made anew"


@pytest.mark.parametrize("left", [1, 11])
def test_any_prefix_of_shards_is_enough(left, whole, tmp_path):
    """What a kill leaves: the first shards, and perhaps a temporary file."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "png")
    for name in ("result.json", "adversarial.npz", "pictures.npz"):
        (folder / name).unlink()
    made = sorted((folder / "shards" / "1-of-1").glob("[0-9]*.npz"))
    for path in [*made[left:], folder / "shards" / "1-of-1" / "final.npz"]:
        path.unlink(missing_ok=True)
    toy.run(folder)
    same(folder, whole)


@pytest.mark.parametrize("damage", ["truncated", "changed", "foreign", "empty"])
def test_a_shard_that_is_not_its_own_is_refused_by_name(damage, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shard = folder / "shards" / "1-of-1" / "01-fgsm-00001.npz"
    content = shard.read_bytes()
    if damage == "changed":
        with np.load(shard) as archive:
            arrays = {name: archive[name] for name in archive.files}
        arrays["adversarial"] = arrays["adversarial"] * 0
        np.savez(shard, **arrays)
    elif damage == "foreign":
        shard.write_bytes(shards.shard({"adversarial": np.zeros(3)}, "another run"))
    else:
        shard.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    before = toy.files(folder)
    with pytest.raises(_files.BadFile, match="01-fgsm-00001.npz"):
        toy.run(folder)
    assert toy.files(folder) == before


def test_another_run_is_refused_and_says_what_differs(whole, tmp_path):
    before = toy.files(whole)
    for given, words in (
        ({"eps": "4/255"}, "eps is 0.0627"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"attacks": "fgsm"}, "attacks is"),
        ({"facts": {"name": "other"}}, "of name is none there and other here"),
    ):
        with pytest.raises(ValueError, match=words):
            toy.run(whole, **given)
    assert toy.files(whole) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        toy.run(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        toy.run(tmp_path / "no" / "run")
    with pytest.raises(FileNotFoundError, match="to resume"):
        toy.run(tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


def test_a_network_of_the_same_weights_that_computes_something_else_is_another_run(tmp_path):
    images, labels = toy.data()

    def run(scale, level):
        net = lambda variables, x, *, occupancy=None: scale * toy.gated(variables, x, occupancy=occupancy).logits
        given = {"eps": "16/255", "attacks": "fgsm", "budget": toy.SHORT, "output": tmp_path / "run"}
        step = lambda score: jnp.float32(score >= level)
        return evaluate(net, toy.weights(), images, labels, occupancy=step, **given)

    run(1.0, 0.0)
    run(1.0, 0.0)  # other objects, the same network
    for scale, level in ((-1.0, 0.0), (1.0, 0.5)):
        with pytest.raises(ValueError, match="network is .* there and .* here"):
            run(scale, level)


WRAPPED = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "vmap of a jit": lambda f: jax.vmap(jax.jit(lambda x: f(x[None])[0])),
    "scan": lambda f: lambda x: jax.lax.scan(lambda carry, _: (carry + f(x), None), f(x), length=2)[0],
    "cond": lambda f: lambda x: jax.lax.cond(x.sum() > 0, f, lambda x: 2 * f(x), x),
}


@pytest.fixture(params=[False, True])
def written_in(request):
    """Whether JAX writes constants into the equations that use them, as it is about to do."""
    option = "jax_use_simplified_jaxpr_constants"
    before = getattr(jax.config, option, None)
    if before is None:  # the option is gone: there is one way only
        yield
        return
    jax.config.update(option, request.param)
    yield
    jax.config.update(option, before)


@pytest.mark.parametrize("how", WRAPPED)
def test_weights_that_a_function_holds_are_part_of_the_network(how, written_in):
    """However deep they lie: the program of a jitted function has constants of its own."""

    def of(seed):
        weights = np.random.default_rng(seed).random((48, 5), np.float32)
        forward = WRAPPED[how](lambda x: x.reshape(len(x), -1) @ weights)
        return subject_of(lambda variables, x: forward(x), {}).fingerprint(np.zeros((2, 4, 4, 3), np.float32))

    assert of(0) == of(0) != of(1)


def test_a_manifest_that_another_process_is_writing_is_no_stranger(tmp_path):
    """Of two processes that begin together one may look while the other has its manifest half written."""
    (tmp_path / f".{shards.MANIFEST}.0123456789abcdef.tmp").touch()
    shards.check_folder(tmp_path, {"a": 1})
    (tmp_path / ".other.tmp").touch()
    with pytest.raises(ValueError, match=r"other files \(\.other\.tmp\)"):
        shards.check_folder(tmp_path, {"a": 1})


def test_a_shard_holds_what_it_was_given_and_no_objects(tmp_path):
    """numpy 2.0 stored the option `allow_pickle` as an array of that name."""
    (tmp_path / "shard.npz").write_bytes(shards.shard({"a": np.arange(3)}, "run"))
    assert list(shards.read_shard(tmp_path / "shard.npz", "run")) == ["a"]
    with pytest.raises(ValueError, match="a: got an array of Python objects"):
        shards.shard({"a": np.array([{}])}, "run")


def test_two_processes_on_one_folder_do_not_mix(whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    held = shards.Folder(whole, manifest)
    with pytest.raises(RuntimeError, match="another process"):
        shards.Folder(whole, manifest)
    held.close()
    shards.Folder(whole, manifest).close()


def test_a_full_disk_leaves_what_is_whole(whole, tmp_path, monkeypatch):
    folder, write, wrote = tmp_path / "run", _files.write, []

    def full(path, content):
        if len(wrote) > 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        wrote.append(path)
        write(path, content)

    monkeypatch.setattr(_files, "write", full)
    with pytest.raises(OSError, match="free space and repeat"):
        toy.run(folder)
    monkeypatch.undo()
    toy.run(folder)
    same(folder, whole)


def test_an_interrupt_keeps_what_is_done(whole, tmp_path, monkeypatch):
    folder, write, wrote = tmp_path / "run", _files.write, []

    def stop(path, content):
        write(path, content)
        wrote.append(path)
        if len(wrote) == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(_files, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        toy.run(folder)
    monkeypatch.undo()
    assert len(list((folder / "shards" / "1-of-1").glob("*.npz"))) == 8
    toy.run(folder)
    same(folder, whole)


def test_four_devices_give_the_same_bits(whole, tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    ended(start(tmp_path / "run", XLA_FLAGS=flags))
    same(tmp_path / "run", whole)


@pytest.fixture
def two(tmp_path):
    """A run of two processes that know each other."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for process in [start(tmp_path / "run", address, number) for number in (0, 1)]:
        ended(process)
    return tmp_path / "run"


def test_two_processes_share_a_run(two, whole):
    """Each takes its examples and writes its shards; the last one merges."""
    with np.load(two / "adversarial.npz") as got, np.load(whole / "adversarial.npz") as wanted:
        for name in wanted.files:
            np.testing.assert_allclose(got[name], wanted[name], atol=1e-6, err_msg=name)
    found = [json.loads((folder / "result.json").read_text()) for folder in (two, whole)]
    assert found[0]["attacks"] == found[1]["attacks"] and found[0]["robust_acc"] == found[1]["robust_acc"]
    assert sorted(path.name for path in (two / "shards").iterdir()) == ["1-of-2", "2-of-2"]
