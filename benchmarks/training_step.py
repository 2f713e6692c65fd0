"""A training step of ResNet-32, SkipNet-32 and DynConv-32, batch 128, beside PyTorch's eager ResNet-32, in one run.

    python -m benchmarks.training_step [--batch 128] [--rounds 5] [--output FILE]

Each step is the package's own (the recipe of the network, SGD with momentum), several in one call as `fit` takes them;
the peer is a plain loop of as many. Beside it the gradient to the kernel of one 3x3 layer of each stage, in XLA's own
form and in ours. Contenders take turns; medians over the rounds. Random weights. Needs the `bench` extra; without torch
our side alone is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _turns
from dyn_jax import networks
from dyn_jax.nn import IMAGENET_MEAN_STD
from dyn_jax.nn.kernel_gradient import kernel_gradient
from dyn_jax.training import cifar, loop
from dyn_jax.training.recipe import Progress, Recipe
from dyn_jax.training.runs import State

RECIPES = {
    "resnet-32-cifar10": Recipe(1, 128),
    "skipnet-32-cifar10": cifar.skipnet_recipe(),
    "dynconv-32-cifar10": cifar.dynconv_recipe(),
}
PEER = "PyTorch eager, ResNet-32"
LAYERS = ((16, 32), (32, 16), (64, 8))  # channels, height and width


def steps(images: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], object]]:
    """Our compiled steps, as many together as `fit` takes."""
    contenders = {}
    for name, recipe in RECIPES.items():
        run, init, optimizer = loop._steps(networks.create(name), recipe, 100, ())
        variables = init(jax.random.key(0), images[:1])
        state = State(variables["params"], variables.get("batch_stats", {}), optimizer.init(variables["params"]))
        batches = loop._stacked([(images, labels)])
        others = loop.TOGETHER, jax.random.key(1), np.uint32(0), Progress(jnp.float32(0), jnp.float32(2))
        arguments = state, *batches, *others, recipe.occupancy(0)
        compiled = _turns.compiled(name, run, *arguments)
        contenders[name] = partial(lambda f, a: jax.block_until_ready(f(*a)), compiled, arguments)
    return contenders


def peer(torch, images: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], object]]:
    """PyTorch's step of the static network."""
    from benchmarks._torch_peers import ResNet

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = ResNet(32, *IMAGENET_MEAN_STD).train().to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
    y = torch.from_numpy(labels).to(device)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return {PEER: lambda: [_turns.synchronised(torch, step) for _ in range(loop.TOGETHER)]}


def layers(batch: int) -> dict[str, Callable[[], object]]:
    """The gradient to one kernel, XLA's own and ours."""

    def own(x: jax.Array, g: jax.Array) -> jax.Array:
        conv = lambda kernel: jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.vjp(conv, jnp.zeros((3, 3, x.shape[3], g.shape[3])))[1](g)[0]

    ours = partial(kernel_gradient, size=3, stride=1, padding=1)
    contenders = {}
    for channels, size in LAYERS:
        x, g = (jax.random.normal(jax.random.key(i), (batch, size, size, channels)) for i in range(2))
        for form, function in (("XLA's own", own), ("dyn_jax", ours)):
            name = f"kernel gradient, {channels} channels at {size}x{size}, {form}"
            contenders[name] = partial(lambda f, a: jax.block_until_ready(f(*a)), jax.jit(function), (x, g))
    return contenders


def main() -> None:
    parser = _turns.parser(__doc__, steps=1)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    images, labels = rng.random((arguments.batch, 32, 32, 3), np.float32), rng.integers(0, 10, arguments.batch)
    contenders = steps(images, labels)
    if torch := _turns.torch_of(arguments):
        contenders |= peer(torch, images, labels)
    samples = _turns.in_turns(contenders | layers(arguments.batch), arguments.rounds)
    passes = {name: loop.TOGETHER if name in contenders else 1 for name in samples}
    times = {name: [1000 / passes[name] * wall for wall in _turns.walls(runs)] for name, runs in samples.items()}
    # a forward pass, the gradients to what goes in and to the kernels
    peak = _turns.matrix_peak()
    work = {name: 3 * _turns.forward_macs(networks.create(name), images) / peak for name in RECIPES}
    work[PEER] = work["resnet-32-cifar10"]
    rows = []
    for name, values in times.items():
        row = {"contender": name, "ms": statistics.median(values), "lowest": min(values), "highest": max(values)}
        row["CPU ms"] = _turns.medians(samples[name], 1000 / passes[name])["CPU"]
        if name in work:
            row[_turns.SHARE] = 1000 * work[name] / row["ms"]
        if PEER in times and name in RECIPES:
            row["times PyTorch's step"] = statistics.median(times[PEER]) / row["ms"]
        rows.append(row)
    _turns.keep(rows, arguments)


if __name__ == "__main__":
    main()
