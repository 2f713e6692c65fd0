"""SlowFormer on the shipped networks: what one patch brings back on images it was not made on.

    python -m experiments.slowformer_avit [--networks avit-digits] [--images 200] [--steps 300]

Patches are made on training digits and judged on test digits. Beside them: a random patch of the same size and noise of
8/255 on every pixel, both of which cost the attacker nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import attacks, metrics, networks, objectives
from dyn_jax.datasets import digits
from dyn_jax.nn import IMAGENET_MEAN_STD
from dyn_jax.types import Output
from experiments import _record

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
    dense = metrics.dense_macs(before.trace)
    first, last = (np.asarray(metrics.executed_macs(out.trace)) for out in (before, after))
    rows = dense - first > 1e-6 * dense
    shares = (last - first)[rows] / (dense - first)[rows]
    return {
        "saved before %": 100 * float(1 - first.mean() / dense),
        "saved after %": 100 * float(1 - last.mean() / dense),
        "recovery %": 100 * float(metrics.recovery(before.trace, after.trace)),
        "standard error": 100 * float(shares.std(ddof=1) / np.sqrt(len(shares))),
        "accuracy before %": 100 * float(metrics.accuracy(before.logits, labels)),
        "accuracy after %": 100 * float(metrics.accuracy(after.logits, labels)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["avit-digits"])
    parser.add_argument("--images", type=int, default=200, help="to make a patch on, and as many to judge it on")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", default=None, help="folder for the JSON; default: experiments/results")
    arguments = parser.parse_args()
    train, test = (digits(split) for split in ("train", "test"))
    made_on, images, labels = (v[: arguments.images] for v in (train.images, test.images, test.labels))
    images = jnp.asarray(images)
    rows: list[dict] = []
    began = time.perf_counter()
    for name in arguments.networks:
        net, variables = networks.pretrained(name)
        forward = jax.jit(partial(net.apply, variables))
        before = forward(images)
        noise = jax.random.uniform(jax.random.key(arguments.seed), images.shape, minval=-NOISE, maxval=NOISE)
        shown: dict[tuple[str, int | None], jax.Array] = {("noise 8/255", None): jnp.clip(images + noise, 0, 1)}
        for size in SIZES:
            for method in METHODS:
                if method.endswith("ponder") and not hasattr(net, "gate_scale"):
                    continue  # the paper's objective is A-ViT's own
                patch = patch_of(net, forward, made_on, size, method, arguments.steps, arguments.seed)
                shown[method, size] = attacks.paste_at(images, patch)
        for (method, size), attacked in shown.items():
            numbers = row(before, forward(attacked), labels)
            rows.append({"network": name, "attack": method, "patch": size, **numbers})
            print(rows[-1], flush=True)
    print(_record.table(rows, list(rows[0])))
    facts = {
        "data": "handwritten digits; patches made on train, judged on test",
        "sizes": list(SIZES),
        "noise": "8/255",
    }
    facts |= {"batch": BATCH, "learning_rate": 0.2, "seconds": time.perf_counter() - began}
    saved = _record.save(
        "slowformer_avit", rows, folder=arguments.results, arguments=arguments, seed=arguments.seed, **facts
    )
    print(saved)


if __name__ == "__main__":
    main()
