"""FGM against LGM on the embedded SkipNet and DynConv, over training seeds: mean and spread, and why.

    dyn-jax train skipnet-digits --seed 0 --output weights/seed0-skipnet-digits.msgpack     (each network, each seed)
    python -m experiments.digits_fgm_lgm --weights weights --seeds 0 1 2

Beside the attacks, three measurements that say whether LGM has anything to work with: the clean accuracy of the soft
network that LGM differentiates, how far the scores lie from the threshold, and the accuracy when gates are flipped at
random at the rate at which BIM under FGM flips them (a network that does not mind has no lagged gradient to lead).
"""

from __future__ import annotations

import argparse
import os
from functools import partial

import flax.linen as nn
import jax
import numpy as np

from dyn_jax import metrics, occupancy
from dyn_jax.cli import demo
from dyn_jax.datasets import digits
from experiments import _record
from experiments._flipped import Flipped
from experiments._weights import load

NETWORKS = ("skipnet-digits", "dynconv-digits")
LAMBDAS = (1.0, 3.0, 10.0, 30.0, 300.0)
STRAIGHT_LAMBDAS = (3.0, 10.0, 300.0)
EPS = ("8/255", "16/255")


def measure(
    name: str, net: nn.Module, variables: dict, images: np.ndarray, labels: np.ndarray
) -> tuple[list[dict], dict]:
    """(rows of attacks, facts about the network) for one set of weights; accuracies in percent."""
    gradients = {"FGM": occupancy.hard()}
    gradients |= {f"LGM soft {lam:g}": occupancy.sigmoid(lam) for lam in LAMBDAS}
    gradients |= {f"LGM straight-through {lam:g}": occupancy.straight_through(lam) for lam in STRAIGHT_LAMBDAS}
    rows, flips = [], 0.0
    for row, result in demo.compare(name, net, variables, images, labels, gradients, eps=EPS):
        rows.append({"attack": f"{row.attack} {row.eps}", "gradient": row.gradient, "after %": 100 * row.accuracy})
        if row.attack.startswith("BIM") and row.gradient == "FGM" and row.eps == EPS[0]:
            change = metrics.architecture_change(
                result.trace_clean, result.trace_adversarial, where=~result.clean_success
            )
            flips = float(change)

    @jax.jit
    def accuracy(variables: dict, images: jax.Array, gate: occupancy.Hard | occupancy.Sigmoid) -> jax.Array:
        return metrics.accuracy(net.apply(variables, images, occupancy=gate).logits, labels)

    @jax.jit
    def flipped(variables: dict, images: jax.Array, key: jax.Array) -> jax.Array:
        apply = partial(net.apply, variables, occupancy=Flipped(flips), rngs={"gate": key})
        return metrics.accuracy(apply(images).logits, labels)

    trace = jax.jit(net.apply)(variables, images).trace
    scores = np.abs(np.concatenate([np.ravel(unit.score) for unit in trace.units]))
    facts = {
        "clean %": 100 * float(accuracy(variables, images, occupancy.hard())),
        "median |score|": float(np.median(scores)),
        "units on %": 100 * float(metrics.occupancy_rate(trace).mean()),
        "flips by BIM, FGM, 8/255 %": 100 * flips,
        "clean % with as many random flips": 100
        * float(np.mean([flipped(variables, images, jax.random.key(i)) for i in range(5)])),
    }
    facts |= {
        f"clean % soft {lam:g}": 100 * float(accuracy(variables, images, occupancy.sigmoid(lam))) for lam in LAMBDAS
    }
    return rows, facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="folder with seedN-NETWORK.msgpack")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--results", default=None)
    arguments = parser.parse_args()
    data = digits("test")
    images, labels = data.images[: arguments.examples], data.labels[: arguments.examples]
    lines, facts = [], {}
    for name in NETWORKS:
        runs = []
        for seed in arguments.seeds:
            file = os.path.join(arguments.weights, f"seed{seed}-{name}.msgpack")
            runs.append(measure(name, *load(name, file), images, labels))
        for position, first in enumerate(runs[0][0]):
            values = np.array([rows[position]["after %"] for rows, _ in runs])
            fgm = np.array([_fgm(rows, first["attack"]) for rows, _ in runs])
            lines.append(
                {
                    "network": name,
                    "attack": first["attack"],
                    "gradient": first["gradient"],
                    "after %": float(values.mean()),
                    "sd over seeds": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
                    "minus FGM": float((values - fgm).mean()),
                }
            )
        facts[name] = {key: [round(f[key], 3) for _, f in runs] for key in runs[0][1]}
        print(name, *(f"  {key}: {value}" for key, value in facts[name].items()), sep="\n", flush=True)
    print(_record.table(lines, list(lines[0])))
    settings = {"data": data.name, "images": len(labels), "seeds": arguments.seeds, "bim_steps": demo.STEPS}
    settings |= {"eps": list(EPS), "lambdas": list(LAMBDAS), "straight-through lambdas": list(STRAIGHT_LAMBDAS)}
    print(_record.save("digits_fgm_lgm", lines, folder=arguments.results, networks=facts, **settings))


def _fgm(rows: list[dict], attack: str) -> float:
    return next(row["after %"] for row in rows if row["attack"] == attack and row["gradient"] == "FGM")


if __name__ == "__main__":
    main()
