"""DeepSloth in every norm: one image at a time, one perturbation for all, one for a class, noise of the same size.

``python -m experiments.deepsloth_norms --data FOLDER [--rdi CHECKPOINT] [--steps N]``: the shipped
``sdn-resnet56-cifar10``, and RDI-ResNet-38 with its published weights where they are given, on original CIFAR-10 test
images, as `experiments.deepsloth_efficacy`, which has more images in Linf.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import weights_convert
from dyn_jax import attacks, networks
from dyn_jax.attacks.deepsloth import EACH, UNIVERSAL
from dyn_jax.datasets import cifar10_lossless, to_float
from experiments._record import save, table
from experiments.deepsloth_efficacy import measured
from weights_convert.torch_io import read_state_dict

NORMS = {"linf": 8 / 256, "l2": 0.9**10, "l1": 8.0}
"""Norm -> the size that the released attack ends with, of one image and of all."""


def noise(norm: str, like: jax.Array, key: jax.Array) -> jax.Array:
    """Random numbers of the size of an attack: signs, Gaussian, Laplace."""
    draw = {"linf": jax.random.normal, "l2": jax.random.normal, "l1": jax.random.laplace}[norm](key, like.shape)
    flat = draw.reshape(len(draw), -1)
    order = {"linf": jnp.inf, "l2": 2, "l1": 1}[norm]
    moved = jnp.sign(flat) if norm == "linf" else flat / jnp.linalg.norm(flat, order, axis=1, keepdims=True)
    return NORMS[norm] * moved.reshape(like.shape)


def settings(norm: str, most: int | None) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers of steps instead of the released ones, of one image and of all; the ball shrinks as far."""
    if most is None:
        return {}, {}
    each, every = EACH[norm], UNIVERSAL[norm]
    one, parts = {"steps": min(each.steps, most)}, every.batches * every.epochs
    if norm == "l2" and most < each.steps:
        one |= {"period": most, "stage": max(most // 11, 1)}
    return one, {"steps": min(every.steps, max(most // parts, 1))}


def rows_of(
    name: str, forward: Callable, x: jax.Array, y: jax.Array, made_on: jax.Array, labels: jax.Array, how: Any
) -> list[dict]:
    key = jax.random.key(0)
    run = jax.jit(forward)
    rows = []

    def add(norm: str, kind: str, moved: jax.Array) -> None:
        output = run(moved)
        rows.append({"network": name, "norm": norm, "input": kind, **measured(output.trace, y, output.logits)})
        print(rows[-1], flush=True)

    add("", "clean", x)
    for norm in how.norms:
        one, every = settings(norm, how.steps)
        add(norm, "noise", jnp.clip(x + noise(norm, x, key), 0, 1))
        search = attacks.deepsloth_universal(norm, **every)
        # all images are of class 0 where one perturbation is for all: the same program
        made = jax.jit(lambda x, c, search=search: search(forward, x, key=key, classes=c))
        add(norm, "DeepSloth, universal", made(made_on, jnp.zeros_like(labels)).apply(x, jnp.zeros_like(y)))
        add(norm, "DeepSloth, one a class", made(made_on, labels).apply(x, y))
        attack = attacks.deepsloth(norm, **one)
        add(
            norm,
            "DeepSloth, per sample",
            jax.jit(lambda x, attack=attack: attack(forward, x, key=key).adversarial)(x),
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="of cifar10_lossless_{train,test}.npz")
    parser.add_argument("--rdi", metavar="FILE", help="RDI-Nets' published checkpoint")
    parser.add_argument("--networks", nargs="+", default=["sdn-resnet56-cifar10", "rdi-resnet38-cifar10"])
    parser.add_argument("--norms", nargs="+", choices=list(NORMS), default=list(NORMS))
    parser.add_argument("--examples", type=int, default=100, help="test images")
    parser.add_argument("--crafted", type=int, default=250, help="training images of a universal perturbation")
    parser.add_argument("--steps", type=int, default=None, help="at most, of each attack; default: as released")
    parser.add_argument("--results", default=None, metavar="FOLDER", help="instead of experiments/results")
    how = parser.parse_args()
    test, train = (cifar10_lossless(how.data, split) for split in ("test", "train"))
    x, made_on = (to_float(part.images[:n]) for part, n in ((test, how.examples), (train, how.crafted)))
    y, labels = (jnp.asarray(part.labels[:n], jnp.int32) for part, n in ((test, how.examples), (train, how.crafted)))
    rows, names = [], [name for name in how.networks if how.rdi or not name.startswith("rdi")]
    for name in names:
        if name.startswith("rdi"):
            net = networks.create(name)
            variables = weights_convert.convert(net, read_state_dict(how.rdi))
        else:
            net, variables = networks.pretrained(name)
        forward = partial(net.apply, variables)
        rows += rows_of(name, forward, jnp.asarray(x), y, jnp.asarray(made_on), labels, how)
    facts = {"sizes": NORMS, "data": "CIFAR-10, original test images"}
    save("deepsloth_norms", rows, arguments=how, seed=0, folder=how.results, **facts)
    print(table(rows, list(rows[0])))


if __name__ == "__main__":
    main()
