"""Seconds until an attack runs: tracing and compilation of BIM on deep networks, blocks unrolled and in loops.

    python -m benchmarks.compile_time [--networks NAME ...] [--steps 3] [--rounds 5] [--output FILE]

Every network has a process of its own, in which nothing was compiled before, and JAX's compilation cache is off.
Seconds of the clock stand beside those of the processor, and the kernels (fusions) of the program beside them: code
that is generated and compiled for each. A step's time stands beside, since equal blocks in one loop
(``scan_from``) may cost there what they save here; its spread is over the rounds. Random weights and images, one
embedded room for the points.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _turns
from benchmarks.sparse3d import random_variables
from dyn_jax import attacks, networks, occupancy
from dyn_jax.cli import demo_points
from dyn_jax.datasets import room
from dyn_jax.occupancy import voxel

IMAGES = {  # batch, height and width
    "skipnet-rl-rnn-110-cifar10": (16, 32),
    "resnet-110-cifar10": (16, 32),
    "resnet-1202-cifar10": (4, 32),
    "skipnet-rl-rnn-101-imagenet": (2, 224),
    "resnet-152-imagenet": (2, 224),
}
POINTS = {"minkunet-34c-scannet": 4096}
FORMS: dict[str, dict[str, Any]] = {
    "one after the other": {"scan_from": None},
    "equal ones in a loop": {"scan_from": 2},
    "in a loop, evaluated again": {"scan_from": 2, "remat": True},
}


def variables_of(net: Any, images: np.ndarray) -> Any:
    """Random weights by shape: nothing is compiled for them."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: 0.05 * np.abs(rng.standard_normal(s.shape)).astype(np.float32), shapes)


def judged(result: attacks.AttackResult) -> tuple[jax.Array, jax.Array]:
    """What everybody reads; an unread verdict would not be compiled."""
    return result.adversarial, result.success


def on_points(name: str, points: int, steps: int) -> tuple[Callable, tuple]:
    """(LGM's point-BIM, its arguments) on one embedded room."""
    net: Any = networks.create(name)
    scene, step = room(0, points), 0.005
    clouds = demo_points.clouds_of([scene])
    attack = demo_points.attack_function(net, *demo_points.capacities(net, clouds, step), steps=steps)
    run = lambda variables, cloud: attack(
        variables, cloud, scene.labels, jnp.float32(2 * step), jnp.float32(step), voxel.lgm()
    )
    return lambda *given: judged(run(*given)), (random_variables(net), clouds[0])


def attack_of(name: str, steps: int, form: str) -> tuple[Callable, tuple]:
    """(attack, its arguments)."""
    if name in POINTS:
        return on_points(name, POINTS[name], steps)
    net = networks.create(name, **FORMS[form])
    batch, size = IMAGES[name]
    images = np.random.default_rng(0).random((batch, size, size, 3), np.float32)
    attack = attacks.bim(8 / 255, 2 / 255, steps, attack_all=True)
    forward = lambda variables: partial(net.apply, variables, occupancy=occupancy.hard())
    return lambda v, x: judged(attack(forward(v), x)), (variables_of(net, images), images)


def measure(name: str, form: str, steps: int, rounds: int) -> dict[str, Any]:
    """One row, in this process."""
    function, given = attack_of(name, steps, form)
    made: list[Any] = []
    tracing = _turns.timed(lambda: made.append(jax.jit(function).lower(*given)))
    compiling = _turns.timed(lambda: made.append(made[0].compile()))
    memory = _turns.bytes_of(made[1]) / 2**20
    run = _turns.in_turns({"": lambda: jax.block_until_ready(made[1](*given))}, rounds)[""]
    step = _turns.medians(run, 1000 / steps)
    return {
        "network": name,
        "blocks": form,
        "trace s": tracing.wall,
        "compile s": compiling.wall,
        "trace and compile CPU s": tracing.cpu + compiling.cpu,
        "kernels": (count := made[1].as_text().count(" fusion(")),
        "compile CPU ms a kernel": 1000 * compiling.cpu / max(count, 1),
        "peak MiB": memory,
        "ms/step": step["wall"],
        "lowest": step["lowest"],
        "highest": step["highest"],
        "CPU ms/step": step["CPU"],
    }


def fresh(*case: Any) -> dict[str, Any]:
    """`measure` in a new process without JAX's cache."""
    command = [sys.executable, "-m", "benchmarks.compile_time", "--one", json.dumps(case)]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = _turns.parser(__doc__ or "", steps=3)
    names = [*IMAGES, *POINTS]
    parser.add_argument("--networks", nargs="+", choices=names, default=names)
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*json.loads(arguments.one))))
        return
    del arguments.one, arguments.peers
    rows = []
    for name in arguments.networks:
        plain = None
        for form in list(FORMS)[: 1 if name in POINTS else None]:
            row = fresh(name, form, arguments.steps, arguments.rounds)
            plain = plain or row
            row["times the plain step"] = row["ms/step"] / plain["ms/step"]
            print(f"{name}, {row['blocks']}", flush=True)
            rows.append(row)
    _turns.keep(rows, arguments)


if __name__ == "__main__":
    main()
