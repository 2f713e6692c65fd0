"""BIM on the CIFAR ResNet-32: images per second, paired in one run with torchattacks and torch.compile.

    python -m benchmarks.bim_resnet32 [--checkpoint resnet32.th] [--data FOLDER] [--steps 100] [--rounds 3]

Contenders take turns, round by round, so that a busy machine slows all of them; the median over the rounds is
printed with the spread, and CPU seconds beside wall seconds. Without a checkpoint the weights are random, without
data the images are (the time does not depend on either). Needs the `bench` extra; torchattacks pins an old
`requests` and is installed with `pip install --no-deps torchattacks`; a peer that is missing is said to be missing.
Runs unchanged on a GPU (JAX's default device; PyTorch uses CUDA where it is available).
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _turns
from dyn_jax import attacks, networks
from dyn_jax.datasets import cifar10_lossless
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
        loaded = cifar10_lossless(data, "test")
        images, labels = loaded.images[:batch].astype(np.float32) / 255, loaded.labels[:batch]
    return state, images, labels


def jax_contenders(state: dict, images: np.ndarray, labels: np.ndarray, steps: int) -> dict[str, Callable]:
    """Compiled runs."""
    contenders: dict[str, Callable] = {}
    x, y = jnp.asarray(images), jnp.asarray(labels)
    attack = attacks.bim(EPS, STEP, steps, attack_all=True)
    for name, winograd in (("dyn_jax BIM", False), ("dyn_jax BIM, winograd=True", True)):
        net = networks.create("resnet-32-cifar10", winograd=winograd)
        variables = net.init(jax.random.key(0), x[:1])
        if state:
            import weights_convert

            variables = weights_convert.convert("resnet-32-cifar10", state)
        run = lambda variables, x, y, net=net: attack(partial(net.apply, variables), x, y).adversarial
        contenders[name] = partial(_blocking, _turns.compiled(name, run, variables, x, y), variables, x, y)
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

    return partial(_blocking, run, variables, x)


def torch_contenders(torch, state: dict, images: np.ndarray, labels: np.ndarray, steps: int) -> dict[str, Callable]:
    """torchattacks, and the hand-written loop eager and compiled; those that can be imported."""
    from benchmarks._torch_peers import ResNet, bim_loop

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = ResNet(32, *IMAGENET_MEAN_STD)
    if state:
        model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=False)
    model = model.to(device).eval().requires_grad_(False)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
    y = torch.from_numpy(labels.astype(np.int64)).to(device)
    loops: dict[str, Callable] = {}
    try:
        import torchattacks

        loops["torchattacks BIM"] = torchattacks.BIM(model, eps=EPS, alpha=STEP, steps=steps)
    except ImportError as error:
        print(f"torchattacks is missing ({error}): pip install --no-deps torchattacks")
    loops["torch loop, eager"] = bim_loop(model, EPS, STEP, steps)
    compiled = torch.compile(model)
    try:
        bim_loop(compiled, EPS, STEP, 2)(x, y)
        loops["torch loop, torch.compile"] = bim_loop(compiled, EPS, STEP, steps)
    except Exception as error:  # the compiler needs a C++ toolchain; without one the peer is reported as missing
        print(f"torch.compile does not work here: {type(error).__name__}")
    return {name: partial(_turns.synchronised, torch, loop, x, y) for name, loop in loops.items()}


def main() -> None:
    parser = _turns.parser(__doc__, steps=100)
    parser.add_argument("--checkpoint")
    parser.add_argument("--data")
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    state, images, labels = load(arguments.checkpoint, arguments.data, arguments.batch)
    contenders = jax_contenders(state, images, labels, arguments.steps)
    if torch := _turns.torch_of(arguments):
        contenders |= torch_contenders(torch, state, images, labels, arguments.steps)
    # an attack needs the forward pass and the gradient to the images, which costs as much
    work = 2 * _turns.forward_macs(networks.create("resnet-32-cifar10"), images) / _turns.matrix_peak()
    rows = []
    print(f"\n{'contender':28} {'images/s':>9} {'ms/step':>8} {'min..max':>15} {'CPU ms/step':>12}")
    for name, samples in _turns.in_turns(contenders, arguments.rounds).items():
        wall = [1000 * seconds / arguments.steps for seconds in _turns.walls(samples)]
        cpu = statistics.median(1000 * sample.cpu / arguments.steps for sample in samples)
        middle = statistics.median(wall)
        speed = 1000 * len(labels) / middle / arguments.steps
        row = {"contender": name, "images/s": speed, "ms/step": middle, "CPU ms/step": cpu, "wall": wall}
        rows.append(row | {_turns.SHARE: 1000 * work / middle})
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
