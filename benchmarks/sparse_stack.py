"""Eight submanifold 3x3x3 convolutions and ReLUs on the voxels of a LiDAR sweep beside spconv, on one core and on all.

    python -m benchmarks.sparse_stack --nuscenes sweep.bin [--repeats 20] [--output FILE]

spconv runs with one thread, because with two its CPU kernels race and are wrong: a process bound to one core measures
both in turns, thread beside thread, and another one ours on all cores. Every figure includes the kernel map. One call
allocates its temporaries; in a loop, as an attack has it, they stay, and each of its rounds finds the map anew.
``--nuscenes``: float32 rows of five. Without spconv (`pip install spconv`) our side alone is measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _turns
from dyn_jax import sparse3d
from experiments import _record

LAYERS, WIDTH, ROUNDS = 8, 32, 10
CYLINDER = sparse3d.Cylinder(low=(0.0, -3.1415926, -5.0), high=(50.0, 3.1415926, 3.0))  # of nuScenes


def cylinder_voxels(path: str) -> np.ndarray:
    """[n, 4], the voxels of a nuScenes sweep on Cylinder3D's grid."""
    points = np.fromfile(path, np.float32).reshape(-1, 5).astype(np.float64)
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    unique = np.unique(CYLINDER.cell_of(np.stack([np.hypot(x, y), np.arctan2(y, x), z], axis=1)), axis=0)
    return np.concatenate([np.zeros((len(unique), 1), np.int32), unique], axis=1)


def ours(coordinates: np.ndarray) -> dict[tuple[str, str], tuple[Callable[[], object], int]]:
    """{(what, how): (run, passes of one run)}."""
    rng = np.random.default_rng(1)
    kernels = jnp.asarray(0.1 * rng.standard_normal((LAYERS, 27, WIDTH, WIDTH)), jnp.float32)
    tensor = sparse3d.from_numpy(coordinates, rng.standard_normal((len(coordinates), WIDTH)).astype(np.float32))

    def forward(features: jax.Array, kernels: jax.Array, tensor: sparse3d.SparseTensor) -> jax.Array:
        sites = tensor.sites()
        pairs = sparse3d.kernel_map(sites, sites, 3)
        for kernel in kernels:
            features = jax.nn.relu(sparse3d.convolve(features, kernel, pairs))
        return features

    gradient = jax.grad(lambda f, k, t: jnp.sum(forward(f, k, t)), argnums=(0, 1))
    passes = {
        "forward": lambda f, k, t: (forward(f, k, t), jnp.zeros_like(k)),
        "forward + backward": gradient,
    }

    def repeated(one: Callable, features: jax.Array, kernels: jax.Array, tensor: sparse3d.SparseTensor) -> Any:
        def again(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            # never true, but not known before: the map is found in every round
            moved = jnp.where(state[0][0, 0] > 1e30, 1, 0).astype(tensor.coordinates.dtype)
            change = one(*state, tensor.replace(coordinates=tensor.coordinates + moved))
            return jax.tree.map(lambda a, b: a - 1e-6 * b, state, change)

        return jax.lax.fori_loop(0, ROUNDS, again, (features, kernels))

    runs = {}
    for name, one in passes.items():
        for how, function, count in (("one call", one, 1), ("in a loop", partial(repeated, one), ROUNDS)):
            compiled = jax.jit(function)
            run = lambda f=compiled: jax.block_until_ready(f(tensor.features, kernels, tensor))
            runs[name, f"dyn_jax, {how}"] = run, count
    return runs


def peer(coordinates: np.ndarray) -> dict[tuple[str, str], tuple[Callable[[], object], int]]:
    """The same in spconv, one thread."""
    try:
        import spconv.pytorch as spconv
        import torch
        from spconv.pytorch import ops
    except ImportError:
        print("spconv is not installed: no peer (pip install spconv)")
        return {}
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        ops.get_current_stream = lambda: 0  # its backward pass asks for a CUDA stream on a CPU as well
    layers = []
    for _ in range(LAYERS):
        layers += [spconv.SubMConv3d(WIDTH, WIDTH, 3, bias=False, indice_key="one"), torch.nn.ReLU()]
    net = spconv.SparseSequential(*layers)
    features = torch.randn(len(coordinates), WIDTH, requires_grad=True)
    sites = torch.from_numpy(coordinates.astype(np.int32))

    def forward() -> torch.Tensor:
        return net(spconv.SparseConvTensor(features, sites, list(CYLINDER.grid), 1)).features

    def both() -> None:
        features.grad = None
        net.zero_grad()
        result = forward()
        result.backward(torch.ones_like(result))

    def plain() -> None:
        with torch.no_grad():
            forward()

    return {("forward", "spconv, 1 thread"): (plain, 1), ("forward + backward", "spconv, 1 thread"): (both, 1)}


def measured(path: str, repeats: int, cores: int) -> list[dict[str, Any]]:
    """The rows of a process that is bound to so many cores; the peer takes part where there is one."""
    coordinates = cylinder_voxels(path)
    contenders = ours(coordinates) | (peer(coordinates) if cores == 1 else {})
    samples = _turns.in_turns({name: run for name, (run, _) in contenders.items()}, repeats)  # type: ignore[misc]
    rows = []
    for (what, library), runs in samples.items():
        passes = contenders[what, library][1]
        row = {"what": what, "library": library, "cores": cores, "voxels": len(coordinates)}
        row |= {"wall s": statistics.median(_turns.walls(runs)) / passes}
        user = [run.user / passes for run in runs]
        rows.append(row | {"user s": statistics.median(user), "lowest user s": min(user), "highest user s": max(user)})
    for row in rows:
        beside = [r for r in rows if r["what"] == row["what"] and r["library"].startswith("spconv")]
        if beside and beside[0] is not row:
            row |= {f"times spconv, {kind}": beside[0][f"{kind} s"] / row[f"{kind} s"] for kind in ("wall", "user")}
    return rows


def bound(cores: set[int]) -> None:
    """Binds this process to these cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def apart(cores: set[int], path: str, repeats: int) -> list[dict[str, Any]]:
    """`measured` in a process of its own: jax takes its threads when it starts."""
    with multiprocessing.get_context("spawn").Pool(1, bound, (cores,)) as pool:
        return pool.apply(measured, (path, repeats, len(cores)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nuscenes", required=True, help="sweep, float32 rows of five")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", default=None)
    arguments = parser.parse_args()
    there = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    rows: list[dict[str, Any]] = []
    for cores in ({min(there)}, there)[: 1 + (len(there) > 1)]:
        rows += apart(cores, arguments.nuscenes, arguments.repeats)
    print(*map(json.dumps, rows), sep="\n")
    if arguments.output:
        _record.write(arguments.output, rows, arguments=arguments, seed=0, packages=("torch", "spconv"))


if __name__ == "__main__":
    main()
