"""Early Attack on ResNet-56 SDN: 100 images at once against the released loop's one image at a time, in one run.

    python -m benchmarks.early_attack [--images 100] [--steps 10] [--loop-images 3] [--rounds 3] [--output FILE]

The peer is the released loop written down again in PyTorch from its description: per image and iteration one forward
pass with its gradient, one Adam step and one more forward pass that looks at the exits. Ours takes the exits from the
gradient's own forward pass. Contenders take turns; the median over the rounds is printed with the spread. Every
iteration costs the same, so few of them tell the ratio (the released loop makes at least 201 an image). Random weights:
the time does not depend on them. Needs the `bench` extra; without torch our side alone is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _turns
from dyn_jax import attacks, networks

NETWORK, ALPHA, CONSTANT, RATE = "sdn-resnet56-cifar10", 1.0, 50.0, 0.01


def jax_contenders(images: np.ndarray, steps: int, loop_images: int) -> dict[str, tuple[int, Callable]]:
    """{name: (images, run)}, compiled."""
    nets = {flag: networks.create(NETWORK, winograd=flag) for flag in (False, True)}
    variables = jax.jit(nets[False].init)(jax.random.key(0), images[:1])
    attack = attacks.released.early_attack(alpha=ALPHA, constant=CONSTANT, steps=steps, learning_rate=RATE)

    def run(winograd, variables, x):
        labels = jnp.zeros(x.shape[0], jnp.int32)
        return attack(partial(nets[winograd].apply, variables), x, labels, key=jax.random.key(1)).adversarial

    contenders = {}
    for name, count, repeats, winograd in (
        ("dyn_jax, all at once", len(images), 1, False),
        ("dyn_jax, all at once, winograd", len(images), 1, True),
        ("dyn_jax, one at a time", 1, loop_images, False),
    ):
        compiled = _turns.compiled(name, partial(run, winograd), variables, images[:count])

        def call(compiled=compiled, count=count, repeats=repeats):
            for i in range(repeats):
                jax.block_until_ready(compiled(variables, images[i * count : (i + 1) * count]))

        contenders[name] = (count * repeats, call)
    return contenders


def torch_contenders(torch, images: np.ndarray, steps: int, loop_images: int) -> dict[str, tuple[int, Callable]]:
    """The released loop, with one and with all threads."""
    from benchmarks._torch_sdn import ResNet56SDN, released_loop

    model = ResNet56SDN().eval().requires_grad_(False)
    if torch.cuda.is_available():
        model = model.cuda()
    device = next(model.parameters()).device
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)

    def call(threads: int) -> None:
        torch.set_num_threads(threads)
        for i in range(loop_images):
            released_loop(model, x[i : i + 1], ALPHA, CONSTANT, RATE, steps)

    return {
        f"released loop, one at a time, {n} threads": (loop_images, partial(_turns.synchronised, torch, call, n))
        for n in _turns.thread_counts(torch)
    }


def main() -> None:
    parser = _turns.parser(__doc__, steps=10)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--loop-images", type=int, default=3, help="images that the one-at-a-time loops attack")
    arguments = parser.parse_args()
    images = np.random.default_rng(0).random((arguments.images, 32, 32, 3), np.float32)
    contenders = jax_contenders(images, arguments.steps, arguments.loop_images)
    if torch := _turns.torch_of(arguments):
        contenders |= torch_contenders(torch, images, arguments.steps, arguments.loop_images)
    samples = _turns.in_turns({name: call for name, (_, call) in contenders.items()}, arguments.rounds)
    rates = {name: [contenders[name][0] / wall for wall in _turns.walls(runs)] for name, runs in samples.items()}
    cpu = {name: _turns.medians(runs, 1000 / contenders[name][0])["CPU"] for name, runs in samples.items()}
    # of one image: so many times the forward pass and the gradient to the image
    work = 2 * arguments.steps * _turns.forward_macs(networks.create(NETWORK), images[:1]) / _turns.matrix_peak()
    rows = []
    peer = max((statistics.median(r) for name, r in rates.items() if name.startswith("released")), default=None)
    for name, values in rates.items():
        median = statistics.median(values)
        row = {"contender": name, "images per second": median, "lowest": min(values), "highest": max(values)}
        row |= {"CPU ms per image": cpu[name], _turns.SHARE: work * median}
        if peer is not None:
            row["times the best released loop"] = median / peer
        rows.append(row)
    _turns.keep(rows, arguments)


if __name__ == "__main__":
    main()
