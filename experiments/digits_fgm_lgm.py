"""FGM against LGM on the embedded SkipNet and DynConv, over training seeds: mean and spread, and why.

    dyn-jax train skipnet-digits --seed 0 --output weights/seed0-skipnet-digits.msgpack     (each network, each seed)
    python -m experiments.digits_fgm_lgm --weights weights --seeds 0 1 2

Beside the attacks, three measurements that say whether LGM has anything to work with: the clean accuracy of the soft
network that LGM differentiates, how far the scores lie from the threshold, and the accuracy when gates are flipped at
random at the rate at which BIM under FGM flips them (a network that does not mind has no lagged gradient to lead).
"""

from __future__ import annotations

import os
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from dyn_jax import metrics, occupancy
from dyn_jax.cli import demo
from dyn_jax.datasets import digits
from experiments import _run
from experiments._paired import Flipped, gradients
from experiments._rooms import deviation
from experiments._weights import load

NETWORKS = ("skipnet-digits", "dynconv-digits")
LAMBDAS = (1.0, 3.0, 10.0, 30.0, 300.0)
STRAIGHT_LAMBDAS = (3.0, 10.0, 300.0)
EPS = ("8/255", "16/255")


def measure(
    name: str, net: nn.Module, variables: dict, images: np.ndarray, labels: np.ndarray
) -> tuple[list[dict], dict]:
    """(rows of attacks, facts about the network) for one set of weights; accuracies in percent."""
    rows, flips = [], 0.0
    every = gradients(LAMBDAS, STRAIGHT_LAMBDAS)
    for row, result in demo.compare(name, net, variables, images, labels, every, eps=EPS):
        rows.append({"attack": f"{row.attack} {row.eps}", "gradient": row.gradient, "after %": 100 * row.accuracy})
        if row.attack.startswith("BIM") and row.gradient == "FGM" and row.eps == EPS[0]:
            traces = result.trace_clean, result.trace_adversarial
            flips = float(metrics.architecture_change(*traces, where=~result.clean_success))

    def share(variables: dict, gate: Any, **keys: Any) -> jax.Array:
        return metrics.accuracy(net.apply(variables, images, occupancy=gate, **keys).logits, labels)

    accuracy = jax.jit(share)
    flipped = jax.jit(lambda variables, key: share(variables, Flipped(flips), rngs={"gate": key}))
    trace = jax.jit(net.apply)(variables, images).trace
    scores = np.abs(np.concatenate([np.ravel(unit.score) for unit in trace.units]))
    random = float(np.mean([flipped(variables, jax.random.key(i)) for i in range(5)]))
    facts = {
        "clean %": 100 * float(accuracy(variables, occupancy.hard())),
        "median |score|": float(np.median(scores)),
        "units on %": 100 * float(metrics.occupancy_rate(trace).mean()),
        "flips by BIM, FGM, 8/255 %": 100 * flips,
        "clean % with as many random flips": 100 * random,
    }
    soft = {lam: float(accuracy(variables, occupancy.sigmoid(lam))) for lam in LAMBDAS}
    return rows, facts | {f"clean % soft {lam:g}": 100 * value for lam, value in soft.items()}


def main() -> None:
    parser = _run.parser(__doc__, examples=200)
    parser.add_argument("--weights", required=True, help="folder with seedN-NETWORK.msgpack")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    how = parser.parse_args()
    data = digits("test")
    test = _run.first(data, how.examples)
    lines, facts = [], {}
    for name in NETWORKS:
        files = (os.path.join(how.weights, f"seed{seed}-{name}.msgpack") for seed in how.seeds)
        runs = [measure(name, *load(name, file), *test) for file in files]
        for position, row in enumerate(runs[0][0]):
            values = np.array([rows[position]["after %"] for rows, _ in runs])
            if row["gradient"] == "FGM":  # the first of an attack
                fgm = values
            row |= {"after %": float(values.mean()), "sd over seeds": deviation(values)}
            lines.append({"network": name, **row, "minus FGM": float((values - fgm).mean())})
        facts[name] = {key: [round(f[key], 3) for _, f in runs] for key in runs[0][1]}
        print(name, *(f"  {key}: {value}" for key, value in facts[name].items()), sep="\n", flush=True)
    settings = {"data": data.name, "images": len(test[1]), "seeds": how.seeds, "bim_steps": demo.STEPS}
    settings |= {"eps": list(EPS), "lambdas": list(LAMBDAS), "straight-through lambdas": list(STRAIGHT_LAMBDAS)}
    _run.finish("digits_fgm_lgm", lines, how, networks=facts, **settings)


if __name__ == "__main__":
    main()
