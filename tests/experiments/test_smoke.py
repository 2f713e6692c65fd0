"""Every experiment and benchmark from its command line to its record, with toy networks, few images and few steps."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import json
import pathlib
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image
from toys import Gated, Points, Routed, Stages

import weights_convert
from benchmarks import _turns, compile_time
from benchmarks import all as every
from docs import tables
from dyn_jax import attacks, networks, objectives, occupancy
from dyn_jax.networks import rdi
from dyn_jax.networks.checkpoint import save_variables
from dyn_jax.networks.dynconv import DynConv
from dyn_jax.networks.minkfcnn import MinkowskiFCNN
from dyn_jax.networks.minkunet import MinkUNet
from dyn_jax.networks.sdn import SDN
from dyn_jax.networks.skipnet import SkipNet
from dyn_jax.occupancy import voxel
from dyn_jax.training import embedded, loop
from experiments import (
    _early_exit,
    _record,
    cross_table,
    early_exit_rq4_early_attack,
    energy_other_networks,
    gradauto_table2,
)
from experiments.cifar_fgm_lgm import Setting

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # means over the none that a tiny attack fools

ROOT = pathlib.Path(__file__).parents[2]


@functools.cache
def tiny(name: str, *, normalize: object = None, **fields: Any) -> nn.Module:
    """A toy in place of the network of that name."""
    family = name.split("-")[0]
    if family == "rdi":
        return SDN(Stages(), (0, 1), 1.5, rdi.NATS, "last").clone(**fields)
    if family in ("sdn", "cnn"):
        return SDN(Stages(), exit_after=() if family == "cnn" else (0, 1)).clone(**fields)
    if family == "cylinder3d":
        return Points(classes=11)
    if family == "moe":
        return Routed(**fields)
    return Points(family == "minkfcnn") if family.startswith("mink") else Gated(family, **fields)


@functools.cache
def variables_of(network: nn.Module, seed: int = 0) -> dict:
    """Random numbers, so that some gates are on and some off."""
    example = network.example_input() if hasattr(network, "example_input") else np.zeros((1, 32, 32, 3), np.float32)
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = 0.5 * rng.standard_normal(leaf.shape).astype(leaf.dtype)
        return np.abs(values) if path[0].key == "batch_stats" else values

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(network.init, jax.random.key(0), example))


def blocks_of(name: str) -> tuple[nn.Module, dict]:
    """A residual network of that family, of few and narrow blocks, with its weights."""
    made = {"skipnet": SkipNet, "dynconv": DynConv}[name.split("-")[0]](depths=(2, 1), widths=(4, 4))
    return made, variables_of(made)


class Case(NamedTuple):
    """Options of a script (``{}`` is a folder with made-up data), constants of it or other modules, the record."""

    options: str
    record: str = ""
    constants: Mapping[str, Any] = MappingProxyType({})


def here(name: str, options: list[str]) -> int:
    """Runs a script in this process."""
    with mock.patch.object(sys, "argv", [f"{name.replace('.', '/')}.py", *options]):
        return importlib.import_module(name).main() or 0


DEMO = {"dyn_jax.cli.demo.ATTACKS": {"BIM-10": lambda eps: attacks.bim(eps, eps / 4, 2)}}
EARLY_EXIT = "--cache {} --seeds 1 --examples 6 --epochs 1 --surrogate-epochs 1"
EXITS = {
    "experiments._early_exit.DIGITS": _early_exit.DIGITS._replace(held_out=3),
    "experiments._early_exit.CIFAR": _early_exit.CIFAR._replace(held_out=1),
    "experiments._early_exit.ATTACKS": {"FGSM": attacks.fgsm},
    "experiments._early_exit.VARIANTS": ("vgg16", "resnet56"),
    "experiments._early_exit.PAIRS": (("resnet56", "vgg16"), ("vgg16", "resnet56")),
}
ENERGY = "--images 2 --steps 2"
HARD = {"experiments._energy.OCCUPANCIES": {"hard": occupancy.hard()}}
ROOMS = "--rooms 2 --points 64 --steps 1"
SIZES = {"dyn_jax.cli.demo_points.STEP": {0.01: 0.005}}
CASES = {
    "experiments.cifar_fgm_lgm": Case(
        "--data {} --networks sact-32-cifar10 --attacks FGSM --images 2 --held-back 2",
        constants={"LAMBDAS": (1.0, 10.0), "ATTACKS": {"FGSM": Setting(attacks.fgsm, (8,))}, "AT_ONCE": 2},
    ),
    "experiments.cifar_networks": Case("--data {} --networks skipnet-32-cifar10 --images 2"),
    "experiments.cifar_hrl": Case(
        "--data {} --trunk {}/trunk --alphas 1",
        constants={
            "load_variables": lambda *_: None,
            "opened": lambda variables: variables,
            "dyn_jax.networks.embed": lambda net, *_, seed, **__: variables_of(net, seed),
            "fit": lambda net, *_, seed, **__: variables_of(net, seed),
        },
    ),
    "experiments.adversarial_training": Case(
        "--seeds 1 --epochs 1 --examples 3",
        constants={
            "fit": lambda net, *_, seed: variables_of(net, seed),
            "small": lambda data: data,
            "SIZES": {},
            "JUDGE_STEPS": 1,
        },
    ),
    "experiments.cross_table": Case(
        "--networks sact-digits minkfcnn-objects --images 2 --steps 1",
        constants={
            "ANSWERS": {"FGSM": (1, 0.0)},
            "BASELINES": {},
            "ENERGY": {name: cross_table.ENERGY[name] for name in ("slowdown 8/255", "DeepSloth 8/255")},
            "CANDIDATES": cross_table.CANDIDATES[:1],
            "experiments._cross_points.OBJECT_POINTS": 32,
            "experiments._cross_points.OBJECTS": 2,
            "experiments._cross_points.STEPS": 1,
            "experiments._cross_points.ENERGY": {},
        },
    ),
    "experiments.deepsloth_efficacy": Case("--data {} --examples 2 --steps 1"),
    "experiments.deepsloth_norms": Case("--data {} --examples 2 --crafted 3 --steps 1 --norms linf"),
    "experiments.experts_routes": Case(
        "--networks moe-digits --images 2 --steps 1", constants={"GRADIENTS": {"FGM": occupancy.hard()}}
    ),
    "experiments.sponge_activations": Case(
        "--data {} --checkpoints {} --networks sparse-resnet-20-cifar10 --images 2 --steps 1"
    ),
    "experiments.digits_fgm_lgm": Case(
        "--weights {} --seeds 0 --examples 2",
        constants=DEMO
        | {"NETWORKS": ("dynconv-digits",), "LAMBDAS": (3.0,), "STRAIGHT_LAMBDAS": (), "EPS": ("8/255",)},
    ),
    "experiments.early_exit_rq1_transferability": Case(EARLY_EXIT, "early_exit_rq1", EXITS),
    "experiments.early_exit_rq2_efficiency": Case(EARLY_EXIT, "early_exit_rq2", EXITS),
    "experiments.early_exit_rq3_exit_design": Case(
        f"{EARLY_EXIT} --data {{}} --examples 1", "early_exit_rq3_cifar", EXITS
    ),
    "experiments.early_exit_rq4_early_attack": Case(
        EARLY_EXIT,
        "early_exit_rq4",
        EXITS | {"STEPS": 2, "BASELINES": {"FGSM": early_exit_rq4_early_attack.BASELINES["FGSM"]}},
    ),
    "experiments.energy_accuracy_attacks": Case(
        "--images 2 --networks manidp-digits",
        constants=DEMO | {"GRADIENTS": {"FGM": occupancy.hard(), "LGM": occupancy.sigmoid(3.0)}},
    ),
    "experiments.energy_other_networks": Case(
        f"{ENERGY} --networks sdn-vgg16-digits --weights {{}} --rooms 1 --points 64",
        constants=HARD
        | {"BUDGET": {"steps": 1, "learning_rate": 0.005}, "METHODS": {"ILFO": energy_other_networks.METHODS["ILFO"]}},
    ),
    "experiments.gradauto_figures": Case(ENERGY),
    "experiments.gradauto_reach": Case(f"{ENERGY} --networks sact-digits manidp-digits"),
    "experiments.gradauto_table1": Case(f"{ENERGY} --networks sact-digits", constants=HARD),
    "experiments.gradauto_table2": Case(
        ENERGY, constants={"methods": lambda budget, of=gradauto_table2.methods: dict(list(of(budget).items())[-1:])}
    ),
    "experiments.gradauto_table3": Case(ENERGY),
    "experiments.lgm_figure7_layers": Case(
        "--data {} --images 3 --steps 1 --eps 16",
        constants={"answered_rightly": lambda net, variables, images, labels, count: (images, labels), "RESAMPLES": 2},
    ),
    "experiments.lgm_figure9_steps": Case("--data {} --networks skipnet-32-cifar10 --attacks BIM APGD --images 3"),
    "experiments.lgm_figures8_10": Case(
        "--rooms 1 --points 64 --steps 1 --objects 2 --object-steps 1",
        constants=SIZES | {"OBJECT_POINTS": 32, "EPS": (0.02,)},
    ),
    "experiments.lgm_table1_static": Case(
        "--checkpoint none --data {}", constants={"CLAIMED": {1: 31.33}, "NORMALISATIONS": {"LGM loader": None}}
    ),
    "experiments.lgm_table4_rooms": Case(ROOMS, constants=SIZES | {"SETTINGS": {"LGM": voxel.lgm()}}),
    "experiments.lgm_table4_streets": Case("--streets 1 --steps 1 --points 64", constants={"STEP": {0.01: 0.005}}),
    "experiments.lgm_streets": Case(
        "--streets 1 --steps 1 --points 64",
        constants={"STEP": {0.02: 0.01}, "LAMBDAS": (10.0,)},
    ),
    "experiments.lidar_returns": Case(
        "--streets 1 --steps 1 --points 64",
        constants={"DROPPED": (3,), "SPOOFED": (2,), "GRADIENTS": {"LGM": voxel.lgm()}},
    ),
    "experiments.lgm_table5_occupancies": Case(ROOMS, constants=SIZES | {"RELATIONS": {"BI": voxel.bilinear()}}),
    "experiments.lgm_table6_scannet": Case("--scene {}/scene.bin", constants={"STEPS": {0.02: 0.01}}),
    "experiments.lgm_table7_lambda": Case(ROOMS, constants=SIZES),
    "experiments.lgm_table11_objects": Case(
        "--objects 3 --batch 2 --steps 1",
        constants={
            "OBJECT_POINTS": 32,
            "EPS": (0.02,),
            "CLAIMED": {("random moves", ""): (85.73,), ("KNNPert", "LGM"): (82.05,)},
        },
    ),
    "experiments.autoattack_reference": Case(
        "--data {} --checkpoints {} --reference {} --sets resnet20_eps1 --images 3 --steps 2 --queries 3",
        record="autoattack_resnet20_eps1",
    ),
    "experiments.rdi_defended": Case(
        "--checkpoint none --data {} --images 3 --held-back 3 --energy-images 2",
        constants={
            "ATTACKS": {"PGD-20 average": attacks.released.rdi.average(steps=1)},
            "SOFT": {"soft": occupancy.sigmoid},
            "LAMBDAS": (1.0,),
            "STEPS": 1,
            "ENERGY": {"GradAuto": attacks.grad_auto(steps=2)},
        },
    ),
    "experiments.slowformer_avit": Case(
        "--networks sact-digits --images 2 --steps 2",
        constants={"SIZES": (4,), "METHODS": {"random patch": None, "SlowFormer, energy": objectives.energy}},
    ),
    "benchmarks.autoattack": Case(
        "--data {} --checkpoints {} --images 3 --steps 2 --queries 3", record="autoattack_cpu"
    ),
    "benchmarks.bim_resnet32": Case("--data {} --batch 2 --steps 1 --rounds 1 --no-peers", "bim_resnet32_cpu"),
    "benchmarks.all": Case(
        "--only grad_auto deployed",
        constants={
            "PLANS": {
                "grad_auto": every.Plan("--batch 2 --steps 1 --rounds 1 --no-peers", 1),
                "deployed": every.Plan("", 1, ("data",), ("data",)),  # is not given any
            },
            "launch": lambda words, minutes: here(words[2], words[3:]),
            "docs.tables.FOLDERS": tables.FOLDERS,  # as they were, once it is over
        },
    ),
    "benchmarks.compile_time": Case(
        "--networks resnet-110-cifar10 minkunet-34c-scannet --steps 1 --rounds 1",
        "compile_time_cpu",
        {"fresh": compile_time.measure, "POINTS": {"minkunet-34c-scannet": 64}},
    ),
    "benchmarks.deployed": Case(
        "--data {} --images 2 --steps 2 --rounds 1 --figure {}/deployed.png",
        "deployed_cpu",
        {"NETWORKS": ("skipnet-32-cifar10", "sdn-resnet56-cifar10")},
    ),
    "benchmarks.compaction": Case(
        "--data {} --batch 2 --rounds 1",
        "compaction_cpu",
        {"pretrained": lambda name: blocks_of(name), "ROWS": (1, 2), "RATES": (0.5,)},
    ),
    "benchmarks.growth": Case(
        "--steps 1 --rounds 1 --figure {}/growth.png", "growth_cpu", {"SIZES": (1, 2), "POINTS": (32, 64)}
    ),
    "benchmarks.sharding": Case(
        "--network dynconv-digits --devices 2 --images 1 --chunks 2 --steps 1 --rounds 1", "sharding_cpu"
    ),
    "benchmarks.early_attack": Case("--images 2 --loop-images 1 --steps 1 --rounds 1", "early_attack_cpu"),
    "benchmarks.grad_auto": Case("--batch 2 --steps 1 --rounds 1", "grad_auto_cpu"),
    "benchmarks.training_step": Case("--batch 2 --rounds 1 --no-peers", "training_step_cpu", {"LAYERS": ((4, 4),)}),
    "benchmarks.cylinder3d": Case(
        "--scan {}/scan.bin --large {}/scan.bin --repeats 1", "cylinder3d_cpu", {"GROWTH": (30, 60)}
    ),
    "benchmarks.sparse3d": Case(
        "--scannet {}/scene.bin --nuscenes {}/sweep.bin --repeats 1 --growth",
        "sparse3d_cpu",
        {"FORMS": ("34c",), "LAYERS": 1, "GROWTH": (40,)},
    ),
}


def test_every_benchmark_has_its_minutes():
    assert {f"benchmarks.{name}" for name in every.PLANS} | {"benchmarks.all"} == {
        name for name in CASES if name.startswith("benchmarks.")
    }
    assert sum(plan.minutes for plan in every.PLANS.values()) <= 40


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    """A folder with what the scripts ask for: images, scans, weights; they keep trained networks there as well."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
    labels = np.array([9, 0, 1], np.uint8)
    files = [io.BytesIO() for _ in images]
    for file, image in zip(files, images):
        Image.fromarray(image).save(file, format="JPEG")
    content = [file.getvalue() for file in files]
    jpeg = {"jpeg": np.frombuffer(b"".join(content), np.uint8), "offset": np.cumsum([0, *map(len, content)])}
    for split in ("train", "test"):
        np.savez(folder / f"cifar10_lossless_{split}.npz", image=images, label=labels)
        np.savez(folder / f"cifar10_jpeg_{split}.npz", label=labels, **jpeg)
    rng.uniform(0, 1, (60, 6)).astype(np.float32).tofile(folder / "scene.bin")
    rng.uniform(-2, 2, (60, 5)).astype(np.float32).tofile(folder / "sweep.bin")
    rng.uniform(-2, 2, (60, 4)).astype(np.float32).tofile(folder / "scan.bin")
    stands = {"robust_after_apgd_ce": np.array([True, False, True]), "robust": np.array([True, False, False])}
    seconds = {"eps": np.float32(1 / 255), "cpu_seconds": np.ones(4)}
    np.savez(folder / "eval_aa_resnet20_eps1.npz", index=np.arange(3), label=labels, **stands, **seconds)
    save_variables(folder / "seed0-dynconv-digits.msgpack", variables_of(tiny("dynconv-digits")))
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Toy networks, no training, code that is made fast rather than fast; and NaN is a value, the mean of none."""
    untrained = lambda name, *, seed, **_: variables_of(tiny(name), seed)
    monkeypatch.setattr(networks, "create", tiny)
    monkeypatch.setattr(networks, "pretrained", lambda name: (tiny(name), variables_of(tiny(name))))
    monkeypatch.setattr(embedded, "train", mock.create_autospec(embedded.train, side_effect=untrained))
    fit = mock.create_autospec(loop.fit, side_effect=lambda net, *_, seed: variables_of(net, seed))
    monkeypatch.setattr("experiments._early_exit.fit", fit)
    made = lambda name, state: variables_of(tiny(name) if isinstance(name, str) else name)
    monkeypatch.setattr(weights_convert, "convert", made)
    for name in ("autoattack_reference", "cross_table", "lgm_table1_static", "rdi_defended", "sponge_activations"):
        monkeypatch.setattr(f"experiments.{name}.read_state_dict", lambda path: {})
    monkeypatch.setattr(_turns, "PEAK_SIZE", 8)
    monkeypatch.setattr(_turns, "thread_counts", lambda torch: (1,))  # PyTorch's threads wait for others in a loop
    monkeypatch.setattr(_record, "RESULTS", None)  # nothing may be written beside the committed records
    with jax.debug_nans(False):
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
    tables.record.cache_clear()


@pytest.mark.parametrize("toy, network", [(Gated, SkipNet), (Points, MinkUNet), (Points, MinkowskiFCNN)])
def test_toys_take_what_networks_take(toy, network):
    assert list(inspect.signature(toy.__call__).parameters) == list(inspect.signature(network.__call__).parameters)


def test_every_script_has_a_case():
    scripts = {
        f"{folder}.{path.stem}"
        for folder in ("experiments", "benchmarks")
        for path in (ROOT / folder).glob("[a-z]*.py")
    }
    assert scripts == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_runs(name, data, monkeypatch, tmp_path):
    case, (folder, stem) = CASES[name], name.split(".")
    results = tmp_path / "results"
    output = f"--output {results}/{case.record}.json" if folder == "benchmarks" else f"--results {results}"
    output = f"--output {results} --figures {results}" if stem == "all" else output
    options = f"{case.options} {output}".replace("{}", str(data)).split()
    for constant, value in case.constants.items():
        monkeypatch.setattr(constant if "." in constant else f"{name}.{constant}", value)
    status = here(name, options)
    if stem == "all":
        assert status == 1 and [path.name for path in results.iterdir()] == ["grad_auto_cpu.json"]
        return
    if stem == "gradauto_figures":
        assert len(list(results.glob("gradauto_fig[123].png"))) == 3
        return
    path = f"{case.record or stem}.json"
    made, committed = json.loads((results / path).read_text()), ROOT / folder / "results" / path
    assert made["command"].startswith(f"python -m {name} --")
    assert not _record.faults(made)
    if not committed.is_file():  # then a page says that nobody has measured it
        assert any(f"Not measured yet: `python -m {name}" in page.read_text() for page in tables.pages())
        return
    kept = json.loads(committed.read_text())
    assert set(made) == set(kept) - {"note", "earlier"}
    assert set(kept["settings"]) <= set(made["settings"])
    made_keys, kept_keys = ({key for row in record["rows"] for key in row} for record in (made, kept))
    assert made_keys <= kept_keys if folder == "benchmarks" else made_keys == kept_keys


def test_parts_make_one_record(tmp_path):
    common = {"seed": 0, "images": 3}
    for seed, name in enumerate(("a", "b")):
        _record.save(name, [{"who": name}], folder=tmp_path, facts={name: seed}, networks=[name], **common)
    parts = [str(tmp_path / f"{name}.json") for name in "ab"]
    whole = json.loads(_record.join("c", parts, folder=tmp_path).read_text())
    assert whole["rows"] == [{"who": "a"}, {"who": "b"}] and whole["facts"] == {"a": 0, "b": 1}
    assert whole["settings"] == {"images": 3, "networks": ["a", "b"]} and not _record.faults(whole)
    _record.save("b", [{"who": "b"}], folder=tmp_path, **common | {"images": 4}, networks=["b"])
    with pytest.raises(ValueError, match="b.json: got images 4, expected 3"):
        _record.join("c", parts, folder=tmp_path)


def test_rows_of_some_networks_are_renewed(tmp_path):
    rows = [{"who": "a", "n": 0}, {"who": "b", "n": 1}, {"who": "b", "n": 2}, {"who": "c", "n": 3}]
    kept = json.loads(_record.save("t", rows, folder=tmp_path, seed=0).read_text())
    whole = _record.renewed(kept, [{"who": "b", "n": 9}], "who")
    assert [row["n"] for row in whole["rows"]] == [0, 9, 3]
    made = json.loads(_record.save("t", **whole, folder=tmp_path, seed=0).read_text())
    assert [part["commit"] for part in made["earlier"]] == [kept["commit"]] and not _record.faults(made)
