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

import statistics
from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from benchmarks import _turns
from dyn_jax import attacks, networks, occupancy

NETWORK, RELEASED_STEPS = "skipnet-rl-rnn-38-cifar10", 300


def jax_contenders(images: np.ndarray, steps: int) -> dict[str, Callable[[], None]]:
    """Compiled attacks."""
    nets = {flag: networks.create(NETWORK, winograd=flag) for flag in (False, True)}
    variables = jax.jit(nets[False].init)(jax.random.key(0), images[:1])
    forms = {
        "release": attacks.released.grad_auto(steps=steps, normalization=nets[False].normalization),
        "paper": attacks.grad_auto(steps=steps),
    }
    contenders = {}
    for form, attack in forms.items():
        for winograd, net in nets.items():

            def run(variables, x, attack=attack, net=net):
                return attack(partial(net.apply, variables, occupancy=occupancy.hard()), x).adversarial

            name = f"dyn_jax, {form}" + (", winograd" if winograd else "")
            compiled = _turns.compiled(name, run, variables, images)
            contenders[name] = partial(lambda f: jax.block_until_ready(f(variables, images)), compiled)
    return contenders


def torch_contenders(torch, images: np.ndarray, steps: int) -> dict[str, Callable[[], None]]:
    """The released loop and the careful one, with one and with all threads."""
    from benchmarks._torch_skipnet import SkipNet38, careful_loop, released_loop

    device = "cuda" if torch.cuda.is_available() else "cpu"
    mean, std = (np.asarray(v, np.float32) for v in networks.create(NETWORK).normalization)
    x = torch.from_numpy(np.ascontiguousarray(((images - mean) / std).transpose(0, 3, 1, 2))).to(device)
    models = {"released": SkipNet38().eval().to(device), "careful": SkipNet38().eval().to(device)}
    models["careful"].requires_grad_(False)
    loops = {"released": released_loop, "careful": careful_loop}

    def call(kind: str, threads: int) -> None:
        torch.set_num_threads(threads)
        loops[kind](models[kind], x, steps)

    return {
        f"PyTorch, {kind} loop, {n} threads": partial(_turns.synchronised, torch, call, kind, n)
        for kind in loops
        for n in _turns.thread_counts(torch)
    }


def main() -> None:
    parser = _turns.parser(__doc__, steps=5)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    images = np.random.default_rng(0).random((arguments.batch, 32, 32, 3), np.float32)
    contenders = jax_contenders(images, arguments.steps)
    if torch := _turns.torch_of(arguments):
        contenders |= torch_contenders(torch, images, arguments.steps)
    # what a step needs in any library: one forward pass, and the gradients of two losses to the images
    work = 3 * _turns.forward_macs(networks.create(NETWORK), images) / _turns.matrix_peak()
    samples = _turns.in_turns(contenders, arguments.rounds)
    cpu = {name: _turns.medians(runs, 1000 / arguments.steps)["CPU"] for name, runs in samples.items()}
    times = {name: [1000 * wall / arguments.steps for wall in _turns.walls(runs)] for name, runs in samples.items()}
    best = {
        kind: min((statistics.median(v) for name, v in times.items() if f"{kind} loop" in name), default=None)
        for kind in ("released", "careful")
    }
    rows = []
    for name, values in times.items():
        median = statistics.median(values)
        row = {"contender": name, "ms per step": median, "lowest": min(values), "highest": max(values)}
        row |= {"CPU ms per step": cpu[name], _turns.SHARE: 1000 * work / median}
        row["images per second at 300 steps"] = 1000 * arguments.batch / (RELEASED_STEPS * median)
        row |= {f"times the {kind} loop": value / median for kind, value in best.items() if value is not None}
        rows.append(row)
    _turns.keep(rows, arguments)


if __name__ == "__main__":
    main()
