"""FGM of a batch under hard gates, with what is off left out: rows of SkipNet-32, positions of DynConv-32.

    python -m benchmarks.compaction --data FOLDER [--batch 128] [--rounds 5] [--output FILE]

Gradients of the cross-entropy to the images, dense and compacted, take turns; those by rows must agree. Rows are
SkipNet's own ``execution="rows"`` (`dyn_jax.nn.rows`). Positions: a convolution of stride 1 gathers the windows of the
positions that are on (the first one of a block: that those read), a chunk at a time, multiplies and writes. Gates are
the network's own, or synthetic: of every block, on where a score is among the batch's highest. The data is CIFAR-10 as
JPEG.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _turns
from dyn_jax import objectives, occupancy
from dyn_jax.datasets import cifar10_packed, to_float
from dyn_jax.gates.spatial import dilate
from dyn_jax.networks import pretrained
from dyn_jax.networks.skipnet import SkipNet
from dyn_jax.nn import execute, layers, rows
from dyn_jax.occupancy.gate import Hard

ROWS = (16, 32, 64)  # of a chunk
NETWORKS = ("skipnet-32-cifar10", "dynconv-32-cifar10")
RATES = (0.25, 0.5, 0.75)
POSITIONS = (1024,)  # of a chunk
TOLERANCE = 1e-6  # of a gradient, times the largest


@flax.struct.dataclass
class Highest(Hard):
    """On where the score is among the `rate` highest of the batch."""

    rate: jax.typing.ArrayLike = 0.5

    def __call__(self, score: jax.Array) -> jax.Array:
        return (score >= jnp.quantile(jax.lax.stop_gradient(score), 1 - self.rate)).astype(score.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gathered(size: int, x: jax.Array, kernel: jax.Array, reads: jax.Array, on: jax.Array) -> jax.Array:
    """A 3x3 convolution of stride 1 at the positions `on` [batch, height, width], 0 elsewhere; its x on `reads`."""
    return _gathered(size, x, kernel, on)


def _gathered(size: int, x: jax.Array, kernel: jax.Array, on: jax.Array) -> jax.Array:
    _, height, width, fan_in = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(-1, fan_in)
    size = min(size, on.size)
    capacity = -(-on.size // size) * size
    order = jnp.nonzero(on.reshape(-1), size=capacity, fill_value=on.size)[0].reshape(-1, size)
    taps = jnp.asarray([(width + 2) * i + j for i in range(3) for j in range(3)])
    weights = kernel.reshape(9 * fan_in, -1)

    def chunk(i: jax.Array, out: jax.Array) -> jax.Array:
        at = order[i]
        image, place = at // (height * width), at % (height * width)
        first = (image * (height + 2) + place // width) * (width + 2) + place % width
        columns = padded.at[first[:, None] + taps[None]].get(mode="clip").reshape(size, -1)
        return out.at[at].set(columns @ weights, mode="drop", unique_indices=True)

    out = jnp.zeros((on.size, kernel.shape[3]), x.dtype)
    out = jax.lax.fori_loop(0, (jnp.sum(on) + size - 1) // size, chunk, out)
    return out.reshape(*on.shape, -1)


def _gathered_fwd(size: int, x: jax.Array, kernel: jax.Array, reads: jax.Array, on: jax.Array) -> tuple:
    return _gathered(size, x, kernel, on), (kernel, reads, on)


def _gathered_bwd(size: int, kept: tuple, g: jax.Array) -> tuple:
    kernel, reads, on = kept
    flipped = jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3)
    return _gathered(size, jnp.where(on[..., None], g, 0), flipped, reads), jnp.zeros_like(kernel), None, None


gathered.defvjp(_gathered_fwd, _gathered_bwd)


def positions(size: int) -> Callable:
    """In place of `execute.unit` of DynConv: the branches of stride 1 at the positions that are on."""

    def unit(skip: bool, network: nn.Module, on: jax.Array, fun: Callable, off: jax.Array, x: jax.Array) -> jax.Array:
        if x.shape[1] != off.shape[1]:
            return fun(x)
        dilated = dilate(on.astype(x.dtype)) > 0
        masks = iter([(dilate(dilated.astype(x.dtype)) > 0, dilated), (dilated, on)])
        instead = lambda x, kernel, *_: gathered(size, x, kernel, *next(masks))
        with mock.patch.object(layers, "conv2d", instead):
            return fun(x)

    return unit


def gradient(net: nn.Module) -> Callable:
    """(gate, variables, images, labels) -> FGM's gradient, and the share of every unit that was on."""

    def total(x: jax.Array, gate: Hard, variables: Any, y: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        output: Any = net.apply(variables, x, occupancy=gate)
        return jnp.sum(objectives.cross_entropy(output, y)), [jnp.mean(unit.on) for unit in output.trace.units]

    return lambda gate, variables, x, y: jax.grad(total, has_aux=True)(x, gate, variables, y)


def compacted(net: nn.Module) -> dict[str, tuple[nn.Module, Any]]:
    """{form: (network, what it is traced under)}, the dense one first."""
    forms: dict[str, tuple[nn.Module, Any]] = {"dense": (net, contextlib.nullcontext())}
    if isinstance(net, SkipNet):
        by_rows, chunk = net.clone(execution="rows"), lambda size: mock.patch.object(rows, "CHUNK", size)
        return forms | {f"rows, {size} a chunk": (by_rows, chunk(size)) for size in ROWS}
    patched = lambda size: mock.patch.object(execute, "unit", positions(size))
    return forms | {f"positions, {size} a chunk": (net, patched(size)) for size in POSITIONS}


def rows_of(
    name: str, gates: dict[str, Any], images: np.ndarray, labels: np.ndarray, rounds: int
) -> list[dict[str, Any]]:
    """Rows of one network: every form under all gates.

    Raises:
      AssertionError: the gradient by rows is another than the dense one. (Positions are summed in another order.)
    """
    net, variables = pretrained(name)
    table, compiled = [], {}
    for kind, gate in gates.items():
        given = (gate, variables, images, labels)
        runs, found = {}, {}
        for form, (network, while_traced) in compacted(net).items():
            if (type(gate), form) not in compiled:
                with while_traced:
                    compiled[type(gate), form] = _turns.compiled(f"{name}, {form}", gradient(network), *given)
            run = partial(compiled[type(gate), form], *given)
            found[form] = jax.device_get(run())
            runs[form] = lambda run=run: jax.block_until_ready(run())
        took = {form: _turns.medians(samples, 1000) for form, samples in _turns.in_turns(runs, rounds).items()}
        wanted, shares = found["dense"]
        for form, ms in took.items():
            off = float(np.max(np.abs(found[form][0] - wanted)) / np.max(np.abs(wanted)))
            assert off <= TOLERANCE or "positions" in form, f"{name}, {kind}, {form}: gradients differ by {off:.1e}"
            row = {"network": name, "gates": kind, "share on": float(np.mean(shares)), "form": form, "ms": ms["wall"]}
            row |= {"lowest": ms["lowest"], "highest": ms["highest"], "CPU ms": ms["CPU"], "difference": off}
            row |= {f"times as fast, {clock}": took["dense"][clock] / ms[clock] for clock in ("wall", "CPU")}
            table.append(row)
    return table


def main() -> None:
    parser = _turns.parser(__doc__ or "", steps=1)
    parser.add_argument("--data", required=True, help="folder of cifar10_jpeg_test.npz")
    parser.add_argument("--batch", type=int, default=128, help="images")
    arguments = parser.parse_args()
    data = cifar10_packed(arguments.data, "test")
    images, labels = to_float(data.images[: arguments.batch]), data.labels[: arguments.batch]
    gates = {"its own": occupancy.hard(), **{f"{rate:.0%} on": Highest(np.float32(rate)) for rate in RATES}}
    table = []
    for name in NETWORKS:
        table += rows_of(name, gates, images, labels, arguments.rounds)
    _turns.keep(table, arguments)


if __name__ == "__main__":
    main()
