"""``python -m weights_convert``: what it prints and writes, and that bad input leaves nothing behind."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import weights_convert
from dyn_jax import networks
from dyn_jax.networks.checkpoint import load_variables
from weights_convert import torch_io
from weights_convert.__main__ import main

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

TINY = ("--field", "depths=1,1,1", "--field", "widths=2,3,4")
WIDTHS = (2, 3, 4)


def tiny_state(classes=10):
    """State dict of a ResNet with one block a stage, keys as the published option-A ResNets have them."""
    generator = torch.Generator().manual_seed(0)

    def conv(out, into):
        return torch.randn(out, into, 3, 3, generator=generator)

    def norm(name, width):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{leaf}"] = torch.rand(width, generator=generator)
        state[f"{name}.num_batches_tracked"] = torch.tensor(1)

    state = {"conv1.weight": conv(2, 3)}
    norm("bn1", 2)
    for stage, (into, out) in enumerate([(2, 2), (2, 3), (3, 4)], start=1):
        for layer, channels in ((1, into), (2, out)):
            state[f"layer{stage}.0.conv{layer}.weight"] = conv(out, channels)
            norm(f"layer{stage}.0.bn{layer}", out)
    state["linear.weight"] = torch.randn(classes, 4, generator=generator)
    state["linear.bias"] = torch.randn(classes, generator=generator)
    return state


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in tiny_state().items()}, "epoch": 3}, path)
    return path


def failing(capsys, *arguments):
    """Runs the command, which must return 2; returns its one message."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("weights_convert: error: ") and "Traceback" not in err
    return err


def test_writes_what_convert_returns_and_says_so(source, tmp_path, capsys):
    out = tmp_path / "out.msgpack"
    assert main(["resnet-20-cifar10", str(source), str(out), *TINY]) == 0
    expected = weights_convert.convert(
        "resnet-20-cifar10", torch_io.read_state_dict(source), depths=(1, 1, 1), widths=WIDTHS
    )
    got = load_variables(out)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)

    # by hand: 7 convolutions, 7 norms of (weight, bias, mean, variance), one linear layer of (weight, bias)
    weights = 9 * (3 * 2 + 2 * 2 + 2 * 2 + 2 * 3 + 3 * 3 + 3 * 4 + 4 * 4) + (4 * 10 + 10)
    channels = 2 + 2 + 2 + 3 + 3 + 4 + 4
    printed = capsys.readouterr().out
    assert "37 tensors from 44 in the checkpoint" in printed
    assert f"{weights + 2 * channels:,} parameters and {2 * channels:,} batch statistics" in printed
    assert f"{out.stat().st_size:,} bytes" in printed and str(out) in printed

    net = networks.create("resnet-20-cifar10", depths=(1, 1, 1), widths=WIDTHS)
    assert jax.eval_shape(net.apply, got, np.zeros((2, 32, 32, 3), np.float32)).logits.shape == (2, 10)


def test_classes(tmp_path, capsys):
    source, out = tmp_path / "in.pth", tmp_path / "out"
    torch.save(tiny_state(classes=7), source)
    assert "linear.bias" in failing(capsys, "resnet-20-cifar10", source, out, *TINY)
    assert not out.exists()
    assert main(["resnet-20-cifar10", str(source), str(out), "--classes", "7", *TINY]) == 0
    assert load_variables(out)["params"]["fc"]["bias"].shape == (7,)


def test_list_prints_every_name(capsys):
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.split() == networks.names()


@pytest.mark.parametrize("before", [None, b"what was there"])
@pytest.mark.parametrize(
    ("spoil", "name", "words"),
    [
        (None, "resnet-21-cifar10", "resnet-20-cifar10"),
        (None, "dynconv-8-cifar10", "unexpected key"),
        (None, "resnet-20-cifar10", "unexpected key|missing|wrong shape"),
        (lambda p: p.unlink(), "resnet-20-cifar10", "no such file"),
        (lambda p: p.write_bytes(p.read_bytes()[:999]), "resnet-20-cifar10", "truncated"),
        (
            lambda p: p.write_bytes(b"<html>Quota exceeded"),
            "resnet-20-cifar10",
            "HTML page, the download failed",
        ),
        (lambda p: torch.save(torch.nn.Linear(2, 2), p), "resnet-20-cifar10", "only state dicts are read"),
    ],
)
def test_bad_input_is_one_message_and_leaves_the_target_alone(source, tmp_path, capsys, before, spoil, name, words):
    out = tmp_path / "out"
    if before is not None:
        out.write_bytes(before)
    if spoil:
        spoil(source)
    files = set(tmp_path.iterdir())
    assert re.search(words, failing(capsys, name, source, out))
    assert set(tmp_path.iterdir()) == files
    assert (out.read_bytes() if out.exists() else None) == before


def test_targets_that_cannot_be_written(source, tmp_path, capsys):
    before = source.read_bytes()
    assert "does not exist" in failing(capsys, "resnet-20-cifar10", source, tmp_path / "no" / "out", *TINY)
    assert "folder" in failing(capsys, "resnet-20-cifar10", source, tmp_path, *TINY)
    assert "is the checkpoint itself" in failing(capsys, "resnet-20-cifar10", source, source, *TINY)
    assert source.read_bytes() == before and list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("field", "words"),
    [("depths", "expected KEY=VALUE"), ("depths=", "expected KEY=VALUE"), ("dephts=1,1,1", "dephts")],
)
def test_bad_fields(source, tmp_path, capsys, field, words):
    assert words in failing(capsys, "resnet-20-cifar10", source, tmp_path / "out", "--field", field)


def test_without_torch(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'dyn_jax[convert]'" in failing(capsys, "resnet-20-cifar10", source, tmp_path / "out", *TINY)


def test_missing_arguments(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["resnet-20-cifar10"])
    assert caught.value.code == 2 and "required" in capsys.readouterr().err


def test_as_a_command(source, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "weights_convert", "resnet-20-cifar10", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])

    good = run(source, tmp_path / "out", *TINY)
    assert (good.returncode, good.stderr) == (0, "") and "37 tensors" in good.stdout
    bad = run(tmp_path / "absent.pth", tmp_path / "out2")
    assert bad.returncode == 2 and bad.stdout == "" and not (tmp_path / "out2").exists()
    assert bad.stderr.startswith("weights_convert: error: ") and bad.stderr.count("\n") == 1
