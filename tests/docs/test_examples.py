"""Every example runs as its reader would run it, in small."""

from __future__ import annotations

import re
import runpy
import sys

import jax
import pytest

import dyn_jax
from docs.tables import ROOT
from dyn_jax.networks.minkunet import MinkUNet

RUNS = {  # file: arguments, what its output must hold
    "attack_images.py": (["8"], r"FGM: accuracy \d\.\d+.*\nLGM: accuracy"),
    "attack_energy.py": (["2", "3"], r"recovered share .* [-\d.]+\nlowest PSNR in dB [\d.]+"),
    "attack_tokens.py": (["2", "2"], r"recovered share .* [-\d.na]+"),
    "attack_points.py": (["1024", "2", "PGD"], r"PGD: accuracy 0\.\d+, work .*%, overflow False"),
    "early_exits.py": ([], r"slowdown: leaves at exit \[[\d ]+\] -> \[[2-6 ]+\], saves"),
    "route_experts.py": (["4", "2"], r"routes intersection .* \[[\d. ]+\]\n.*\n.*multiply-adds ([\de.+]+) -> \1\n"),
    "convert_checkpoint.py": ([], r"97 leaves do not match:\n  wrong shape conv1\.weight"),
}
SMALL = MinkUNet(planes=(4,) * 8, layers=(0,) * 8, num_classes=10, stem_features=4, stem_size=3, voxel_size=0.2)
TESTS = {"new_occupancy.py", "chex_property_test.py"}  # pytest collects them, see pyproject.toml


@pytest.fixture
def run(monkeypatch, capsys):
    """run(name, arguments) -> what the script prints, under JAX's own defaults."""

    def run(name: str, arguments: list[str]) -> str:
        path = str(ROOT / "examples" / name)
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        with jax.numpy_rank_promotion("allow"), jax.debug_nans(False):
            runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


def test_all_are_here():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(RUNS) | TESTS


@pytest.mark.parametrize("name", RUNS)
def test_example(name, run, monkeypatch):
    arguments, expected = RUNS[name]
    if name == "attack_points.py":  # the shipped network takes as long as all others together, and has its own tests
        variables = jax.jit(SMALL.init)(jax.random.key(0), SMALL.example_input())
        monkeypatch.setattr(dyn_jax.networks, "pretrained", lambda name: (SMALL, variables))
    out = run(name, arguments)
    assert re.search(expected, out), out


@pytest.mark.torch
def test_a_published_checkpoint_is_converted(shared_dir, tmp_path, run):
    pytest.importorskip("torch")
    checkpoint = shared_dir / "data" / "checkpoints" / "resnet20-12fca82f.th"
    out = run("convert_checkpoint.py", [str(checkpoint), str(tmp_path / "resnet20.msgpack")])
    assert re.search(r"class of a black image \d", out), out
