"""The cross table: every attack on every network that ships, what it does to the answers and to the work.

    python -m experiments.cross_table [--data FOLDER] [--checkpoints FOLDER] [--networks ...] [--images 64] [--steps 40]

Without --data (cifar10_{lossless,jpeg}_{train,test}.npz) the networks on CIFAR-10 are left out; with --checkpoints the
published static ResNets (by their activations) and RDI-ResNet-38 stand beside them. Attacks on the answers are run
under FGM and LGM, whose occupancy is chosen on training images; attacks on the energy under the hard occupancy. All
attacks that follow a sign are one compiled step: network, images, objective and gradient are its arguments.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, networks, objectives
from dyn_jax.networks.sparse import SparseResNet
from dyn_jax.types import Output, Variables
from experiments import _cross_points, _record, _run, _weights
from experiments._paired import paired
from experiments.cifar_fgm_lgm import FGM, LGM, Leaded
from experiments.slowformer_avit import patch_of

PUBLISHED = ("sparse-resnet-20-cifar10", "sparse-resnet-56-cifar10", "rdi-resnet38-cifar10")
"""What does not ship but is below --checkpoints."""
EPS = {"digits": 8 / 255, "cifar10": 2 / 255}  # of the attacks on the answers
SLOW_EPS, SLOTH_STEP, PATCH = 8 / 255, 0.002, 8
CANDIDATES = [(kind, lam) for kind in LGM for lam in (1.0, 10.0)]
OBJECTIVES: dict[str, objectives.Objective] = {
    "ce": objectives.resolve("ce"),
    "energy": objectives.energy(),
    "exits": objectives.unsure_exits(),
    "norm": objectives.activation_norm(),
    "density": objectives.activation_density(),
    "routes": objectives.other_experts(),
    "load": objectives.expert_load(0),
}
COLUMNS = ("network", "attack", "gradient", "accuracy before %", "accuracy after %", "units switched %")
COLUMNS = (*COLUMNS, "work before %", "work after %", "recovery %", "PSNR dB", "increase of multiply-adds %", "refused")


class Victim:
    """A network with (images, labels) of test and of training, its compiled forward pass and one step along a sign."""

    def __init__(self, name: str, net: nn.Module, variables: Variables, *images: tuple[np.ndarray, np.ndarray]) -> None:
        self.images = dict(zip(("test", "held"), images))
        self.x, self.y = self.images["test"]
        self.name, self.net, self.eps = name, net, EPS[name.rpartition("-")[2]]
        self.forward = partial(net.apply, variables)
        self.run = jax.jit(self.forward)
        self.before = self.run(self.x)
        self.said = {which: np.argmax(self.run(x).logits, 1) == y for which, (x, y) in self.images.items()}
        self.right = self.said["test"]
        self.known = {name: _works(objective, self.before) for name, objective in OBJECTIVES.items()}
        if not isinstance(net, SparseResNet):
            reason = "the units are gates, not activations (sparse-resnet-*)"
            self.known |= {"norm": reason, "density": reason}
        names = [name for name, refused in self.known.items() if refused is None]

        def mixed(weights: jax.Array, output: Output, labels: jax.Array, targets: Any = None) -> jax.Array:
            values = [OBJECTIVES[name](output, labels, targets) for name in names]
            return sum((w * value for w, value in zip(weights, values)), start=jnp.zeros_like(output.logits[:, 0]))

        @jax.jit
        def step(x, y, start, eps, size, gate: Leaded, weights):
            forward = partial(net.apply, variables, occupancy=gate)
            attack = attacks.bim(eps, size, 1, objective=partial(mixed, weights), attack_all=True)
            return attack(forward, x, y, start=start).adversarial

        self.step = step
        self.weights = {name: np.array([name == other for other in names], np.float32) for name in names}

    def ascended(
        self, objective: str, eps: float, size: float, steps: int, gate: Leaded = FGM, *, drawn=0.0, which: str = "test"
    ) -> jax.Array:
        """Images after `steps` of `attacks.bim` from a start in the ball of radius `drawn`.

        ValueError: the network has nothing that the objective could look at.
        """
        if self.known[objective] is not None:
            raise ValueError(self.known[objective])
        x, y = self.images[which]
        at = jnp.clip(x + drawn * jax.random.uniform(jax.random.key(0), x.shape, minval=-1), 0, 1)
        for _ in range(steps):
            at = self.step(x, y, at, jnp.float32(eps), jnp.float32(size), gate, self.weights[objective])
        return at

    def left(self, images: jax.Array, which: str) -> np.ndarray:
        """[n] bool, answered rightly before, and still after the attack."""
        return self.said[which] & (np.argmax(self.run(images).logits, 1) == self.images[which][1])


def _works(objective: objectives.Objective, output: Output) -> str | None:
    """Why an objective cannot be asked of the network; None where it can."""
    try:
        jax.eval_shape(lambda out: objective(out, jnp.zeros(len(out.logits), jnp.int32), None), output)
    except (ValueError, TypeError) as error:
        return str(error).removeprefix("forward: ")
    return None


Search = Callable[[Victim, argparse.Namespace], Any]


def _adam(factory: Callable[..., attacks.Attack], **options: Any) -> Search:
    """Images after an attack on all of them, by what the network itself says."""

    def search(victim: Victim, how: argparse.Namespace) -> jax.Array:
        attack = factory(steps=how.steps, **options)
        return jax.jit(lambda x: attack(victim.forward, x, key=jax.random.key(0)).adversarial)(victim.x)

    return search


def _patched(method: str) -> Search:
    def search(victim: Victim, how: argparse.Namespace) -> jax.Array:
        patch = patch_of(victim.net, victim.forward, victim.images["held"][0], PATCH, method, how.steps, 0)
        return attacks.paste_at(jnp.asarray(victim.x), patch)

    return search


def _slowed(objective: str) -> Search:
    return lambda victim, how: victim.ascended(objective, SLOW_EPS, SLOTH_STEP, how.steps)


ANSWERS: dict[str, tuple[int, float]] = {"FGSM": (1, 0.0), "BIM-10": (10, 0.0), "PGD-10": (10, 1.0)}
"""Attack on the answers -> steps, and radius of its start in units of eps. A step of several is a quarter of eps."""
BASELINES: dict[str, Search] = {
    "noise": lambda victim, how: _run.signs(victim.x, victim.eps),
    "noise 8/255": lambda victim, how: _run.signs(victim.x, SLOW_EPS),
    "random patch": _patched("random patch"),
}
ENERGY: dict[str, Search] = {
    "slowdown 8/255": _slowed("energy"),
    "GradAuto": _adam(attacks.grad_auto, learning_rate=0.01),
    "ILFO": _adam(attacks.ilfo, learning_rate=0.01),
    "SlowFormer patch": _patched("SlowFormer, energy"),
    "DeepSloth 8/255": _slowed("exits"),
    "Early Attack": _adam(attacks.early_attack),
    "sponge norm 8/255": _slowed("norm"),
    "density 8/255": _slowed("density"),
    "experts' routes 8/255": _slowed("routes"),
    "experts' load 8/255": _slowed("load"),
}


def row(victim: Victim, attack: str, gradient: str, images: Any) -> dict[str, Any]:
    """Numbers of one attack. An attack on the answers (with a gradient) leaves alone what was wrong before."""
    if gradient:
        images = jnp.where(victim.right[:, None, None, None], images, victim.x)
    before, after = victim.before, victim.run(images)
    numbers: dict[str, Any] = {"network": victim.name, "attack": attack, "gradient": gradient}
    numbers["accuracy before %"] = 100 * float(victim.right.mean())
    numbers["accuracy after %"] = 100 * float(np.mean(np.argmax(after.logits, 1) == victim.y))
    numbers["units switched %"] = 100 * float(metrics.architecture_change(before.trace, after.trace))
    dense = metrics.dense_macs(before.trace)
    for when, out in (("before", before), ("after", after)):
        numbers[f"work {when} %"] = 100 * float(jnp.mean(metrics.executed_macs(out.trace))) / dense
    constant = all(unit.constant for unit in before.trace.units)
    back = math.nan if constant else float(metrics.recovery(before.trace, after.trace))
    numbers["recovery %"] = 100 * back if math.isfinite(back) else None
    quality = np.asarray(metrics.psnr(images, jnp.asarray(victim.x)))
    numbers["PSNR dB"] = float(quality[np.isfinite(quality)].mean()) if np.isfinite(quality).any() else None
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in numbers.items()}


def answer_rows(victim: Victim) -> Iterator[dict[str, Any]]:
    """FGSM, BIM, PGD: FGM, and the LGM that leaves least of the training images."""
    for attack, (steps, radius) in ANSWERS.items():
        size = victim.eps if steps == 1 else victim.eps / 4
        run = partial(victim.ascended, "ce", victim.eps, size, steps, drawn=radius * victim.eps)
        fgm = run(FGM)
        kept = [victim.left(run(LGM[kind](lam), which="held"), "held").mean() for kind, lam in CANDIDATES]
        kind, lam = CANDIDATES[int(np.argmin(kept))]
        lgm = run(LGM[kind](lam))
        both = paired(victim.left(fgm, "test"), victim.left(lgm, "test"))
        yield from (row(victim, attack, "FGM", fgm), row(victim, attack, f"{kind} {lam:g}", lgm) | both)


def energy_rows(victim: Victim, how: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Baselines and attacks on the energy; the reason where one is refused."""
    for attack, search in (BASELINES | ENERGY).items():
        try:
            yield row(victim, attack, "", search(victim, how))
        except (ValueError, TypeError) as error:
            refused = str(error).removeprefix("forward: ")
            yield {"network": victim.name, "attack": attack, "gradient": "", "refused": refused}


def names_of(how: argparse.Namespace) -> list[str]:
    """The networks whose turn it is, those of points last."""
    names = [name for name in networks.PRETRAINED if name.endswith("-digits")]
    if how.data:
        names += [name for name in networks.PRETRAINED if name.endswith("-cifar10")]
        names += list(PUBLISHED) if how.checkpoints else []
    names = [*names, *_cross_points.NETWORKS] if how.networks is None else how.networks
    return sorted(names, key=lambda name: name in _cross_points.NETWORKS)


def rows_of(name: str, how: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What every attack does to one network."""
    if name in _cross_points.NETWORKS:
        return _cross_points.rows_of(name)
    made = _weights.published(name, how.checkpoints) if name in PUBLISHED else networks.pretrained(name)
    folder = None if name.endswith("-digits") else how.data
    parts = (_run.first(_run.images_of(split, folder), how.images) for split in ("test", "train"))
    victim = Victim(name, *made, *parts)
    return itertools.chain(answer_rows(victim), energy_rows(victim, how))


def main() -> None:
    parser = _run.parser(__doc__, data=None, checkpoints=None, images=64, steps=40)
    parser.add_argument("--networks", nargs="*", default=None, help="default: all there are, of images and points")
    parser.add_argument("--renew", metavar="RECORD", help="of the same settings: rows of other networks stay")
    how = parser.parse_args()
    kept = json.loads(pathlib.Path(how.renew).read_text()) if how.renew else None
    for key in ("images", "steps") if kept else ():
        if kept["settings"][key] != getattr(how, key):
            raise ValueError(f"--{key}: got {getattr(how, key)}, expected {kept['settings'][key]} as in {how.renew}")
    rows: list[dict[str, Any]] = []

    facts = {"data": "test digits; CIFAR-10 test images as JPEG (lossy)", "eps": EPS}
    facts |= {"patch": PATCH, "step of 8/255": SLOTH_STEP, "Adam's rate": 0.01, "seed": 0}
    options = argparse.Namespace(networks=None if kept else how.networks, images=how.images, steps=how.steps)
    for name in names_of(how):
        print(name, flush=True)
        rows += _run.shown(rows_of(name, how))
        whole = _record.renewed(kept, rows, "network") if kept else {"rows": rows}
        print(_record.save("cross_table", **whole, folder=how.results, arguments=options, **facts))
        jax.clear_caches()
    print(_record.table(rows, list(COLUMNS)))


if __name__ == "__main__":
    main()
