"""Sponge examples on published static ResNets: how much more energy does an accelerator that skips zeros need?

    python -m experiments.sponge_activations --data FOLDER --checkpoints FOLDER [--images 32] [--steps 50]

Every ReLU is an occupancy (``sparse-resnet-*``); the metric is the sponge paper's energy model, beside multiply-adds
and the share of activations that are not zero. Source: Shumailov et al. 2021.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import weights_convert
from dyn_jax import attacks, metrics, networks, objectives
from dyn_jax.datasets import cifar10_lossless, to_float
from dyn_jax.types import Output, Trace
from experiments import _record
from weights_convert.torch_io import read_state_dict

PUBLISHED = {
    "sparse-resnet-20-cifar10": "resnet20-12fca82f.th",
    "sparse-resnet-56-cifar10": "resnet56-4bfd9763.th",
}
EPS = 8 / 255
OBJECTIVES = {
    "norm (sponge)": objectives.activation_norm(),
    "density": objectives.activation_density(),
    "scores (energy)": objectives.energy(),
}


def density(trace: Trace) -> float:
    """Share of the activations that are not zero."""
    on = sum(float(jnp.sum(unit.on)) for unit in trace.units)
    return on / sum(unit.on.size for unit in trace.units)


def row(before: Output, after: Output, labels: np.ndarray, parameters: int) -> dict[str, float | None]:
    """Numbers of one batch; the ratio of energies is taken image by image."""
    energy = [np.asarray(metrics.accelerator_energy(out.trace, parameters)) for out in (before, after)]
    more = 100 * (energy[1] / energy[0] - 1)
    macs = [float(jnp.mean(metrics.executed_macs(out.trace))) for out in (before, after)]
    return {
        "energy, uJ": float(energy[1].mean()) / 1e6,
        "more energy %": float(more.mean()),
        "standard error": float(more.std(ddof=1) / np.sqrt(len(more))) if len(more) > 1 else None,
        "more multiply-adds %": 100 * (macs[1] / macs[0] - 1),
        "not zero %": 100 * density(after.trace),
        "accuracy %": 100 * float(metrics.accuracy(after.logits, jnp.asarray(labels))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", required=True, metavar="FOLDER", help="of cifar10_lossless_test.npz")
    parser.add_argument("--checkpoints", required=True, metavar="FOLDER", help="of the published ResNets")
    parser.add_argument("--networks", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--results", default=None, metavar="FOLDER", help="instead of experiments/results")
    how = parser.parse_args()
    data = cifar10_lossless(how.data, "test")
    x, y = jnp.asarray(to_float(data.images[: how.images])), data.labels[: how.images]
    key = jax.random.key(0)
    rows: list[dict] = []
    for name in how.networks:
        net = networks.create(name)
        variables = weights_convert.convert(net, read_state_dict(f"{how.checkpoints}/{PUBLISHED[name]}"))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        forward = partial(net.apply, variables)
        run = jax.jit(forward)
        before = run(x)
        moved = {
            "clean": x,
            "noise, +-eps": jnp.clip(x + EPS * jnp.sign(jax.random.normal(key, x.shape)), 0, 1),
            "uniform pixels": jax.random.uniform(key, x.shape),
        }
        for kind, objective in OBJECTIVES.items():
            attack = attacks.bim(EPS, 1 / 255, how.steps, objective=objective, attack_all=True)
            moved[kind] = jax.jit(lambda x, a=attack, f=forward: a(f, x).adversarial)(x)
        for kind, images in moved.items():
            rows.append({"network": name, "input": kind, **row(before, run(images), y, parameters)})
            print(rows[-1], flush=True)
    facts = {"data": "CIFAR-10, original test images", "eps": EPS, "step": 1 / 255}
    print(_record.save("sponge_activations", rows, folder=how.results, arguments=how, seed=0, **facts))
    print(_record.table(rows, list(rows[0])))


if __name__ == "__main__":
    main()
