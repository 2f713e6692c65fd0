"""How far does DeepSloth slow early-exit networks down, one image at a time and with one perturbation for all?

``python -m experiments.deepsloth_efficacy --data FOLDER [--rdi CHECKPOINT]``: the shipped ``sdn-resnet56-cifar10``,
and RDI-ResNet-38 with its published weights where they are given, on original CIFAR-10 test images; random noise of the
same radius beside it. Claimed (Hong et al. 2021, abstract): per sample 90 to 100 % of the efficacy are lost.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import weights_convert
from dyn_jax import attacks, metrics, networks
from dyn_jax.datasets import cifar10_lossless, to_float
from dyn_jax.types import Trace
from experiments._record import save, table
from weights_convert.torch_io import read_state_dict

CLAIMED = {"per sample": "90 to 100 % of the efficacy are lost", "universal": "possible"}
EPS = 8 / 256


def measured(trace: Trace, labels: jax.Array, logits: jax.Array) -> dict[str, float]:
    index = metrics.exits.exit_index(trace)
    return {
        "efficacy": float(metrics.exits.efficacy(trace)),
        "accuracy": float(metrics.accuracy(logits, labels)),
        "last exit": float(jnp.mean(index == trace.exits.shape[1] - 1)),
        "work": float(jnp.mean(metrics.executed_macs(trace)) / metrics.dense_macs(trace)),
    }


def rows_of(name: str, forward: Callable, x: jax.Array, y: jax.Array, made_on: jax.Array, steps: int) -> list[dict]:
    key = jax.random.key(0)
    run = jax.jit(forward)
    noise = EPS * jnp.sign(jax.random.normal(key, x.shape))
    attack = attacks.deepsloth(steps=steps, eps=EPS)
    result = jax.jit(lambda x: attack(forward, x, key=key).adversarial)(x)
    universal = jax.jit(
        lambda x: attacks.deepsloth_universal(steps=max(2 * steps // 3, 1), eps=EPS)(forward, x, key=key)
    )
    inputs = {
        "clean": x,
        "noise, +-eps": jnp.clip(x + noise, 0, 1),
        "DeepSloth, universal": universal(made_on).apply(x),
        "DeepSloth, per sample": result,
    }
    rows = []
    for kind, moved in inputs.items():
        output = run(moved)
        rows.append({"network": name, "input": kind, **measured(output.trace, y, output.logits)})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="of cifar10_lossless_{train,test}.npz")
    parser.add_argument("--rdi", metavar="FILE", help="RDI-Nets' published checkpoint")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--results", default=None, metavar="FOLDER", help="instead of experiments/results")
    how = parser.parse_args()
    test, train = (cifar10_lossless(how.data, split) for split in ("test", "train"))
    x, made_on = (to_float(np.asarray(part.images[: how.examples])) for part in (test, train))
    y = jnp.asarray(test.labels[: how.examples], jnp.int32)
    net, variables = networks.pretrained("sdn-resnet56-cifar10")
    chosen: dict[str, Any] = {"sdn-resnet56-cifar10": partial(net.apply, variables)}
    if how.rdi:
        net = networks.create("rdi-resnet38-cifar10")
        chosen["rdi-resnet38-cifar10"] = partial(net.apply, weights_convert.convert(net, read_state_dict(how.rdi)))
    rows = []
    for name, forward in chosen.items():
        rows += rows_of(name, forward, jnp.asarray(x), y, jnp.asarray(made_on), how.steps)
    facts = {"claimed": CLAIMED, "eps": EPS, "data": "CIFAR-10, original test images", "networks": list(chosen)}
    save("deepsloth_efficacy", rows, arguments=how, seed=0, folder=how.results, **facts)
    print(table(rows, list(rows[0])))


if __name__ == "__main__":
    main()
