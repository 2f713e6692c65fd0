"""What the experiments on energy attacks share: victims, one attack on a batch, and its row of numbers."""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, networks, occupancy
from dyn_jax.training import embedded
from dyn_jax.types import Occupancy, Trace, Variables
from experiments import _run
from experiments._weights import kept

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


def parser(doc: str | None, images: int, **names: Any) -> argparse.ArgumentParser:
    """The options that the experiments share; `names` is the default of ``network`` or of ``networks``."""
    result = _run.parser(doc, images=images, steps=STEPS, data=None, **names)
    result.add_argument("--weights", metavar="FOLDER", help="of sdn-*-digits.msgpack, made there if they are missing")
    return result


def load(name: str, weights: str | None = None) -> tuple[nn.Module, Variables]:
    """A network of the package, or an early-exit network from `weights`, trained there first if it is missing."""
    if name in networks.PRETRAINED:
        return networks.pretrained(name)
    if weights is None:
        raise ValueError(f"--weights: got none, expected a folder for {name}.msgpack: early-exit weights do not ship")
    path = pathlib.Path(weights) / f"{name}.msgpack"
    return networks.create(name), kept(path, partial(embedded.train, name, seed=0))


class Victim(NamedTuple):
    """A network and the images that it is attacked on."""

    net: nn.Module
    variables: Variables
    images: np.ndarray
    labels: np.ndarray

    def runner(self, attack: Any, gradient: str = HARD) -> Callable[..., attacks.AttackResult]:
        """Jitted ``run(variables, images, labels[, constant])``, judged on the deployed network.

        `attack` is one, or makes one of the constant; `gradient` is of `OCCUPANCIES`.
        """

        def run(variables: Variables, x: jax.Array, y: jax.Array, constant: jax.Array | None = None):
            made = attack if constant is None else attack(constant)
            forward = partial(self.net.apply, variables, occupancy=OCCUPANCIES[gradient])
            hard = partial(self.net.apply, variables, occupancy=OCCUPANCIES[HARD])
            return made(forward, x, y, victim=forward if gradient == HARD else hard)

        return jax.jit(run)

    def timed(self, run: Callable[..., attacks.AttackResult], *constant: Any) -> tuple[attacks.AttackResult, float]:
        """The result on the host, and the seconds with compilation."""
        began = time.perf_counter()
        result = jax.tree.map(np.asarray, run(self.variables, self.images, self.labels, *constant))
        return result, time.perf_counter() - began

    def row(self, attack: attacks.Attack, gradient: str = HARD) -> dict[str, float]:
        """The `numbers` of an attack, and its seconds."""
        result, seconds = self.timed(self.runner(attack, gradient))
        return {**numbers(result, self.images, self.labels), "seconds": seconds}


def victims(how: argparse.Namespace, *names: str) -> Iterator[tuple[str, Victim]]:
    """Networks by name, with test images: digits, or where a folder is given CIFAR-10 as JPEG."""
    images = _run.first(_run.images_of("test", how.data), how.images)
    return ((name, Victim(*load(name, how.weights), *images)) for name in names)


def finish(name: str, rows: list[dict], columns: Sequence[str], how: argparse.Namespace, **facts: Any) -> None:
    """Prints the table and writes the record ``NAME``, or ``NAME_cifar`` of CIFAR-10's images."""
    small = how.data is None
    data = "handwritten digits, test" if small else "CIFAR-10 test images as JPEG (lossy)"
    facts = {"data": data, "images": how.images, "seed": 0} | facts
    _run.finish(name if small else f"{name}_cifar", rows, how, columns, **facts)


def budget(how: argparse.Namespace) -> dict[str, Any]:
    """Of every attack on the energy."""
    return {"steps": how.steps, "learning_rate": RATE}


def shares(clean: Trace, after: Trace) -> tuple[np.ndarray, float, float]:
    """(shares of the saved multiply-adds that came back, standard error of their mean in percent, what was saved of all
    in percent); shares are of the images that saved some."""
    before, dense = np.asarray(metrics.executed_macs(clean)), metrics.dense_macs(clean)
    saved = dense - before
    rows = saved > 1e-6 * dense
    back = (np.asarray(metrics.executed_macs(after)) - before)[rows] / saved[rows]
    return back, standard_error(back), 100 * float(saved.mean() / dense)


def standard_error(values: np.ndarray) -> float:
    """Of the mean, in percent."""
    return 100 * float(values.std(ddof=1) / np.sqrt(len(values)))


def numbers(result: attacks.AttackResult, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The measures of one attack on a batch; percentages, and the standard error over images of the recovery."""
    clean, after = result.trace_clean, result.trace_adversarial
    back, error, saved = shares(clean, after)
    moved = np.asarray(jnp.abs(result.adversarial - images).max((1, 2, 3))) > 0
    quality = np.asarray(metrics.psnr(result.adversarial, jnp.asarray(images)))[moved]
    off = np.asarray(metrics.occupancy_rate(after)) < 1
    return {
        "saved before %": saved,
        "recovery %": 100 * float(back.mean()),
        "standard error": error,
        "recovery, ratio %": 100 * float(metrics.recovery(clean, after, average="ratio")),
        "recovery, units, ratio %": 100 * float(metrics.recovery(clean, after, count="units", average="ratio")),
        "fully recovered %": 100 * float((back > 0.999).mean()),
        "PSNR dB": float(quality.mean()) if len(quality) else float("inf"),
        "accuracy kept %": 100 * float(metrics.accuracy_kept(result.logits_clean, result.logits_adversarial, labels)),
        "switched off per image": float(np.asarray(result.record.switched_off).sum(1).mean()),
        "zero gradient %": 100 * float(np.asarray(result.record.zero_gradient).mean()),
        "projected %": 100 * float(np.asarray(result.record.projected).mean()),
        "units never all on": int(off.sum()),
    }
