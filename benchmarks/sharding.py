"""What spreading an attack over devices costs: one device against several forced ones on the same processors.

    python -m benchmarks.sharding [--devices 4] [--images 32] [--chunks 8] [--steps 10] [--rounds 5] [--output FILE]

Forced host devices share the processors, so that nothing is gained: what the same chunks of `evaluate` cost more than
on one device is the overhead of sharding. A process for each number of devices; they take turns, round by round, and
only one works at a time. Medians over the rounds; the overhead is that of the processor's seconds, user and system (on
a busy machine the clock's say little). Random weights: the time does not depend on them.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from benchmarks import _turns
from dyn_jax import attacks, networks
from dyn_jax.attacks import without_traces
from dyn_jax.evaluation.chunks import Chunks, divided

FORCED = "--xla_force_host_platform_device_count"


def work(arguments: Any) -> None:
    """One process: a line on standard input is a round, its seconds are a line on standard output."""
    net = networks.create(arguments.network)
    rng = np.random.default_rng(0)
    count = arguments.images * arguments.chunks
    images, labels = rng.random((count, 32, 32, 3), np.float32), np.zeros(count, np.int32)
    variables = jax.jit(net.init)(jax.random.key(0), images[:1])
    attack = attacks.bim("8/255", "2/255", arguments.steps, attack_all=True)

    def call(variables, rows, x, y):
        return without_traces(attack(lambda x: net.apply(variables, x), x, y, index=rows))

    run = Chunks(call, variables, arguments.images)
    chunks = divided(np.arange(count), arguments.images)
    assert run.at_once == arguments.worker
    for _ in sys.stdin:
        print(json.dumps(_turns.timed(lambda: list(run(chunks, images, labels)))), flush=True)


def main() -> None:
    parser = _turns.parser(__doc__, steps=10)
    parser.add_argument("--network", default="resnet-20-cifar10")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--images", type=int, default=32, help="of a chunk")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--worker", type=int, help="devices of this process, which the command starts itself")
    parser.set_defaults(rounds=5)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        return work(arguments)
    delattr(arguments, "worker")
    options = {name: getattr(arguments, name) for name in ("network", "images", "chunks", "steps")}
    processes = {count: _started(count, options) for count in (1, arguments.devices)}
    samples: dict[int, list[_turns.Seconds]] = {count: [] for count in processes}
    for number in range(arguments.rounds + 1):  # the first one compiles
        for count, process in processes.items():
            took = _round(process)
            if number:
                samples[count].append(took)
    for process in processes.values():
        process.communicate()
    median = lambda count, what: statistics.median(getattr(one, what) for one in samples[count])
    over = lambda count, what: round(100 * (median(count, what) / median(1, what) - 1), 2)
    total = arguments.images * arguments.chunks
    rows = [
        {
            "devices": count,
            "CPU s": round(median(count, "cpu"), 3),
            "wall s": round(median(count, "wall"), 3),
            "images/s": round(total / median(count, "wall"), 2),
            "CPU overhead %": over(count, "cpu"),
            "wall overhead %": over(count, "wall"),
        }
        for count in processes
    ]
    _turns.keep(rows, arguments)


def _started(count: int, options: dict[str, Any]) -> subprocess.Popen:
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.sharding", "--worker", str(count), *given]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FORCED}={count}".strip()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    pipe = subprocess.PIPE
    root = pathlib.Path(__file__).parents[1]
    return subprocess.Popen(command, cwd=root, env=environment, stdin=pipe, stdout=pipe, text=True)


def _round(process: subprocess.Popen) -> _turns.Seconds:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the process of {process.args} ended with {process.wait()}")
    return _turns.Seconds(*json.loads(line))


if __name__ == "__main__":
    main()
