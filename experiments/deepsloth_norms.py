"""DeepSloth in every norm: one image at a time, one perturbation for all, one for a class, noise of the same size.

``python -m experiments.deepsloth_norms --data FOLDER [--rdi CHECKPOINT] [--steps N]``: the shipped
``sdn-resnet56-cifar10``, and RDI-ResNet-38 with its published weights where they are given, on original CIFAR-10 test
images, as `experiments.deepsloth_efficacy`, which has more images in Linf.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from dyn_jax import attacks
from dyn_jax.attacks.deepsloth import EACH, UNIVERSAL
from experiments import _run
from experiments.deepsloth_efficacy import NETWORKS, images, measured, victims

NORMS = {"linf": 8 / 256, "l2": 0.9**10, "l1": 8.0}
"""Norm -> the size that the released attack ends with, of one image and of all."""


def noise(norm: str, like: jax.Array, key: jax.Array) -> jax.Array:
    """Random numbers of the size of an attack: signs, Gaussian, Laplace."""
    flat = (jax.random.laplace if norm == "l1" else jax.random.normal)(key, like.shape).reshape(len(like), -1)
    moved = jnp.sign(flat) if norm == "linf" else flat / jnp.linalg.norm(flat, int(norm[1:]), axis=1, keepdims=True)
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


def moved_images(
    forward: Callable, x: jax.Array, y: jax.Array, made_on: jax.Array, labels: jax.Array, how: argparse.Namespace
) -> Iterator[tuple[str, str, jax.Array]]:
    """(norm, kind, images)."""
    key = jax.random.key(0)
    yield "", "clean", x
    for norm in how.norms:
        one, every = settings(norm, how.steps)
        yield norm, "noise", jnp.clip(x + noise(norm, x, key), 0, 1)
        search, attack = attacks.deepsloth_universal(norm, **every), attacks.deepsloth(norm, **one)
        # all images are of class 0 where one perturbation is for all: the same program
        made = jax.jit(lambda x, c, search=search: search(forward, x, key=key, classes=c))
        yield norm, "DeepSloth, universal", made(made_on, jnp.zeros_like(labels)).apply(x, jnp.zeros_like(y))
        yield norm, "DeepSloth, one a class", made(made_on, labels).apply(x, y)
        each = jax.jit(lambda x, attack=attack: attack(forward, x, key=key).adversarial)
        yield norm, "DeepSloth, per sample", each(x)


def rows_of(how: argparse.Namespace) -> Iterator[dict]:
    x, y, made_on, labels = images(how.data, test=how.examples, train=how.crafted)
    for name, forward in victims(how.networks, how.rdi).items():
        run = jax.jit(forward)
        for norm, kind, moved in moved_images(forward, x, y, made_on, labels, how):
            output = run(moved)
            yield {"network": name, "norm": norm, "input": kind, **measured(output.trace, y, output.logits)}


def main() -> None:
    parser = _run.parser(__doc__, "data", rdi=None, networks=list(NETWORKS), examples=100)
    parser.add_argument("--norms", nargs="+", choices=list(NORMS), default=list(NORMS))
    parser.add_argument("--crafted", type=int, default=250, help="training images of a universal perturbation")
    parser.add_argument("--steps", type=int, default=None, help="at most, of each attack; default: as released")
    how = parser.parse_args()
    facts = {"sizes": NORMS, "data": "CIFAR-10, original test images"}
    _run.finish("deepsloth_norms", _run.shown(rows_of(how)), how, arguments=how, seed=0, **facts)


if __name__ == "__main__":
    main()
