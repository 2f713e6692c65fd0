"""SlowFormer on the shipped networks: what one patch brings back on images it was not made on.

    python -m experiments.slowformer_avit [--networks avit-digits] [--images 200] [--steps 300]

Patches are made on training digits and judged on test digits. Beside them: a random patch of the same size and noise of
8/255 on every pixel, both of which cost the attacker nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, networks, objectives
from dyn_jax.datasets import digits
from dyn_jax.nn import IMAGENET_MEAN_STD
from dyn_jax.types import Output
from experiments import _energy, _run

SIZES = (4, 8)
NOISE = 8 / 255
BATCH = 50
METHODS: dict[str, Callable[[], objectives.Objective] | None] = {
    "random patch": None,
    "SlowFormer, energy": objectives.energy,
    "SlowFormer, ponder": attacks.ponder_objective,
}
"""Method -> its objective; None does not search. The last is the paper's, for networks whose units halt."""


def patch_of(
    net: nn.Module, forward: Callable, images: np.ndarray, size: int, method: str, steps: int, seed: int
) -> jax.Array:
    """A patch [size, size, 3] made on `images`."""
    key, objective = jax.random.key(seed), METHODS[method]
    if objective is None:
        return jnp.round(255 * jax.random.uniform(key, (size, size, 3))) / 255
    units = getattr(net, "normalization", None)
    mean_std = units if isinstance(units, tuple) else IMAGENET_MEAN_STD
    batch = min(BATCH, len(images))
    attack = attacks.slowformer((size, size), steps, batch_size=batch, objective=objective(), mean_std=mean_std)
    run = jax.jit(lambda x, key: attack(forward, x, key=key).adversarial[0, :size, :size])
    return run(images[: len(images) // batch * batch], key)


def row(before: Output, after: Output, labels: np.ndarray) -> dict:
    """Numbers of one batch, clean and attacked."""
    both, dense = partial(_run.both, before, after), metrics.dense_macs(before.trace)
    return (
        both("saved {} %", lambda out: 100 * float(1 - np.asarray(metrics.executed_macs(out.trace)).mean() / dense))
        | {"recovery %": 100 * float(metrics.recovery(before.trace, after.trace))}
        | {"standard error": _energy.shares(before.trace, after.trace)[1]}
        | both("accuracy {} %", lambda out: 100 * float(metrics.accuracy(out.logits, labels)))
    )


def rows_of(name: str, made_on: np.ndarray, images: jax.Array, labels: np.ndarray, how: Any) -> Iterator[dict]:
    net, variables = networks.pretrained(name)
    forward = jax.jit(partial(net.apply, variables))
    before = forward(images)
    noise = jax.random.uniform(jax.random.key(how.seed), images.shape, minval=-NOISE, maxval=NOISE)
    shown: dict[tuple[str, int | None], jax.Array] = {("noise 8/255", None): jnp.clip(images + noise, 0, 1)}
    for size, method in itertools.product(SIZES, METHODS):
        if not method.endswith("ponder") or hasattr(net, "gate_scale"):  # the paper's objective is A-ViT's own
            patch = patch_of(net, forward, made_on, size, method, how.steps, how.seed)
            shown[method, size] = attacks.paste_at(images, patch)
    for (method, size), attacked in shown.items():
        yield {"network": name, "attack": method, "patch": size, **row(before, forward(attacked), labels)}


def main() -> None:
    parser = _run.parser(__doc__, networks=["avit-digits"], images=200, steps=300)
    parser.add_argument("--seed", type=int, default=0)
    how, began = parser.parse_args(), time.perf_counter()
    (made_on, _), (images, labels) = (_run.first(digits(split), how.images) for split in ("train", "test"))
    rows = _run.shown(row for name in how.networks for row in rows_of(name, made_on, jnp.asarray(images), labels, how))
    facts = {"data": "handwritten digits; patches made on train, judged on test", "sizes": list(SIZES)}
    facts |= {"noise": "8/255", "batch": BATCH, "learning_rate": 0.2, "seconds": time.perf_counter() - began}
    _run.finish("slowformer_avit", rows, how, arguments=how, seed=how.seed, **facts)


if __name__ == "__main__":
    main()
