"""RDI-ResNet-38, a defended early-exit network: its paper's attacks, FGM against LGM on its exits, attacks on energy.

    python -m experiments.rdi_defended --checkpoint checkpoint_60000.pth.tar --data FOLDER

The published weights (converted, not shipped: their repository names no licence; needs the `convert` extra) on original
CIFAR-10 test images. ``claimed`` is what the authors' code gives on the same 500 images. Thresholds of the exits: by
the authors' rule on the test images, for the comparison with their numbers; by the same rule on held-back training
images for everything else, which also choose lambda. About 40 minutes on two cores for 500 images.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, occupancy
from dyn_jax.attacks.released import rdi as released
from dyn_jax.datasets import cifar10_lossless, cifar10_packed
from dyn_jax.networks import rdi
from experiments import _record, _run, _weights
from experiments._paired import percent

NETWORK, BATCH_SIZE, EPS, STEPS = "rdi-resnet38-cifar10", 100, "8/255", 20
ATTACKS = {
    "clean": None,
    "PGD-20 average": released.average(),
    "PGD-20 max-average": released.max_average(),
    "PGD-20 single, exit 0": released.single(0),
    "PGD-20 single, exit 6": released.single(6),
}
CLAIMED = {  # accuracy of every exit, of the answer, cost by the released table
    "clean": ((73.4, 74.2, 80.4, 82.6, 81.2, 85.2, 84.0), 83.8, 53.50),
    "PGD-20 average": ((18.2, 22.0, 34.8, 36.2, 44.6, 43.4, 42.2), 40.0, 59.47),
    "PGD-20 max-average": ((38.8, 40.8, 46.4, 47.8, 47.2, 44.6, 43.8), 41.8, 56.89),
    "PGD-20 single, exit 0": ((5.6, 45.4, 60.8, 65.2, 68.6, 76.6, 74.6), 68.2, 56.44),
    "PGD-20 single, exit 6": ((62.2, 61.6, 62.8, 61.4, 60.0, 43.4, 25.6), 49.8, 58.30),
}
SOFT = {"straight-through": occupancy.straight_through, "soft": occupancy.sigmoid}
LAMBDAS = (1.0, 5.0, 25.0)
ENERGY = {
    "GradAuto": attacks.grad_auto(steps=100, learning_rate=0.01),
    "ILFO": attacks.ilfo(steps=100, learning_rate=0.01),
    "PGD-20 average": released.average(),
    "Early Attack": attacks.early_attack(steps=200, learning_rate=0.02),
}


def kept(result: attacks.AttackResult) -> dict[str, jax.Array]:
    """What the tables need of a batch."""
    trace = result.trace_adversarial
    return {
        "answer": jnp.argmax(result.logits_adversarial, axis=1),
        "exits": metrics.exits.predictions(trace),
        "index": metrics.exits.exit_index(trace),
        "executed": metrics.executed_macs(trace),
        "before": metrics.executed_macs(result.trace_clean),
        "moved": metrics.exits.exit_change(result.trace_clean, trace),
    }


def run(forward, images, labels, attack: Any, victim=None) -> dict[str, np.ndarray]:
    """`kept` of all images; without an attack, of one that moves nothing."""
    attack = attacks.fgsm(0.0, attack_all=True) if attack is None else attack
    batched = attacks.Batched(attack, forward, victim=victim, batch_size=BATCH_SIZE, keep=kept)
    return batched(images, labels, key=jax.random.key(0))


def limits_of(exits: np.ndarray) -> tuple[float, ...]:
    """The authors' thresholds by their rule, from the logits of these images."""
    return tuple(map(float, rdi.quantile_thresholds(exits, rdi.OFFSETS[: exits.shape[1] - 1])))


def reference(apply, images, labels) -> Iterator[dict[str, Any]]:
    """The authors' table, claimed beside measured."""
    parts = range(0, len(images), BATCH_SIZE)
    exits = np.concatenate([apply(images[i : i + BATCH_SIZE]).trace.exits for i in parts])
    limits = limits_of(exits)
    for name, attack in ATTACKS.items():
        got = run(partial(apply, threshold=limits), images, labels, attack)
        answer, error = percent(got["answer"] == labels)
        row = {"part": "reference", "input": name, "answer %": answer, "standard error": error}
        row["claimed answer %"], row["claimed exits %"] = CLAIMED[name][1], list(CLAIMED[name][0])
        row["exits %"] = [percent(column == labels)[0] for column in got["exits"].T]
        row["cost"] = round(float(np.asarray(rdi.RELEASED_COSTS)[got["index"]].mean()), 2)
        yield row | {"claimed cost": CLAIMED[name][2]}


def leaded(apply, limits, chosen_on, images, labels) -> Iterator[dict[str, Any]]:
    """PGD-20 on the network's answer: FGM, and LGM with the lambda that is best on held-back images."""
    attack = attacks.pgd(EPS, "2/255", STEPS)
    victim = partial(apply, threshold=limits)

    def accuracy(gate, x, y) -> np.ndarray:
        return run(partial(apply, threshold=limits, occupancy=gate), x, y, attack, victim)["answer"] == y

    fgm = accuracy(occupancy.hard(), images, labels)
    yield {"part": "lgm", "gradient": "FGM", "lambda": None, "after %": percent(fgm)[0], "se": percent(fgm)[1]}
    for name, make in SOFT.items():
        lam = min(LAMBDAS, key=lambda lam, make=make: float(accuracy(make(lam), *chosen_on).mean()))
        right = accuracy(make(lam), images, labels)
        only_fgm, only_lgm = int(np.sum(right & ~fgm)), int(np.sum(fgm & ~right))
        row = {"part": "lgm", "gradient": f"LGM {name}", "lambda": lam}
        row |= {"after %": percent(right)[0], "se": percent(right)[1]}
        yield row | {"broken by FGM only": only_fgm, "broken by LGM only": only_lgm}


def energy(apply, limits, images, labels) -> Iterator[dict[str, Any]]:
    """Attacks on the energy, through hard exits."""
    for name, attack in ENERGY.items():
        got = run(partial(apply, threshold=limits), images, labels, attack)
        dense = metrics.dense_macs(jax.eval_shape(partial(apply, threshold=limits), images[:1]).trace)
        saved = np.maximum(dense - got["before"], 0)
        some = saved > 0
        row = {"part": "energy", "attack": name, "images": len(labels)}
        row["recovered %"] = round(100 * float(np.mean((got["executed"] - got["before"])[some] / saved[some])), 1)
        row["exits later"] = round(float(np.mean(got["moved"])), 2)
        yield row | {"answer %": percent(got["answer"] == labels)[0]}


def main() -> None:
    parser = _run.parser(__doc__, "data", images=500)
    parser.add_argument("--checkpoint", required=True, help="the published weights")
    parser.add_argument("--held-back", type=int, default=200, help="training images that choose thresholds and lambda")
    parser.add_argument("--energy-images", type=int, default=100)
    how = parser.parse_args()
    test = cifar10_lossless(how.data, "test")
    images, labels = _run.first(test, how.images)
    held = _run.first(cifar10_packed(how.data, "held_back"), how.held_back)
    net, variables = _weights.published(NETWORK, how.checkpoint)
    apply = partial(net.apply, variables)
    limits = limits_of(np.asarray(jax.jit(apply)(held[0]).trace.exits))
    few = images[: how.energy_images], labels[: how.energy_images]
    parts = reference(apply, images, labels), leaded(apply, limits, held, images, labels), energy(apply, limits, *few)
    rows = _run.shown(itertools.chain(*parts))
    facts = {"data": test.name, "eps": EPS, "lambdas": list(LAMBDAS), "thresholds": [round(t, 4) for t in limits]}
    print(_record.save("rdi_defended", rows, folder=how.results, arguments=how, seed=0, **facts))


if __name__ == "__main__":
    main()
