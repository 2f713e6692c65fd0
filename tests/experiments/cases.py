"""What each experiment and benchmark is given to run in seconds: options, toy networks, other constants."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
from toys import Gated, Points, Routed, Stages

from benchmarks import all as every
from benchmarks import compile_time, sparse_stack
from docs import tables
from dyn_jax import attacks, objectives, occupancy
from dyn_jax.networks import rdi
from dyn_jax.networks.dynconv import DynConv
from dyn_jax.networks.sdn import SDN
from dyn_jax.networks.skipnet import SkipNet
from dyn_jax.occupancy import voxel
from experiments import _early_exit, cross_table, early_exit_rq4_early_attack, energy_other_networks, gradauto_table2
from experiments.cifar_fgm_lgm import Setting


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
UNTRAINED = {
    "fit": lambda net, *_, seed: variables_of(net, seed),
    "small": lambda data: data,
    "SIZES": {},
    "JUDGE_STEPS": 1,
}
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
        constants=UNTRAINED,
    ),
    "experiments.deepsloth_adversarial": Case(
        "--seeds 1 --epochs 1 --examples 3",
        constants=UNTRAINED | {"HELD": 3, "THRESHOLDS": (0.5, 0.95)},
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
        {"pretrained": lambda name: blocks_of(name), "ROWS": (2,), "RATES": (0.5,)},
    ),
    "benchmarks.growth": Case(
        "--steps 1 --rounds 1 --figure {}/growth.png", "growth_cpu", {"SIZES": (1, 2), "POINTS": (32, 64)}
    ),
    "benchmarks.sharding": Case(
        "--network dynconv-8-cifar10 --devices 2 --images 1 --chunks 2 --steps 1 --rounds 1", "sharding_cpu"
    ),
    "benchmarks.early_attack": Case("--images 2 --loop-images 1 --steps 1 --rounds 1", "early_attack_cpu"),
    "benchmarks.grad_auto": Case("--batch 2 --steps 1 --rounds 1", "grad_auto_cpu"),
    "benchmarks.training_step": Case("--batch 2 --rounds 1 --no-peers", "training_step_cpu", {"LAYERS": ((4, 4),)}),
    "benchmarks.cylinder3d": Case(
        "--scan {}/scan.bin --large {}/scan.bin --repeats 1", "cylinder3d_cpu", {"GROWTH": (30, 60)}
    ),
    "benchmarks.sparse3d": Case(
        "--scannet {}/scene.bin --repeats 1 --growth", "sparse3d_cpu", {"FORMS": ("34c",), "GROWTH": (40,)}
    ),
    "benchmarks.sparse_stack": Case(
        "--nuscenes {}/sweep.bin --repeats 1",
        "sparse_stack_cpu",
        {"LAYERS": 1, "ROUNDS": 2, "apart": lambda cores, *arguments: sparse_stack.measured(*arguments, len(cores))},
    ),
}
