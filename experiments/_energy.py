"""What the experiments on energy attacks share: victims, one attack on a batch, and its row of numbers."""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, networks, occupancy
from dyn_jax.datasets import cifar10_packed, digits, to_float
from dyn_jax.training import embedded
from dyn_jax.types import Occupancy, Variables
from experiments import _record
from experiments._weights import kept
from experiments._weights import load as load_shipped

STEPS, RATE = 300, 0.01
HARD, LEADED = "hard", "straight-through"
OCCUPANCIES: dict[str, Occupancy] = {HARD: occupancy.hard(), LEADED: occupancy.straight_through(1.0)}
LABELS = {
    "skipnet-digits": "SkipNet (SP)",
    "skipnet-rl-digits": "SkipNet+HRL",
    "sact-digits": "SACT",
    "manidp-digits": "ManiDP",
    "dynconv-digits": "DynConv",
    "skipnet-32-cifar10": "SkipNet-32",
    "sact-32-cifar10": "SACT-32",
    "manidp-32-cifar10": "ManiDP-32",
    "dynconv-32-cifar10": "DynConv-32",
    "sdn-resnet56-cifar10": "SDN ResNet-56",
    "sdn-vgg16-digits": "SDN VGG-16",
    "sdn-resnet56-digits": "SDN ResNet-56",
}


def parser(description: str, images: int, names: str | Sequence[str] | None) -> argparse.ArgumentParser:
    """The options that the experiments share; one name is an option ``--network``, several are ``--networks``."""
    result = argparse.ArgumentParser(description=description.splitlines()[0])
    result.add_argument("--images", type=int, default=images, help="test images of the digits, at most 500")
    result.add_argument("--steps", type=int, default=STEPS)
    result.add_argument("--data", default=None, help="folder of CIFAR-10: its images and networks, not the digits")
    result.add_argument("--results", default=None, help="folder for the JSON; default: experiments/results")
    result.add_argument(
        "--weights", default=None, help="folder of sdn-*-digits.msgpack, made there if they are missing (early exits)"
    )
    if isinstance(names, str):
        result.add_argument("--network", default=names)
    else:
        result.add_argument("--networks", nargs="+", default=names)
    return result


def load(name: str, weights: str | None = None) -> tuple[nn.Module, Variables]:
    """A network of the package, or an early-exit network from `weights`, trained there first if it is missing."""
    if name in networks.PRETRAINED:
        return load_shipped(name)
    if weights is None:
        raise ValueError(f"--weights: got none, expected a folder for {name}.msgpack: early-exit weights do not ship")
    path = pathlib.Path(weights) / f"{name}.msgpack"
    return networks.create(name), kept(path, partial(embedded.train, name, seed=0))


def data(count: int, folder: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first test images and their labels: digits, or where a folder is given CIFAR-10 as JPEG."""
    test = digits("test") if folder is None else cifar10_packed(folder, "test")
    return to_float(test.images[:count]), test.labels[:count]


def save(name: str, rows: list[dict], columns: Sequence[str], arguments: argparse.Namespace, **facts: Any) -> None:
    """Prints the table and writes the record ``NAME``, or ``NAME_cifar`` of CIFAR-10's images."""
    print(_record.table(rows, list(columns)))
    small = arguments.data is None
    data = "handwritten digits, test" if small else "CIFAR-10 test images as JPEG (lossy)"
    facts = {"data": data, "images": arguments.images, "seed": 0} | facts
    print(_record.save(name if small else f"{name}_cifar", rows, folder=arguments.results, **facts))


def budget(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of every attack on the energy."""
    return {"steps": arguments.steps, "learning_rate": RATE}


def progress(rows: list[dict], columns: Sequence[str]) -> None:
    """Prints the last row."""
    print(_record.table(rows[-1:], list(columns)).splitlines()[-1], flush=True)


def runner(
    net: nn.Module, attack: attacks.Attack | Callable[[jax.Array], attacks.Attack], how: Occupancy
) -> Callable[..., attacks.AttackResult]:
    """Jitted ``run(variables, images, labels[, constant])``: gradients under `how`, judged on the deployed network.

    `attack` is one, or makes one of the constant.
    """

    def run(variables: Variables, x: jax.Array, y: jax.Array, constant: jax.Array | None = None):
        made = attack if constant is None else attack(constant)
        forward = partial(net.apply, variables, occupancy=how)
        victim = forward if how is OCCUPANCIES[HARD] else partial(net.apply, variables, occupancy=OCCUPANCIES[HARD])
        return made(forward, x, y, victim=victim)

    return jax.jit(run)


def numbers(result: attacks.AttackResult, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The measures of one attack on a batch; percentages, and the standard error over images of the recovery."""
    clean, after = result.trace_clean, result.trace_adversarial
    before = np.asarray(metrics.executed_macs(clean))
    dense = metrics.dense_macs(clean)
    saved = dense - before
    rows = saved > 1e-6 * dense
    shares = (np.asarray(metrics.executed_macs(after)) - before)[rows] / saved[rows]
    moved = np.asarray(jnp.abs(result.adversarial - images).max((1, 2, 3))) > 0
    quality = np.asarray(metrics.psnr(result.adversarial, jnp.asarray(images)))[moved]
    off = np.asarray(metrics.occupancy_rate(after)) < 1
    return {
        "saved before %": 100 * float(saved.mean() / dense),
        "recovery %": 100 * float(shares.mean()),
        "standard error": 100 * float(shares.std(ddof=1) / np.sqrt(len(shares))),
        "recovery, ratio %": 100 * float(metrics.recovery(clean, after, average="ratio")),
        "recovery, units, ratio %": 100 * float(metrics.recovery(clean, after, count="units", average="ratio")),
        "fully recovered %": 100 * float((shares > 0.999).mean()),
        "PSNR dB": float(quality.mean()) if len(quality) else float("inf"),
        "accuracy kept %": 100 * float(metrics.accuracy_kept(result.logits_clean, result.logits_adversarial, labels)),
        "switched off per image": float(np.asarray(result.record.switched_off).sum(1).mean()),
        "zero gradient %": 100 * float(np.asarray(result.record.zero_gradient).mean()),
        "projected %": 100 * float(np.asarray(result.record.projected).mean()),
        "units never all on": int(off.sum()),
    }


def timed(run: Callable[..., attacks.AttackResult], *arguments: Any) -> tuple[attacks.AttackResult, float]:
    """The result on the host, and the seconds with compilation."""
    began = time.perf_counter()
    result = jax.tree.map(np.asarray, run(*arguments))
    return result, time.perf_counter() - began
