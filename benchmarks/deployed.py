"""Seconds of deployed networks against the multiply-adds that they execute, before and after an attack on the energy.

    python -m benchmarks.deployed --data FOLDER [--images 16] [--steps 60] [--rounds 5] [--figure FILE] [--output FILE]

One image at a time on `dyn_jax.deploy`, beside the same network with every unit evaluated. GradAuto and Early Attack
make the images; the slowdown that the clock shows stands beside the one that multiply-adds promise. Every image is
timed in turns over the rounds, a few calls at once; its seconds are the median. The data is CIFAR-10 as JPEG.
"""

from __future__ import annotations

import os
import pathlib
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import dyn_jax
from benchmarks import _turns
from dyn_jax import attacks, metrics, networks, occupancy
from dyn_jax.datasets import cifar10_packed, to_float
from dyn_jax.plotting import colours, figure
from dyn_jax.types import Variables
from experiments import _record

NETWORKS = ("skipnet-32-cifar10", "sdn-resnet56-cifar10", "sact-32-cifar10", "dynconv-32-cifar10")
CALLS = 10  # at once, of one image
METHODS: dict[str, Callable[[int], attacks.Attack]] = {
    "GradAuto": lambda steps: attacks.grad_auto(steps=steps),
    "Early Attack": lambda steps: attacks.early_attack(steps=steps, learning_rate=0.01),
}


def inputs(net: nn.Module, variables: Variables, images: np.ndarray, steps: int) -> dict[str, np.ndarray]:
    """{what was done: images}: none, GradAuto, and where there are exits Early Attack."""
    hard = jax.jit(partial(net.apply, occupancy=occupancy.hard()))
    clean: Any = hard(variables, images)
    made = {"none": images}
    for name, method in METHODS.items():
        if method is METHODS["Early Attack"] and clean.trace.exits is None:
            continue
        # Gradients pass through closed gates; what is kept is judged on the network as it is deployed.
        how = occupancy.hard() if method is METHODS["Early Attack"] else occupancy.straight_through(1.0)
        says = clean.logits if clean.trace.exits is None else clean.trace.exits[:, -1]

        def run(variables: Variables, x: jax.Array, y: jax.Array, method=method, how=how) -> jax.Array:
            victim = partial(net.apply, variables, occupancy=occupancy.hard())
            forward = partial(net.apply, variables, occupancy=how)
            start = x if method is METHODS["Early Attack"] else None  # GradAuto starts there by itself
            return method(steps)(forward, x, y, victim=victim, start=start, key=jax.random.key(0)).adversarial

        compiled = _turns.compiled(name, run, variables, images, jnp.argmax(says, 1))
        made[name] = np.asarray(compiled(variables, images, jnp.argmax(says, 1)))
    return made


def rows_of(name: str, images: np.ndarray, steps: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of one network: deployed on all inputs, and with everything evaluated."""
    net, variables = networks.pretrained(name)
    made = inputs(net, variables, images, steps)
    deployed = dyn_jax.deploy(net, variables, image_size=images.shape[1])

    def dense(variables: Variables, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        output: Any = net.apply(variables, image[None], occupancy=occupancy.hard())
        return output.logits[0], metrics.executed_macs(output.trace)[0]

    everything = partial(_turns.compiled("everything", dense, deployed.variables, images[0]), deployed.variables)

    def call(fun: Callable, image: np.ndarray) -> None:
        for _ in range(CALLS):
            jax.block_until_ready(fun(image))

    contenders = {(how, i): partial(call, deployed, x) for how, batch in made.items() for i, x in enumerate(batch)}
    contenders |= {("everything", i): partial(call, everything, x) for i, x in enumerate(images)}
    samples: dict = _turns.in_turns(contenders, rounds)  # type: ignore[arg-type]
    rows: list[dict[str, Any]] = []
    for how in (*made, "everything"):
        runs = [samples[how, i] for i in range(len(images))]
        wall, cpu = (
            [1000 * statistics.median(getattr(s, kind) for s in each) / CALLS for each in runs]
            for kind in ("wall", "cpu")
        )
        work = [float(deployed(x).macs) / 1e6 for x in made.get(how, images)]
        row = {
            "network": name,
            "execution": "deployed" if how in made else how,
            "attack": how if how in made else "none",
            "million multiply-adds": statistics.mean(work),
            "ms": statistics.mean(wall),
            "CPU ms": statistics.mean(cpu),
            "ms of the images": wall,
            "million multiply-adds of the images": work,
        }
        first = rows[0] if rows else row
        row["times the multiply-adds"] = row["million multiply-adds"] / first["million multiply-adds"]
        row["times the ms"] = row["ms"] / first["ms"]
        row["times the CPU ms"] = row["CPU ms"] / first["CPU ms"]
        rows.append(row)
    return rows


def line(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The straight line through the images of the deployed rows, by least squares."""
    deployed = [row for row in rows if row["execution"] == "deployed"]
    work, ms = (
        np.concatenate([row[key] for row in deployed])
        for key in ("million multiply-adds of the images", "ms of the images")
    )
    found = _turns.line(work, ms)
    return {"ms per million": found["slope"], "ms at none": found["start"], "R2": found["R2"]}


def draw(rows: list[dict[str, Any]], path: str | os.PathLike) -> None:
    """A picture: the images' milliseconds against their multiply-adds, a panel for each network."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    fig, axes = figure(-(-len(names) // 2), 2, figsize=(9, 3.4 * -(-len(names) // 2)))
    for name, axis in zip(names, axes.flat):
        mine = [row for row in rows if row["network"] == name]
        for row, colour in zip(mine, colours(len(mine))):
            label = row["execution"] if row["execution"] != "deployed" else f"deployed, {row['attack']}"
            axis.scatter(
                row["million multiply-adds of the images"], row["ms of the images"], 9, color=[colour], label=label
            )
        axis.set(title=name, xlabel="executed multiply-adds, millions", ylabel="ms an image", ylim=(0, None))
        axis.legend(fontsize="small")
    fig.savefig(path, dpi=110)


def main() -> None:
    parser = _turns.parser(__doc__ or "", steps=60)
    parser.add_argument("--data", required=True, help="folder of cifar10_jpeg_test.npz")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--figure", type=pathlib.Path, default=None, help="PNG file")
    arguments = parser.parse_args()
    images = to_float(cifar10_packed(arguments.data, "test").images[: arguments.images])
    rows, lines = [], {}
    for name in NETWORKS:
        new = rows_of(name, images, arguments.steps, arguments.rounds)
        rows, lines[name] = rows + new, line(new)
    print(_record.table(rows, [key for key in rows[0] if not key.endswith("of the images")]))
    if arguments.figure:
        draw(rows, arguments.figure)
    if arguments.output:
        _record.write(arguments.output, rows, arguments=arguments, seed=0, calls=CALLS, lines=lines)


if __name__ == "__main__":
    main()
