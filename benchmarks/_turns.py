"""What the benchmarks share: options, compilation that says what it cost, peers that may be missing, turns."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dyn_jax import macs
from experiments import _record

PEAK_SIZE = 2048
SHARE = "share of the matrix peak"


class Seconds(NamedTuple):
    """Of one run: of the clock, and of the processor in user mode and in all."""

    wall: float
    user: float
    cpu: float


def parser(description: str, steps: int) -> argparse.ArgumentParser:
    """The options that the benchmarks of attacks share."""
    result = argparse.ArgumentParser(description=description.splitlines()[0])
    result.add_argument("--steps", type=int, default=steps)
    result.add_argument("--rounds", type=int, default=3)
    result.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="measure PyTorch as well")
    result.add_argument("--output", default=None, help="JSON file for the numbers")
    return result


def compiled(name: str, function: Callable, *arguments: Any) -> Callable:
    """The compiled function; the seconds of its compilation and its temporaries are printed."""
    began = time.perf_counter()
    made = jax.jit(function).lower(*arguments).compile()
    temporary = getattr(made.memory_analysis(), "temp_size_in_bytes", 0) / 2**20
    print(f"{name}: compiled in {time.perf_counter() - began:.1f} s, {temporary:.0f} MiB temporaries")
    return made


def bytes_of(made: Any) -> int:
    """What a compiled function needs: arguments, results and temporaries, what is shared counted once; 0: not known."""
    m = made.memory_analysis()
    names = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return 0 if m is None else sum(getattr(m, name) for name in names) - m.alias_size_in_bytes


def torch_of(arguments: argparse.Namespace) -> ModuleType | None:
    """PyTorch; None where it is not wanted, or not installed, which is said."""
    if not arguments.peers:
        return None
    try:
        import torch
    except ImportError:
        print("torch is not installed: no peers (pip install 'dyn_jax[bench]')")
        return None
    return torch


def thread_counts(torch: ModuleType) -> list[int]:
    """One and all: on a busy machine PyTorch's second thread costs more than it gives."""
    return sorted({1, torch.get_num_threads()})


def synchronised(torch: ModuleType, fun: Callable, *arguments: Any) -> Any:
    """Calls, and waits for the GPU if there is one."""
    result = fun(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def timed(run: Callable[[], Any]) -> Seconds:
    """What one run took."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    run()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    user = after.ru_utime - before.ru_utime
    return Seconds(wall, user, user + after.ru_stime - before.ru_stime)


def in_turns(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Seconds]]:
    """{name: seconds of every round}, the contenders taking turns after one run each to warm up."""
    for run in contenders.values():
        run()
    samples: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            samples[name].append(timed(run))
    return samples


def medians(samples: Iterable[Seconds], scale: float = 1.0) -> dict[str, float]:
    """Medians of the clock and of the processor, and the spread of the clock, each times `scale`."""
    samples = list(samples)
    wall = [scale * seconds for seconds in walls(samples)]
    cpu = statistics.median(scale * sample.cpu for sample in samples)
    return {"wall": statistics.median(wall), "lowest": wall[0], "highest": wall[-1], "CPU": cpu}


def matrix_peak(rounds: int = 5) -> float:
    """Multiply-adds a second of the fastest of some float32 matrix products: the roof over convolutions."""
    a, b = (jax.random.normal(jax.random.key(i), (PEAK_SIZE, PEAK_SIZE), jnp.float32) for i in range(2))
    run = jax.jit(lambda a, b: jnp.dot(a, b, precision="highest"))
    seconds = in_turns({"": lambda: jax.block_until_ready(run(a, b))}, rounds)[""]
    return PEAK_SIZE**3 / min(walls(seconds))


def forward_macs(net: Any, images: Any) -> int:
    """Multiply-adds of one forward pass over the batch, every unit evaluated; nothing is executed."""
    variables = jax.eval_shape(net.init, jax.random.key(0), images[:1])
    return macs.of_function(lambda v, x: net.apply(v, x).logits, variables, images)


def line(x: Iterable[float], y: Iterable[float]) -> dict[str, float]:
    """The straight line through points by least squares; R2 is 1 where it meets all of them, or all are the same."""
    at, of = np.asarray(list(x), float), np.asarray(list(y), float)
    slope, start = np.polyfit(at, of, 1)
    spread = np.sum((of - of.mean()) ** 2)
    left = np.sum((of - slope * at - start) ** 2)
    return {"slope": float(slope), "start": float(start), "R2": float(1 - left / spread) if spread > 0 else 1.0}


def keep(rows: list[dict[str, Any]], arguments: argparse.Namespace, **facts: Any) -> None:
    """Prints the rows, and writes the record where the options name a file; facts as for `_record.write`."""
    print(*map(json.dumps, rows), sep="\n")
    if arguments.output:
        _record.write(arguments.output, rows, arguments=arguments, seed=0, packages=("torch",), **facts)


def walls(samples: Iterable[Seconds]) -> list[float]:
    """Wall seconds, ascending."""
    return sorted(sample.wall for sample in samples)
