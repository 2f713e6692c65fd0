"""BIM on the CIFAR ResNet-32: images per second, paired in one run with torchattacks and torch.compile.

    python -m benchmarks.bim_resnet32 [--checkpoint resnet32.th] [--data FOLDER] [--steps 100] [--rounds 3]

Contenders take turns, round by round, so that a busy machine slows all of them; the median over the rounds is
printed with the spread, and CPU seconds beside wall seconds. Without a checkpoint the weights are random, without
data the images are (the time does not depend on either). Needs the `bench` extra; torchattacks pins an old
`requests` and is installed with `pip install --no-deps torchattacks`; a peer that is missing is said to be missing.
Runs unchanged on a GPU (JAX's default device; PyTorch uses CUDA where it is available).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import dyn_jax
from dyn_jax import attacks
from dyn_jax.nn import IMAGENET_MEAN_STD
from experiments import _record

EPS, STEP = 8 / 255, 2 / 255


def load(checkpoint: str | None, data: str | None, batch: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """(torch state dict or {}, images NHWC, labels)."""
    state = {}
    if checkpoint:
        from weights_convert.torch_io import read_state_dict

        state = read_state_dict(checkpoint)
    rng = np.random.default_rng(0)
    images = rng.random((batch, 32, 32, 3), dtype=np.float32)
    labels = rng.integers(0, 10, batch).astype(np.int32)
    if data:
        from experiments._data import cifar10_lossless

        loaded = cifar10_lossless(data, "test")
        images, labels = loaded.images[:batch].astype(np.float32) / 255, loaded.labels[:batch]
    return state, images, labels


def jax_contenders(state: dict, images: np.ndarray, labels: np.ndarray, steps: int) -> dict[str, Callable]:
    """Compiled runs; the seconds of their compilation are printed."""
    import weights_convert

    contenders: dict[str, Callable] = {}
    x, y = jnp.asarray(images), jnp.asarray(labels)
    for name, winograd in (("dyn_jax BIM", False), ("dyn_jax BIM, winograd=True", True)):
        net = dyn_jax.networks.create("resnet-32-cifar10", winograd=winograd)
        variables = net.init(jax.random.key(0), x[:1])
        if state:
            variables = weights_convert.convert("resnet-32-cifar10", state)
        attack = attacks.bim(EPS, STEP, steps, attack_all=True)

        def run(variables, x, y, net=net, attack=attack):
            return attack(partial(net.apply, variables), x, y).adversarial

        began = time.perf_counter()
        compiled = jax.jit(run).lower(variables, x, y).compile()
        memory = compiled.memory_analysis()
        temporary = getattr(memory, "temp_size_in_bytes", 0)
        print(f"{name}: compiled in {time.perf_counter() - began:.1f} s, {temporary / 2**20:.0f} MiB temporaries")
        contenders[name] = partial(_blocking, compiled, variables, x, y)
        if not winograd:
            contenders["steps x gradient"] = _gradient_loop(net, variables, x, y, steps)
    return contenders


def _blocking(fun: Callable, *args):
    return jax.block_until_ready(fun(*args))


def _gradient_loop(net, variables, x, y, steps: int) -> Callable:
    """The gradients of an attack and nothing else, in one loop: what its overhead is measured against."""

    def loss(x, variables):
        log_probability = jax.nn.log_softmax(net.apply(variables, x).logits)
        return -jnp.sum(jnp.take_along_axis(log_probability, y[:, None], 1))

    @jax.jit
    def run(variables, x):
        body = lambda _, x: x + 1e-6 * jax.grad(loss)(x, variables)
        return jax.lax.fori_loop(0, steps, body, x)

    _blocking(run, variables, x)
    return partial(_blocking, run, variables, x)


def torch_contenders(state: dict, images: np.ndarray, labels: np.ndarray, steps: int) -> dict[str, Callable]:
    """torchattacks, and the hand-written loop eager and compiled; those that can be imported."""
    try:
        import torch
    except ImportError:
        print("torch is not installed: no peers (pip install 'dyn_jax[bench]')")
        return {}
    from benchmarks._torch_peers import ResNet, bim_loop

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = ResNet(32, *IMAGENET_MEAN_STD)
    if state:
        model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=False)
    model = model.to(device).eval().requires_grad_(False)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
    y = torch.from_numpy(labels.astype(np.int64)).to(device)
    contenders: dict[str, Callable] = {}
    try:
        import torchattacks

        peer = torchattacks.BIM(model, eps=EPS, alpha=STEP, steps=steps)
        contenders["torchattacks BIM"] = partial(_synchronised, torch, peer, x, y)
    except ImportError as error:
        print(f"torchattacks is missing ({error}): pip install --no-deps torchattacks")
    contenders["torch loop, eager"] = partial(_synchronised, torch, bim_loop(model, EPS, STEP, steps), x, y)
    compiled = torch.compile(model)
    fast = bim_loop(compiled, EPS, STEP, steps)
    try:
        bim_loop(compiled, EPS, STEP, 2)(x, y)
        contenders["torch loop, torch.compile"] = partial(_synchronised, torch, fast, x, y)
    except Exception as error:  # the compiler needs a C++ toolchain; without one the peer is reported as missing
        print(f"torch.compile does not work here: {type(error).__name__}")
    return contenders


def _synchronised(torch, fun: Callable, *args):
    result = fun(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def measure(contenders: dict[str, Callable], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """{name: [(wall seconds, CPU seconds)]}, the contenders taking turns after one warm-up each."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, run in contenders.items():
            cpu, wall = _cpu_seconds(), time.perf_counter()
            run()
            if round_number:
                samples[name].append((time.perf_counter() - wall, _cpu_seconds() - cpu))
    return samples


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def import_seconds() -> float:
    """Best of three imports of dyn_jax in a fresh interpreter."""
    code = "import time; t = time.perf_counter(); import dyn_jax; print(time.perf_counter() - t)"
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint")
    parser.add_argument("--data")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="JSON file for the numbers")
    arguments = parser.parse_args()
    state, images, labels = load(arguments.checkpoint, arguments.data, arguments.batch)
    print(f"import dyn_jax: {import_seconds():.2f} s")
    contenders = jax_contenders(state, images, labels, arguments.steps)
    contenders |= torch_contenders(state, images, labels, arguments.steps)
    samples = measure(contenders, arguments.rounds)
    rows = []
    print(f"\n{'contender':28} {'images/s':>9} {'ms/step':>8} {'min..max':>15} {'CPU ms/step':>12}")
    for name, values in samples.items():
        wall = sorted(1000 * w / arguments.steps for w, _ in values)
        cpu = statistics.median(1000 * c / arguments.steps for _, c in values)
        middle = statistics.median(wall)
        speed = 1000 * len(labels) / middle / arguments.steps
        rows.append({"contender": name, "images/s": speed, "ms/step": middle, "CPU ms/step": cpu, "wall": wall})
        print(f"{name:28} {speed:9.2f} {middle:8.1f} {wall[0]:7.1f}..{wall[-1]:6.1f} {cpu:12.1f}")
    _ratios({row["contender"]: row for row in rows})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"peak resident memory of the whole run: {peak:.0f} MiB")
    if arguments.output:
        packages = ("torch", "torchattacks")
        _record.write(arguments.output, rows, arguments=arguments, packages=packages)


def _ratios(rows: dict[str, dict]) -> None:
    ours = rows["dyn_jax BIM"]
    overhead = ours["ms/step"] / rows["steps x gradient"]["ms/step"] - 1
    print(f"\nattack loop over steps x gradient: {100 * overhead:+.1f} %")
    for peer in ("torchattacks BIM", "torch loop, torch.compile"):
        for mine in ("dyn_jax BIM", "dyn_jax BIM, winograd=True"):
            if peer in rows:
                wall = rows[peer]["ms/step"] / rows[mine]["ms/step"]
                cpu = rows[peer]["CPU ms/step"] / rows[mine]["CPU ms/step"]
                print(f"{mine} over {peer}: {wall:.2f} times as fast (by CPU seconds {cpu:.2f})")


if __name__ == "__main__":
    main()
