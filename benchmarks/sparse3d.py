"""Sparse 3D convolution on real scans: MinkUNet, a stack of convolutions beside spconv, and growth with the voxels.

    python -m benchmarks.sparse3d --scannet scene0000_00.bin --nuscenes sweep.bin [--output FILE]

CPU seconds (user) are the measure, since the reference numbers were taken on busy machines; wall seconds stand beside
them. Every figure includes the kernel maps. ``--scannet``: float32 rows x y z r g b; ``--nuscenes``: float32 rows of
five. Without spconv (`pip install spconv`) our side alone is measured. spconv runs with one thread: with two its CPU
kernels race and are wrong.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _turns
from dyn_jax import networks, sparse3d
from experiments import _record

CLAIMED = {
    "MinkUNet34C forward": {"MinkowskiEngine 0.5.4": 2.8},
    "MinkUNet34C forward + input gradient": {"MinkowskiEngine 0.5.4": 7.2, "target": 2.5},
    "MinkUNet18A forward": {"MinkowskiEngine 0.5.4": 2.3},
    "MinkUNet18A forward + input gradient": {"MinkowskiEngine 0.5.4": 5.7},
    "stack forward": {"spconv 2.3.8, 1 thread": 0.022},
    "stack forward + backward": {"spconv 2.3.8, 1 thread": 0.055},
}
"""User seconds of the peers, measured once on this kind of machine (MinkowskiEngine: 2 threads, and its backward pass
always computes the weight gradients)."""


def timed(run: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median wall and user seconds of `run` after one call to warm up."""
    samples = _turns.in_turns({"": run}, repeats)[""]
    user = [sample.user for sample in samples]
    wall = statistics.median(_turns.walls(samples))
    return {"wall s": wall, "user s": statistics.median(user), "lowest user s": min(user), "highest user s": max(user)}


def random_variables(net: object) -> dict:
    """Weights from the shapes; their values do not matter to the time."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), net.example_input())
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(0.03 * np.abs(rng.standard_normal(s.shape)), jnp.float32), shapes)


def minkunet(form: str, tensor: sparse3d.SparseTensor, repeats: int) -> list[dict]:
    """Forward, and forward with input gradient, of one network on one scene."""
    net = networks.create(f"minkunet-{form}-scannet")
    variables = random_variables(net)
    capacity = sparse3d.capacity_for(tensor, None, net.levels)

    def scores(variables: dict, features: jax.Array, tensor: sparse3d.SparseTensor) -> jax.Array:
        return net.apply(variables, tensor.replace(features=features), capacity=capacity).logits

    gradient = jax.grad(lambda f, v, t: jnp.sum(jax.nn.log_softmax(scores(v, f, t))[:, 0]))
    rows = []
    for name, function in (
        ("forward", lambda v, t: scores(v, t.features, t)),
        ("forward + input gradient", lambda v, t: gradient(t.features, v, t)),
    ):
        began = time.perf_counter()
        compiled = jax.jit(function).lower(variables, tensor).compile()
        compiling = time.perf_counter() - began
        row = {"what": f"MinkUNet{form.upper()} {name}", "voxels": int(tensor.valid.sum()), "compile s": compiling}
        row |= timed(lambda c=compiled: jax.block_until_ready(c(variables, tensor)), repeats)
        row["temporary MB"] = compiled.memory_analysis().temp_size_in_bytes / 2**20
        row["peak process MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        rows.append(row)
    return rows


def cylinder_voxels(path: str) -> np.ndarray:
    """[n, 4], the voxels of a nuScenes sweep on Cylinder3D's grid of 480 x 360 x 32."""
    points = np.fromfile(path, np.float32).reshape(-1, 5)
    x, y, z = points[:, 0], points[:, 1], points[:, 2]
    polar = np.stack([np.hypot(x, y), np.arctan2(y, x), z], axis=1).astype(np.float64)
    low, high = np.array([0, -3.1415926, -5]), np.array([50, 3.1415926, 3])
    cell = np.floor((np.clip(polar, low, high) - low) / ((high - low) / (np.array([480, 360, 32]) - 1)))
    unique = np.unique(cell.astype(np.int32), axis=0)
    return np.concatenate([np.zeros((len(unique), 1), np.int32), unique], axis=1)


LAYERS, WIDTH = 8, 32
FORMS = ("34c", "18a")
GROWTH = (5_000, 10_000, 20_000, 50_000, 100_000)


def stack_ours(coordinates: np.ndarray, repeats: int) -> list[dict]:
    """Eight submanifold 3x3x3 convolutions and ReLUs, one kernel map."""
    rng = np.random.default_rng(1)
    kernels = jnp.asarray(0.1 * rng.standard_normal((LAYERS, 27, WIDTH, WIDTH)), jnp.float32)
    features = rng.standard_normal((len(coordinates), WIDTH)).astype(np.float32)
    tensor = sparse3d.from_numpy(coordinates, features)

    def forward(features: jax.Array, kernels: jax.Array, tensor: sparse3d.SparseTensor) -> jax.Array:
        sites = tensor.sites()
        pairs = sparse3d.kernel_map(sites, sites, 3)
        for kernel in kernels:
            features = jax.nn.relu(sparse3d.convolve(features, kernel, pairs))
        return features

    both = jax.jit(jax.grad(lambda f, k, t: jnp.sum(forward(f, k, t)), argnums=(0, 1)))
    run = jax.jit(forward)
    arguments = (tensor.features, kernels, tensor)
    rows = []
    for name, function in (("stack forward", run), ("stack forward + backward", both)):
        row = {"what": name, "library": "dyn_jax", "voxels": len(coordinates)}
        rows.append(row | timed(lambda f=function: jax.block_until_ready(f(*arguments)), repeats))
    return rows


def stack_spconv(coordinates: np.ndarray, repeats: int) -> list[dict]:
    """The same in spconv, one thread."""
    try:
        import spconv.pytorch as spconv
        import torch
        from spconv.pytorch import ops
    except ImportError:
        print("spconv is not installed: no peer (pip install spconv)")
        return []
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        ops.get_current_stream = lambda: 0  # its backward pass asks for a CUDA stream on a CPU as well
    layers = []
    for _ in range(LAYERS):
        layers += [spconv.SubMConv3d(WIDTH, WIDTH, 3, bias=False, indice_key="one"), torch.nn.ReLU()]
    net = spconv.SparseSequential(*layers)
    features = torch.randn(len(coordinates), WIDTH, requires_grad=True)
    sites = torch.from_numpy(coordinates.astype(np.int32))
    shape = [480, 360, 32]

    def forward() -> torch.Tensor:
        return net(spconv.SparseConvTensor(features, sites, shape, 1)).features

    def both() -> None:
        features.grad = None
        net.zero_grad()
        result = forward()
        result.backward(torch.ones_like(result))

    def plain() -> None:
        with torch.no_grad():
            forward()

    return [
        {"what": name, "library": "spconv, 1 thread", "voxels": len(coordinates)} | timed(run, repeats)
        for name, run in (("stack forward", plain), ("stack forward + backward", both))
    ]


def growth(scene: np.ndarray, repeats: int) -> list[dict]:
    """MinkUNet14A forward with input gradient on 5,000 to 100,000 voxels: parts of the scene, or copies in a row."""
    whole = np.unique(np.floor(scene[:, :3] / 0.05).astype(np.int64), axis=0)
    rows = []
    for wanted in GROWTH:
        copies = -(-wanted // len(whole))
        tiled = [whole + np.array([400 * i, 0, 0]) for i in range(copies)]
        voxels = np.concatenate(tiled)
        voxels = voxels[np.lexsort(voxels.T[::-1])][:wanted]
        coordinates = np.concatenate([np.zeros((wanted, 1), np.int64), voxels], axis=1)
        features = np.random.default_rng(0).uniform(-0.5, 0.5, (wanted, 3)).astype(np.float32)
        row = minkunet("14a", sparse3d.from_numpy(coordinates, features), repeats)[1]
        row["microseconds per voxel"] = 1e6 * row["user s"] / wanted
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scannet", help="scene, float32 rows x y z r g b")
    parser.add_argument("--nuscenes", help="sweep, float32 rows of five")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", action="store_true", help="5,000 to 100,000 voxels too (minutes)")
    parser.add_argument("--output", default=None)
    arguments = parser.parse_args()
    rows: list[dict] = []
    if arguments.scannet:
        scene = np.fromfile(arguments.scannet, np.float32).reshape(-1, 6)
        cells = np.floor(scene[:, :3] / np.float32(0.05)).astype(np.int32)
        coordinates = np.concatenate([np.zeros((len(cells), 1), np.int32), cells], axis=1)
        tensor = sparse3d.from_numpy(coordinates, scene[:, 3:] / np.float32(255) - np.float32(0.5))
        for form in FORMS:
            rows += minkunet(form, tensor, arguments.repeats)
        if arguments.growth:
            rows += growth(scene, arguments.repeats)
    if arguments.nuscenes:
        coordinates = cylinder_voxels(arguments.nuscenes)
        rows += stack_ours(coordinates, 4 * arguments.repeats)
        rows += stack_spconv(coordinates, 4 * arguments.repeats)
    for row in rows:
        row |= {"claimed user s": CLAIMED.get(row["what"])}
        print(json.dumps(row))
    if arguments.output:
        _record.write(arguments.output, rows, arguments=arguments, seed=0, packages=("torch", "spconv"))


if __name__ == "__main__":
    main()
