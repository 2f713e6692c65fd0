"""How far does DeepSloth slow early-exit networks down, one image at a time and with one perturbation for all?

``python -m experiments.deepsloth_efficacy --data FOLDER [--rdi CHECKPOINT]``: the shipped ``sdn-resnet56-cifar10``,
and RDI-ResNet-38 with its published weights where they are given, on original CIFAR-10 test images; random noise of the
same radius beside it. Claimed (Hong et al. 2021, abstract): per sample 90 to 100 % of the efficacy are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from dyn_jax import attacks, metrics, networks
from dyn_jax.datasets import cifar10_lossless
from dyn_jax.types import Trace
from experiments import _run, _weights

NETWORKS = ("sdn-resnet56-cifar10", "rdi-resnet38-cifar10")
CLAIMED = {"per sample": "90 to 100 % of the efficacy are lost", "universal": "possible"}
EPS = 8 / 256


def victims(names: Sequence[str], rdi: str | None) -> dict[str, Callable]:
    """Name -> forward pass; RDI-Nets only where their checkpoint is given."""
    load = lambda name: _weights.published(name, rdi) if name.startswith("rdi") else networks.pretrained(name)
    loaded = {name: load(name) for name in names if rdi or not name.startswith("rdi")}
    return {name: partial(net.apply, variables) for name, (net, variables) in loaded.items()}


def images(folder: str, **counts: int) -> list[jax.Array]:
    """Original images and labels, one pair for the first so many of each split."""
    pairs = [_run.first(cifar10_lossless(folder, split), count) for split, count in counts.items()]
    return [jnp.asarray(part) for pair in pairs for part in pair]


def measured(trace: Trace, labels: jax.Array, logits: jax.Array) -> dict[str, float]:
    index = metrics.exits.exit_index(trace)
    return {
        "efficacy": float(metrics.exits.efficacy(trace)),
        "accuracy": float(metrics.accuracy(logits, labels)),
        "last exit": float(jnp.mean(index == trace.exits.shape[1] - 1)),
        "work": float(jnp.mean(metrics.executed_macs(trace)) / metrics.dense_macs(trace)),
    }


def rows_of(name: str, forward: Callable, x: jax.Array, y: jax.Array, made_on: jax.Array, steps: int) -> Iterator[dict]:
    key, run = jax.random.key(0), jax.jit(forward)
    attack = attacks.deepsloth(steps=steps, eps=EPS)
    universal = attacks.deepsloth_universal(steps=max(2 * steps // 3, 1), eps=EPS)
    inputs = {
        "clean": x,
        "noise, +-eps": _run.signs(x, EPS),
        "DeepSloth, universal": jax.jit(lambda x: universal(forward, x, key=key))(made_on).apply(x),
        "DeepSloth, per sample": jax.jit(lambda x: attack(forward, x, key=key).adversarial)(x),
    }
    for kind, moved in inputs.items():
        output = run(moved)
        yield {"network": name, "input": kind, **measured(output.trace, y, output.logits)}


def main() -> None:
    how = _run.parser(__doc__, "data", rdi=None, examples=100, steps=30).parse_args()
    x, y, made_on, _ = images(how.data, test=how.examples, train=how.examples)
    chosen = victims(NETWORKS, how.rdi)
    rows = [row for name in chosen for row in _run.shown(rows_of(name, chosen[name], x, y, made_on, how.steps))]
    facts = {"claimed": CLAIMED, "eps": EPS, "data": "CIFAR-10, original test images", "networks": list(chosen)}
    _run.finish("deepsloth_efficacy", rows, how, arguments=how, seed=0, **facts)


if __name__ == "__main__":
    main()
