"""How good the shipped CIFAR-10 networks are, what they save, and whether their units decide by the input.

    python -m experiments.cifar_networks --data FOLDER [--trunks FOLDER] [--weights FOLDER --seeds 0 1]

FOLDER has cifar10_{lossless,jpeg}_{train,test}.npz; the trunks, resnet-32.msgpack and resnet-56.msgpack, are what
``python -m weights_convert`` wrote; weights of other training seeds are NAME-seed1.msgpack and so on.
"""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import metrics, networks
from dyn_jax.attacks.batched import in_batches
from dyn_jax.datasets import ImageData, cifar10_lossless, cifar10_packed, to_float
from dyn_jax.networks.checkpoint import load_variables
from dyn_jax.training.embedded import TRUNKS
from dyn_jax.types import Output, Variables
from experiments import _run, _weights

SHIPPED = tuple(TRUNKS)
VARIES = 0.02  # standard deviation, between images, of a unit's share that is on
BETWEEN = (0.05, 0.95)  # an element that is on for a share of the images in between decides by the input


def facts(apply: Callable[..., Output], variables: Variables, data: ImageData, batch: int) -> dict[str, np.ndarray]:
    """Of each image: right or not; of an adaptive network also its work, its units' shares, each element's state."""

    @jax.jit
    def of(images: jax.Array) -> dict[str, jax.Array]:
        output = apply(variables, images)
        found = {"answer": jnp.argmax(output.logits, 1)}
        if output.trace.units:
            flat = [unit.on.reshape(len(images), -1) for unit in output.trace.units]
            work = metrics.executed_macs(output.trace) / metrics.dense_macs(output.trace)
            found |= {"work": work, "shares": metrics.example_shares(output.trace)}
            found |= {f"on {i}": on for i, on in enumerate(flat)}
        return found

    found = in_batches(lambda rows: of(to_float(data.images[rows])), len(data.labels), batch)
    return {**found, "right": found["answer"] == data.labels}


def row(net: nn.Module, variables: Variables, sets: dict[str, ImageData], batch: int) -> dict[str, Any]:
    """Accuracies on every set; work and units as the held-back images have them."""
    found = {name: facts(net.apply, variables, data, batch) for name, data in sets.items()}
    percent = lambda of: round(100 * float(of["right"].mean()), 2)
    result: dict[str, Any] = {f"{name} %": percent(of) for name, of in found.items()}
    held = found["held back"]
    if "shares" not in held:
        return result
    rates = [held[f"on {i}"].mean(0) for i in range(held["shares"].shape[1])]
    inside = [np.mean((rate > BETWEEN[0]) & (rate < BETWEEN[1])) for rate in rates]
    on = facts(partial(net.apply, occupancy=jnp.ones_like), variables, sets["held back"], batch)
    return result | {
        "held back, all on %": percent(on),
        "saved %": round(100 * (1 - float(held["work"].mean())), 1),
        "units": len(rates),
        "units that vary %": round(100 * float(np.mean(held["shares"].std(0) > VARIES)), 1),
        "elements that vary %": round(100 * float(np.mean(inside)), 1),
    }


def main() -> None:
    parser = _run.parser(__doc__, data=None, weights=None, images=10_000, batch=100)
    parser.add_argument("--trunks", default=None, help="folder with resnet-32.msgpack and resnet-56.msgpack")
    parser.add_argument("--networks", nargs="*", default=SHIPPED, choices=SHIPPED)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="training seeds, where there are weights")
    arguments = parser.parse_args()
    jpeg = cifar10_packed(arguments.data, "test")
    sets = {
        "held back": cifar10_packed(arguments.data, "held_back"),
        "JPEG test": jpeg._replace(images=jpeg.images[: arguments.images], labels=jpeg.labels[: arguments.images]),
        "lossless test": cifar10_lossless(arguments.data, "test"),
    }

    def measured() -> Iterator[tuple[str, int | None, nn.Module, Variables]]:
        for trunk in dict.fromkeys(TRUNKS[name] for name in arguments.networks) if arguments.trunks else ():
            file = pathlib.Path(arguments.trunks) / f"{trunk.removesuffix('-cifar10')}.msgpack"
            yield trunk, None, networks.create(trunk), load_variables(file, trunk)
        for name, seed in itertools.product(arguments.networks, arguments.seeds):
            if seed == 0 or (pathlib.Path(arguments.weights or "") / f"{name}-seed{seed}.msgpack").exists():
                yield name, seed, *_weights.of_seed(name, seed, arguments.weights)

    rows = _run.shown(
        {"network": name, "seed": seed, **row(net, variables, sets, arguments.batch)}
        for name, seed, net, variables in measured()
    )
    settings = {"data": "CIFAR-10 test images as JPEG (lossy) and as they are", "varies": VARIES, "between": BETWEEN}
    settings |= {"seeds": sorted({row["seed"] for row in rows} - {None}), "without": ("batch", "trunks", "weights")}
    _run.finish("cifar_networks", rows, arguments, arguments=arguments, **settings)


if __name__ == "__main__":
    main()
