"""Sponge examples on published static ResNets: how much more energy does an accelerator that skips zeros need?

    python -m experiments.sponge_activations --data FOLDER --checkpoints FOLDER [--images 32] [--steps 50]

Every ReLU is an occupancy (``sparse-resnet-*``); the metric is the sponge paper's energy model, beside multiply-adds
and the share of activations that are not zero. Source: Shumailov et al. 2021.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, objectives
from dyn_jax.datasets import cifar10_lossless
from dyn_jax.types import Output
from experiments import _run, _weights

NETWORKS = ["sparse-resnet-20-cifar10", "sparse-resnet-56-cifar10"]
EPS = 8 / 255
OBJECTIVES = {
    "norm (sponge)": objectives.activation_norm(),
    "density": objectives.activation_density(),
    "scores (energy)": objectives.energy(),
}


def row(before: Output, after: Output, labels: np.ndarray, parameters: int) -> dict[str, float | None]:
    """Numbers of one batch; the ratio of energies is taken image by image."""
    energy = [np.asarray(metrics.accelerator_energy(out.trace, parameters)) for out in (before, after)]
    more = 100 * (energy[1] / energy[0] - 1)
    macs = [float(jnp.mean(metrics.executed_macs(out.trace))) for out in (before, after)]
    on = sum(float(jnp.sum(unit.on)) for unit in after.trace.units) / sum(unit.on.size for unit in after.trace.units)
    return {
        "energy, uJ": float(energy[1].mean()) / 1e6,
        "more energy %": float(more.mean()),
        "standard error": float(more.std(ddof=1) / np.sqrt(len(more))) if len(more) > 1 else None,
        "more multiply-adds %": 100 * (macs[1] / macs[0] - 1),
        "not zero %": 100 * on,
        "accuracy %": 100 * float(metrics.accuracy(after.logits, jnp.asarray(labels))),
    }


def rows_of(name: str, checkpoints: str, x: jax.Array, y: np.ndarray, steps: int) -> Iterator[dict]:
    net, variables = _weights.published(name, checkpoints)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    forward = partial(net.apply, variables)
    run = jax.jit(forward)
    before = run(x)
    moved = {"clean": x, "noise, +-eps": _run.signs(x, EPS)}
    moved["uniform pixels"] = jax.random.uniform(jax.random.key(0), x.shape)
    for kind, objective in OBJECTIVES.items():
        attack = attacks.bim(EPS, 1 / 255, steps, objective=objective, attack_all=True)
        moved[kind] = jax.jit(lambda x, a=attack: a(forward, x).adversarial)(x)
    for kind, images in moved.items():
        yield {"network": name, "input": kind, **row(before, run(images), y, parameters)}


def main() -> None:
    parser = _run.parser(__doc__, "data", "checkpoints", images=32, steps=50)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    how = parser.parse_args()
    x, y = _run.first(cifar10_lossless(how.data, "test"), how.images)
    made = (row for name in how.networks for row in rows_of(name, how.checkpoints, jnp.asarray(x), y, how.steps))
    facts = {"data": "CIFAR-10, original test images", "eps": EPS, "step": 1 / 255}
    _run.finish("sponge_activations", _run.shown(made), how, arguments=how, seed=0, **facts)


if __name__ == "__main__":
    main()
