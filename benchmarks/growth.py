"""How the time and the memory of an attack grow with its steps, the batch, the lambdas and the voxels, with the lines.

    python -m benchmarks.growth [--steps 2] [--rounds 5] [--figure FILE] [--output FILE]

LGM's BIM on DynConv-8 (a grid of lambdas is one ``vmap``) and its point-BIM on MinkUNet-14A in one embedded room of
more and more points. A line is fitted to the medians of the rounds, of the clock and of the processor; its largest
residual is given in percent of the longest run. Memory is what XLA says the compiled attack needs: arguments, results
and temporaries. Random weights.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _turns
from benchmarks.compile_time import on_points, variables_of
from dyn_jax import attacks, networks, occupancy
from dyn_jax.datasets import room
from dyn_jax.plotting import figure

SIZES = (1, 2, 4, 8)
NETWORK, BATCH = "dynconv-8-cifar10", 16
POINT_NETWORK, POINTS = "minkunet-14a-scannet", (1024, 2048, 4096, 8192)


def on_images(batch: int, steps: int, lambdas: int = 1) -> tuple[Callable, tuple]:
    """(attack with each of so many lambdas, its arguments) on random images."""
    net = networks.create(NETWORK)
    images = np.random.default_rng(0).random((batch, 32, 32, 3), np.float32)
    attack = attacks.bim(8 / 255, 2 / 255, steps, attack_all=True)

    def run(variables: Any, images: jax.Array, lambdas: jax.Array) -> jax.Array:
        def one(scale: jax.Array) -> jax.Array:
            return attack(partial(net.apply, variables, occupancy=occupancy.sigmoid(scale)), images).adversarial

        return jax.vmap(one)(lambdas)

    return run, (variables_of(net, images), images, jnp.linspace(1.0, 10.0, lambdas))


def voxels_of(points: int) -> int:
    """Voxels that the room's points are in before the attack; LGM looks at those near them as well."""
    cells = np.floor(room(0, points).xyz / networks.create(POINT_NETWORK).voxel_size)
    return len(np.unique(cells, axis=0))


def grown(steps: int) -> Iterator[tuple[str, list[tuple[int, tuple[Callable, tuple]]]]]:
    """(quantity, [(its value, attack)])."""
    yield "steps", [(n * steps, on_images(BATCH, n * steps)) for n in SIZES]
    yield "batch", [(n * BATCH, on_images(n * BATCH, steps)) for n in SIZES]
    yield "lambdas", [(n, on_images(BATCH, steps, n)) for n in SIZES]
    yield "voxels", [(voxels_of(points), on_points(POINT_NETWORK, points, steps)) for points in POINTS]


def rows_of(quantity: str, cases: list[tuple[int, tuple[Callable, tuple]]], rounds: int) -> list[dict[str, Any]]:
    """Rows of one quantity: what was measured, and the lines through it."""
    runs, memory = {}, []
    for number, (value, (function, given)) in enumerate(cases):
        made = _turns.compiled(f"{quantity} {value}", function, *given)
        memory.append(_turns.bytes_of(made) / 2**20)
        runs[str(number)] = partial(lambda f, a: jax.block_until_ready(f(*a)), made, given)
    found = [_turns.medians(runs) for runs in _turns.in_turns(runs, rounds).values()]
    values, seconds, cpu = [value for value, _ in cases], *([f[key] for f in found] for key in ("wall", "CPU"))
    fit, fit_cpu, fit_memory = (_turns.line(values, y) for y in (seconds, cpu, memory))
    fitted = [fit["start"] + fit["slope"] * value for value in values]
    worst = max(abs(a - b) for a, b in zip(seconds, fitted)) / max(seconds)
    return [
        {
            "quantity": quantity,
            "value": value,
            "s": f["wall"],
            "lowest": f["lowest"],
            "highest": f["highest"],
            "CPU s": f["CPU"],
            "MiB": mib,
            "s by the line": expected,
            "s for one more": fit["slope"],
            "R2": fit["R2"],
            "CPU R2": fit_cpu["R2"],
            "MiB for one more": fit_memory["slope"],
            "residual in percent": 100 * worst,
        }
        for value, f, mib, expected in zip(values, found, memory, fitted)
    ]


def draw(rows: list[dict[str, Any]], path: str | os.PathLike) -> None:
    """A picture: seconds with their line, and memory, a column for each quantity."""
    names = list(dict.fromkeys(row["quantity"] for row in rows))
    fig, axes = figure(2, len(names), figsize=(3 * len(names), 5))
    for name, (above, below) in zip(names, axes.T):
        mine = [row for row in rows if row["quantity"] == name]
        at = [row["value"] for row in mine]
        above.plot(at, [row["s"] for row in mine], "o", at, [row["s by the line"] for row in mine], "-")
        below.plot(at, [row["MiB"] for row in mine], "s-")
        above.set(title=name, ylabel="seconds", ylim=(0, None))
        below.set(xlabel=name, ylabel="peak MiB", ylim=(0, None))
    fig.savefig(path, dpi=110)


def main() -> None:
    parser = _turns.parser(__doc__ or "", steps=2)
    parser.set_defaults(rounds=5)
    parser.add_argument("--figure", type=pathlib.Path, default=None, help="PNG file")
    arguments = parser.parse_args()
    rows = [row for quantity, cases in grown(arguments.steps) for row in rows_of(quantity, cases, arguments.rounds)]
    if arguments.figure:
        draw(rows, arguments.figure)
    _turns.keep(rows, arguments)


if __name__ == "__main__":
    main()
