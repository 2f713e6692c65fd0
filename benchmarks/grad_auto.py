"""GradAuto on SkipNet-38 (CIFAR form, recurrent gates), batch 32, against the released loop, in one run.

    python -m benchmarks.grad_auto [--batch 32] [--steps 5] [--rounds 3] [--output FILE]

The peers are loops in PyTorch's idiom, from the description of the released one: ``released`` calls backward three
times an iteration with the parameters' gradients left on, as released; ``careful`` is what a careful user would write
(parameters frozen, gradients of the modifier only). Both were checked against the authors' arrays. Every iteration
costs the same, so a few tell the ratio; images per second are given for the 300 iterations of the release. Contenders
take turns; medians over the rounds. Random weights: the time does not depend on them. Needs the `bench` extra; without
torch our side alone is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import numpy as np

import dyn_jax
from dyn_jax import attacks, occupancy
from experiments import _record

NETWORK, RELEASED_STEPS = "skipnet-rl-rnn-38-cifar10", 300


def jax_contenders(images: np.ndarray, steps: int) -> dict[str, Callable[[], None]]:
    """Compiled attacks; the seconds of compilation and the temporaries are printed."""
    nets = {flag: dyn_jax.networks.create(NETWORK, winograd=flag) for flag in (False, True)}
    variables = jax.jit(nets[False].init)(jax.random.key(0), images[:1])
    release = {"protocol": "release", "normalization": nets[False].normalization}
    cases = {
        "dyn_jax, release": (False, release),
        "dyn_jax, release, winograd": (True, release),
        "dyn_jax, paper": (False, {}),
        "dyn_jax, paper, winograd": (True, {}),
    }
    contenders = {}
    for name, (winograd, fields) in cases.items():
        attack = attacks.grad_auto(steps=steps, **fields)

        def run(variables, x, attack=attack, net=nets[winograd]):
            return attack(partial(net.apply, variables, occupancy=occupancy.hard()), x).adversarial

        began = time.perf_counter()
        compiled = jax.jit(run).lower(variables, images).compile()
        seconds, memory = time.perf_counter() - began, compiled.memory_analysis()
        print(f"{name}: compiled in {seconds:.1f} s, temporaries {memory.temp_size_in_bytes / 2**20:.0f} MiB")
        contenders[name] = partial(lambda f, v: jax.block_until_ready(f(v, images)), compiled, variables)
    return contenders


def torch_contenders(images: np.ndarray, steps: int) -> dict[str, Callable[[], None]]:
    """The released loop and the careful one, if torch is there, with one and with all threads."""
    try:
        import torch
    except ImportError:
        print("torch is not installed: no peer (pip install 'dyn_jax[bench]')")
        return {}
    from benchmarks._torch_skipnet import SkipNet38, careful_loop, released_loop

    device = "cuda" if torch.cuda.is_available() else "cpu"
    mean, std = (np.asarray(v, np.float32) for v in dyn_jax.networks.create(NETWORK).normalization)
    x = torch.from_numpy(np.ascontiguousarray(((images - mean) / std).transpose(0, 3, 1, 2))).to(device)
    models = {"released": SkipNet38().eval().to(device), "careful": SkipNet38().eval().to(device)}
    models["careful"].requires_grad_(False)
    loops = {"released": released_loop, "careful": careful_loop}

    def call(kind: str, threads: int) -> None:
        torch.set_num_threads(threads)
        loops[kind](models[kind], x, steps)
        if device == "cuda":
            torch.cuda.synchronize()

    counts = sorted({1, torch.get_num_threads()})
    return {f"PyTorch, {kind} loop, {n} threads": partial(call, kind, n) for kind in loops for n in counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default=None, help="JSON file")
    arguments = parser.parse_args()
    images = np.random.default_rng(0).random((arguments.batch, 32, 32, 3), np.float32)
    contenders = jax_contenders(images, arguments.steps) | torch_contenders(images, arguments.steps)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(arguments.rounds + 1):
        for name, call in contenders.items():
            began = time.perf_counter()
            call()
            if number:  # the first round warms up
                times[name].append(1000 * (time.perf_counter() - began) / arguments.steps)
    best = {
        kind: min((statistics.median(v) for name, v in times.items() if f"{kind} loop" in name), default=None)
        for kind in ("released", "careful")
    }
    rows = []
    for name, values in times.items():
        median = statistics.median(values)
        row = {"contender": name, "ms per step": median, "lowest": min(values), "highest": max(values)}
        row["images per second at 300 steps"] = 1000 * arguments.batch / (RELEASED_STEPS * median)
        row |= {f"times the {kind} loop": value / median for kind, value in best.items() if value is not None}
        rows.append(row)
        print(json.dumps(row))
    if arguments.output:
        _record.write(arguments.output, rows, arguments=arguments, seed=0, packages=("torch",))


if __name__ == "__main__":
    main()
